"""How well one registered pair agrees, and how plausible its field is. No gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fields import compose
from ..warp import check_field
from .determinants import DeterminantScores, determinant_scores

__all__ = [
    "METRICS",
    "assd_per_label",
    "dice_per_label",
    "fold_percent",
    "hd95_per_label",
    "labels_of_both",
    "round_trip_mm",
    "sdlogj",
    "tre_mm",
]

# Column of a table of scores -> (heading, whether larger is better).
METRICS = {
    "dice": ("Dice", True),
    "hd95_mm": ("HD95 mm", False),
    "assd_mm": ("ASSD mm", False),
    "tre_mm": ("TRE mm", False),
    "folds_percent": ("folds %", False),
    "sdlogj": ("SDlogJ", False),
    "round_trip_mm": ("round trip mm", False),
}


def labels_of_both(fixed: Tensor, moving: Tensor) -> list[int]:
    """Return the labels above zero that two label maps have in common, as Learn2Reg scores a pair.

    Args:
        fixed: label map of any shape, on its own image's grid.
        moving: the same of the other image, as it is before any warp.
    """
    found = [{int(v) for v in torch.unique(volume) if v > 0} for volume in (fixed, moving)]
    return sorted(found[0] & found[1])


@torch.no_grad()
def dice_per_label(pred: Tensor, ref: Tensor, labels: Sequence[int] | Tensor) -> Tensor:
    """Return the Dice overlap of two label maps for each label.

    Args:
        pred: label map of one case, any shape.
        ref: label map of the same shape.
        labels: the L values to score.

    Returns:
        (L,) in [0, 1]; NaN where a label is absent from both maps.

    Raises:
        ValueError: when the shapes differ.
    """
    _check_same(pred, ref)
    scores = []
    for value in _values(labels):
        in_pred, in_ref = pred == value, ref == value
        # 0 / 0 is the NaN wanted.
        scores.append(2.0 * (in_pred & in_ref).sum().double() / (in_pred.sum() + in_ref.sum()))
    return torch.stack(scores)


def hd95_per_label(pred: Tensor, ref: Tensor, labels: Sequence[int] | Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Return the 95th percentile Hausdorff distance in mm for each label.

    The larger of the two directed percentiles, by ``monai.metrics.compute_hausdorff_distance``.

    Args:
        pred: label map of one case, (*S), leading axes of length 1 allowed.
        ref: label map of the same shape.
        labels: the L values to score.
        spacing_mm: voxel size along each of the d axes.

    Returns:
        (L,) in mm; NaN where a label is absent from either map.

    Raises:
        ValueError: when the shapes differ or do not have as many axes as ``spacing_mm``.
    """
    from monai.metrics import compute_hausdorff_distance

    return _surface_per_label(compute_hausdorff_distance, pred, ref, labels, spacing_mm, percentile=95)


def assd_per_label(pred: Tensor, ref: Tensor, labels: Sequence[int] | Tensor, spacing_mm: Sequence[float]) -> Tensor:
    """Return the average symmetric surface distance in mm for each label.

    The mean over the surface voxels of both maps, by ``monai.metrics.compute_average_surface_distance``.
    Arguments, result and errors as in `hd95_per_label`.
    """
    from monai.metrics import compute_average_surface_distance

    return _surface_per_label(compute_average_surface_distance, pred, ref, labels, spacing_mm, symmetric=True)


@torch.no_grad()
def tre_mm(fixed_world_warped: Tensor, moving_world: Tensor) -> float:
    """Return the target registration error: the mean Euclidean distance of landmarks in mm.

    Args:
        fixed_world_warped: (N, d) fixed landmarks moved by the transform, in mm.
        moving_world: (N, d) moving landmarks in mm.

    Returns:
        Millimetres; NaN without landmarks.

    Raises:
        ValueError: when the shapes differ or are not (N, d).
    """
    _check_same(fixed_world_warped, moving_world)
    if moving_world.ndim != 2:
        raise ValueError(f"landmarks must be (N, d), got {tuple(moving_world.shape)}")
    return float(torch.linalg.vector_norm((fixed_world_warped - moving_world).double(), dim=1).mean())


@torch.no_grad()
def fold_percent(ddf: Tensor, mask: Tensor | None = None) -> float:
    """Return the share of voxels, in percent, where the warp folds: ``det J <= 0``.

    Args:
        ddf: (d, *S) or (1, d, *S) in voxels.
        mask: (*S), leading axes of length 1 allowed; voxels that are not zero count.

    Returns:
        0 to 100; NaN for an empty mask.

    Raises:
        ValueError: when a shape does not fit.
    """
    return _determinant_scores(ddf, mask).folds_percent


