"""Pictures for people: one page a pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data.pairs import Sample
from .fields import jacobian_determinant
from .files import atomic_path
from .warp import warp

__all__ = ["pair_figure"]


def _middle(volume: Tensor, axis: int, index: int) -> np.ndarray:
    """Cut (1, *S) or (d, *S) at ``index`` of ``axis`` (3D), the first remaining axis to the right, the second up."""
    if volume.ndim == 4:
        volume = volume.select(axis + 1, index)
    return volume.transpose(-1, -2).flip(-2).numpy()


def _draw_grid(axes: object, ddf: np.ndarray, step: int) -> None:
    """Draw the sampling positions of every ``step``-th row and column: rows up, columns to the right."""
    right, up = np.meshgrid(np.arange(ddf.shape[2]), np.arange(ddf.shape[1])[::-1])
    x, y = right + ddf[0], up + ddf[1]
    for i in range(0, x.shape[0], step):
        axes.plot(x[i], y[i], color="tab:blue", linewidth=0.6)  # type: ignore[attr-defined]
    for j in range(0, x.shape[1], step):
        axes.plot(x[:, j], y[:, j], color="tab:blue", linewidth=0.6)  # type: ignore[attr-defined]


def pair_figure(sample: Sample, ddf: Tensor, path: str | Path, title: str = "") -> None:
    """Draw moving, fixed, warped, difference before and after, warped grid and Jacobian, in three planes (2D: one).

    Args:
        sample: with ``fixed_image`` and ``moving_image`` (1, *S) in [0, 1].
        ddf: (1, d, *S) in voxels.
        path: PNG to write.
        title: heading of the page.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fixed, moving = sample["fixed_image"].float().cpu(), sample["moving_image"].float().cpu()
    ddf = ddf.float().cpu()
    warped = warp(moving[None], ddf)[0]
    determinant = jacobian_determinant(ddf)[0]
    size = fixed.shape[1:]
    planes = [(2, "axial"), (1, "coronal"), (0, "sagittal")] if len(size) == 3 else [(-1, "plane")]
    columns = [
        "moving",
        "fixed",
        "warped",
        "difference before",
        "difference after",
        "warped grid",
        "Jacobian, folds red",
    ]
    figure = Figure(figsize=(2.1 * len(columns), 2.25 * len(planes) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(len(planes), len(columns), squeeze=False)
    for row, (axis, plane) in enumerate(planes):
        index = size[axis] // 2
        cut = {
            name: _middle(v, axis, index)[0]
            for name, v in (("moving", moving), ("fixed", fixed), ("warped", warped), ("jacobian", determinant))
        }
        kept = [a for a in range(len(size)) if a != axis]
        for column, name in enumerate(columns[:3]):
            grid[row, column].imshow(cut[name], cmap="gray", vmin=0, vmax=1)
        for column, image in ((3, cut["moving"]), (4, cut["warped"])):
            grid[row, column].imshow(image - cut["fixed"], cmap="RdBu_r", vmin=-1, vmax=1)
        in_plane = _middle(torch.stack([ddf[0, a] for a in kept]), axis, index)
        _draw_grid(grid[row, 5], in_plane, max(1, max(in_plane.shape[1:]) // 24))
        grid[row, 5].set_aspect("equal")
        shown = grid[row, 6].imshow(cut["jacobian"], cmap="viridis", vmin=0, vmax=2)
        figure.colorbar(shown, ax=grid[row, 6], shrink=0.8)
        folds = np.ma.masked_where(cut["jacobian"] > 0, np.ones_like(cut["jacobian"]))
        grid[row, 6].imshow(folds, cmap="autumn", vmin=1, vmax=2)
        for column, name in enumerate(columns):
            grid[row, column].set_xticks([])
            grid[row, column].set_yticks([])
            if row == 0:
                grid[row, column].set_title(name, fontsize=9)
        grid[row, 0].set_ylabel(plane, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
