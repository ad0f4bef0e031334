"""Sharpness-aware minimisation around any torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shared.continual import worst_perturbation
from shared.errors import check_bools

__all__ = ["SAM"]


class SAM:
    """Take the gradient at the worst nearby point, and step with it from where the weights are.

    Foret et al., "Sharpness-aware minimization", ICLR 2021; adaptive: Kwon et al., "ASAM", ICML 2021. The formulas are
    at :func:`~shared.continual.worst_perturbation`.
    With ``rho`` 0 there is one pass and the optimizer's own step. Nothing in a step waits for the device.

    Args:
        optimizer: its moments see the second gradient only.
        rho: radius of the neighbourhood.
        adaptive: scale the neighbourhood by the weights.

    Raises:
        ValueError: a negative ``rho``, or an ``adaptive`` that is neither True nor False.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, adaptive: bool = True) -> None:
        check_bools(adaptive=adaptive)
        if rho < 0:
            raise ValueError(f"found rho {rho}, expected at least 0")
        self.optimizer, self.rho, self.adaptive = optimizer, rho, adaptive

    @torch.no_grad()
    def climb(self) -> list[tuple[Tensor, Tensor]]:
        """Move the weights to the worst nearby point; return (weight, its value before) for :meth:`descend`."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return []
        gradients = [p.grad for p in parameters if p.grad is not None]
        before = [p.detach().clone() for p in parameters]
        torch._foreach_add_(parameters, worst_perturbation(parameters, gradients, self.rho, self.adaptive))
        return list(zip(parameters, before, strict=True))

    @torch.no_grad()
    def descend(self, saved: list[tuple[Tensor, Tensor]]) -> None:
        """Put the weights back, bit for bit, and let the optimizer step with the gradient of the climbed point."""
        if saved:
            torch._foreach_copy_([p for p, _ in saved], [value for _, value in saved])
        self.optimizer.step()

    def step(self, closure: Callable[[], Any]) -> Any:
        """Do one whole step.

        Args:
            closure: zeroes the gradients, computes the loss, calls ``backward``, returns anything.

        Returns:
            what ``closure`` returned at the weights before the step.
        """
        with torch.enable_grad():
            result = closure()
        if self.rho == 0:
            self.optimizer.step()
            return result
        saved = self.climb()
        with torch.enable_grad():
            closure()
        self.descend(saved)
        return result

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer: the climb itself leaves none."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`; ``rho`` and ``adaptive`` stay as constructed."""
        self.optimizer.load_state_dict(state)
