"""The worst nearby point of a loss: where sharpness-aware minimisation climbs to, and how much the loss rises there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["loss_rise", "worst_perturbation"]


@torch.no_grad()
def worst_perturbation(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, adaptive: bool = True
) -> list[Tensor]:
    """Return the step that raises the loss most, to first order, within a radius.

    Plain: ``e = rho g / ||g||`` (Foret et al., "Sharpness-aware minimization", ICLR 2021, eq. 2). Adaptive:
    ``e = rho w^2 g / || |w| g ||`` (Kwon et al., "ASAM", ICML 2021, eq. 4), elementwise squares, one global norm: the
    same loss with rescaled weights has the same worst point. Nothing waits for the device.
    """
    ascent = list(gradients)
    if adaptive:
        size = torch._foreach_abs(list(weights))
        ascent = list(torch._foreach_mul(size, ascent))
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(ascent)))
    if adaptive:
        ascent = list(torch._foreach_mul(ascent, size))
    scale = rho / (norm + 1e-12)
    return list(torch._foreach_mul(ascent, scale))


def loss_rise(weights: Sequence[Tensor], closure: Callable[[], Tensor], rho: float = 0.5) -> float:
    """Return ``loss(w + e) - loss(w)`` at the adaptive worst perturbation ``e`` of radius ``rho``: how sharp w lies.

    The same for all networks that differ only by rescaled weights (Kwon et al., ICML 2021). The weights come back bit
    for bit; their ``grad`` is not touched.

    Args:
        weights: that may move; they require gradients.
        closure: returns the loss at the current weights, as a scalar with its graph.
        rho: radius.
    """
    with torch.enable_grad():
        loss = closure()
        found = torch.autograd.grad(loss, list(weights), allow_unused=True)
    moved = [(w, g) for w, g in zip(weights, found, strict=True) if g is not None]
    before = [w.detach().clone() for w, _ in moved]
    with torch.no_grad():
        try:
            step = worst_perturbation([w for w, _ in moved], [g for _, g in moved], rho)
            torch._foreach_add_([w for w, _ in moved], step)
            risen = closure()
        finally:
            torch._foreach_copy_([w for w, _ in moved], before)
    return float(risen - loss.detach())
