"""Rigid or affine alignment of two images whose headers do not bring them together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..transform_io import Grid
from .forces import MutualInformation
from .lattice import coarser, padded, place, reach

__all__ = ["Alignment", "align", "moved"]

# A shared frame: one of the fields of view lies in the other by this share, and so much of the foreground overlaps.
SHARED_VIEW = 0.5
SHARED_FOREGROUND = 0.6
# A rigid fit replaces a shared frame where it raises the mutual information by this share.
CLEAR_GAIN = 0.5
# A fit from elsewhere replaces the one from a shared frame where its mutual information is higher by this share.
CLEARLY_ELSEWHERE = 0.25
FOREGROUND = 0.08
ANGLE = np.pi / 6
CANDIDATES = 4


@dataclass(frozen=True, eq=False)
class Alignment:
    """An initial map.

    Attributes:
        matrix: (d+1, d+1), takes RAS millimetres of the fixed image to those of the moving image.
        kind: "identity", "given", "centre", "rigid" or "affine".
        note: why, for the log.
    """

    matrix: np.ndarray
    kind: str
    note: str


def moved(moving: Grid, matrix: np.ndarray) -> Grid:
    """Return the moving lattice where an alignment takes it: in the frame of the fixed image."""
    return Grid(moving.shape, np.linalg.inv(matrix) @ moving.affine)


class Views(Protocol):
    """What the alignment looks at: both images in [0, 1] on their lattices, and their masks."""

    @property
    def fixed(self) -> Tensor:
        """Fixed image."""

    @property
    def moving(self) -> Tensor:
        """Moving image."""

    @property
    def fixed_grid(self) -> Grid:
        """Lattice of the fixed image."""

    @property
    def moving_grid(self) -> Grid:
        """Lattice of the moving image."""

    @property
    def weights(self) -> tuple[Tensor | None, Tensor | None]:
        """Mask of the fixed and of the moving image; None where all counts."""


def align(pair: Views, mode: str, multimodal: bool, out_of_time: Callable[[], bool] = lambda: False) -> Alignment:
    """Find the map from the fixed image's frame to the moving image's.

    "auto" keeps the headers' frame where the fields of view and the foregrounds overlap, unless the images have one
    modality and a rigid fit is far better. Fits start from the frame as it is, the centres of the fields of view and
    of the foregrounds laid on each other, each also turned by 30 degrees about every axis; the best go through two
    resolutions of mutual information (the metric that MR and CT share with everything else).

    Args:
        pair: the images.
        mode: "auto", "identity", "centre", "rigid" or "affine".
        multimodal: 6 degrees of freedom in "auto" then, and no fit where the frame is shared.
        out_of_time: asked between fits.
    """
    d = len(pair.fixed_grid.shape)
    identity = np.eye(d + 1)
    if mode == "identity":
        return Alignment(identity, "identity", "as asked for")
    view, foreground = _overlap(pair)
    overlap = f"fields of view overlap by {view:.0%}, foregrounds by {foreground:.0%}"
    if mode == "centre":
        # The middle of what is seen or of what is not black, each a pure shift.
        shifts = [s for s in _starts(pair)[1:] if np.array_equal(s[:d, :d], np.eye(d))]
        return Alignment(max(shifts, key=lambda s: _score(pair, s)), "centre", f"as asked for: {overlap}")
    shared = view >= SHARED_VIEW and foreground >= SHARED_FOREGROUND
    if mode == "auto" and shared and multimodal:
        return Alignment(identity, "identity", f"one frame: {overlap}")
    matrix, gain = _best_rigid(pair, shared, out_of_time)
    if mode == "auto" and shared and gain < CLEAR_GAIN:
        return Alignment(identity, "identity", f"one frame: {overlap}; a rigid fit gains {gain:.0%}")
    matrix, _ = _fit(pair, matrix, _coarse_mm(pair) / 2, 20, affine=False)
    note = f"{overlap}; mutual information gains {gain:.0%}"
    if mode == "rigid" or (mode == "auto" and (multimodal or shared)):
        return Alignment(matrix, "rigid", note)
    fitted, _ = _fit(pair, matrix, _coarse_mm(pair) / 2, 20, affine=True)
    return Alignment(fitted, "affine", note)


def _coarse_mm(pair: Views) -> float:
    """Return a spacing that leaves about 20 voxels along the fixed image."""
    extent = np.array(pair.fixed_grid.shape) * pair.fixed_grid.spacing_mm
    return float(np.sort(extent)[-2:].mean() / 20)


def _at(pair: Views, spacing_mm: float, matrix: np.ndarray) -> tuple[Grid, MutualInformation]:
    """Return the fixed lattice at a spacing and the similarity there, for maps near ``matrix``."""
    grid = coarser(pair.fixed_grid, spacing_mm)
    margin = [-(-n // 4) + 1 for n in grid.shape]
    source, target = moved(pair.moving_grid, matrix), padded(grid, margin)
    seen = pair.fixed.new_ones(1, 1, *grid.shape)
    if pair.weights[0] is not None:
        seen = place(pair.weights[0], pair.fixed_grid, grid)
    view = reach(source, target, device=pair.moving.device)
    if pair.weights[1] is not None:
        view = view * place(pair.weights[1], source, target)
    images = place(pair.fixed, pair.fixed_grid, grid), place(pair.moving, source, target)
    return grid, MutualInformation(*images, seen, view, margin=margin)


def _overlap(pair: Views) -> tuple[float, float]:
    """Return the larger share of a field of view inside the other, and the foregrounds' Dice where both are seen."""
    grid = coarser(pair.fixed_grid, _coarse_mm(pair))
    back = coarser(pair.moving_grid, _coarse_mm(pair))
    seen = reach(pair.moving_grid, grid)
    view = max(float(seen.mean()), float(reach(pair.fixed_grid, back).mean()))
    front = (place(pair.fixed, pair.fixed_grid, grid).cpu() > FOREGROUND).float() * seen
    behind = (place(pair.moving, pair.moving_grid, grid).cpu() > FOREGROUND).float() * seen
    total = float((front + behind).sum())
    return view, 2.0 * float((front * behind).sum()) / total if total > 0 else 0.0


