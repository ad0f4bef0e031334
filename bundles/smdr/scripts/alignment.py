"""Parallel gradient alignment: objectives that are low where the gradients of two batches agree.

Xu, Wang, Zhang and Heng, arXiv 2406.18037 (2024), replace products of gradients by dual meta-objectives through a first
order Taylor expansion; the formulas here are derived from that, the paper's own were not at hand. With a step ``a``

    L2(t - a grad L1(t)) = L2(t) - a <grad L1(t), grad L2(t)> + O(a^2)

so that minimising the left side lowers L2 and raises the product: a step for L1 lowers L2 as well. Everywhere here
``loss(network, batch)`` is a scalar, and ``network`` the module or a function that runs it with other weights: losses
call what they are handed and touch no weight themselves.

Only parameters that require a gradient are stepped. Buffers are not weights: every pass, also one with stepped weights,
updates the running statistics of the module itself, each batch as often as it passes through (BatchNorm; norms of
single images have none). Networks are plain modules: neither TorchScript, nor wrapped for several processes, where the
caller averages the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["ParallelAlignment", "gradient_product", "meta_objective", "mixed_halves"]

Batch = Any
Network = Callable[..., Any]
Loss = Callable[[Network, Batch], Tensor]


def _weights(network: nn.Module) -> dict[str, nn.Parameter]:
    weights = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("found a network without a parameter that requires a gradient, expected at least one")
    return weights


def meta_objective(
    loss: Loss, network: nn.Module, first: Batch, second: Batch, step: float, second_order: bool = True
) -> tuple[Tensor, Tensor]:
    """Return ``L1(t)`` and ``L2(t - a grad L1(t))``, both differentiable with respect to the weights ``t``.

    The gradient of their sum is, with H1 the Hessian of L1 and ``s = t - a grad L1(t)``,

        second order: grad L1(t) + (I - a H1) grad L2(s)
        first order:  grad L1(t) + grad L2(s)

    The first order treats the step as a constant: of the product's gradient it keeps the half with the Hessian of L2.

    At first order the first value carries the gradient that the step was made with instead of a graph, so that
    ``backward`` does not send the first batch through the network again: it must not be differentiated twice. At second
    order the Hessian-vector product goes through that graph anyway, and the gradient of L1 comes along with it.

    Args:
        loss: from network and batch to a scalar.
        network: its weights are ``t``; they stay as they are.
        first: batch of L1.
        second: batch of L2.
        step: ``a``, at least 0; with 0 nothing is stepped.
        second_order: differentiate through the step, by a Hessian-vector product in the backward pass.

    Raises:
        ValueError: a negative step, or a network with no parameter to learn.
    """
    if step < 0:
        raise ValueError(f"found step {step}, expected at least 0")
    weights = _weights(network)
    first_loss = loss(network, first)
    if step == 0:
        return first_loss, loss(network, second)
    # A weight that this loss does not depend on has no gradient and stays where it is.
    gradients = torch.autograd.grad(first_loss, list(weights.values()), create_graph=second_order, allow_unused=True)
    stepped = {name: p if g is None else p - step * g for (name, p), g in zip(weights.items(), gradients, strict=True)}

    def run(*inputs: Any, **options: Any) -> Any:
        return functional_call(network, stepped, inputs, options)

    if not second_order:
        first_loss = _with_gradient(first_loss, list(weights.values()), gradients)
    return first_loss, loss(run, second)


def _with_gradient(value: Tensor, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return a scalar equal to ``value`` whose gradient is the given one, found already; None is no gradient."""
    found = [((p - p.detach()) * g).sum() for p, g in zip(weights, gradients, strict=True) if g is not None]
    return sum(found, value.detach())


def gradient_product(loss: Loss, network: nn.Module, first: Batch, second: Batch) -> tuple[Tensor, Tensor]:
    """Return ``<grad L1, grad L2>`` at the weights, and its cosine: what the objectives raise, for logs and tests.

    Raises:
        ValueError: a network with no parameter to learn.
    """
    weights = list(_weights(network).values())
    a, b = (torch.autograd.grad(loss(network, batch), weights, allow_unused=True) for batch in (first, second))
    # torch.stack of scalars: nothing waits for the device. An unused weight has the gradient zero.
    zero = weights[0].new_zeros(())
    product = torch.stack(
        [zero, *((x * y).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None)]
    )
    squares = [torch.stack([zero, *(x.square().sum() for x in g if x is not None)]).sum() for g in (a, b)]
    scale = (squares[0] * squares[1]).sqrt().clamp_min(torch.finfo(zero.dtype).tiny)
    return product.sum(), product.sum() / scale


def _size(batch: Batch) -> int:
    if isinstance(batch, Mapping):
        return _size(next(iter(batch.values())))
    return _size(batch[0]) if isinstance(batch, tuple) else len(batch)


def _take(batch: Batch, index: Tensor) -> Batch:
    if isinstance(batch, Mapping):
        return {key: _take(value, index) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_take(part, index) for part in batch)
    return batch[index] if isinstance(batch, Tensor) else [batch[int(i)] for i in index]


