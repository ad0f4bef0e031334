"""Scanners and fundus cameras: the same tissues look different from site to site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .contrast import MR_MAXIMUM
from .motion import matmul
from .site_anatomy import PELVIS, RETINA, RETINA_MM

__all__ = ["FundusCamera", "MRScanner"]

# Name: signal with a long echo time (T2 weighted), with a short one, texture (RMS).
_MR = {
    "air": (10, 10, 0),
    "fat": (600, 900, 35),
    "muscle": (170, 360, 18),
    "bone": (60, 70, 10),
    "marrow": (420, 700, 40),
    "bladder": (1000, 210, 10),
    "rectum wall": (330, 400, 25),
    "rectum content": (40, 60, 20),
    "seminal vesicles": (820, 330, 60),
    "levator": (150, 340, 12),
    "capsule": (190, 240, 12),
    "peripheral zone": (760, 380, 55),
    "central gland": (430, 420, 60),
    "nodule": (560, 450, 40),
    "urethra": (680, 300, 10),
}
_MR_TABLE = np.array([_MR[name] for name in PELVIS], np.float32)

# Name: red, green, blue; texture (RMS).
_COLOUR = {
    "outside": (4, 4, 4, 0),
    "retina": (176, 84, 40, 7),
    "macula": (128, 52, 26, 6),
    "atrophy": (206, 136, 84, 8),
    "disc": (228, 164, 92, 5),
    "cup": (246, 214, 160, 4),
    "vessel": (120, 38, 22, 3),
}
_COLOUR_TABLE = np.array([_COLOUR[name] for name in RETINA], np.float32)


@dataclass(frozen=True)
class MRScanner:
    """How one hospital images the prostate.

    Attributes:
        field_mm: edge of the square field of view.
        thickness_mm: distance of the slices.
        matrix: voxels along an edge, as a share of the data set's size.
        weighting: 0 a long echo time, 1 a short one, which turns the contrast of the gland's zones around.
        fat: what fat saturation leaves of the fat's signal.
        gamma: exponent of the signal, a scanner's own scale of grey.
        bias: RMS of the logarithm of the smooth shading.
        balloon: brightness of the tissue next to a receiver coil in the rectum; 0 where there is none.
        surface: fall of the logarithm of the signal from the skin to the middle, of coils lying on it.
        blur_mm: standard deviation of the point spread in the plane.
        noise: standard deviation, where a muscle's signal is about 200.
    """

    field_mm: float
    thickness_mm: float
    matrix: float = 1.0
    weighting: float = 0.0
    fat: float = 1.0
    gamma: float = 1.0
    bias: float = 0.15
    balloon: float = 0.0
    surface: float = 0.0
    blur_mm: float = 1.2
    noise: float = 14.0

    def grid(self, size: int, height_mm: float) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Return shape and spacing in mm for a data set of ``size`` voxels and a stack of slices ``height_mm`` high."""
        edge = round(size * self.matrix)
        spacing = self.field_mm / edge
        return (edge, edge, round(height_mm / self.thickness_mm)), (spacing, spacing, self.thickness_mm)

    def render(
        self,
        tissue: np.ndarray,
        texture: np.ndarray,
        points: np.ndarray,
        shape: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return an image (*shape) in arbitrary units, int16, never negative.

        Args:
            tissue: indices into `PELVIS`, (N,).
            texture: unit variance, (N,).
            points: where the voxels are in the scanner, (N, 3), 1 = 80 mm.
            shape: N voxels.
            rng: draws what differs from scan to scan: gain, tissue contrast, shading and noise.
        """
        from scipy.ndimage import gaussian_filter

        table = (1 - self.weighting) * _MR_TABLE[:, 0] + self.weighting * _MR_TABLE[:, 1]
        table = table * np.where(np.isin(PELVIS, ("fat", "marrow")), self.fat, 1)
        mean = table * rng.normal(1, 0.06, len(table))
        signal = np.clip(mean[tissue] + _MR_TABLE[tissue, 2] * texture, 0, None)
        signal = 1000 * (signal / 1000) ** self.gamma
        pixel = self.field_mm / shape[0]
        signal = gaussian_filter(signal.reshape(shape), (self.blur_mm / pixel, self.blur_mm / pixel, 0))
        signal = signal * np.exp(self._sensitivity(points, rng)).reshape(shape) * rng.uniform(0.8, 1.25)
        real, imaginary = rng.normal(0, self.noise, (2, *shape))
        return np.clip(np.rint(np.hypot(signal + real, imaginary)), 0, MR_MAXIMUM).astype(np.int16)

    def _sensitivity(self, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Logarithm of what the coils make of the signal, (N,)."""
        log = self.bias * smooth(points, rng)
        if self.balloon:
            near = (points - np.array([0, -0.4, 0], np.float32)) ** 2
            log = log + np.log1p(self.balloon * np.exp(-near.sum(axis=1) / (2 * 0.3**2)))
        if self.surface:
            depth = np.clip(1 - np.abs(points[:, 1]) / 1.2, 0, 1)
            log = log - self.surface * depth
        return log


@dataclass(frozen=True)
class FundusCamera:
    """How one eye clinic photographs the retina.

    Attributes:
        field_mm: edge of the square picture around the disc.
        matrix: pixels along an edge, as a share of the data set's size.
        gains: factors on red, green and blue.
        gamma: exponent of the brightness.
        contrast: spread of the tissues around the retina's own colour.
        haze: share of white that a clouded lens adds.
        vignette: loss of light in the corners.
        slope: RMS of the uneven illumination.
        aperture: radius of the round field in half edges; None where the picture has been cropped.
        blur_mm: standard deviation of the point spread.
        noise: standard deviation, of 255.
    """

    field_mm: float
    matrix: float = 1.0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    contrast: float = 1.0
    haze: float = 0.0
    vignette: float = 0.1
    slope: float = 0.08
    aperture: float | None = None
    blur_mm: float = 0.05
    noise: float = 3.0

    def grid(self, size: int) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
        """Return shape (a single slice) and spacing in mm for a data set of ``size`` pixels."""
        edge = round(size * self.matrix)
        return (edge, edge, 1), (self.field_mm / edge, self.field_mm / edge, 1.0)

    def outside(self, points: np.ndarray) -> np.ndarray:
        """Where the aperture hides the retina, (N,), for points (N, 3), 1 = 3 mm."""
        radius = np.hypot(points[:, 0], points[:, 1]) * (2 * RETINA_MM / self.field_mm)
        return radius > (np.inf if self.aperture is None else self.aperture)

    def render(
        self,
        tissue: np.ndarray,
        texture: np.ndarray,
        points: np.ndarray,
        shape: tuple[int, int, int],
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Return a picture (*shape, 3), red, green and blue, uint8; arguments as in `MRScanner.render`."""
        from scipy.ndimage import gaussian_filter

        hidden = self.outside(points)
        retina = _COLOUR_TABLE[RETINA.index("retina"), :3]
        pigment = rng.normal(1, 0.05, 3)
        colours = retina * pigment + self.contrast * (_COLOUR_TABLE[:, :3] - retina)
        light = colours[tissue] + (_COLOUR_TABLE[tissue, 3] * texture)[:, None]
        square = (points[:, 0] ** 2 + points[:, 1] ** 2) * (2 * RETINA_MM / self.field_mm) ** 2
        light = light * np.exp(self.slope * smooth(points, rng) - self.vignette * square)[:, None]
        light = light * np.array(self.gains) * rng.uniform(0.9, 1.1)
        light = 255 * (np.clip(light, 0, 255) / 255) ** self.gamma
        light = (1 - self.haze) * light + self.haze * 200
        light[hidden] = _COLOUR_TABLE[RETINA.index("outside"), :3]
        sigma = self.blur_mm * shape[0] / self.field_mm
        picture = gaussian_filter(light.reshape(*shape, 3), (sigma, sigma, 0, 0))
        return np.clip(np.rint(picture + rng.normal(0, self.noise, picture.shape)), 0, 255).astype(np.uint8)


def smooth(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth function of zero mean and unit variance at points (N, 3)."""
    angles = matmul(rng.uniform(-2, 2, (3, 3)), points.T) + rng.uniform(0, 2 * np.pi, (3, 1))
    values = np.cos(angles).sum(axis=0)
    return (values - values.mean()) / max(float(values.std()), 1e-3)
