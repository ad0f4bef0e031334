"""How far a registration can be trusted: measures that need nothing but the pair, and a plain verdict.

The verdict is "failed" or "suspect" where one of the measures is beyond its limit in :data:`LIMITS`, else "ok". It is
a warning light, not a proof: a registration that looks right everywhere may still be wrong somewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .fields import identity
from .metrics import dice_per_label, hd95_per_label, labels_of_both
from .metrics.determinants import scores_of
from .transform_io import Grid, Transform
from .warp import warp

__all__ = [
    "LIMITS",
    "common_labels",
    "correlation",
    "covered_share",
    "field_scores",
    "label_scores",
    "mutual_information",
    "point_scores",
    "round_trip",
    "sample_pair",
    "verdict",
]

# Measure -> (suspect beyond, failed beyond, what it is). Where the second is the larger one, large values are bad.
LIMITS: dict[str, tuple[float, float, str]] = {
    "overlap": (0.5, 0.05, "the larger share of one image that lies on the other"),
    "folds_percent": (0.01, 1.0, "voxels that fold"),
    "sdlogj": (0.5, 1.5, "standard deviation of the log Jacobian: volumes change wildly"),
    "round_trip_voxels": (0.1, 2.0, "left of a voxel, in the mean, after going forth and back"),
    "similarity_gain": (0.0, -0.01, "change of the normalised mutual information"),
    "similarity": (1.02, 1.005, "normalised mutual information: the images have little in common"),
    "dice_gain": (-0.02, -0.1, "change of the labels' mean Dice"),
    "dice": (0.3, 0.05, "mean Dice of the labels"),
    "tre_gain_mm": (0.0, -5.0, "mm by which the landmarks came closer"),
}

# So many places of a pair are compared; more tell no more.
_SAMPLES = 300_000
_BINS = 48


class Image(Protocol):
    """An image (1, 1, *S) on its grid, and its mask or None."""

    @property
    def image(self) -> Tensor:
        """Intensities (1, 1, *S)."""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""

    @property
    def mask(self) -> Tensor | None:
        """What counts (1, 1, *S), or None for all."""


# -- similarity --------------------------------------------------------------------------------------------------------


def sample_pair(
    fixed: Image, moving: Image, transforms: Sequence[Transform]
) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Return intensities at the same places of the fixed image under several transforms.

    The places are spread evenly over the fixed image; those that lie outside the moving image, or outside a mask,
    under one of the transforms do not count for any, so that what is compared is compared on equal terms.

    Args:
        fixed: image and grid.
        moving: image and grid.
        transforms: fixed to moving world.

    Returns:
        the fixed image's values (N,); the moving image's (N,) under each transform; and which share of the places
        each transform sees by itself.
    """
    voxels = _places(fixed.grid.shape)
    index = tuple(voxels.long().T)
    common = fixed.mask.cpu()[0, 0][index] > 0 if fixed.mask is not None else torch.ones(len(voxels), dtype=torch.bool)
    places, shares = int(common.sum()), []
    moved = [moving.grid.to_voxels(t.move(fixed.grid.to_world(voxels), torch.float32)) for t in transforms]
    inside = common
    for there in moved:
        seen = inside & moving.grid.holds(there)
        if moving.mask is not None:
            seen &= _read(moving.mask.float().cpu(), there, fixed.grid, "nearest") > 0
        shares.append(int(seen.sum()) / max(places, 1))
        common = common & seen
    values = [_read(moving.image.float().cpu(), there, fixed.grid, "bilinear")[common].numpy() for there in moved]
    return fixed.image.cpu()[0, 0][index][common].numpy(), values, shares


