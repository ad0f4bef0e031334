"""A page to look at before a registration is trusted: both images, their agreement, and the field, in three planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .files import atomic_path
from .transform_io import Affine, Grid, Transform, network_grid
from .warp import warp

__all__ = ["Scene", "quality_figure"]

COLUMNS = ("fixed", "moving", "warped", "checkerboard", "before", "after", "grid on moving", "volume change")
# Axis that a plane is cut across -> its name, and what lies to the right and up.
_PLANES = {2: ("axial", "R", "A"), 1: ("coronal", "R", "S"), 0: ("sagittal", "A", "S")}
_COLOURS = {"ok": "#2e7d32", "suspect": "#e08700", "failed": "#c62828"}
# Voxels along the longest side of a plane, tiles of the checkerboard, lines of the grid.
_PIXELS, _TILES, _LINES = 240, 8, 24
# What is darker than this is air; how much of the field's colour is left there.
_AIR, _DIM = 0.06, 0.35
_INCHES, _HEAD, _DPI = 1.9, 0.95, 110
# Level of the PNG's compression: the highest takes twice as long for a twentieth of the size.
_PACKED = 4
# Height of a row, at least, as a share of its width.
_LOWEST = 0.3


@dataclass(frozen=True, eq=False)
class Scene:
    """What is drawn.

    Attributes:
        fixed: (1, 1, *S) in [0, 1].
        moving: (1, 1, *T) in [0, 1].
        grids: of both.
        transform: one displacement, then one affine.
        determinant: (*D) Jacobian determinants.
        determinant_grid: their lattice.
        one_scale: whether both images have one contrast, so that their difference means something.
    """

    fixed: Tensor
    moving: Tensor
    grids: tuple[Grid, Grid]
    transform: Transform
    determinant: Tensor
    determinant_grid: Grid
    one_scale: bool

    @property
    def display(self) -> Grid:
        """A lattice of cubes along the axes of the fixed image, in the closest right-anterior-superior order."""
        fixed = self.grids[0]
        extent = np.array(fixed.shape) * fixed.spacing_mm
        return network_grid(fixed, spacing_mm=[max(min(fixed.spacing_mm), float(extent.max()) / _PIXELS)] * len(extent))

    def middle(self) -> list[int]:
        """Return the voxel of the display at the centre of what is bright in the fixed image."""
        bright = self.fixed[0, 0][tuple(slice(None, None, 2) for _ in self.grids[0].shape)]
        places = (bright > max(0.15, float(bright.mean()))).nonzero().double() * 2
        centre = places.mean(0) if len(places) else (torch.tensor(self.grids[0].shape) - 1.0) / 2
        voxel = self.display.to_voxels(self.grids[0].to_world(centre[None]))[0]
        return [min(max(0, round(v)), n - 1) for v, n in zip(voxel.tolist(), self.display.shape, strict=True)]


def _slice(display: Grid, axis: int | None, index: int) -> Grid:
    """Return one slice of a lattice as a lattice; the whole of a 2D one."""
    if axis is None:
        return display
    affine = display.affine.copy()
    affine[:-1, -1] += index * affine[:-1, axis]
    return Grid(tuple(1 if a == axis else n for a, n in enumerate(display.shape)), affine)


def _cut(scene: Scene, axis: int | None, index: int) -> dict[str, np.ndarray]:
    """Return one plane's images, rows from top to bottom, and the field in it: (2, rows, columns), right and up."""
    plane = _slice(scene.display, axis, index)
    kept = [a for a in range(len(plane.shape)) if a != axis]

    def flat(volume: Tensor) -> np.ndarray:
        return volume.reshape(*volume.shape[: -len(plane.shape)], *[plane.shape[a] for a in kept]).numpy()

    def seen(image: Tensor, grid: Grid, transform: Transform, mode: str = "bilinear") -> np.ndarray:
        return flat(warp(image, transform.ddf(plane, grid), mode=mode)[0, 0]).T[::-1]

    field, affine = Transform(scene.transform.parts[:1]), Transform(scene.transform.parts[1:])
    still = Transform((Affine(np.eye(len(plane.shape) + 1)),))
    determinant = seen(scene.determinant[None, None] - 1, scene.determinant_grid, still, "nearest") + 1
    step = flat(field.ddf(plane, plane)[0, kept])
    return {
        "fixed": seen(scene.fixed, scene.grids[0], still),
        "moving": seen(scene.moving, scene.grids[1], affine),
        "warped": seen(scene.moving, scene.grids[1], scene.transform),
        "determinant": determinant,
        "step": step.transpose(0, 2, 1)[:, ::-1],
    }


