"""Synthetic patients: which anatomy, scanner and motion each task has, and the scans of one patient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import anatomy, contrast
from .motion import (
    Motion,
    breathing_velocity,
    determinants,
    displacement,
    grid_points,
    inverse,
    move,
    points_to_voxels,
    random_velocity,
)

MIN_DETERMINANT = 0.15
KEYPOINTS = 96


@dataclass(frozen=True)
class RegistrationTask:
    """What one synthetic task shows and how its patients move.

    Attributes:
        name: folder and file prefix.
        description: one line for the dataset file.
        anatomy: a function of `anatomy`.
        modalities: one modality, or fixed and moving where they differ.
        labels: structures of the label maps, numbered from 1.
        mask: structures of the foreground mask; empty means all.
        spacing_mm: voxel edge at 32 voxels; the field of view does not change with the size.
        zoom: template units in half the field of view; below 1 the anatomy fills more of the image.
        bias: strength of the shading in MR, see `contrast.render_mr`.
        between: count of sines, reach and RMS of the motion from patient to patient, see `random_velocity`.
        within: the same for the motion between two scans of a patient; None where a pair is of two patients.
        breath: smallest and largest amplitude of breathing between the two scans.
        counts: training subjects (per modality where unpaired), validation pairs, test pairs.
    """

    name: str
    description: str
    anatomy: str
    modalities: tuple[str, ...]
    labels: tuple[str, ...]
    spacing_mm: float
    between: tuple[int, float, float]
    within: tuple[int, float, float] | None = None
    breath: tuple[float, float] | None = None
    mask: tuple[str, ...] = ()
    zoom: float = 1.0
    bias: float = 0.25
    counts: Mapping[str, int] = field(default_factory=lambda: {"training": 64, "validation": 8, "test": 24})


TASKS = (
    RegistrationTask(
        name="synth_brain_mr",
        description="Brain MR of different patients",
        anatomy="brain",
        modalities=("MR",),
        labels=("cortex", "white matter", "ventricles", "thalamus", "basal ganglia", "cerebellum", "brain stem"),
        spacing_mm=6.0,
        zoom=0.92,
        bias=0.2,
        between=(6, 3.0, 0.045),
    ),
    RegistrationTask(
        name="synth_abdomen_ct",
        description="Abdominal CT of different patients",
        anatomy="abdomen",
        modalities=("CT",),
        labels=("liver", "spleen", "right kidney", "left kidney", "stomach", "aorta", "vertebrae"),
        spacing_mm=10.0,
        between=(5, 2.5, 0.05),
    ),
    RegistrationTask(
        name="synth_lung_ct",
        description="Chest CT of one patient, breathed in (fixed) and out (moving)",
        anatomy="thorax",
        modalities=("CT",),
        labels=("right lung", "left lung", "heart", "aorta", "vertebrae", "liver"),
        mask=("right lung", "left lung"),
        spacing_mm=11.0,
        between=(4, 2.0, 0.05),
        within=(6, 2.0, 0.012),
        breath=(0.32, 0.44),
        counts={"training": 64, "validation": 8, "test": 24},
    ),
    RegistrationTask(
        name="synth_abdomen_mrct",
        description="Abdominal MR (fixed) and CT (moving), of one patient in validation and test pairs",
        anatomy="abdomen",
        modalities=("MR", "CT"),
        labels=("liver", "spleen", "right kidney", "left kidney", "aorta"),
        spacing_mm=10.6,
        zoom=1.06,
        bias=0.3,
        between=(4, 2.0, 0.05),
        within=(4, 2.0, 0.055),
        counts={"training": 96, "validation": 8, "test": 24},
    ),
)


class Scan(NamedTuple):
    """One scan: ``image`` int16, ``label`` and ``mask`` uint8, all (size,)*3; ``keypoints`` (N, 3) in voxels."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    keypoints: np.ndarray


class PatientSource:
    """Draws the patients of one task; holds the template that they share.

    Args:
        task: what to draw.
        size: voxels along each edge.
        rng: draws the texture, the vessels and the key points of the template.
    """

    def __init__(self, task: RegistrationTask, size: int, rng: np.random.Generator) -> None:
        self.task, self.size = task, size
        self.grid = grid_points(size)
        self.texture = contrast.Texture.random(rng)
        self.look_up: Callable[[np.ndarray], anatomy.Maps] = getattr(anatomy, task.anatomy)
        if task.anatomy == "thorax":
            self.look_up = functools.partial(anatomy.thorax, vessels=anatomy.grow_vessels(rng))
        candidates = rng.uniform(-0.8, 0.8, (40 * KEYPOINTS, 3)).astype(np.float32)
        structure, _ = self.look_up(candidates * task.zoom)
        self.landmarks = candidates[np.isin(structure, _indices(task.mask or task.labels))][:KEYPOINTS]

    def motions(self, rng: np.random.Generator) -> tuple[Motion, Motion]:
        """Draw the motions of a fixed and a moving scan, from image to template."""
        fixed = [random_velocity(rng, *self.task.between)]
        if self.task.within is None:
            return fixed, [random_velocity(rng, *self.task.between)]
        change = random_velocity(rng, *self.task.within)
        if self.task.breath is not None:
            change = change + breathing_velocity(rng.uniform(*self.task.breath), count=len(change[0]))
        return fixed, [-change, *fixed]

    def pair(self, rng: np.random.Generator) -> tuple[Motion, Motion, np.ndarray]:
        """Draw motions whose true field has no folds; returns them and the field (size, size, size, 3)."""
        for _ in range(100):
            fixed, moving = self.motions(rng)
            ddf = displacement(fixed, moving, self.size)
            if determinants(ddf).min() > MIN_DETERMINANT:
                return fixed, moving, ddf
        raise RuntimeError(f"{self.task.name}: no fold-free pair in 100 draws; the motion is too strong")

    def scan(self, modality: str, motion: Motion, rng: np.random.Generator) -> Scan:
        """Image a patient; ``rng`` draws contrast, shading and noise. Key points match line by line."""
        template = move(self.grid, motion)
        structure, tissue = self.look_up(template * self.task.zoom)
        texture = self.texture(template)
        if modality == "CT":
            image = contrast.render_ct(tissue, texture, self.size, rng)
        else:
            image = contrast.render_mr(tissue, texture, self.size, rng, self.task.bias)
        numbers = np.zeros(len(anatomy.TISSUES), np.uint8)
        numbers[_indices(self.task.labels)] = np.arange(1, len(self.task.labels) + 1)
        mask = np.isin(structure, _indices(self.task.mask)) if self.task.mask else structure > 0
        keypoints = points_to_voxels(move(self.landmarks, inverse(motion)), self.size)
        cube = image.shape
        return Scan(image, numbers[structure].reshape(cube), mask.astype(np.uint8).reshape(cube), keypoints)


def _indices(names: Iterable[str]) -> list[int]:
    return [anatomy.TISSUES.index(name) for name in names]
