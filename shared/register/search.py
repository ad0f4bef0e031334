"""From a pair to its transform: start, network, optimisation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..optimise import Guides, OptimiseSettings, optimise
from ..quality_check import mutual_information, sample_pair
from ..transform_io import Affine, Displacement, Transform
from .inputs import Pair
from .start import GivenField, NetworkField, Start, find_start, network_displacement

__all__ = ["Found", "search"]


@dataclass(eq=False)
class Found:
    """A registration.

    Attributes:
        transform: fixed to moving world: one displacement, then one affine.
        start: the map that the pair began with, an affine.
        messages: decisions in words.
        kept_start: True where an optimisation was thrown away because it ended worse than it began.
        seconds: wall time of each part.
    """

    transform: Transform
    start: Affine
    messages: list[str] = field(default_factory=list)
    kept_start: bool = False
    seconds: dict[str, float] = field(default_factory=dict)


def search(
    pair: Pair,
    init: str | Path,
    settings: OptimiseSettings,
    guide: frozenset[str],
    network: NetworkField | GivenField | None,
    device: torch.device | str,
    say: Callable[[str], None],
    progress: bool,
) -> Found:
    """Find the transform.

    Args:
        pair: files, read.
        init: see :func:`shared.register.start.find_start`.
        settings: of the optimisation; ``iterations`` 0 leaves it out.
        guide: which of "labels" and "points" pull at the optimisation.
        network: gives a field to start from, or has given it.
        device: to work on.
        say: takes messages.
        progress: show the optimisation's bar.
    """
    began = time.monotonic()
    off = settings.iterations == 0
    alone = replace(settings, iterations=0, discrete="never", motion="between")
    start = find_start(pair, init, alone, device, fit=off or network is not None)
    note = start.note if start is not None else ""
    matrix = start.matrix if start is not None else np.eye(len(pair.fixed.grid.shape) + 1)
    messages = [f"start: {note}"] if note else []
    for message in messages:
        say(message)
    given = start.field if start is not None else None
    if start is not None:
        _check_masks(pair, matrix, given)
    if network is not None:
        given, message = _with_network(network, pair, Start(matrix, given, note), settings, device)
        say(message)
        messages.append(message)
    seconds = {"start": round(time.monotonic() - began, 2)}
    if off:
        return _without_optimisation(pair, matrix, given, messages, seconds)
    if start is not None:
        settings = replace(settings, alignment="identity")
    if settings.time_limit is not None:
        # One limit for all: what the start and the network took is gone.
        settings = replace(settings, time_limit=max(0.0, settings.time_limit - (time.monotonic() - began)))
    guides = _guides(pair, guide, device, given)
    images = (pair.fixed.image.to(device), pair.moving.image.to(device))
    grids = (pair.fixed.grid, pair.moving.placed(matrix).grid)
    result = optimise(*images, *grids, settings=settings, guides=guides, progress=progress)
    if start is None:
        _check_masks(pair, result.alignment.matrix)
    # Where the start was found here, that the optimisation kept it says nothing.
    kept = [m for m in result.messages if start is None or not m.startswith("alignment:")]
    if result.stopped == "time limit":
        kept.append("stopped by the time limit")
    for message in kept:
        say(message)
    whole = Affine(matrix @ result.alignment.matrix)
    parts = (Displacement(result.level_grid, result.deformation.float().cpu()), whole)
    seconds |= {name: round(value, 2) for name, value in result.seconds.items()}
    levels = [str(level) for level in result.levels]
    return Found(Transform(parts), whole, [*messages, *kept, *levels], result.kept_start, seconds)


def _check_masks(pair: Pair, matrix: np.ndarray, field: Transform | None = None) -> None:
    """Raise InputError where the images overlap as they start, but nothing of that lies in the masks.

    Args:
        pair: files, read.
        matrix: alignment, fixed to moving world.
        field: that comes before it, or None.
    """
    if pair.fixed.mask is None and pair.moving.mask is None:
        return
    affine = Transform((Affine(matrix),))
    start = (Transform.chain([field, affine]) if field is not None else affine,)
    masked = sample_pair(pair.fixed, pair.moving, start)[0]
    whole = sample_pair(replace(pair.fixed, mask=None), replace(pair.moving, mask=None), start)[0]
    if len(whole) > 0 and len(masked) == 0:
        raise InputError(
            f"{pair.fixed.name}, {pair.moving.name}: the masks leave nothing in common where the images overlap, "
            "expected masks of the same part in both"
        )


def _without_optimisation(
    pair: Pair, matrix: np.ndarray, given: Transform | None, messages: list[str], seconds: dict[str, float]
) -> Found:
    d = len(pair.fixed.grid.shape)
    if given is not None and len(given.parts) == 1 and isinstance(given.parts[0], Displacement):
        field = given.parts[0]
    elif given is not None:
        field = given.displacement(pair.fixed.grid)
    else:
        field = Displacement(pair.fixed.grid, torch.zeros(1, d, *pair.fixed.grid.shape))
    return Found(Transform((field, Affine(matrix))), Affine(matrix), messages, False, seconds)


def _with_network(
    network: NetworkField | GivenField, pair: Pair, start: Start, settings: OptimiseSettings, device: torch.device | str
) -> tuple[Transform | None, str]:
    """Return the network's field, or what there was where the pair is less alike with it; and a message."""
    modality = settings.fixed_modality if settings.fixed_modality == settings.moving_modality else "auto"
    known = network.field if isinstance(network, GivenField) else None
    field = Transform((known or network_displacement(network, pair, start.matrix, modality, device),))
    affine = Transform((Affine(start.matrix),))
    before = Transform.chain([start.field, affine]) if start.field is not None else affine
    fixed, values, (seen_before, seen) = sample_pair(
        pair.fixed, pair.moving, (before, Transform.chain([field, affine]))
    )
    old, new = (mutual_information(fixed, value) for value in values)
    numbers = f"normalised mutual information {old:.4f} -> {new:.4f}"
    # Nothing to compare, where the start sees none of the moving image, is no reason to leave it out.
    if new < old or seen < 0.5 * seen_before:
        return start.field, f"{network.name}: left out, its field makes the pair less alike ({numbers})"
    return field, f"{network.name}: {numbers}"


def _guides(pair: Pair, guide: frozenset[str], device: torch.device | str, given: Transform | None) -> Guides:
    """Return what the optimisation is given beside the images, points in voxels of the image they belong to."""
    fixed, moving = pair.fixed, pair.moving
    start = given.ddf(fixed.grid, fixed.grid).to(device) if given is not None else None
    masks = [side.mask.to(device) if side.mask is not None else None for side in (fixed, moving)]
    labels: list[Tensor | None] = [None, None]
    if "labels" in guide:
        labels = [
            torch.from_numpy(side.label.astype(np.int64))[None, None].to(device) if side.label is not None else None
            for side in (fixed, moving)
        ]
    points: list[Tensor | None] = [None, None]
    if "points" in guide:
        points = [
            side.grid.to_voxels(side.world).float().to(device) if side.world is not None else None
            for side in (fixed, moving)
        ]
    return Guides(masks[0], masks[1], labels[0], labels[1], points[0], points[1], start)