def _axes(shape: Sequence[int]) -> list[Tensor]:
    """Return every k-th voxel along each axis, k as large as :data:`_SAMPLES` asks for."""
    step = max(1, math.ceil((math.prod(shape) / _SAMPLES) ** (1 / len(shape))))
    return [torch.arange((n - 1) % step // 2, n, step, dtype=torch.float64) for n in shape]


def _places(shape: Sequence[int]) -> Tensor:
    """Return voxels (N, d) float64, evenly spread."""
    return torch.stack(torch.meshgrid(*_axes(shape), indexing="ij"), -1).reshape(-1, len(shape))


def _read(volume: Tensor, voxels: Tensor, grid: Grid, mode: str) -> Tensor:
    """Read (1, 1, *S) at voxels (N, d), one for each of the grid's `_places`; the edge is repeated."""
    size = [len(axis) for axis in _axes(grid.shape)]
    # As a field on the lattice of the places: indices stay small, and float32 exact.
    field = voxels.T.reshape(1, len(size), *size) - identity(size, dtype=torch.float64)
    return warp(volume, field.float(), mode=mode, padding_mode="border").flatten()


def mutual_information(x: np.ndarray, y: np.ndarray) -> float:
    """Return the normalised mutual information ``(H(x) + H(y)) / H(x, y)`` of two samples: 1 to 2, NaN for few.

    Studholme et al., Pattern Recognition 1999. Each sample is cut at its 0.5th and 99.5th percentile and put into 48
    bins, or fewer where it is small.
    """
    if len(x) < 100:
        return math.nan
    bins = min(_BINS, int(len(x) ** (1 / 3)) + 1)
    joint = np.zeros((bins, bins))
    np.add.at(joint, (_binned(x, bins), _binned(y, bins)), 1.0)
    joint /= joint.sum()

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    both = entropy(joint)
    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / both if both > 0 else math.nan


def _binned(values: np.ndarray, bins: int) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    share = (values - low) / max(high - low, 1e-12)
    return np.clip((share * bins).astype(int), 0, bins - 1)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation of two samples; NaN for few, or without contrast."""
    if len(x) < 100 or x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


# -- the field ---------------------------------------------------------------------------------------------------------


def field_scores(determinant: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Return ``folds_percent`` and ``sdlogj`` as `shared.metrics` defines them, in the mask (*S) where there is one."""
    return scores_of(determinant if mask is None else determinant[mask > 0])._asdict()


def covered_share(transform: Transform, fixed: Image, moving: Grid) -> float:
    """Return which share of the fixed image (of its mask) the moving image covers after registration.

    With the inverse and the sides exchanged: which share of the moving image is seen.
    """
    voxels = _places(fixed.grid.shape)
    if fixed.mask is not None:
        voxels = voxels[fixed.mask.cpu()[0, 0][tuple(voxels.long().T)] > 0]
    if not len(voxels):
        return math.nan
    there = moving.to_voxels(transform.move(fixed.grid.to_world(voxels), torch.float32))
    return float(moving.holds(there).double().mean())


def round_trip(transform: Transform, inverse: Transform, fixed: Grid) -> tuple[float, float]:
    """Return how far forth and back ends from where it began, mean and largest, in mm, over the fixed image."""
    world = fixed.to_world(_places(fixed.shape))
    length = torch.linalg.vector_norm(inverse.move(transform.move(world)) - world, dim=1)
    return float(length.mean()), float(length.max())


# -- labels and points -------------------------------------------------------------------------------------------------


def common_labels(fixed: np.ndarray, moving: np.ndarray) -> list[int]:
    """Return the labels above zero of both maps (*S), each on its own image's grid."""
    return labels_of_both(*(torch.from_numpy(volume.astype(np.int64)) for volume in (fixed, moving)))


def label_scores(
    warped: np.ndarray, fixed: np.ndarray, spacing_mm: Sequence[float], labels: Sequence[int]
) -> dict[int, dict[str, float]]:
    """Return Dice and HD95 in mm of each label; one that vanished under the warp has Dice 0 and no distance (NaN).

    Args:
        warped: moving label map (*S) on the fixed grid.
        fixed: label map (*S).
        spacing_mm: voxel size along each axis.
        labels: those of :func:`common_labels`.
    """
    if not labels:
        return {}
    pair = [torch.from_numpy(volume.astype(np.int64)) for volume in (warped, fixed)]
    dice, distance = dice_per_label(pair[0], pair[1], labels), hd95_per_label(pair[0], pair[1], labels, spacing_mm)
    return {label: {"dice": float(dice[i]), "hd95_mm": float(distance[i])} for i, label in enumerate(labels)}


def point_scores(transform: Transform, fixed: Tensor, moving: Tensor) -> dict[str, float]:
    """Return the target registration error in mm: mean and largest, after and before."""
    rows: dict[str, float] = {}
    for suffix, points in (("", transform.move(fixed)), ("_before", fixed)):
        length = torch.linalg.vector_norm(points - moving, dim=1)
        rows |= {f"tre_mm{suffix}": float(length.mean()), f"tre_max_mm{suffix}": float(length.max())}
    return rows


# -- verdict -----------------------------------------------------------------------------------------------------------


def verdict(scores: Mapping[str, float], remarks: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Return "ok", "suspect" or "failed", and the reasons.

    Args:
        scores: measures by name; those that are not there, or NaN, are not judged.
        remarks: other reasons for doubt; each makes the verdict "suspect" at least.
    """
    found = "suspect" if remarks else "ok"
    reasons = list(remarks)
    for name, value, suspect, failed, text in _judged(scores):
        rising = failed > suspect
        if (value > failed) if rising else (value < failed):
            found, limit = "failed", failed
        elif (value > suspect) if rising else (value < suspect):
            found, limit = "suspect" if found == "ok" else found, suspect
        else:
            continue
        reasons.append(f"{name} {value:.4g} ({'above' if rising else 'below'} {limit:g}): {text}")
    return found, reasons


def _judged(scores: Mapping[str, float]) -> Iterator[tuple[Any, ...]]:
    for name, (suspect, failed, text) in LIMITS.items():
        value = scores.get(name)
        if value is not None and math.isfinite(value):
            yield name, value, suspect, failed, text
