"""One level: greedy compositive descent of a displacement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..fields import compose
from ..smoothing import gaussian_smooth
from .forces import Similarity
from .terms import LandmarkPull

__all__ = ["Stiffness", "Trace", "descend"]

MOMENTUM = 0.9
CHECK_EVERY = 10
# Share of the first step that the last one is shorter by.
FALL = 0.75
# A gradient counts as rounding where one voxel alone would change the mean loss by less than this a voxel.
ROUNDING = 1e-5
# Less improvement of the loss than this share between two checks ends a level.
STALLED = 5e-4


@dataclass(frozen=True)
class Stiffness:
    """How a level's displacement moves: all in voxels of the level.

    Attributes:
        step: length of a step where all gradients agree, at the start; it falls to a quarter.
        update: sigma of the Gaussian over the gradient (fluid).
        field: sigma of the Gaussian over the displacement after each step (elastic).
    """

    step: float
    update: float
    field: float


@dataclass
class Trace:
    """What a level did."""

    iterations: int = 0
    first: float = float("nan")
    last: float = float("nan")
    stopped: str = "iterations"


def descend(
    similarity: Similarity,
    ddf: Tensor,
    iterations: int,
    stiffness: Stiffness,
    *,
    terms: Sequence[tuple[float, Similarity]] = (),
    pull: tuple[float, LandmarkPull] | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Tensor, Trace]:
    """Improve ``ddf`` (1, d, *S) step by step: ``ddf <- G * (v + ddf(x + v))``.

    The step ``v`` is the smoothed gradient, averaged over iterations, over the root mean square of the gradient in
    the same window: 1 where the gradients of a neighbourhood agree, small where they are noise. So flat regions,
    where every gradient is noise, hardly move, and the step needs no scale. The device is asked for numbers once in
    `CHECK_EVERY` iterations.

    Args:
        similarity: of the images.
        ddf: start, in voxels of the level; not changed.
        iterations: at most so many.
        stiffness: of the level.
        terms: more losses, each with its weight beside the similarity's 1.
        pull: landmarks, with the share of the way that they are moved in one iteration, at most one voxel.
        out_of_time: asked before each iteration.
        tick: called after each iteration.
    """
    mean, power = torch.zeros_like(ddf), torch.zeros_like(ddf[:, :1])
    values: list[Tensor] = []
    trace = Trace()
    recent = float("inf")
    for k in range(iterations):
        if out_of_time():
            trace.stopped = "time limit"
            break
        value, gradient = similarity(ddf)
        for weight, term in terms:
            more, slope = term(ddf)
            value, gradient = value + weight * more, gradient.add_(slope, alpha=weight)
        values.append(value)
        step = _direction(gradient, mean, power, k, stiffness.update)
        step = (step * (-stiffness.step * (1.0 - FALL * k / iterations))).clamp_(-1.0, 1.0)
        if pull is not None:
            step = step + (pull[0] * pull[1](ddf)).clamp_(-1.0, 1.0)
        ddf = gaussian_smooth(compose(ddf, step), stiffness.field)
        tick()
        if (k + 1) % CHECK_EVERY == 0 and k + 1 < iterations:
            last, recent = recent, float(torch.stack(values[-CHECK_EVERY:]).mean())
            if last - recent < STALLED * abs(recent):
                trace.stopped = "converged"
                break
    trace.iterations = len(values)
    if values:
        trace.first, trace.last = (float(v) for v in torch.stack([values[0], values[-1]]))
    return ddf, trace


def _direction(gradient: Tensor, mean: Tensor, power: Tensor, k: int, sigma: float) -> Tensor:
    """Return the direction of steepest ascent, (1, d, *S) of length up to 1; updates both moments."""
    d = gradient.shape[1]
    square = gradient.square().sum(dim=1, keepdim=True)
    smooth = gaussian_smooth(torch.cat([gradient, square], dim=1), sigma)
    mean.mul_(MOMENTUM).add_(smooth[:, :d], alpha=1.0 - MOMENTUM)
    power.mul_(MOMENTUM).add_(smooth[:, d:], alpha=1.0 - MOMENTUM)
    # Both moments start from zero and grow alike, up to the root.
    scale = (1.0 - MOMENTUM ** (k + 1)) ** -0.5
    floor = ROUNDING / power.numel()
    return mean * (scale / (power.sqrt() + floor))
