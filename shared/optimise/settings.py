"""Options of the optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..errors import InputError

__all__ = ["OptimiseSettings"]

CHOICES = {
    "similarity": ("auto", "lncc", "mind", "mi"),
    "motion": ("auto", "within", "between"),
    "alignment": ("auto", "identity", "centre", "rigid", "affine"),
    "discrete": ("auto", "always", "never"),
    "fixed_modality": ("auto", "ct", "mr"),
    "moving_modality": ("auto", "ct", "mr"),
}


@dataclass(frozen=True)
class OptimiseSettings:
    """How a pair is registered; the defaults are meant for every pair.

    Attributes:
        similarity: of the fine levels. "auto" takes LNCC within one modality and MIND-SSC across two. Coarse levels
            use MIND-SSC, or MI where that is asked for.
        motion: "within" one patient (stiffer) or "between" patients; "auto" decides by headers and images.
        alignment: before the deformation: "identity" keeps the headers' frame, "centre" lays the middles on each
            other, "rigid" and "affine" fit a map, "auto" keeps the frame where both images share it and else fits a
            rigid, then an affine map. `Guides.start_affine` comes before all of them.
        levels_mm: voxel lengths of the levels from coarse to fine; None follows the field of view.
        iterations: most iterations a level, one number for all or one a level; None is the default of each level.
        discrete: whether a discrete search starts the coarsest level; "auto" tries and keeps it where it is better.
        label_weight: of the labels' Dice loss.
        landmark_weight: share of the way to their place that landmarks are moved an iteration.
        max_fold_percent: folds that may remain, in percent of the voxels.
        time_limit: seconds after which no further step is begun; None for none.
        memory_gb: what the work may need; None takes what the device has free.
        fixed_modality: "ct", "mr" or "auto".
        moving_modality: likewise.

    Raises:
        InputError: an option that cannot be.
    """

    similarity: str = "auto"
    motion: str = "auto"
    alignment: str = "auto"
    levels_mm: Sequence[float] | None = None
    iterations: int | Sequence[int] | None = None
    discrete: str = "auto"
    label_weight: float = 1.0
    landmark_weight: float = 0.5
    max_fold_percent: float = 0.01
    time_limit: float | None = None
    memory_gb: float | None = None
    fixed_modality: str = "auto"
    moving_modality: str = "auto"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"found {name} {getattr(self, name)!r}, expected one of {list(known)}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float | int) and not value >= 0:
                raise InputError(f"found {field.name} {value}, expected a number of 0 or more")
        levels = self.levels_mm
        if levels is not None and (not levels or min(levels) <= 0 or list(levels) != sorted(levels, reverse=True)):
            raise InputError(
                f"found levels_mm {list(levels)}, expected millimetres from coarse to fine, such as 8, 4, 2"
            )
        each = self.iterations
        if isinstance(each, Sequence) and (levels is None or len(each) != len(levels) or min(each) < 0):
            raise InputError(f"found iterations {list(each)} for levels_mm {levels}, expected as many, none negative")