def _best_rigid(pair: Views, shared: bool, out_of_time: Callable[[], bool]) -> tuple[np.ndarray, float]:
    """Return the best rigid map of several starts, and by which share it raises the mutual information."""
    d = len(pair.fixed_grid.shape)
    (identity, here), *others = [(matrix, _score(pair, matrix)) for matrix in _starts(pair)]
    others = sorted(others, key=lambda s: -s[1])[: 1 if shared else CANDIDATES]
    fits = []
    for matrix, _ in [(identity, here), *others]:
        if out_of_time():
            break
        fits.append(_fit(pair, matrix, _coarse_mm(pair), 30, affine=False))
    if not fits:
        return np.eye(d + 1), 0.0
    matrix, score = max(fits, key=lambda f: f[1])
    # A frame that is shared is left for a far one only where that is clearly better: small views have false optima.
    if shared and score < (1.0 + CLEARLY_ELSEWHERE) * fits[0][1]:
        matrix, score = fits[0]
    return matrix, score / max(here, 1e-6) - 1.0


def _starts(pair: Views) -> list[np.ndarray]:
    """Return first maps: three shifts, each as it is and turned about every axis. The first is the identity."""
    grid, back = (coarser(g, _coarse_mm(pair)) for g in (pair.fixed_grid, pair.moving_grid))
    d = len(grid.shape)
    front, behind = place(pair.fixed, pair.fixed_grid, grid), place(pair.moving, pair.moving_grid, back)
    centre = _middle(grid)
    shifts = [(centre, centre), (centre, _middle(back)), (_mass(front, grid), _mass(behind, back))]
    turns = [np.eye(d)]
    for a, b in itertools.combinations(range(d), 2):
        for angle in (-ANGLE, ANGLE):
            turn = np.eye(d)
            turn[[a, b, a, b], [a, b, b, a]] = [np.cos(angle), np.cos(angle), -np.sin(angle), np.sin(angle)]
            turns.append(turn)
    starts = []
    for origin, aim in shifts:
        for turn in turns:
            matrix = np.eye(d + 1)
            matrix[:d, :d], matrix[:d, d] = turn, aim - turn @ origin
            starts.append(matrix)
    return starts


def _middle(grid: Grid) -> np.ndarray:
    return grid.affine[:-1, :-1] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:-1, -1]


