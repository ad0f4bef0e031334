"""From tissue maps to CT (Hounsfield units) and MR (arbitrary units) images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import TISSUES
from .motion import grid_points, matmul

CT_RANGE = (-1024, 3071)
MR_MAXIMUM = 4095
# Standard deviation of the point spread in voxels. CT is the sharper: its windows are chosen by how much of the
# image is lung, and a wide rim of half skin, half air has the values of lung.
CT_SPREAD = 0.35
MR_SPREAD = 0.6

# Name: mean in CT, its texture (RMS), mean in MR, its texture. MR orders the organs the other way round.
_SIGNAL = {
    "background": (-1000, 0, 8, 0),
    "fluid": (8, 4, 240, 10),
    "cortex": (38, 4, 470, 35),
    "white matter": (30, 4, 850, 35),
    "ventricles": (5, 2, 190, 10),
    "thalamus": (38, 4, 610, 35),
    "basal ganglia": (38, 4, 560, 35),
    "cerebellum": (38, 4, 600, 60),
    "brain stem": (32, 4, 790, 35),
    "fat": (-100, 12, 880, 40),
    "muscle": (55, 12, 260, 30),
    "bone": (620, 80, 90, 15),
    "marrow": (230, 60, 430, 40),
    "disc": (85, 12, 300, 25),
    "gas": (-900, 10, 25, 5),
    "lung": (-840, 35, 60, 10),
    "bowel": (28, 25, 330, 60),
    "liver": (108, 14, 560, 45),
    "spleen": (122, 14, 330, 35),
    "right kidney": (155, 18, 270, 35),
    "left kidney": (155, 18, 270, 35),
    "stomach": (22, 14, 180, 35),
    "aorta": (165, 8, 120, 15),
    "vena cava": (140, 8, 150, 15),
    "pancreas": (85, 14, 600, 40),
    "vessel": (60, 8, 130, 15),
    "heart": (48, 14, 300, 35),
    "vertebrae": (560, 80, 150, 25),
    "right lung": (-845, 35, 60, 10),
    "left lung": (-845, 35, 60, 10),
    "airway": (-960, 5, 20, 4),
}
_TABLE = np.array([_SIGNAL[name] for name in TISSUES], np.float32)


@dataclass(frozen=True)
class Texture:
    """Unit-variance sum of cosines in template space, so that the pattern moves with the anatomy.

    ``waves`` (3, K) in radians per unit, ``phases`` (K,).
    """

    waves: np.ndarray
    phases: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, count: int = 8) -> Texture:
        """Draw ``count`` waves, one to three across half the field of view."""
        direction = rng.standard_normal((3, count))
        direction /= np.linalg.norm(direction, axis=0)
        waves = direction * rng.uniform(6, 18, count)
        return cls(waves.astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Values (N,) at template points (N, 3)."""
        angles = matmul(self.waves.T, points.T) + self.phases[:, None]
        return np.cos(angles).sum(axis=0) * np.float32(np.sqrt(2 / len(self.phases)))


def render_ct(tissue: np.ndarray, texture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Image in HU, int16, (size,)*3, of a tissue map (N,) and texture values (N,)."""
    mean = _TABLE[:, 0] + np.where(_TABLE[:, 0] > -500, rng.normal(0, 7, len(_TABLE)), 0)
    hu = _blur((mean[tissue] + _TABLE[tissue, 1] * texture).reshape(size, size, size), CT_SPREAD)
    hu += rng.normal(0, 9, hu.shape)
    return np.clip(np.rint(hu), *CT_RANGE).astype(np.int16)


def render_mr(
    tissue: np.ndarray, texture: np.ndarray, size: int, rng: np.random.Generator, bias: float = 0.25
) -> np.ndarray:
    """Image in arbitrary units, int16, never negative, (size,)*3.

    ``bias`` is the RMS of the logarithm of the coil's smooth shading; the overall gain differs from scan to scan.
    """
    mean = _TABLE[:, 2] * rng.normal(1, 0.06, len(_TABLE))
    signal = _blur((mean[tissue] + _TABLE[tissue, 3] * texture).reshape(size, size, size), MR_SPREAD)
    angles = matmul(rng.uniform(-2, 2, (3, 3)), grid_points(size).T) + rng.uniform(0, 2 * np.pi, (3, 1))
    shading = np.cos(angles).sum(axis=0)
    shading = bias * (shading - shading.mean()) / max(float(shading.std()), 1e-3)
    signal = rng.uniform(0.8, 1.25) * signal * np.exp(shading.reshape(signal.shape))
    # The magnitude of a complex signal: noise in empty space is positive, as in a scanner.
    real, imaginary = rng.normal(0, 14, (2, *signal.shape))
    return np.clip(np.rint(np.hypot(signal + real, imaginary)), 0, MR_MAXIMUM).astype(np.int16)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, sigma)
