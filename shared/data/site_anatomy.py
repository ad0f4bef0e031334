"""Anatomy of the embedded segmentation sites: the male pelvis around the prostate, and the back of an eye.

Functions of continuous template coordinates as in :mod:`.anatomy`: both return two maps of shape (N,), uint8 indices
into `PELVIS` or `RETINA`, the structure (what a label map shows) and the tissue (what an image shows). A patient is
the template with sizes of his own, looked up at moved points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .anatomy import Canvas, Maps, Point

# Millimetres of one template unit.
PELVIS_MM = 80.0
RETINA_MM = 3.0

PELVIS = (
    *("air", "fat", "muscle", "bone", "marrow", "bladder", "rectum wall", "rectum content", "seminal vesicles"),
    *("levator", "capsule", "peripheral zone", "central gland", "nodule", "urethra"),
)
RETINA = ("outside", "retina", "macula", "atrophy", "disc", "cup", "vessel")


@dataclass(frozen=True)
class Pelvis:
    """What differs from one man to the next.

    Attributes:
        gland: size of the prostate, 1 on average.
        central: size of the central gland within it; it grows with age.
        rectum: filling of the rectum.
        bladder: filling of the bladder.
        balloon: whether a receiver coil lies in the rectum, which is then wide and presses the prostate flat.
        nodules: (K, 4) centre and radius, in units of the central gland's radii.
    """

    gland: float
    central: float
    rectum: float
    bladder: float
    balloon: bool
    nodules: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, balloon: bool) -> Pelvis:
        """Draw a patient."""
        centres = rng.uniform(-0.6, 0.6, (5, 3))
        nodules = np.concatenate([centres, rng.uniform(0.15, 0.35, (5, 1))], axis=1)
        gland, central, rectum, bladder = rng.uniform((0.85, 0.85, 0.75, 0.8), (1.15, 1.15, 1.25, 1.25)).tolist()
        return cls(gland, central, rectum, bladder, balloon, nodules)


def prostate(points: np.ndarray, patient: Pelvis) -> Maps:
    """Pelvis at the height of the prostate; +x to the right, +y to the front, +z to the head, 1 = 80 mm."""
    c = Canvas(points, PELVIS)
    c.fill("fat", c.column(0, 0.0, 2.1, 1.3) < 1)
    c.fill("muscle", (c.column(0, -1.15, 1.5, 0.42) < 1) & (np.abs(c.x) > 0.1))
    for side in (-1, 1):
        c.fill("bone", c.ball((1.08 * side, 0.12, 0.15), (0.36, 0.4, 0.5)) < 1)
        c.stain("marrow", c.ball((1.08 * side, 0.12, 0.15), (0.29, 0.33, 0.43)) < 1)
        c.fill("muscle", c.column(0.62 * side, 0.0, 0.14, 0.5) < 1)
        c.fill("bone", c.tube((0.7 * side, -0.45, -0.6), (0.8 * side, -0.1, 0.3), 0.13))
        c.stain("marrow", c.tube((0.7 * side, -0.45, -0.6), (0.8 * side, -0.1, 0.3), 0.08))
        c.fill("bone", c.tube((0.1 * side, 0.6, -0.1), (0.75 * side, 0.5, 0.25), 0.16))
        c.stain("marrow", c.tube((0.12 * side, 0.6, -0.1), (0.75 * side, 0.5, 0.25), 0.11))
    sling = np.sqrt(c.column(0, -0.14, 0.42, 0.55))
    c.fill("levator", (np.abs(sling - 1) < 0.08) & (c.z < 0.2))
    c.fill("bladder", c.ball((0, 0.12, 0.62), (0.5 * patient.bladder, 0.4 * patient.bladder, 0.42)) < 1)
    for side in (-1, 1):
        wave = 0.03 * np.sin(25 * c.x)
        lobe = ((c.x - 0.2 * side) / 0.22) ** 2 + ((c.y + 0.16 + wave) / 0.08) ** 2 + ((c.z - 0.34) / 0.12) ** 2
        c.fill("seminal vesicles", lobe < 1)
    _gland(c, patient)
    _rectum(c, patient)
    return c.structure, c.tissue


def _gland(c: Canvas, patient: Pelvis) -> None:
    """Paint the prostate: narrower at the apex, its central gland in front of the peripheral zone."""
    flat = 0.85 if patient.balloon else 1.0
    taper = np.clip(1 + 0.5 * c.z, 0.75, 1.15)
    x, y, z = c.x / (0.33 * taper), (c.y - 0.02) / (0.26 * flat * taper), c.z / 0.29
    inside = np.sqrt(x**2 + y**2 + z**2) / patient.gland
    c.fill("peripheral zone", inside < 1)
    c.stain("capsule", (inside < 1) & (inside > 0.9))
    size = 0.68 * patient.gland * patient.central
    x, y, z = x / size, (y - 0.25) / size, (z - 0.12) / size
    central = (x**2 + y**2 + z**2 < 1) & (inside < 0.9)
    c.fill("central gland", central)
    for cx, cy, cz, radius in patient.nodules:
        c.stain("nodule", central & ((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < radius**2))
    c.stain("urethra", c.tube((0, 0.06, -0.6), (0, 0.04, 0.3), 0.03))


def _rectum(c: Canvas, patient: Pelvis) -> None:
    across, deep = (0.27, 0.22) if patient.balloon else (0.17 * patient.rectum, 0.15 * patient.rectum)
    # The rectum's front wall touches the prostate and follows the curve of the sacrum above it.
    middle = -0.26 - deep - 0.25 * np.clip(c.z, 0, None) ** 2
    inside = np.sqrt((c.x / across) ** 2 + ((c.y - middle) / deep) ** 2)
    c.fill("rectum wall", inside < 1.25)
    c.fill("rectum content", inside < 1)


@dataclass(frozen=True)
class Retina:
    """What differs from one eye to the next.

    Attributes:
        disc: half axes of the optic disc.
        cup: size of the cup as a share of the disc, across and up.
        shift: offset of the cup's centre within the disc.
        temporal: 1 or -1, the side of the macula.
        atrophy: width of the pale crescent at the temporal margin of the disc.
        vessels: (S, 5) start, end and radius of each segment.
    """

    disc: tuple[float, float]
    cup: tuple[float, float]
    shift: tuple[float, float]
    temporal: int
    atrophy: float
    vessels: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator) -> Retina:
        """Draw an eye."""
        width, ratio = rng.uniform(0.27, 0.34), rng.uniform(0.4, 0.72)
        temporal = int(rng.choice((-1, 1)))
        return cls(
            disc=(width, width * rng.uniform(1.02, 1.2)),
            cup=(ratio, ratio * rng.uniform(0.9, 1.12)),
            shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
            temporal=temporal,
            atrophy=float(rng.uniform(0, 0.12)),
            vessels=_arcades(rng, temporal),
        )


def _arcades(rng: np.random.Generator, temporal: int) -> np.ndarray:
    """Grow the four pairs of vessels that leave the disc up and down, to the temporal and the nasal side."""
    segments = []
    for up in (-1, 1):
        for side in (-1, 1):
            for trunk in (0.045, 0.03):
                start, radius = rng.normal(0, 0.03, 2), trunk
                # Vessels leave upwards or downwards; the temporal ones then bend around the macula.
                angle = np.pi / 2 - side * rng.uniform(0.15, 0.6)
                bend = side * (0.16 if side == temporal else 0.09) * rng.uniform(0.7, 1.3)
                for _ in range(9):
                    end = start + 0.24 * np.array((np.cos(angle), up * np.sin(angle)))
                    segments.append(np.concatenate([start, end, [radius]]))
                    start, angle, radius = end, angle - bend + rng.normal(0, 0.12), 0.92 * radius
    return np.asarray(segments, np.float32)


def fundus(points: np.ndarray, patient: Retina) -> Maps:
    """Photograph of the retina around the optic disc; +x to the right, +y up, z is not used, 1 = 3 mm."""
    c = Canvas(points, RETINA)
    c.fill("retina", np.ones(len(points), bool))
    c.stain("macula", c.column(1.45 * patient.temporal, -0.1, 0.35, 0.3) < 1)
    width, height = patient.disc
    crescent = c.column(patient.temporal * patient.atrophy, 0, width, height) < 1
    c.stain("atrophy", crescent)
    c.fill("disc", c.column(0, 0, width, height) < 1)
    c.fill("cup", c.column(*patient.shift, width * patient.cup[0], height * patient.cup[1]) < 1)
    for x0, y0, x1, y1, radius in patient.vessels:
        start: Point = (float(x0), float(y0), 0.0)
        c.stain("vessel", c.tube(start, (float(x1), float(y1), 0.0), float(radius)))
    return c.structure, c.tissue
