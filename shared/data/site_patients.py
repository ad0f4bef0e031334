"""Which embedded segmentation sites there are, and the scans of one patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .contrast import Texture
from .motion import move, random_velocity
from .scanners import FundusCamera, MRScanner
from .site_anatomy import PELVIS, PELVIS_MM, RETINA, RETINA_MM, Pelvis, Retina, fundus, prostate

__all__ = ["SITES", "SegmentationSite"]

HEIGHT_MM = 58.0

Scan = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


@dataclass(frozen=True)
class SegmentationSite:
    """One site: ``name`` (folder and file prefix), one line about it, and its scanner or camera."""

    name: str
    description: str
    scanner: MRScanner | FundusCamera

    @property
    def labels(self) -> tuple[str, ...]:
        """Structures of the label maps, numbered from 1."""
        return ("prostate",) if isinstance(self.scanner, MRScanner) else ("disc", "cup")

    @property
    def modality(self) -> tuple[str, ...]:
        """Channels of the images."""
        return ("MRI",) if isinstance(self.scanner, MRScanner) else ("red", "green", "blue")

    @property
    def patients(self) -> int:
        """How many are drawn by default; a photograph is a single slice."""
        return 20 if isinstance(self.scanner, MRScanner) else 60

    def scan(self, rng: np.random.Generator, size: int) -> Scan:
        """Image a patient: voxels (i, j, k) or (i, j, 1, 3), label map (i, j, k) uint8, and spacing in mm."""
        if isinstance(self.scanner, MRScanner):
            return _prostate_scan(self.scanner, rng, size)
        return _fundus_scan(self.scanner, rng, size)


SITES = (
    SegmentationSite("site_prostate_1", "3 T, long echo time, pelvic coil", MRScanner(field_mm=160, thickness_mm=4.5)),
    SegmentationSite(
        "site_prostate_2",
        "1.5 T, coil in the rectum, small field of view",
        MRScanner(field_mm=125, thickness_mm=4.0, balloon=3.0, bias=0.1, noise=20, blur_mm=1.0),
    ),
    SegmentationSite(
        "site_prostate_3",
        "1.5 T, mixed weighting, coarse and noisy",
        MRScanner(
            field_mm=185, thickness_mm=5.2, matrix=0.875, weighting=0.5, gamma=0.8, bias=0.25, noise=32, blur_mm=1.7
        ),
    ),
    SegmentationSite(
        "site_prostate_4",
        "3 T, fat saturation, strong shading",
        MRScanner(field_mm=145, thickness_mm=4.0, fat=0.15, gamma=1.3, bias=0.45, noise=18, blur_mm=1.0),
    ),
    SegmentationSite(
        "site_prostate_5",
        "1.5 T, coil in the rectum, fat saturation, thick slices",
        MRScanner(
            field_mm=140, thickness_mm=5.8, weighting=0.35, fat=0.3, gamma=0.7, balloon=7.0, noise=25, blur_mm=1.5
        ),
    ),
    SegmentationSite(
        "site_prostate_6",
        "0.5 T, short echo time, coils on the skin, large field of view",
        MRScanner(field_mm=195, thickness_mm=4.8, weighting=1.0, gamma=1.1, surface=0.9, noise=30, blur_mm=1.6),
    ),
    SegmentationSite("site_fundus_1", "cropped around the disc", FundusCamera(field_mm=5.5)),
    SegmentationSite(
        "site_fundus_2",
        "wide field, round aperture, dark and red",
        FundusCamera(field_mm=8.5, gains=(0.8, 0.5, 0.45), gamma=1.3, vignette=0.25, aperture=0.95, noise=5),
    ),
    SegmentationSite(
        "site_fundus_3",
        "clouded lens, green cast, blurred",
        FundusCamera(
            field_mm=6.5,
            matrix=0.875,
            gains=(0.65, 1.2, 0.9),
            contrast=0.6,
            haze=0.35,
            slope=0.2,
            blur_mm=0.14,
            noise=7,
        ),
    ),
    SegmentationSite(
        "site_fundus_4",
        "infrared-like, blue and overexposed, uneven light",
        FundusCamera(field_mm=7.5, gains=(0.75, 1.1, 2.4), gamma=0.6, contrast=0.8, slope=0.3, vignette=0.3, noise=9),
    ),
)


def _prostate_scan(scanner: MRScanner, rng: np.random.Generator, size: int) -> Scan:
    shape, spacing = scanner.grid(size, HEIGHT_MM)
    patient = Pelvis.random(rng, balloon=scanner.balloon > 0)
    points = _centres(shape, spacing, PELVIS_MM)
    lie = rng.uniform((-0.08, -0.08, -0.06), (0.08, 0.08, 0.06)).astype(np.float32)
    template = move(points + lie, [random_velocity(rng, 5, 2.5, 0.045)])
    structure, tissue = prostate(template, patient)
    image = scanner.render(tissue, Texture.random(rng)(template), points, shape, rng)
    gland = [PELVIS.index(name) for name in ("peripheral zone", "central gland")]
    return image, np.isin(structure, gland).astype(np.uint8).reshape(shape), spacing


def _fundus_scan(scanner: FundusCamera, rng: np.random.Generator, size: int) -> Scan:
    shape, spacing = scanner.grid(size)
    patient = Retina.random(rng)
    points = _centres(shape, spacing, RETINA_MM)
    lie = rng.uniform(-0.1, 0.1, 3).astype(np.float32) * (1, 1, 0)
    template = move((points + lie).astype(np.float32), [random_velocity(rng, 5, 2.5, 0.03)])
    structure, tissue = fundus(template, patient)
    image = scanner.render(tissue, Texture.random(rng)(template), points, shape, rng)
    numbers = np.zeros(len(RETINA), np.uint8)
    numbers[[RETINA.index("disc"), RETINA.index("cup")]] = 1, 2
    label = np.where(scanner.outside(points), 0, numbers[structure]).astype(np.uint8)
    return image, label.reshape(shape), spacing


def _centres(shape: tuple[int, int, int], spacing: tuple[float, float, float], unit_mm: float) -> np.ndarray:
    """Voxel centres (N, 3) around the middle of the field of view, in template units."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * (s / unit_mm) for n, s in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)
