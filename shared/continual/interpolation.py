"""Going only part of the way that some steps went (Reptile; Nichol, Achiam & Schulman, arXiv 1803.02999, 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["interpolate"]


@torch.no_grad()
def interpolate(weights: Sequence[Tensor], start: Sequence[Tensor], beta: float) -> None:
    """Set ``weights <- start + beta (weights - start)``, in place: all views of the weights stay valid."""
    torch._foreach_lerp_(list(weights), list(start), 1.0 - beta)