def _checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    side = max(1, max(first.shape) // _TILES)
    rows, columns = np.indices(first.shape) // side
    return np.where((rows + columns) % 2 == 0, first, second)


def _overlay(fixed: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return RGB: fixed in green, the other in magenta; grey where both are alike."""
    return np.clip(np.stack([other, fixed, other], -1), 0, 1)


def _draw_grid(axes: Any, step: np.ndarray) -> None:
    """Draw where the lines of a regular grid on the fixed image land on the moving image, rows counted from the top."""
    from matplotlib.collections import LineCollection

    rows, columns = step.shape[1:]
    x = np.arange(columns)[None] + step[0]
    y = np.arange(rows)[:, None] - step[1]
    every = max(1, max(rows, columns) // _LINES)
    places = np.stack(np.broadcast_arrays(x, y), -1)
    lines = [*places[every // 2 :: every], *places[:, every // 2 :: every].swapaxes(0, 1)]
    axes.add_collection(LineCollection(lines, colors="#ffd54f", linewidths=0.5), autolim=False)


def _body(image: np.ndarray) -> np.ndarray:
    """Return 1 where the image shows something, with what that encloses, and 0 in the air around."""
    from scipy import ndimage

    solid = ndimage.binary_opening(image > _AIR, iterations=2)
    closed = ndimage.binary_closing(np.pad(solid, 8), iterations=6)[8:-8, 8:-8]
    return ndimage.binary_fill_holes(closed).astype(float)


def _draw_row(row: Sequence[Any], cut: Mapping[str, np.ndarray], one_scale: bool) -> Any:
    """Draw one plane; returns the picture that the colour bar belongs to."""
    fixed, moving, warped = cut["fixed"], cut["moving"], cut["warped"]
    for axes, image in zip(row[:4], (fixed, moving, warped, _checkerboard(fixed, warped)), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
    for axes, image in zip(row[4:6], (moving, warped), strict=True):
        if one_scale:
            axes.imshow(image - fixed, cmap="RdBu_r", vmin=-0.7, vmax=0.7)
        else:
            axes.imshow(_overlay(fixed, image))
    row[6].imshow(moving, cmap="gray", vmin=0, vmax=1.6)
    _draw_grid(row[6], cut["step"])
    determinant = cut["determinant"]
    # In the air around the patient a field is a continuation of no meaning: dimmed, but for folds.
    visible = _DIM + (1 - _DIM) * _body(fixed)
    shown = row[7].imshow(np.log2(determinant.clip(2.0**-6)), cmap="PuOr_r", vmin=-2, vmax=2)
    row[7].imshow(np.zeros((*fixed.shape, 3)), alpha=1 - visible)
    folds = np.where(determinant[..., None] <= 0, np.array([1.0, 0.0, 0.25, 1.0]), 0.0)
    row[7].imshow(folds, interpolation="nearest")
    return shown


def _frame(axes: Any, shape: tuple[int, int], box: tuple[float, float]) -> None:
    """Show a box (rows, columns) around the middle of an image, black where there is none."""
    rows, columns = ((n - 1) / 2 for n in shape)
    axes.set_xlim(columns - box[1] / 2, columns + box[1] / 2)
    axes.set_ylim(rows + box[0] / 2, rows - box[0] / 2)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])


def _name(axes: Any, axis: int) -> None:
    """Write beside a row which plane it is, and into its first image what lies to the right and up."""
    name, right, up = _PLANES[axis]
    axes.set_ylabel(name, fontsize=9)
    box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "boxstyle": "square,pad=0.15"}
    for x, y, letter, across, along in ((0.98, 0.5, right, "right", "center"), (0.5, 0.97, up, "center", "top")):
        place = {"ha": across, "va": along, "transform": axes.transAxes, "bbox": box}
        axes.text(x, y, letter, color="white", fontsize=7, **place)


def _head(figure: Any, title: str, verdict: str, lines: Sequence[str], height: float) -> None:
    """Write the verdict, the title and the lines under it."""
    badge = {"facecolor": _COLOURS[verdict], "edgecolor": "none", "boxstyle": "round,pad=0.4"}
    top = 1 - 0.24 / height
    figure.text(0.012, top, verdict, color="white", fontsize=12, fontweight="bold", va="center", bbox=badge)
    figure.text(0.03 + 0.0075 * len(verdict), top, title, fontsize=11, va="center")
    for number, line in enumerate(lines):
        figure.text(0.012, 1 - (0.52 + 0.19 * number) / height, line, fontsize=9, color="#444444", va="center")


def quality_figure(scene: Scene, path: str | Path, title: str, verdict: str, lines: Sequence[str]) -> None:
    """Draw fixed, moving, warped, checkerboard, agreement before and after, the grid and the change of volume.

    Three planes through the middle of the fixed image (2D: one), in cubes, right and up as the letters say. Agreement
    is the difference where both images have one contrast, else both in one picture, fixed green and moving magenta.
    Moving is shown after the initial alignment. The change of volume is dimmed in the air around; folds are red.

    Args:
        scene: images and transform.
        path: PNG to write.
        title: heading.
        verdict: "ok", "suspect" or "failed".
        lines: more text under the heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planes: list[int | None] = [2, 1, 0] if len(scene.display.shape) == 3 else [None]
    middle = scene.middle()
    cuts = [_cut(scene, axis, middle[axis] if axis is not None else 0) for axis in planes]
    # All planes on one scale; a slab of few slices gets a low row.
    side = max(max(cut["fixed"].shape) for cut in cuts)
    rows = [max(_LOWEST, cut["fixed"].shape[0] / side) for cut in cuts]
    head = _HEAD + 0.19 * max(0, len(lines) - 1)
    height = head + _INCHES * sum(rows) + 0.04 * len(rows) + 0.1
    figure = Figure(figsize=(_INCHES * len(COLUMNS) + 0.75, height))
    FigureCanvasAgg(figure)
    _head(figure, title, verdict, lines, height)
    grid = figure.subplots(len(planes), len(COLUMNS), squeeze=False, gridspec_kw={"height_ratios": rows})
    figure.subplots_adjust(0.02, 0.1 / height, 0.955, 1 - head / height, 0.03, 0.03)
    for row, axis, cut, share in zip(grid, planes, cuts, rows, strict=True):
        shown = _draw_row(row, cut, scene.one_scale)
        for axes in row:
            _frame(axes, cut["fixed"].shape, (share * side, side))
        if axis is not None:
            _name(row[0], axis)
    for axes, name in zip(grid[0], COLUMNS, strict=True):
        agreement = "difference " if scene.one_scale else "overlay "
        axes.set_title(agreement + name if name in ("before", "after") else name, fontsize=9, pad=3)
    bar = figure.colorbar(shown, cax=figure.add_axes((0.962, 0.12, 0.008, 0.6)), ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["¼", "½", "1", "2", "4"], fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png", pil_kwargs={"compress_level": _PACKED})
