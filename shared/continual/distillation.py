"""A frozen copy of a network that a later one is held to (Li & Hoiem, "Learning without forgetting", ECCV 2016)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["frozen_copy"]


def frozen_copy(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of ``network`` with ``weights`` (a state dict), in evaluation mode and without gradients."""
    teacher = copy.deepcopy(network)
    teacher.load_state_dict(weights)
    return teacher.requires_grad_(False).eval()
