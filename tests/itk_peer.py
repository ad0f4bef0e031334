"""ITK as the peer of our warp: physical space, LPS, its own reader."""

from __future__ import annotations

from pathlib import Path

import itk
import numpy as np


def itk_resampled(moving_file: Path, fixed_file: Path, field_file: Path, d: int) -> np.ndarray:
    """Resample the moving onto the fixed image with ITK through a displacement file; returns (*S) in ij order."""
    moving = itk.imread(str(moving_file), itk.D)
    fixed = itk.imread(str(fixed_file), itk.D)
    read = itk.imread(str(field_file), itk.Vector[itk.F, d])
    # ITK's Python reads single precision vectors and resamples with double precision ones.
    wide = np.ascontiguousarray(itk.array_view_from_image(read), dtype=np.float64)
    field = itk.image_view_from_array(wide, ttype=itk.Image[itk.Vector[itk.D, d], d])
    field.CopyInformation(read)
    transform = itk.DisplacementFieldTransform[itk.D, d].New()
    transform.SetDisplacementField(field)
    resampled = itk.resample_image_filter(
        moving,
        transform=transform,
        interpolator=itk.LinearInterpolateImageFunction.New(moving),
        reference_image=fixed,
        use_reference_image=True,
    )
    return itk.array_view_from_image(resampled).T
