"""Holding weights to an anchor, each by its importance: the common part of EWC and SI.

Lists run over the same weights in the same order: ``weights``, their ``anchor`` (values to stay near to) and their
``importance`` (not negative).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["accumulate", "add_penalty_gradient", "add_to_path", "path_importance", "quadratic_penalty"]

Tensors = Sequence[Tensor]


@torch.no_grad()
def quadratic_penalty(weights: Tensors, anchor: Tensors, importance: Tensors) -> Tensor:
    """Return ``1/2 sum importance (w - anchor)^2``, a scalar (Kirkpatrick et al., PNAS 2017, eq. 3)."""
    distance = torch._foreach_sub(list(weights), list(anchor))
    torch._foreach_mul_(distance, distance)
    torch._foreach_mul_(distance, list(importance))
    return torch.stack([d.sum() for d in distance]).sum() / 2


@torch.no_grad()
def add_penalty_gradient(weights: Tensors, anchor: Tensors, importance: Tensors, strength: float) -> None:
    """Add ``strength importance (w - anchor)``, the gradient of the penalty, to each weight's ``grad``."""
    pull = torch._foreach_sub(list(weights), list(anchor))
    torch._foreach_mul_(pull, list(importance))
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    torch._foreach_add_([w.grad for w in weights if w.grad is not None], pull, alpha=strength)


@torch.no_grad()
def accumulate(old: Tensors, new: Tensors, decay: float) -> list[Tensor]:
    """Return ``decay old + new``: online EWC's importance of all tasks so far (Schwarz et al., ICML 2018)."""
    if not old:
        return list(new)
    return list(torch._foreach_add(list(new), list(old), alpha=decay))


@torch.no_grad()
def add_to_path(path: Tensors, gradients: Tensors, before: Tensors, after: Tensors) -> None:
    """Add one update's ``-gradient (after - before)`` to the path integral, in place (Zenke et al., ICML 2017, eq. 3).

    Summed over all weights and small updates, the path integral is the loss's decrease.
    """
    update = torch._foreach_sub(list(after), list(before))
    torch._foreach_mul_(update, list(gradients))
    torch._foreach_sub_(list(path), update)


@torch.no_grad()
def path_importance(path: Tensors, start: Tensors, end: Tensors, damping: float) -> list[Tensor]:
    """Return ``max(path, 0) / ((end - start)^2 + damping)`` (Zenke et al., ICML 2017, eq. 5).

    A negative path, a weight that raised the loss on balance, would be a penalty that rewards distance: it is cut off.
    """
    distance = torch._foreach_sub(list(end), list(start))
    torch._foreach_mul_(distance, distance)
    torch._foreach_add_(distance, damping)
    return list(torch._foreach_div([p.clamp_min(0) for p in path], distance))
