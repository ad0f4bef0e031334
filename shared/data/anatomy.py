"""Anatomy as functions of continuous template coordinates: what is at a point?

Coordinates run over [-1, 1], +x to the patient's right, +y to the front, +z to the head. A subject is the
template looked up at moved points, so that no label map is ever interpolated and any grid size shows the
same patient. `brain`, `abdomen` and `thorax` return two maps of shape (N,), uint8 indices into `TISSUES`:
the structure (what a label map shows) and the tissue (what an image shows; a vessel inside the liver is
liver to the label map).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .motion import matmul

TISSUES = (
    *("background", "fluid", "cortex", "white matter", "ventricles", "thalamus", "basal ganglia"),
    *("cerebellum", "brain stem", "fat", "muscle", "bone", "marrow", "disc", "gas", "lung", "bowel"),
    *("liver", "spleen", "right kidney", "left kidney", "stomach", "aorta", "vena cava", "pancreas", "vessel"),
    *("heart", "vertebrae", "right lung", "left lung", "airway"),
)

Point = tuple[float, float, float]
Maps = tuple[np.ndarray, np.ndarray]


class Canvas:
    """Paints named tissues over one another, later over earlier.

    Args:
        points: (N, 3).
        tissues: the names; a map holds indices into them.
    """

    def __init__(self, points: np.ndarray, tissues: Sequence[str] = TISSUES) -> None:
        self.tissues = tissues
        self.x, self.y, self.z = np.ascontiguousarray(points.T)
        self.structure = np.zeros(len(points), np.uint8)
        self.tissue = np.zeros(len(points), np.uint8)

    def fill(self, name: str, where: np.ndarray) -> None:
        """Replace structure and tissue."""
        self.structure[where] = self.tissues.index(name)
        self.stain(name, where)

    def stain(self, name: str, where: np.ndarray) -> None:
        """Replace what the image shows and keep what the label map shows."""
        self.tissue[where] = self.tissues.index(name)

    def shows(self, *names: str) -> np.ndarray:
        """True where the label map shows one of the names."""
        return np.isin(self.structure, [self.tissues.index(name) for name in names])

    def ball(self, centre: Point, radii: Point) -> np.ndarray:
        """Squared distance from ``centre`` in units of ``radii``: below 1 inside the ellipsoid."""
        (cx, cy, cz), (rx, ry, rz) = centre, radii
        return ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2

    def tube(self, start: Point, end: Point, radius: float) -> np.ndarray:
        """True within ``radius`` of the segment from ``start`` to ``end``."""
        along = np.subtract(end, start).astype(np.float32)
        offset = (self.x - start[0], self.y - start[1], self.z - start[2])
        t = sum(o * a for o, a in zip(offset, along, strict=True)) / float(along @ along)
        t = np.clip(t, 0, 1)
        return sum((o - t * a) ** 2 for o, a in zip(offset, along, strict=True)) < radius**2

    def column(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """Squared distance from a line along z in units of the two radii."""
        return ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2


def brain(points: np.ndarray) -> Maps:
    """Brain without the skull: folded cortex, deep grey matter, ventricles, cerebellum, brain stem."""
    c = Canvas(points)
    radius = np.sqrt(c.ball((0, 0, 0.1), (0.68, 0.84, 0.64)))
    around = np.arctan2(c.y, c.x)
    folds = np.sin(9 * around + 9 * c.z) + np.sin(8 * c.z + 2 * around)
    cerebrum = c.z > -0.36 - 0.12 * np.cos(4 * c.x)
    c.fill("fluid", (radius < 1) & cerebrum)
    c.fill("cortex", (radius < 0.94 + 0.03 * folds) & cerebrum)
    c.fill("white matter", (radius < 0.72 + 0.06 * folds) & cerebrum & (c.z > -0.32))
    c.fill("fluid", (np.abs(c.x) < 0.035) & (radius < 1) & (radius > 0.5) & (c.z > -0.1))
    c.fill("fluid", c.tube((0, -0.1, -0.3), (0, -0.3, -0.8), 0.18))
    for side in (-1, 1):
        c.fill("fluid", c.ball((0.24 * side, -0.48, -0.47), (0.36, 0.34, 0.27)) < 1)
    for side in (-1, 1):
        c.fill("cerebellum", c.ball((0.23 * side, -0.48, -0.48), (0.3, 0.29, 0.22)) < 1)
        bend = c.x - side * (0.13 + 0.25 * c.y**2)
        c.fill("basal ganglia", c.ball((0.33 * side, 0.08, 0.04), (0.1, 0.25, 0.16)) < 1)
        c.fill("basal ganglia", c.ball((0.2 * side, 0.3, 0.12), (0.11, 0.16, 0.15)) < 1)
        c.fill("thalamus", c.ball((0.15 * side, -0.12, -0.01), (0.15, 0.2, 0.15)) < 1)
        c.fill("ventricles", (bend / 0.1) ** 2 + ((c.y + 0.02) / 0.46) ** 2 + ((c.z - 0.22) / 0.14) ** 2 < 1)
    c.fill("brain stem", c.tube((0, -0.1, -0.18), (0, -0.26, -0.72), 0.13))
    return c.structure, c.tissue


def _trunk(c: Canvas, width: float, depth: float) -> np.ndarray:
    """Paint body wall, ribs and spine; returns where the cavity is."""
    wall = np.sqrt(c.column(0, 0, width, depth))
    c.fill("fat", wall < 1)
    c.fill("muscle", wall < 0.9)
    around = np.arctan2(c.y / depth, c.x / width)
    rib = np.sin(20 * c.z + 5 * np.cos(around - np.pi / 2)) > 0.45
    c.fill("bone", rib & (wall < 0.88) & (wall > 0.8) & (c.z > -0.45))
    cavity = (wall < 0.79) & (c.column(0, -0.62 * depth, 0.42, 0.3 * depth) > 1)
    c.fill("fat", cavity)
    return cavity


def _spine(c: Canvas, y: float) -> None:
    body = c.column(0, y, 0.15, 0.13)
    disc = np.sin(15 * c.z) > 0.72
    c.fill("vertebrae", (body < 1) | (c.column(0, y - 0.2, 0.06, 0.13) < 1))
    c.stain("marrow", body < 0.55)
    c.fill("disc", (body < 1) & disc)
    for side in (-1, 1):
        c.fill("vertebrae", (c.column(0.14 * side, y - 0.13, 0.1, 0.05) < 1) & ~disc)


def abdomen(points: np.ndarray) -> Maps:
    """Upper abdomen, cut above and below: organs, vessels, bowel, spine, ribs, lung bases."""
    c = Canvas(points)
    cavity = _trunk(c, 0.94, 0.7)
    loops = np.sin(15 * c.x + 2 * np.sin(7 * c.z)) * np.sin(13 * c.z + 3 * np.sin(6 * c.x)) + np.sin(9 * c.y)
    front = cavity & (c.z < 0.12) & (c.y > -0.08)
    c.fill("bowel", front & (loops > 0.1))
    c.stain("gas", front & (loops > 1.55) & (c.y > 0.15))
    c.fill("pancreas", c.tube((-0.42, 0.0, 0.14), (0.16, 0.08, 0.02), 0.085) & cavity)
    dome = np.minimum(c.ball((0.4, 0, 0.0), (0.62, 0.75, 0.98)), c.ball((-0.42, 0, 0.0), (0.58, 0.75, 0.9)))
    c.fill("lung", cavity & (dome > 1) & (c.z > 0.45) & (np.abs(c.x) > 0.1))
    liver = (c.ball((0.4, 0.0, 0.34), (0.4, 0.48, 0.46)) < 1) | (c.ball((0.02, 0.24, 0.4), (0.42, 0.22, 0.24)) < 1)
    c.fill("liver", liver & cavity)
    branches: tuple[Point, ...] = ((0.55, 0.15, 0.5), (0.55, -0.2, 0.4), (0.1, 0.25, 0.42), (0.4, 0.1, 0.1))
    for end in branches:
        c.stain("vessel", c.tube((0.28, 0.02, 0.3), end, 0.045) & c.shows("liver"))
    c.fill("stomach", (c.ball((-0.38, 0.2, 0.34), (0.3, 0.24, 0.3)) < 1) & cavity & ~c.shows("liver"))
    c.stain("gas", c.shows("stomach") & (c.y > 0.3))
    c.fill("spleen", (c.ball((-0.56, -0.16, 0.4), (0.18, 0.28, 0.3)) < 1) & cavity)
    for side, name, z in ((1, "right kidney", -0.2), (-1, "left kidney", -0.1)):
        lean = c.ball((0.42 * side, -0.24, z), (0.17, 0.17, 0.3))
        c.fill(name, lean < 1)
        c.stain("fat", c.ball((0.36 * side, -0.22, z), (0.07, 0.06, 0.14)) < 1)
    c.fill("aorta", c.tube((-0.07, -0.16, -1.4), (-0.05, -0.17, 1.4), 0.1))
    c.fill("vena cava", c.tube((0.14, -0.14, -1.4), (0.16, -0.06, 1.4), 0.09))
    _spine(c, -0.38)
    return c.structure, c.tissue


def thorax(points: np.ndarray, vessels: np.ndarray) -> Maps:
    """Chest: lungs with their vessels, heart, aorta, airway, spine, ribs, liver dome.

    ``vessels`` (S, 7) holds start, end and radius of each segment, see `grow_vessels`.
    """
    c = Canvas(points)
    cavity = _trunk(c, 0.95, 0.7)
    c.fill("muscle", cavity & (c.z < -0.2))
    c.fill("liver", cavity & (c.z < -0.2) & (c.x > -0.15))
    c.stain("gas", c.ball((-0.45, 0.18, -0.72), (0.16, 0.14, 0.14)) < 1)
    for side, name, floor in ((1, "right lung", -0.37), (-1, "left lung", -0.43)):
        dome = floor - 1.3 * ((c.x - 0.42 * side) ** 2 + (c.y - 0.05) ** 2)
        c.fill(name, (c.ball((0.43 * side, 0.0, -0.1), (0.36, 0.54, 0.98)) < 1) & cavity & (c.z > dome))
    inside = np.flatnonzero(c.shows("right lung", "left lung"))
    stained = np.zeros(len(points), bool)
    stained[inside] = _near_segments(points[inside], vessels)
    c.stain("vessel", stained)
    c.fill("airway", c.tube((0, -0.03, 1.4), (0, -0.06, 0.38), 0.075))
    for side in (-1, 1):
        c.fill("airway", c.tube((0, -0.06, 0.38), (0.24 * side, -0.06, 0.16), 0.06))
    c.fill("heart", c.ball((-0.13, 0.17, -0.14), (0.3, 0.27, 0.34)) < 1)
    arch = c.tube((-0.13, -0.22, 0.42), (0.03, 0.08, 0.5), 0.1) | c.tube((0.03, 0.08, 0.5), (0.03, 0.12, 0.1), 0.1)
    c.fill("aorta", arch | c.tube((-0.13, -0.24, -1.4), (-0.13, -0.22, 0.42), 0.1))
    _spine(c, -0.42)
    return c.structure, c.tissue


def _near_segments(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """True where a point (N, 3) is closer to any segment (S, 7) than that segment's radius."""
    start, along, radius = segments[:, :3], segments[:, 3:6] - segments[:, :3], segments[:, 6]
    length = (along**2).sum(1)
    projection = matmul(along, points.T) - (start * along).sum(1)[:, None]
    square = (points**2).sum(1) - 2 * matmul(start, points.T) + (start**2).sum(1)[:, None]
    t = np.clip(projection / length[:, None], 0, 1)
    return (square - 2 * t * projection + t**2 * length[:, None] < radius[:, None] ** 2).any(axis=0)


def grow_vessels(rng: np.random.Generator, levels: int = 4) -> np.ndarray:
    """Grow the vessel trees of both lungs from the hilum: (S, 7) start, end, radius of each segment."""
    segments: list[np.ndarray] = []

    def grow(start: np.ndarray, direction: np.ndarray, length: float, radius: float, level: int) -> None:
        end = start + length * direction
        segments.append(np.concatenate([start, end, [radius]]))
        if level == 1:
            return
        spread = np.cross(direction, rng.standard_normal(3))
        spread *= 0.65 / np.linalg.norm(spread)
        for turn in (spread, -spread):
            child = direction + turn
            grow(end, child / np.linalg.norm(child), 0.8 * length, 0.8 * radius, level - 1)

    roots: Sequence[Point] = ((0.5, 0.3, 0.8), (0.6, -0.5, -0.6), (0.7, 0.4, -0.3), (0.4, -0.5, 0.7))
    for side in (-1, 1):
        for root in roots:
            direction = np.array(root) * (side, 1, 1) + 0.1 * rng.standard_normal(3)
            grow(np.array([0.2 * side, -0.04, 0.1]), direction / np.linalg.norm(direction), 0.27, 0.065, levels)
    return np.asarray(segments, np.float32)