def _join(first: Batch, second: Batch) -> Batch:
    if isinstance(first, Mapping):
        return {key: _join(value, second[key]) for key, value in first.items()}
    if isinstance(first, tuple):
        return tuple(_join(a, b) for a, b in zip(first, second, strict=True))
    return torch.cat([first, second]) if isinstance(first, Tensor) else [*first, *second]


def mixed_halves(current: Batch, replay: Batch | None, generator: torch.Generator | None = None) -> tuple[Batch, Batch]:
    """Split the pool of two batches at random into halves that each hold half of either.

    A batch is a tensor (B, ...), a list of B samples, or a mapping or tuple of such. Of an odd batch the last sample
    falls to either half; where both are odd, to different ones.

    Args:
        current: batch of the current site.
        replay: batch of the earlier sites; None splits ``current`` alone.
        generator: draws the split, on the CPU.

    Raises:
        ValueError: fewer than two samples.
    """
    extra = int(torch.randint(2, (1,), generator=generator))
    halves: list[Batch] = []
    for batch in (current,) if replay is None else (current, replay):
        order = torch.randperm(_size(batch), generator=generator)
        count = (len(order) + extra) // 2
        parts = [_take(batch, order[:count]), _take(batch, order[count:])]
        halves = [_join(a, b) for a, b in zip(halves, parts, strict=True)] if halves else parts
        extra = 1 - extra
    if min(_size(half) for half in halves) == 0:
        raise ValueError("found a single sample, expected at least two to split")
    return halves[0], halves[1]


class ParallelAlignment:
    """The objective ``J_O + lambda J_A`` of a batch of the current site and one of the earlier sites.

    Orientational, for memory: ``J_O = Lc(t) + Lp(t - a grad Lc(t))``, a step for the current site is to lower
    the loss on the earlier ones. Arbitrary, for unseen sites: ``J_A = LA(t) + LB(t - a grad LA(t))``, A and B random
    halves of the pool, drawn anew at every call. Both start from the same weights. Without replay (the first site)
    ``J_O`` is ``Lc``, and A and B are halves of the current batch.

    Args:
        step: the inner step ``a``; 0 leaves plain sums of losses, replay without alignment.
        orientational: weight of ``J_O``; 0 leaves it out.
        arbitrary: weight ``lambda`` of ``J_A``; 0 leaves it out.
        second_order_orientational: exact gradient of ``J_O``. Its roles are fixed, so that the first order keeps only
            one of the two Hessian terms.
        second_order_arbitrary: exact gradient of ``J_A``. Its roles are drawn at random, so that the first order is
            in expectation half of the product's gradient.

    Raises:
        ValueError: a negative step or weight, or both weights 0.
    """

    def __init__(
        self,
        step: float = 5e-4,
        orientational: float = 1.0,
        arbitrary: float = 1.0,
        second_order_orientational: bool = True,
        second_order_arbitrary: bool = False,
    ) -> None:
        if min(step, orientational, arbitrary) < 0 or orientational + arbitrary == 0:
            raise ValueError(
                f"found step {step}, orientational {orientational}, arbitrary {arbitrary}, expected none below 0 and "
                "one of the weights above"
            )
        self.step, self.orientational, self.arbitrary = step, orientational, arbitrary
        self.second_order_orientational = second_order_orientational
        self.second_order_arbitrary = second_order_arbitrary

    def __repr__(self) -> str:
        return (
            f"ParallelAlignment(step={self.step}, orientational={self.orientational}, arbitrary={self.arbitrary}, "
            f"second_order_orientational={self.second_order_orientational}, "
            f"second_order_arbitrary={self.second_order_arbitrary})"
        )

    def __call__(
        self,
        loss: Loss,
        network: nn.Module,
        current: Batch,
        replay: Batch | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the objective, to call ``backward`` on, and its parts for the log.

        Args:
            loss: from network and batch to a scalar.
            network: a plain module, see the head of this file.
            current: batch of the current site, see :func:`mixed_halves` for its form.
            replay: batch of the earlier sites, of the same form; None at the first site.
            generator: draws the halves, on the CPU.

        Returns:
            a scalar, and detached: ``current``, ``replay`` (after the step), ``first`` and ``second`` half (after the
            step), as far as they were computed.
        """
        parts: dict[str, Tensor] = {}
        total: Tensor | None = None
        if self.orientational and replay is None:
            parts["current"] = loss(network, current)
            total = self.orientational * parts["current"]
        elif self.orientational:
            pair = meta_objective(loss, network, current, replay, self.step, self.second_order_orientational)
            parts["current"], parts["replay"] = pair
            total = self.orientational * (pair[0] + pair[1])
        if self.arbitrary:
            halves = mixed_halves(current, replay, generator)
            pair = meta_objective(loss, network, *halves, self.step, self.second_order_arbitrary)
            parts["first"], parts["second"] = pair
            aligned = self.arbitrary * (pair[0] + pair[1])
            total = aligned if total is None else total + aligned
        assert total is not None  # one of the weights is above zero
        return total, {name: value.detach() for name, value in parts.items()}