def _mass(image: Tensor, grid: Grid) -> np.ndarray:
    """Return the centre of the foreground in the world."""
    voxels = (image[0, 0] > FOREGROUND).nonzero().double().cpu().numpy()
    return grid.affine[:-1, :-1] @ voxels.mean(axis=0) + grid.affine[:-1, -1] if len(voxels) else _middle(grid)


def _score(pair: Views, matrix: np.ndarray) -> float:
    """Return the mutual information of the two images under a map, less where little of the pair overlaps."""
    grid, similarity = _at(pair, _coarse_mm(pair), matrix)
    image, weight = similarity.warped(torch.zeros(1, len(grid.shape), *grid.shape, device=pair.fixed.device))
    return float(-similarity.information(image, weight)[0]) * _covered(pair, grid, weight)


def _covered(pair: Views, grid: Grid, weight: Tensor) -> float:
    """Return 1 where half of the smaller image takes part, falling to 0."""
    voxel = np.prod(grid.spacing_mm)
    volumes = [np.prod(g.shape) * np.prod(g.spacing_mm) / voxel for g in (pair.fixed_grid, pair.moving_grid)]
    return min(1.0, 2.0 * float(weight.sum()) / min(volumes))


def _fit(pair: Views, matrix: np.ndarray, spacing_mm: float, steps: int, affine: bool) -> tuple[np.ndarray, float]:
    """Improve a map by gradient steps put before it; returns the better of it and the start, scored.

    With ``x`` in millimetres about the middle of the fixed lattice, each step is ``x -> expm(A) x + b``. The gradient
    to ``b`` is the sum of the force, to ``A`` the sum of ``force x^T`` (its skew part for a rigid map).
    """
    grid, similarity = _at(pair, spacing_mm, matrix)
    d, device = len(grid.shape), pair.fixed.device
    spacing = torch.tensor(grid.spacing_mm, device=device)
    axes = [
        (torch.arange(n, device=device) - (n - 1) / 2) * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    radius = points.square().sum(0).mean().sqrt()
    linear, shift = torch.eye(d, device=device), torch.zeros(d, device=device)
    mean, power = torch.zeros(d, d + 1, device=device), torch.zeros((), device=device)
    broad = (d, *[1] * d)

    def displacement() -> Tensor:
        turned = torch.einsum("ij,j...->i...", linear - torch.eye(d, device=device), points)
        return ((turned + shift.view(broad)) / spacing.view(broad))[None]

    for k in range(steps):
        force = similarity(displacement())[1][0] / spacing.view(broad)
        on_linear = torch.einsum("i...,j...->ij", force, points) / radius
        if not affine:
            on_linear = (on_linear - on_linear.T) / 2
        gradient = torch.cat([on_linear, force.flatten(1).sum(1, keepdim=True)], dim=1)
        mean = 0.8 * mean + 0.2 * gradient
        power = 0.95 * power + 0.05 * gradient.square().sum()
        size = 0.5 * spacing_mm * (1.0 - 0.9 * k / steps) * (1 - 0.95 ** (k + 1)) ** 0.5 / (1 - 0.8 ** (k + 1))
        step = mean * (-size / (power.sqrt() + 1e-30))
        shift = shift + linear @ step[:, d]
        linear = linear @ torch.matrix_exp(step[:, :d] / radius)
    found = displacement()
    scores = []
    for ddf in (torch.zeros_like(found), found):
        image, weight = similarity.warped(ddf)
        scores.append(float(-similarity.information(image, weight)[0]) * _covered(pair, grid, weight))
    if scores[1] <= scores[0]:
        return matrix, scores[0]
    return matrix @ _to_world(linear, shift, grid), scores[1]


def _to_world(linear: Tensor, shift: Tensor, grid: Grid) -> np.ndarray:
    """Turn a map about the lattice's middle, in millimetres along its axes, into one in the world."""
    d = len(grid.shape)
    local = np.eye(d + 1)
    local[:d, :d], local[:d, d] = linear.double().cpu().numpy(), shift.double().cpu().numpy()
    frame = np.eye(d + 1)
    frame[:d, :d] = grid.affine[:d, :d] / np.array(grid.spacing_mm)
    frame[:d, d] = _middle(grid)
    return frame @ local @ np.linalg.inv(frame)