@torch.no_grad()
def sdlogj(ddf: Tensor, mask: Tensor | None = None) -> float:
    """Return the standard deviation of the log Jacobian determinant, a measure of roughness.

    As in Learn2Reg (Hering et al., TMI 2022) determinants are clamped to [1e-9, 1e9] before the log and
    the population formula is used; border voxels take part here.

    Args:
        ddf: (d, *S) or (1, d, *S) in voxels.
        mask: (*S), leading axes of length 1 allowed; voxels that are not zero count.

    Returns:
        0 for a rigid motion; NaN for an empty mask.

    Raises:
        ValueError: when a shape does not fit.
    """
    return _determinant_scores(ddf, mask).sdlogj


@torch.no_grad()
def round_trip_mm(ddf: Tensor, inv_ddf: Tensor, spacing_mm: Sequence[float]) -> float:
    """Return the inverse-consistency error: how far there and back ends from where it began, in mm.

    The mean over all voxels and both orders, the fields' edge values repeated outside the grid (Christensen and
    Johnson, TMI 2001, in the form of a mean length).

    Args:
        ddf: (1, d, *S) in voxels.
        inv_ddf: (1, d, *S) in voxels of the same grid.
        spacing_mm: voxel size along each of the d axes.

    Raises:
        ValueError: when a shape does not fit.
    """
    _check_same(ddf, inv_ddf)
    spacing = ddf.new_tensor(spacing_mm).view(1, -1, *[1] * (ddf.ndim - 2))
    residuals = [compose(ddf, inv_ddf), compose(inv_ddf, ddf)]
    return float(torch.stack([torch.linalg.vector_norm(r * spacing, dim=1).mean() for r in residuals]).mean())


def _determinant_scores(ddf: Tensor, mask: Tensor | None) -> DeterminantScores:
    """Scores of one field at the voxels of the mask."""
    field = ddf if ddf.shape[0] == 1 else ddf[None]
    check_field(field)
    if mask is None:
        return determinant_scores(field)
    inside = _volume(mask, field.ndim - 2, "mask")
    if inside.shape != field.shape[2:]:
        raise ValueError(f"mask must have sizes {tuple(field.shape[2:])}, got {tuple(inside.shape)}")
    return determinant_scores(field, inside)


@torch.no_grad()
def _surface_per_label(
    metric: Callable[..., Any],
    pred: Tensor,
    ref: Tensor,
    labels: Sequence[int] | Tensor,
    spacing_mm: Sequence[float],
    **options: Any,
) -> Tensor:
    _check_same(pred, ref)
    pred, ref = (_volume(t, len(spacing_mm), name) for t, name in ((pred, "pred"), (ref, "ref")))
    spacing = [float(s) for s in spacing_mm]
    distances = []
    for value in _values(labels):
        in_pred, in_ref = pred == value, ref == value
        if not (in_pred.any() and in_ref.any()):
            distances.append(math.nan)
            continue
        box = _bounding_box(in_pred | in_ref)
        pair = (mask[box][None, None] for mask in (in_pred, in_ref))
        with warnings.catch_warnings():
            # MONAI 1.5 and 1.6 call a function of their own with an argument that they deprecate.
            warnings.simplefilter("ignore", FutureWarning)
            distances.append(float(metric(*pair, include_background=True, spacing=spacing, **options)))
    return torch.tensor(distances, dtype=torch.float64)


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """Nothing of either label lies outside, so surfaces and their distances are those of the whole volume."""
    found = mask.nonzero()
    return tuple(
        slice(int(first), int(last) + 1) for first, last in zip(found.amin(dim=0), found.amax(dim=0), strict=True)
    )


def _values(labels: Sequence[int] | Tensor) -> list[int]:
    return [int(value) for value in labels]


def _volume(tensor: Tensor, dims: int, name: str) -> Tensor:
    extra = tensor.ndim - dims
    if extra < 0 or any(n != 1 for n in tensor.shape[:extra]):
        raise ValueError(f"{name} must have {dims} spatial axes, got {tuple(tensor.shape)}")
    return tensor.reshape(tensor.shape[extra:])


def _check_same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"both inputs must have the same shape, got {tuple(first.shape)} and {tuple(second.shape)}")
