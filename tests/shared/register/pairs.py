"""Pairs of files for the tests of registration: the fixed image is the moving one seen through a known transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from shared.apply import resample
from shared.transform_io import Grid, Transform, write_nifti
from tests.world_pair import WorldPair, world_pair


def structured(shape, seed=3) -> np.ndarray:
    """Smooth blobs of several sizes on black, with detail everywhere inside."""
    rng = np.random.default_rng(seed)
    inside = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    image = sum(gaussian_filter(rng.standard_normal(shape), s) * s**1.5 for s in (1.0, 2.0, 3.5))
    image = (image - image.min()) / np.ptp(image) * 80 + 20
    return (image * (np.abs(inside).max(0) < 0.85)).astype(np.float32)


def known_pair(folder: Path, d: int = 3) -> tuple[WorldPair, Transform]:
    """Write fixed.nii.gz, moving.nii.gz and label maps; returns grids and the transform from fixed to moving world."""
    pair = world_pair(d)
    image = structured(pair.moving.shape)
    label = np.digitize(image, [30, 55, 70]).astype(np.uint8)
    ddf = pair.transform.ddf(pair.fixed, pair.moving)
    write_nifti(folder / "moving.nii.gz", image, pair.moving)
    write_nifti(folder / "moving_label.nii.gz", label, pair.moving)
    write_nifti(folder / "fixed.nii.gz", resample(image, ddf), pair.fixed)
    write_nifti(folder / "fixed_label.nii.gz", resample(label, ddf, "label"), pair.fixed)
    return pair, pair.transform


def write_points(path: Path, world: np.ndarray) -> None:
    """Write RAS points as a table of LPS millimetres."""
    d = world.shape[1]
    rows = world * np.array([-1.0, -1.0, 1.0][:d])
    lines = [",".join("xyz"[:d]), *(",".join(repr(float(v)) for v in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def plain_grid(shape, spacing=2.0) -> Grid:
    affine = np.diag([spacing] * len(shape) + [1.0])
    return Grid(tuple(shape), affine)
