"""A pair of images whose grids share nothing: oblique, flipped, anisotropic, of other sizes, around one world point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import zoom

from shared.fields import identity
from shared.transform_io import Affine, Displacement, Grid, Transform, write_nifti
from tests.learn2reg_folder import affine, blobs


def _centre(grid: Grid) -> np.ndarray:
    d = len(grid.shape)
    return grid.affine[:d, :d] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:d, d]


def _around(grid: Grid, other: Grid) -> Grid:
    """Move ``other`` to the centre of ``grid``."""
    d = len(grid.shape)
    matrix = other.affine.copy()
    matrix[:d, d] += _centre(grid) - _centre(other)
    return Grid(other.shape, matrix)


@dataclass(frozen=True)
class WorldPair:
    """Grids, images and a transform of two parts: an affine and a smooth field of a few millimetres."""

    fixed: Grid
    moving: Grid
    image: np.ndarray
    affine: Affine
    field: Displacement

    @property
    def dims(self) -> int:
        return len(self.fixed.shape)

    @property
    def transform(self) -> Transform:
        """As ANTs registers: a fixed point meets the field, then the affine."""
        return Transform((self.field, self.affine))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write both images; returns the fixed and the moving file."""
        write_nifti(folder / "fixed.nii.gz", blobs(self.fixed.shape), self.fixed)
        write_nifti(folder / "moving.nii.gz", self.image, self.moving)
        return folder / "fixed.nii.gz", folder / "moving.nii.gz"

    def points(self, count: int = 20) -> torch.Tensor:
        """Return (N, d) world points well inside the fixed image."""
        share = np.random.default_rng(4).uniform(0.2, 0.8, (count, self.dims))
        return self.fixed.to_world(torch.from_numpy(share * (np.array(self.fixed.shape) - 1)))

    def interior(self, transform: Transform, edge: int = 2) -> np.ndarray:
        """True where a fixed voxel is off the border and comes from off the moving image's border."""
        inner = np.zeros(self.fixed.shape, bool)
        inner[tuple(slice(edge, -edge) for _ in self.fixed.shape)] = True
        place = (identity(self.fixed.shape) + transform.ddf(self.fixed, self.moving)[0]).movedim(0, -1)
        inside = (place > 1) & (place < torch.tensor(self.moving.shape) - 2.0)
        return inner & inside.all(-1).numpy()


def world_pair(d: int = 3) -> WorldPair:
    """Return the pair in 2D or 3D, always the same."""
    if d == 3:
        fixed = Grid((20, 18, 22), affine((1.5, 2.0, 3.0), (-20, 5, 11), 17, (2, 0, 1), (-1, 1, -1)))
        moving = _around(fixed, Grid((26, 32, 24), affine((2.0, 1.0, 1.7), (8, -3, 30), -24, (1, 0, 2), (-1, -1, 1))))
    else:
        fixed = Grid((22, 18), np.array([[-1.2, 0.3, 4], [0.2, 2.0, -7], [0, 0, 1.0]]))
        fixed.affine[:2, :2] = _turned(11) @ np.diag([-1.2, 2.0])
        moving = _around(fixed, Grid((24, 30), np.array([[0, 1.5, 1], [0.8, 0, 2], [0, 0, 1.0]])))
    image = blobs(moving.shape, seed=3) + np.random.default_rng(1).uniform(0, 20, moving.shape).astype(np.float32)
    turn = np.eye(d + 1)
    turn[:2, :2] = _turned(5) @ np.diag([1.05, 0.97])
    turn[:d, d] = _centre(fixed) - turn[:d, :d] @ _centre(fixed) + np.array([1.0, -1.5, 0.8])[:d]
    return WorldPair(fixed, moving, image, Affine(turn), smooth_field(fixed))


def _turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]])


def smooth_field(grid: Grid, size: float = 0.6, seed: int = 0) -> Displacement:
    """Return a smooth random field of a voxel or two that does not fold."""
    d = len(grid.shape)
    coarse = size * np.random.default_rng(seed).standard_normal((d, *[4] * d))
    fine = np.stack([zoom(component, np.array(grid.shape) / 4, order=3) for component in coarse])
    return Displacement(grid, torch.from_numpy(fine.astype(np.float32))[None])
