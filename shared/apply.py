"""Apply saved transforms to images, label maps and points: composed first, interpolated once, in world space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.images import read_grid, read_voxels
from .errors import InputError, did_you_mean
from .fields import identity
from .transform_io import (
    Grid,
    NeedsGridsError,
    Transform,
    check_image_name,
    is_point_file,
    read_point_file,
    read_transform,
    write_image,
    write_point_file,
    write_transform,
)
from .warp import warp

__all__ = ["INTERPOLATIONS", "apply_files", "looks_like_labels", "resample", "resample_labels"]

INTERPOLATIONS = ("linear", "nearest", "label")
# Label maps have few values, and neighbours mostly share them; images have neither.
_FEW_VALUES, _SHARED = 16, 0.7
_AT_ONCE = 4_000_000


def resample(
    voxels: np.ndarray, ddf: Tensor, interpolation: str = "linear", outside: float | None = None
) -> np.ndarray:
    """Pull an image back through a field; outside the image lies its darkest value, outside a label map 0.

    In CT that is air, where a plain 0 would be water.

    Args:
        voxels: (*S), any real type.
        ddf: (1, d, *T) in voxels of the image, as :meth:`shared.transform_io.Transform.ddf` returns it.
        interpolation: "linear", "nearest", or "label" (see :func:`resample_labels`).
        outside: another value outside; "label" always takes 0.

    Returns:
        (*T); float32 when interpolated linearly, else the image's own type.
    """
    if interpolation == "label":
        return resample_labels(voxels, ddf)
    floor = voxels.min() if outside is None else outside
    if outside is None and interpolation == "nearest" and floor > 0 and looks_like_labels(voxels):
        floor = 0
    # Doubles hold every label exactly; intensities need no more than float32.
    kind = np.float32 if interpolation == "linear" else np.float64
    image = torch.from_numpy(voxels.astype(kind) - kind(floor))
    mode = "bilinear" if interpolation == "linear" else "nearest"
    warped = warp(image[None, None], ddf, mode=mode)[0, 0].numpy() + kind(floor)
    return warped if interpolation == "linear" else warped.astype(voxels.dtype)


def resample_labels(labels: np.ndarray, ddf: Tensor) -> np.ndarray:
    """Pull a label map back: each label's mask is read linearly, the largest share wins, then the lowest label.

    Smoother than nearest neighbour, and no label is invented; the rule of ANTs' GenericLabel. All labels are dealt with
    at once by comparing the 2^d corners around each point. Outside the map lies 0.

    Args:
        labels: (*S), whole numbers.
        ddf: (1, d, *T) in voxels of the map.

    Returns:
        (*T) in the type of ``labels``.
    """
    size = ddf.shape[2:]
    source = torch.from_numpy(np.pad(labels.astype(np.int64), 1))
    result = torch.empty(size, dtype=torch.int64)
    rows = max(1, _AT_ONCE // max(1, int(np.prod(size[1:]))))
    for start in range(0, size[0], rows):
        slab = ddf[0, :, start : start + rows]
        place = identity(slab.shape[1:], dtype=slab.dtype) + slab
        place[0] += start
        result[start : start + rows] = _winning_labels(source, place.flatten(1)).reshape(slab.shape[1:])
    return result.numpy().astype(labels.dtype)


def _winning_labels(padded: Tensor, place: Tensor) -> Tensor:
    """Return the winners (N,) at ``place`` (d, N), voxels of the map that ``padded`` surrounds with one voxel of 0."""
    size = torch.tensor(padded.shape).reshape(-1, 1)
    place = torch.minimum((place + 1).clamp(min=0), size - 1.0)
    base = torch.minimum(place.floor().long(), size - 2)
    corners = list(product((0, 1), repeat=len(base)))
    found = torch.stack([padded[tuple(b + c for b, c in zip(base, corner, strict=True))] for corner in corners])
    best = found[0].clone()
    mixed = (found != found[0]).any(0)
    found, part = found[:, mixed], (place - base)[:, mixed]
    shares = torch.stack(
        [torch.stack([p if c else 1 - p for p, c in zip(part, corner, strict=True)]).prod(0) for corner in corners]
    )
    totals = torch.stack([(shares * (found == label)).sum(0) for label in found])
    # Equal shares differ in their last digit, which must not decide.
    leading = totals >= totals.amax(0) - 1e-6
    best[mixed] = torch.where(leading, found, torch.iinfo(torch.int64).max).amin(0)
    return best


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            f"found the interpolation {interpolation!r}{did_you_mean(interpolation, INTERPOLATIONS)}, expected one of "
            f"{', '.join(INTERPOLATIONS)}"
        )


def _is_whole(voxels: np.ndarray) -> bool:
    return voxels.dtype.kind in "iub" or bool((voxels == np.round(voxels)).all())


def looks_like_labels(voxels: np.ndarray) -> bool:
    """Whether voxels are whole numbers of few values, or mostly equal to their neighbours outside of the background.

    The background is the most frequent value, dark or bright.
    """
    if not _is_whole(voxels):
        return False
    values, counts = np.unique(voxels.ravel()[:: max(1, voxels.size // 500_000)], return_counts=True)
    if len(values) <= _FEW_VALUES:
        return True
    background = values[counts.argmax()]
    one, next_one = voxels[1:], voxels[:-1]
    inside = (one != background) | (next_one != background)
    return bool((one == next_one)[inside].mean() > _SHARED)


def _checked(path: Path, voxels: np.ndarray, interpolation: str) -> np.ndarray:
    """Return the voxels in native byte order after a look at their values."""
    bad = int((~np.isfinite(voxels)).sum()) if voxels.dtype.kind == "f" else 0
    if bad:
        raise InputError(f"{path}: found {bad} NaN or infinite voxels, expected finite values")
    if interpolation == "label" and not _is_whole(voxels):
        raise InputError(f"{path}: found fractional values, expected whole numbers for the interpolation 'label'")
    if interpolation == "linear" and looks_like_labels(voxels):
        warnings.warn(
            f"{path}: looks like a label map, and linear interpolation makes values between labels; "
            "interpolation label or nearest keeps them whole",
            stacklevel=4,
        )
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def _read_chain(
    transforms: Sequence[str | Path | tuple[str | Path, bool]], inverse: bool, start: Grid, end: Grid | None
) -> tuple[Transform, float | None]:
    """Read and compose; returns the transform and the largest residual in mm of what was inverted, None if nothing."""
    if not transforms:
        raise InputError("found no transform, expected one or more")
    fixed, moving = (end, start) if inverse else (start, end)
    chain, residuals = [], []
    for entry in transforms:
        path, inverted = entry if isinstance(entry, tuple) else (entry, False)
        # A field in voxels hangs between the images at the ends of the chain: it makes sense alone only.
        grids = (None, None) if len(transforms) > 1 else (moving, fixed) if inverted else (fixed, moving)
        try:
            transform = read_transform(path, len(start.shape), *grids)
        except NeedsGridsError as error:
            if len(transforms) == 1:
                raise
            raise InputError(
                f"{path}: found a Learn2Reg field among {len(transforms)} transforms; it counts voxels of the two "
                "images that it was made for, and those of a chain are others; expected it written as .h5 first (apply "
                "it alone without --input, with --reference FIXED and --onto MOVING)"
            ) from error
        if inverted:
            transform, residual = transform.inverse()
            residuals.append(residual)
        chain.append(transform)
    whole = Transform.chain(chain)
    if inverse:
        whole, residual = whole.inverse()
        residuals.append(residual)
    return whole, max(residuals) if residuals else None


def _in_space(entry: str | Path | tuple[str | Path, bool], grids: Sequence[Grid]) -> bool:
    """Whether single slices are to be carried through space: all of them lie there, and so does the transform."""
    if any(grid.plane is None for grid in grids):
        return False
    path = entry[0] if isinstance(entry, tuple) else entry
    ends = [grid.thick for grid in (*grids, *grids)][:2]
    # Learn2Reg's packed fields count voxels of the slices and tell no dimensions without them.
    return not str(path).lower().endswith(".npz") and read_transform(path, None, *ends).dims == 3


def _warn_inexact(residual: float, grid: Grid) -> None:
    if residual > 0.1 * min(grid.spacing_mm):
        warnings.warn(
            f"the inverse is off by up to {residual:.3g} mm (a voxel measures {min(grid.spacing_mm):.3g} mm): the "
            "field folds or bends sharply there",
            stacklevel=3,
        )


def _warn_unreached(transform: Transform, grid: Grid, name: str) -> None:
    for part in transform.unreached(grid):
        warnings.warn(
            f"a displacement field at ({part.grid.box_mm()}) does not reach {name} at ({grid.box_mm()}): nothing is "
            "displaced there; is it the transform of another pair?",
            stacklevel=3,
        )


def _carry_image(
    transform: Transform, path: Path, voxels: np.ndarray, grid: Grid, reference: Grid, interpolation: str
) -> tuple[np.ndarray, float]:
    """Return the resampled image and the share of its voxels that come from the image."""
    voxels = _checked(path, voxels, interpolation)
    ddf = transform.ddf(reference, grid)
    covered = float(grid.holds((identity(reference.shape) + ddf[0]).flatten(1).T).float().mean())
    if covered == 0:
        warnings.warn(
            f"{path}: no voxel of the reference comes from this image: after the transform they do not overlap "
            f"(image at {grid.box_mm()}, reference at {reference.box_mm()})",
            stacklevel=3,
        )
    return resample(voxels, ddf, interpolation), covered


def _carry_points(transform: Transform, path: Path, out: Path, reference: Grid, onto: Grid | None) -> dict[str, Any]:
    points = read_point_file(path, transform.dims)
    world = points.world(reference)
    outside = int((~reference.holds(reference.to_voxels(world))).sum())
    write_point_file(out, transform.move(world), points, onto)
    return {"points": len(world), "points_outside": outside}


def apply_files(
    transforms: Sequence[str | Path | tuple[str | Path, bool]],
    reference: str | Path,
    out: str | Path,
    input: str | Path | None = None,  # noqa: A002
    interpolation: str = "linear",
    inverse: bool = False,
    onto: str | Path | None = None,
    frame: int | None = None,
    form: str = "",
) -> dict[str, Any]:
    """Carry an image, a label map or points through transforms, or write the transforms as one.

    The transforms are composed in world space and the input is interpolated once, on the reference's own grid. A point
    of the reference goes through ``transforms`` in their order, which is that of ``antsApplyTransforms -t first -t
    second``: seen from the image, the last one acts first.

    Images and points go opposite ways. A registration maps fixed to moving points, and so pulls the moving image back
    onto the fixed grid; a moving landmark reaches the fixed image through the inverse.

    Args:
        transforms: files (:func:`shared.transform_io.read_transform` lists the kinds), or (file, True) to invert one.
        reference: image whose space the map starts in: an image gets its grid, points lie in it. Of a time series the
            grid of its frames.
        out: its suffix chooses the format.
        input: image (or DICOM folder), label map, or point file (:mod:`shared.transform_io.points`). None writes the
            composed transform itself.
        interpolation: "linear", "nearest" or "label".
        inverse: invert the whole chain.
        onto: image at the other end of the map; points in voxels and Learn2Reg's fields need it. An image that is
            carried serves by itself.
        frame: of an input with several.
        form: for a transform written: "itk", "niftyreg" or "learn2reg".

    Returns:
        ``out``; ``residual_mm`` where something was inverted; ``covered`` (share of the reference's voxels that come
        from the image) or ``points`` and ``points_outside`` (how many lie outside the reference; they are kept).

    Raises:
        InputError: unusable files or options.
    """
    _check_interpolation(interpolation)
    start = read_grid(reference, None, any_frame=True)
    end = read_grid(onto, len(start.shape), any_frame=True) if onto is not None else None
    image = None
    if input is not None and not is_point_file(input):
        check_image_name(out)
        image, grid = read_voxels(input, len(start.shape), frame)
        end = end or grid
    if transforms and _in_space(transforms[0], [g for g in (start, end) if g is not None]):
        start, end = start.thick, end.thick if end is not None else None
        if image is not None:
            grid = grid.thick
            image = image.reshape(grid.shape)
    transform, residual = _read_chain(transforms, inverse, start, end)
    result: dict[str, Any] = {"out": str(out)}
    if residual is not None:
        result["residual_mm"] = residual
        _warn_inexact(residual, start)
    _warn_unreached(transform, start, str(reference))
    if input is None:
        write_transform(out, transform, start, end, form)
    elif image is None:
        result |= _carry_points(transform, Path(input), Path(out), start, end)
    else:
        carried, result["covered"] = _carry_image(transform, Path(input), image, grid, start, interpolation)
        write_image(out, carried, start)
    return result
