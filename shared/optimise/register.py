"""Registration of one pair: alignment, levels from coarse to fine, checks."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..fields import compose
from ..losses import label_probabilities
from ..transform_io import Grid, points_to_grid
from .align import Alignment, Pair, align, moved
from .check import alike, fold_percent, unfold, worse_than
from .descent import descend
from .discrete import coupled_convex
from .forces import MINDSSC, LocalNCC, MutualInformation, Similarity
from .inputs import Guides, PairInput
from .intensity import normalise_pair
from .lattice import carry, coarser, padded, place, reach
from .plan import Stage, fit_to_memory, plan, stiffen
from .result import LevelLog, OptimiseResult, whole_map
from .settings import OptimiseSettings
from .terms import LandmarkPull, SoftDice

__all__ = ["optimise"]

SIMILARITIES: dict[str, Callable[..., Similarity]] = {"lncc": LocalNCC, "mind": MINDSSC, "mi": MutualInformation}
# Reach of the discrete search, in voxels of the coarsest level.
SEARCH = 4
# Voxels around the fixed field of view that the moving image may be seen in, at most this share of the size.
MARGIN = 0.25
# Two scans of one patient match as they are in at least this share of the places with texture, see `alike`.
SAME_PATIENT = 0.05


@torch.no_grad()
def optimise(
    fixed: Tensor,
    moving: Tensor,
    fixed_grid: Grid,
    moving_grid: Grid,
    *,
    settings: OptimiseSettings | None = None,
    guides: Guides | None = None,
    progress: bool = False,
) -> OptimiseResult:
    """Find the deformation that brings a moving image onto a fixed one.

    The same input gives the same result on one device of one kind.

    Args:
        fixed: (1, 1, *S) intensities as read, on the device to work on.
        moving: (1, 1, *T), same device.
        fixed_grid: lattice of the fixed image.
        moving_grid: lattice of the moving image.
        settings: options; the defaults suit any pair.
        guides: masks, labels, landmarks and a field to start from.
        progress: show a bar with the time left.

    Returns:
        The map, its inverse on request, and a log of all decisions.

    Raises:
        InputError: input that does not fit together, or a fixed image too large for the device.
    """
    settings, guides = settings or OptimiseSettings(), guides or Guides()
    pair = PairInput(fixed, moving, fixed_grid, moving_grid, guides)
    run = _Run(pair, *normalise_pair(fixed, moving, (settings.fixed_modality, settings.moving_modality)), settings)
    return run(progress)


class _Run:
    """One registration."""

    def __init__(
        self, pair: PairInput, fixed: Tensor, moving: Tensor, kinds: tuple[str, str], settings: OptimiseSettings
    ) -> None:
        self.began = time.monotonic()
        self.settings, self.guides, self.labels = settings, pair.guides, pair.labels
        self.fixed, self.moving = fixed, moving
        self.fixed_grid, self.moving_grid = pair.grids["fixed"], pair.grids["moving"]
        self.multimodal = kinds[0] != kinds[1]
        self.messages = [f"modalities: fixed {kinds[0]}, moving {kinds[1]}"]
        self.seconds: dict[str, float] = {}
        self.weights = tuple(
            torch.ones_like(image) if mask is None else (mask > 0).float()
            for image, mask in ((fixed, pair.guides.fixed_mask), (moving, pair.guides.moving_mask))
        )
        self.source = self.moving_grid
        self.levels: list[LevelLog] = []

    def out_of_time(self) -> bool:
        limit = self.settings.time_limit
        return limit is not None and time.monotonic() - self.began >= limit

    def __call__(self, progress: bool) -> OptimiseResult:
        alignment = self._align()
        stages = plan(self.fixed_grid, self.source, self.settings, self.multimodal)
        stages, note = fit_to_memory(stages, self.fixed_grid, self.fixed.device, self.settings)
        self.messages += [note] if note else []
        with tqdm(desc="register", total=sum(s.iterations for s in stages), disable=not progress) as bar:
            ddf, grid = self._descend(self._stiffened(stages), bar)
        began = time.monotonic()
        ddf, kept_start, judged = self._checked(ddf, grid, stages[-1])
        whole, folds = self._native(ddf, grid, alignment)
        self.messages.append(f"{judged}; folds {folds:.4f} %")
        start = self._start_on(grid)
        self.seconds["checks and full size"] = time.monotonic() - began
        return OptimiseResult(
            ddf=whole,
            deformation=ddf if start is None else compose(start, ddf),
            level_grid=grid,
            alignment=alignment,
            fixed_grid=self.fixed_grid,
            moving_grid=self.moving_grid,
            fold_percent=folds,
            kept_start=kept_start,
            stopped=self.levels[-1].stopped if self.levels else "time limit",
            levels=self.levels,
            messages=self.messages,
            seconds=self.seconds,
        )

    def _align(self) -> Alignment:
        began = time.monotonic()
        mode = self.settings.alignment
        # A field to start from holds in the frame of the headers.
        mode = "identity" if self.guides.start_ddf is not None and mode == "auto" else mode
        images = Pair(self.fixed, self.moving, self.fixed_grid, self.moving_grid, (self.weights[0], self.weights[1]))
        alignment = align(images, mode, self.multimodal, self.out_of_time)
        self.source = moved(self.moving_grid, alignment.matrix)
        self.messages.append(f"alignment: {alignment.kind} ({alignment.note})")
        self.seconds["alignment"] = time.monotonic() - began
        return alignment

    def _descend(self, stages: list[Stage], bar: tqdm) -> tuple[Tensor, Grid]:
        """Run the stages; returns the deformation on the finest lattice reached."""
        grid = coarser(self.fixed_grid, stages[0].spacing_mm)
        ddf = self.fixed.new_zeros(1, len(grid.shape), *grid.shape)
        for index, stage in enumerate(stages):
            if self.out_of_time():
                break
            began = time.monotonic()
            finer = coarser(self.fixed_grid, stage.spacing_mm)
            ddf, grid = carry(ddf, grid, finer), finer
            level = _Level(self, grid, stage)
            if index == 0:
                ddf = self._first(level, stage, bar)
            else:
                ddf = self._one(level, stage, ddf, bar)
            self.seconds[f"{stage.spacing_mm:.3g} mm {stage.similarity}"] = time.monotonic() - began
        return ddf, grid

    def _stiffened(self, stages: list[Stage]) -> list[Stage]:
        """Choose the stiffness by the kind of motion."""
        motion, why = self.settings.motion, "as asked for"
        if motion == "auto" and self.multimodal:
            motion, why = "within", "two modalities"
        elif motion == "auto":
            grid = coarser(self.fixed_grid, 2 * stages[-1].spacing_mm)
            share = alike(LocalNCC(*_Level.images(self, grid), margin=_Level.margin(self, grid)))
            motion = "within" if share >= SAME_PATIENT else "between"
            why = f"{share:.1%} of the textured places match before any deformation"
        self.messages.append(f"motion: {motion} patients ({why})".replace("within patients", "within one patient"))
        return stiffen(stages, motion, self.multimodal)

    def _first(self, level: _Level, stage: Stage, bar: tqdm) -> Tensor:
        """Run the coarsest level from rest and, where it helps, from a discrete search."""
        rest = self.fixed.new_zeros(1, len(level.grid.shape), *level.grid.shape)
        best = self._one(level, stage, rest, bar)
        if self.settings.discrete == "never" or not isinstance(level.similarity, MINDSSC) or self.out_of_time():
            return best
        start = coupled_convex(level.similarity, SEARCH)
        bar.total += stage.iterations
        other = self._one(level, stage, start, bar)
        values = [float(level.similarity(ddf)[0]) for ddf in (best, other)]
        taken = self.settings.discrete == "always" or values[1] < values[0]
        self.messages.append(
            f"discrete start {'taken' if taken else 'not taken'}: loss {values[1]:.4f}, without it {values[0]:.4f}"
        )
        # The log keeps the run that goes on.
        self.levels.pop(-2 if taken else -1)
        return other if taken else best

    def _one(self, level: _Level, stage: Stage, ddf: Tensor, bar: tqdm) -> Tensor:
        ddf, trace = descend(
            level.similarity,
            ddf,
            stage.iterations,
            stage.stiffness,
            terms=level.terms,
            pull=level.pull,
            out_of_time=self.out_of_time,
            tick=bar.update,
        )
        bar.total -= stage.iterations - trace.iterations
        bar.refresh()
        self.levels.append(
            LevelLog(stage.spacing_mm, stage.similarity, trace.iterations, trace.first, trace.last, trace.stopped)
        )
        return ddf

    def _checked(self, ddf: Tensor, grid: Grid, stage: Stage) -> tuple[Tensor, bool, str]:
        """Fall back on the start where a similarity that was not optimised fell."""
        judge = MutualInformation(*_Level.images(self, grid), margin=_Level.margin(self, grid))
        worse, numbers = worse_than(judge, ddf, torch.zeros_like(ddf), stage.similarity)
        if worse and not self.labels and self.guides.fixed_points is None:
            return torch.zeros_like(ddf), True, f"the start was kept, the result was worse: {numbers}"
        return ddf, False, numbers

    def _native(self, ddf: Tensor, grid: Grid, alignment: Alignment) -> tuple[Tensor, float]:
        """Bring the result to the fixed image's own lattice, smoothed where it folds; changes ``ddf`` there too."""
        limit = self.settings.max_fold_percent
        folds = float("inf")
        for strictness in (1.0, 0.3, 0.0):
            ddf.copy_(unfold(ddf, limit * strictness))
            whole = whole_map(ddf, grid, self.fixed_grid, alignment.matrix, self.guides.start_ddf)
            folds = fold_percent(whole)
            if folds <= limit:
                break
        return whole, folds

    def _start_on(self, grid: Grid) -> Tensor | None:
        start = self.guides.start_ddf
        return None if start is None else carry(start.to(self.fixed).clone(), self.fixed_grid, grid)


