"""Which levels a pair is given, how stiff they are, and whether they fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import InputError
from ..free_memory import free_bytes
from ..transform_io import Grid
from .descent import Stiffness
from .lattice import coarser
from .settings import OptimiseSettings

__all__ = ["Stage", "fit_to_memory", "plan", "stiffen"]

# Voxel length of the finest level, where the image's own are small enough,
FINEST_MM = 2.0
# and the extent of the fixed image over this: 1.6 mm for a head. What two modalities share is not that fine.
FINEST_SHARE = 110
FINEST_SHARE_ACROSS = 64
MOST_VOXELS = 2_000_000
# Voxels that the coarsest level leaves along the larger axes of the smaller field of view, at least.
FEWEST_VOXELS = 16
MOST_LEVELS = 4
# Numbers of four bytes that one voxel of a level needs at the peak (measured), and one voxel of the fixed image.
PER_VOXEL = {"lncc": 60, "mind": 110, "mi": 200}
PER_FIXED_VOXEL = 14
# Numbers that each label adds to a voxel of a level: maps of both images and what the overlap makes of them (measured,
# the surroundings of the fixed field of view included).
PER_LABEL = 18


@dataclass(frozen=True)
class Stage:
    """One level: voxel length, similarity, most iterations and stiffness."""

    spacing_mm: float
    similarity: str
    iterations: int
    stiffness: Stiffness


def plan(fixed: Grid, moving: Grid, settings: OptimiseSettings, multimodal: bool) -> list[Stage]:
    """Lay out the stages from coarse to fine.

    The finest level has voxels of 2 mm (less for small fields of view, more where it would exceed two million voxels,
    never less than the image's own); each level above is twice as coarse, while the smaller field of view keeps 16
    voxels. The coarse levels compare self-similarity contexts, which large motion and other contrasts do not mislead;
    within one modality the last two lengths go on with local correlation, which is more precise.

    Args:
        fixed: lattice of the fixed image.
        moving: lattice of the moving image.
        settings: options that override the above.
        multimodal: whether the modalities differ.
    """
    lengths = list(settings.levels_mm) if settings.levels_mm is not None else _lengths(fixed, moving, multimodal)
    fine = settings.similarity if settings.similarity != "auto" else ("mind" if multimodal else "lncc")
    count = len(lengths)
    stages = []
    for index, length in enumerate(lengths):
        left = count - 1 - index
        coarse = "mi" if fine == "mi" else "mind"
        iterations = 60 if left >= 2 else 40
        if left > 0 or fine != "lncc" or count == 1:
            stages.append(Stage(length, coarse, iterations, _stiffness(left, multimodal, "between")))
        if fine == "lncc" and left <= 1:
            stages.append(Stage(length, "lncc", 30 if left else 20, _stiffness(left, multimodal, "between")))
    given = settings.iterations
    if isinstance(given, int):
        stages = [replace(stage, iterations=given) for stage in stages]
    elif given is not None:
        asked = dict(zip(lengths, given, strict=True))
        stages = [replace(stage, iterations=asked[stage.spacing_mm]) for stage in stages]
    return stages


def stiffen(stages: Sequence[Stage], motion: str, multimodal: bool) -> list[Stage]:
    """Give stages the stiffness of a kind of motion, "within" or "between"."""
    lengths = sorted({stage.spacing_mm for stage in stages})
    return [
        replace(stage, stiffness=_stiffness(lengths.index(stage.spacing_mm), multimodal, motion)) for stage in stages
    ]


def _stiffness(left: int, multimodal: bool, motion: str) -> Stiffness:
    """Return the stiffness of the level with ``left`` finer ones."""
    if multimodal:
        # Across modalities few structures agree and the rest misleads: only what a wide neighbourhood wants counts.
        return Stiffness(step=0.6, update=2.0, field=3.0)
    field = {"between": (0.5, 0.7, 1.0), "within": (0.6, 0.8, 1.0)}[motion][min(left, 2)]
    return Stiffness(step=1.75, update=1.0, field=field)


def _lengths(fixed: Grid, moving: Grid, multimodal: bool) -> list[float]:
    extents = [np.sort(np.array(g.shape) * g.spacing_mm)[-2:] for g in (fixed, moving)]
    smaller = min(float(np.sqrt(e.prod())) for e in extents)
    volume = float(np.prod(np.array(fixed.shape) * fixed.spacing_mm))
    share = FINEST_SHARE_ACROSS if multimodal else FINEST_SHARE
    finest = min(FINEST_MM, float(np.sqrt(extents[0].prod())) / share)
    # No finer than the sharper image is along its two finer axes.
    own = min(float(np.sort(g.spacing_mm)[:2].mean()) for g in (fixed, moving))
    finest = max(finest, (volume / MOST_VOXELS) ** (1 / len(fixed.shape)), own)
    lengths = [finest]
    while len(lengths) < MOST_LEVELS and smaller / (2 * lengths[-1]) >= FEWEST_VOXELS:
        lengths.append(2 * lengths[-1])
    return lengths[::-1]


def fit_to_memory(
    stages: Sequence[Stage], fixed: Grid, device: torch.device, settings: OptimiseSettings, labels: int = 0
) -> tuple[list[Stage], str]:
    """Make the finest levels coarser where they would not fit; returns the stages and what was done, or "".

    Args:
        stages: from coarse to fine.
        fixed: lattice of the fixed image.
        device: to work on.
        settings: options.
        labels: how many labels are brought to overlap.

    Raises:
        InputError: the fixed image alone is too large.
    """
    free = settings.memory_gb * 2**30 if settings.memory_gb is not None else 0.8 * free_bytes(device)
    whole = float(np.prod(fixed.shape)) * PER_FIXED_VOXEL * 4
    if whole > free:
        raise InputError(
            f"found a fixed image of {fixed.shape} voxels, which takes about {whole / 2**30:.1f} GB, and "
            f"{free / 2**30:.1f} GB free; expected a smaller image or more memory"
        )
    fitted = list(stages)
    for index, stage in enumerate(stages):
        length = stage.spacing_mm
        while _level_bytes(fixed, length, stage.similarity, labels) + whole > free:
            length *= 1.1
        fitted[index] = replace(stage, spacing_mm=length)
    coarsest = max(stage.spacing_mm for stage in fitted)
    # A level may not be finer than the ones that follow it.
    for index in range(len(fitted) - 2, -1, -1):
        fitted[index] = replace(fitted[index], spacing_mm=max(fitted[index].spacing_mm, fitted[index + 1].spacing_mm))
    if all(a.spacing_mm == b.spacing_mm for a, b in zip(stages, fitted, strict=True)):
        return fitted, ""
    need = _level_bytes(fixed, stages[-1].spacing_mm, stages[-1].similarity, labels) + whole
    with_labels = f" with {labels} labels" if labels else ""
    return fitted, (
        f"the level of {stages[-1].spacing_mm:.2g} mm{with_labels} would take about {need / 2**30:.1f} GB, "
        f"{free / 2**30:.1f} GB are free: the finest level is {fitted[-1].spacing_mm:.2g} mm, "
        f"the coarsest {coarsest:.2g} mm"
    )


def _level_bytes(fixed: Grid, spacing_mm: float, similarity: str, labels: int) -> float:
    numbers = PER_VOXEL[similarity] + PER_LABEL * labels
    return float(np.prod(coarser(fixed, spacing_mm).shape)) * numbers * 4
