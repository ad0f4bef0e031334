"""Images and fields for the tests of the optimisation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shared.fields import invert
from shared.smoothing import gaussian_smooth
from shared.transform_io import Grid
from shared.warp import warp


def grid_of(size, spacing=None, origin=None) -> Grid:
    d = len(size)
    affine = np.eye(d + 1)
    affine[:d, :d] = np.diag(spacing or [1.0] * d)
    affine[:d, d] = origin or [0.0] * d
    return Grid(tuple(size), affine)


def picture(size, seed=0, blobs=60, room=0.12) -> Tensor:
    """Textured blobs of different size and brightness on black, (1, 1, *size); nothing at the border.

    Without texture a displacement within a blob cannot be told, whatever the method.
    """
    rng = np.random.default_rng(seed)
    d = len(size)
    axes = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in size], indexing="ij")
    image = np.zeros(size, np.float32)
    for _ in range(blobs):
        centre = [rng.uniform(room * n + 1, (1 - room) * n - 2) for n in size]
        radii = [rng.uniform(0.04, 0.14) * max(size) for _ in range(d)]
        inside = sum(((x - c) / max(r, 1.0)) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) < 1
        image[inside] = rng.uniform(0.2, 1.0)
    texture = gaussian_smooth(torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(seed)), 1.5)
    textured = torch.from_numpy(image)[None, None] * (1 + 0.25 * texture / texture.std())
    return gaussian_smooth(textured, 0.7).clamp_min(0)


def smooth_field(size, amplitude, seed=0, sigma=6.0) -> Tensor:
    """A smooth field (1, d, *size) in voxels whose longest vector is ``amplitude``; zero at the border."""
    d = len(size)
    noise = torch.randn(1, d, *size, generator=torch.Generator().manual_seed(seed))
    window = torch.ones(1, 1, *size)
    for axis, n in enumerate(size):
        ramp = torch.sin(torch.linspace(0, np.pi, n)).view([-1] + [1] * (d - 1 - axis))
        window = window * ramp
    field = gaussian_smooth(noise, min(sigma, min(size) / 3)) * window
    return field * (amplitude / torch.linalg.vector_norm(field, dim=1).max())


def displaced_pair(size, amplitude, seed=0, sigma=6.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return fixed, moving and the field that takes fixed voxels to moving ones."""
    fixed = picture(size, seed)
    ddf = smooth_field(size, amplitude, seed, sigma)
    # moving(x + ddf(x)) = fixed(x)
    moving = warp(fixed, invert(ddf, tolerance=1e-3)[0])
    return fixed, moving, ddf


def error(ddf: Tensor, truth: Tensor, where: Tensor) -> float:
    """Mean distance in voxels where ``where`` (1, 1, *S) holds."""
    return float(torch.linalg.vector_norm(ddf - truth, dim=1, keepdim=True)[where].mean())