class _Level:
    """Images and guides on one lattice."""

    def __init__(self, run: _Run, grid: Grid, stage: Stage) -> None:
        self.grid = grid
        margin = self.margin(run, grid)
        images = self.images(run, grid)
        self.similarity = SIMILARITIES[stage.similarity](*images, margin=margin)
        self.terms: list[tuple[float, Similarity]] = []
        if run.labels and run.settings.label_weight > 0:
            self.terms.append((run.settings.label_weight, self._dice(run, images, margin)))
        self.pull = self._pull(run, grid)

    @staticmethod
    def margin(run: _Run, grid: Grid) -> list[int]:
        """Voxels at each end of an axis that the moving image's field of view reaches beyond the fixed one's."""
        d = len(grid.shape)
        corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in run.source.shape], indexing="ij")).reshape(d, -1)
        mapping = np.linalg.inv(grid.affine) @ run.source.affine
        at = mapping[:d, :d] @ corners + mapping[:d, d:]
        beyond = np.maximum(-at.min(axis=1), at.max(axis=1) - (np.array(grid.shape) - 1)).clip(0)
        most = np.ceil(MARGIN * np.array(grid.shape))
        if run.guides.start_ddf is not None:
            beyond = most
        # One more voxel that weighs nothing, so that the edge does not repeat outside.
        return [int(m) + 1 for m in np.ceil(np.minimum(beyond, most))]

    @staticmethod
    def images(run: _Run, grid: Grid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return fixed and moving image and their weights; the moving ones on the lattice with the margin."""
        target = padded(grid, _Level.margin(run, grid))
        start = run._start_on(target)
        view = reach(run.source, target, start, run.moving.device)
        for axis in range(len(target.shape)):
            view.narrow(axis + 2, 0, 1).zero_()
            view.narrow(axis + 2, target.shape[axis] - 1, 1).zero_()
        moving_weight = view
        if run.guides.moving_mask is not None:
            moving_weight = view * place(run.weights[1], run.source, target, start)
        return (
            place(run.fixed, run.fixed_grid, grid),
            place(run.moving, run.source, target, start),
            place(run.weights[0], run.fixed_grid, grid),
            moving_weight,
        )

    def _dice(self, run: _Run, images: tuple[Tensor, Tensor, Tensor, Tensor], margin: list[int]) -> SoftDice:
        target = padded(self.grid, margin)
        maps = []
        for label, source, lattice in (
            (run.guides.fixed_label, run.fixed_grid, self.grid),
            (run.guides.moving_label, run.source, target),
        ):
            assert label is not None
            start = run._start_on(target) if lattice is target else None
            channels = [
                place(label_probabilities(label, [value], sigma=0.0), source, lattice, start) for value in run.labels
            ]
            maps.append(torch.cat(channels, dim=1))
        return SoftDice(maps[0], maps[1], images[2], images[3], margin)

    def _pull(self, run: _Run, grid: Grid) -> tuple[float, LandmarkPull] | None:
        points = (run.guides.fixed_points, run.guides.moving_points)
        if points[0] is None or points[1] is None or run.settings.landmark_weight == 0:
            return None
        fixed, moving = (
            points_to_grid(p.float().cpu(), source, grid).to(run.fixed)
            for p, source in zip(points, (run.fixed_grid, run.source), strict=True)
        )
        return run.settings.landmark_weight, LandmarkPull(fixed, moving, grid.shape, sigma=2.0)
