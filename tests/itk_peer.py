"""ITK as the peer of our warp and our transforms: physical space, LPS, its own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import numpy as np


def itk_transform(file: Path, d: int) -> Any:
    """Read a transform file, or a displacement image, with ITK alone."""
    if file.suffix in (".h5", ".mat", ".txt", ".tfm"):
        (transform,) = itk.transformread(str(file))
        return itk.down_cast(transform)
    read = itk.imread(str(file), itk.Vector[itk.F, d])
    # ITK's Python reads single precision vectors and resamples with double precision ones.
    wide = np.ascontiguousarray(itk.array_view_from_image(read), dtype=np.float64)
    field = itk.Image[itk.Vector[itk.D, d], d].New()
    field.CopyInformation(read)
    field.SetRegions(read.GetLargestPossibleRegion())
    field.Allocate()
    itk.array_view_from_image(field)[...] = wide
    transform = itk.DisplacementFieldTransform[itk.D, d].New()
    transform.SetDisplacementField(field)
    return transform


def itk_chain(transforms: list[Any], d: int) -> Any:
    """Compose as antsApplyTransforms does with ``-t first -t second``: its stack is filled from the last one on."""
    composite = itk.CompositeTransform[itk.D, d].New()
    for transform in reversed(transforms):
        composite.AddTransform(transform)
    return composite


def itk_points(transform: Any, world: np.ndarray) -> np.ndarray:
    """Carry RAS points (N, d) through an ITK transform."""
    frame = np.array([-1.0, -1.0, 1.0][: world.shape[1]])
    return np.array([transform.TransformPoint([float(x) for x in point]) for point in world * frame]) * frame


def itk_warped(moving_file: Path, fixed_file: Path, transform: Any) -> np.ndarray:
    """Resample the moving onto the fixed image with ITK; returns (*S) in ij order."""
    moving = itk.imread(str(moving_file), itk.D)
    resampled = itk.resample_image_filter(
        moving,
        transform=transform,
        interpolator=itk.LinearInterpolateImageFunction.New(moving),
        reference_image=itk.imread(str(fixed_file), itk.D),
        use_reference_image=True,
    )
    return itk.array_from_image(resampled).T


def itk_resampled(moving_file: Path, fixed_file: Path, field_file: Path, d: int) -> np.ndarray:
    """Resample the moving onto the fixed image with ITK through a displacement file; returns (*S) in ij order."""
    return itk_warped(moving_file, fixed_file, itk_transform(field_file, d))
