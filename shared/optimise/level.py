"""A pair as one level of the optimisation sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..losses import label_probabilities
from ..transform_io import Grid, points_to_grid
from .align import moved
from .forces import MINDSSC, LocalNCC, MutualInformation, Similarity
from .inputs import Guides
from .lattice import carry, padded, place, reach, thinned
from .settings import OptimiseSettings
from .terms import LandmarkPull, SoftDice

__all__ = ["Level", "Scene"]

SIMILARITIES: dict[str, Callable[..., Similarity]] = {"lncc": LocalNCC, "mind": MINDSSC, "mi": MutualInformation}
# Voxels around the fixed field of view that the moving image may be seen in, at most this share of the size.
MARGIN = 0.25
# Reach of a landmark's pull, in voxels of the level.
PULL_SIGMA = 2.0


@dataclass(frozen=True, eq=False)
class Scene:
    """Images in [0, 1] with what belongs to them, thinned out to what the finest level can hold.

    Attributes:
        fixed: (1, 1, *S) on ``fixed_grid``.
        moving: (1, 1, *T) on ``moving_grid``, which lies where the alignment takes it.
        weights: masks of both as numbers, on the same lattices; None where all counts.
        labels: one channel a label of both, or None.
        native: lattices of the fixed and the moving image as read, the latter aligned.
        guides: landmarks and a field to start from.
        settings: options.
    """

    fixed: Tensor
    moving: Tensor
    fixed_grid: Grid
    moving_grid: Grid
    weights: tuple[Tensor | None, Tensor | None]
    labels: tuple[Tensor, Tensor] | None
    native: tuple[Grid, Grid]
    guides: Guides
    settings: OptimiseSettings

    @classmethod
    def build(
        cls,
        images: tuple[Tensor, Tensor],
        grids: tuple[Grid, Grid],
        guides: Guides,
        labels: list[int],
        settings: OptimiseSettings,
        spacing_mm: float,
    ) -> Scene:
        """Thin out images, masks and the maps of ``labels`` to ``spacing_mm``."""
        thin = [thinned(image, grid, spacing_mm) for image, grid in zip(images, grids, strict=True)]
        weights = [
            None if mask is None else thinned((mask > 0).to(images[0]), grid, spacing_mm)[0]
            for mask, grid in zip((guides.fixed_mask, guides.moving_mask), grids, strict=True)
        ]
        channels = None
        if labels and settings.label_weight > 0:
            pair = zip((guides.fixed_label, guides.moving_label), grids, strict=True)
            one_by_one = [
                [thinned(label_probabilities(label, [value], 0.0), grid, spacing_mm)[0] for value in labels]
                for label, grid in pair
                if label is not None
            ]
            channels = (torch.cat(one_by_one[0], dim=1), torch.cat(one_by_one[1], dim=1))
        return cls(
            fixed=thin[0][0],
            moving=thin[1][0],
            fixed_grid=thin[0][1],
            moving_grid=thin[1][1],
            weights=(weights[0], weights[1]),
            labels=channels,
            native=grids,
            guides=guides,
            settings=settings,
        )

    def aligned(self, matrix: np.ndarray) -> Scene:
        """Return the scene with the moving image where an alignment takes it."""
        grids = self.native[0], moved(self.native[1], matrix)
        return replace(self, moving_grid=moved(self.moving_grid, matrix), native=grids)

    def start_on(self, grid: Grid) -> Tensor | None:
        """Return the field to start from on another lattice with the fixed axes."""
        start = self.guides.start_ddf
        return None if start is None else carry(start.to(self.fixed), self.native[0], grid)


class Level:
    """Similarity and guides on one lattice.

    Args:
        scene: the pair.
        grid: lattice of the level.
        similarity: "lncc", "mind" or "mi".
    """

    def __init__(self, scene: Scene, grid: Grid, similarity: str) -> None:
        self.grid = grid
        self._scene = scene
        self._margin = _margin(scene, grid)
        self._target = padded(grid, self._margin)
        self._start = scene.start_on(self._target)
        weights = self._weights()
        images = (place(scene.fixed, scene.fixed_grid, grid), self._moving(scene.moving))
        self.similarity = SIMILARITIES[similarity](*images, *weights, margin=self._margin)
        self.terms: list[tuple[float, Similarity]] = []
        if scene.labels is not None:
            maps = (place(scene.labels[0], scene.fixed_grid, grid), self._moving(scene.labels[1]))
            self.terms.append((scene.settings.label_weight, SoftDice(*maps, *weights, margin=self._margin)))
        self.pull = self._pull()

    def rest(self) -> Tensor:
        """Return a displacement of zero."""
        return self._scene.fixed.new_zeros(1, len(self.grid.shape), *self.grid.shape)

    def _moving(self, volume: Tensor) -> Tensor:
        return place(volume, self._scene.moving_grid, self._target, self._start)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights of both images; a voxel that a mask covers by half or less weighs nothing."""
        scene = self._scene
        fixed = scene.fixed.new_ones(1, 1, *self.grid.shape)
        if scene.weights[0] is not None:
            fixed = (2.0 * place(scene.weights[0], scene.fixed_grid, self.grid) - 1.0).clamp_(0.0, 1.0)
        moving = reach(scene.native[1], self._target, self._start, scene.moving.device)
        if scene.weights[1] is not None:
            moving *= (2.0 * self._moving(scene.weights[1]) - 1.0).clamp_(0.0, 1.0)
        # The outermost voxels weigh nothing, so that the edge does not repeat outside.
        for axis, n in enumerate(self._target.shape):
            moving.narrow(axis + 2, 0, 1).zero_()
            moving.narrow(axis + 2, n - 1, 1).zero_()
        return fixed, moving

    def _pull(self) -> tuple[float, LandmarkPull] | None:
        scene = self._scene
        guides, weight = scene.guides, scene.settings.landmark_weight
        if guides.fixed_points is None or guides.moving_points is None or weight == 0:
            return None
        fixed, moving = (
            points_to_grid(points.float().cpu(), source, self.grid).to(scene.fixed)
            for points, source in zip((guides.fixed_points, guides.moving_points), scene.native, strict=True)
        )
        return weight, LandmarkPull(fixed, moving, self.grid.shape, PULL_SIGMA, self._start, self._margin)


def _margin(scene: Scene, grid: Grid) -> list[int]:
    """Return the voxels at each end of an axis that the moving field of view reaches beyond the fixed one, and one."""
    most = np.ceil(MARGIN * np.array(grid.shape))
    beyond = most
    if scene.guides.start_ddf is None:
        d, source = len(grid.shape), scene.native[1]
        corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in source.shape], indexing="ij")).reshape(d, -1)
        mapping = np.linalg.inv(grid.affine) @ source.affine
        at = mapping[:d, :d] @ corners + mapping[:d, d:]
        beyond = np.maximum(-at.min(axis=1), at.max(axis=1) - (np.array(grid.shape) - 1)).clip(0)
    return [int(m) + 1 for m in np.ceil(np.minimum(beyond, most))]
