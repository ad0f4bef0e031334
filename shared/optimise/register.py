"""Registration of one pair: alignment, levels from coarse to fine, checks."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..fields import compose
from ..transform_io import Grid
from .align import Alignment, align
from .check import alike, fold_percent, unfold, worse_than
from .descent import descend
from .discrete import coupled_convex
from .forces import MINDSSC, MutualInformation
from .inputs import Guides, PairInput
from .intensity import normalise_pair
from .lattice import carry, coarser
from .level import Level, Scene
from .plan import Stage, fit_to_memory, plan, stiffen
from .result import LevelLog, OptimiseResult, whole_map
from .settings import OptimiseSettings

__all__ = ["optimise"]

# Reach of the discrete search, in voxels of the coarsest level.
SEARCH = 4
# A discrete start is taken where its loss is below this share of the loss without it, and its overlap not below.
CLEARLY = 0.9
# Two scans of one patient match as they are in at least this share of the places with texture, see `alike`.
SAME_PATIENT = 0.15


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

    The same input gives the same result on one kind of device.

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
    return _Run(settings or OptimiseSettings())(fixed, moving, (fixed_grid, moving_grid), guides or Guides(), progress)


class _Run:
    """One registration."""

    def __init__(self, settings: OptimiseSettings) -> None:
        self.settings = settings
        self.messages: list[str] = []
        self.levels: list[LevelLog] = []
        self.seconds: dict[str, float] = {}
        self.multimodal = False
        self.cut_short = False
        self.began = self.lapped = time.monotonic()

    def out_of_time(self) -> bool:
        """Whether to take no further step; where one was to be taken, the run is cut short."""
        limit = self.settings.time_limit
        over = limit is not None and time.monotonic() - self.began >= limit
        self.cut_short |= over
        return over

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.lapped
        self.lapped = now

    def __call__(
        self, fixed: Tensor, moving: Tensor, grids: tuple[Grid, Grid], guides: Guides, progress: bool
    ) -> OptimiseResult:
        settings = self.settings
        pair = PairInput(fixed, moving, *grids, guides)
        *images, kinds = normalise_pair(fixed, moving, (settings.fixed_modality, settings.moving_modality))
        multimodal = self.multimodal = kinds[0] != kinds[1]
        self.messages.append(f"modalities: fixed {kinds[0]}, moving {kinds[1]}")
        labels = len(pair.labels) if settings.label_weight > 0 else 0
        stages, note = fit_to_memory(plan(*grids, settings, multimodal), grids[0], fixed.device, settings, labels)
        self.messages += [note] if note else []
        scene = Scene.build((images[0], images[1]), grids, guides, pair.labels, settings, stages[-1].spacing_mm)
        del images
        self.lap("preparation")
        alignment = self._align(scene, multimodal)
        scene = scene.aligned(alignment.matrix)
        with tqdm(desc="register", total=sum(s.iterations for s in stages), disable=not progress) as bar:
            ddf, grid = self._descend(scene, self._stiffened(scene, stages, multimodal), bar)
        return self._result(scene, ddf, grid, stages[-1].similarity, alignment, grids)

    def _align(self, scene: Scene, multimodal: bool) -> Alignment:
        mode, given = self.settings.alignment, scene.guides.start_affine
        # A field to start from holds in the frame of the headers.
        mode = "identity" if scene.guides.start_ddf is not None and mode == "auto" else mode
        if given is not None:
            alignment = Alignment(np.asarray(given, dtype=float), "given", "as given")
        else:
            alignment = align(scene, mode, multimodal, self.out_of_time)
        self.messages.append(f"alignment: {alignment.kind} ({alignment.note})")
        self.lap("alignment")
        return alignment

    def _stiffened(self, scene: Scene, stages: list[Stage], multimodal: bool) -> list[Stage]:
        """Choose the stiffness by the kind of motion."""
        motion, why = self.settings.motion, "as asked for"
        if motion == "auto" and multimodal:
            motion, why = "within", "two modalities"
        elif motion == "auto":
            grid = coarser(scene.native[0], 2 * stages[-1].spacing_mm)
            share = alike(Level(scene, grid, "lncc").similarity)
            motion = "within" if share >= SAME_PATIENT else "between"
            why = f"{share:.1%} of the places with texture match before any deformation"
        self.messages.append(f"motion: {'within one patient' if motion == 'within' else 'between patients'} ({why})")
        return stiffen(stages, motion, multimodal)

    def _descend(self, scene: Scene, stages: list[Stage], bar: tqdm) -> tuple[Tensor, Grid]:
        """Run the stages; returns the deformation on the finest lattice reached."""
        grid = coarser(scene.native[0], stages[0].spacing_mm)
        ddf = scene.fixed.new_zeros(1, len(grid.shape), *grid.shape)
        for index, stage in enumerate(stages):
            if self.out_of_time():
                break
            finer = coarser(scene.native[0], stage.spacing_mm)
            ddf, grid = carry(ddf, grid, finer), finer
            level = Level(scene, grid, stage.similarity)
            ddf = self._first(level, stage, bar) if index == 0 else self._one(level, stage, ddf, bar)
            self.lap(f"{stage.spacing_mm:.3g} mm {stage.similarity}")
        return ddf, grid

    def _first(self, level: Level, stage: Stage, bar: tqdm) -> Tensor:
        """Run the coarsest level from rest and, where it helps, from a discrete search."""
        best = self._one(level, stage, level.rest(), bar)
        search = self.settings.discrete == "always" or (self.settings.discrete == "auto" and not self.multimodal)
        if not search or not isinstance(level.similarity, MINDSSC) or self.out_of_time():
            return best
        bar.total += stage.iterations
        other = self._one(level, stage, coupled_convex(level.similarity, SEARCH), bar, searched=True)
        values = [float(level.similarity(ddf)[0]) for ddf in (best, other)]
        seen = [float(level.similarity.warped(ddf)[1].sum()) for ddf in (best, other)]
        better = values[1] < CLEARLY * values[0] and seen[1] > CLEARLY * seen[0]
        taken = self.settings.discrete == "always" or better
        self.messages.append(
            f"discrete start {'taken' if taken else 'not taken'}: loss {values[1]:.4f}, without it {values[0]:.4f}"
        )
        # The log keeps the run that goes on.
        self.levels.pop(-2 if taken else -1)
        return other if taken else best

    def _one(self, level: Level, stage: Stage, start: Tensor, bar: tqdm, searched: bool = False) -> Tensor:
        """Run one stage from ``start``; a field that a discrete search has left rough may lose at first."""
        ddf, trace = descend(
            level.similarity,
            start,
            stage.iterations,
            stage.stiffness,
            terms=level.terms,
            pull=level.pull,
            out_of_time=self.out_of_time,
            tick=bar.update,
        )
        # Landmarks may ask for what the images do not, as long as it brings them nearer.
        landed = level.pull is not None and level.pull[1].nearer(ddf, start)
        if trace.last > trace.first and not searched and not landed:
            ddf, trace.stopped = start, "undone: no better than before"
        bar.total -= stage.iterations - trace.iterations
        bar.refresh()
        self.levels.append(
            LevelLog(stage.spacing_mm, stage.similarity, trace.iterations, trace.first, trace.last, trace.stopped)
        )
        return ddf

    def _result(
        self, scene: Scene, ddf: Tensor, grid: Grid, optimised: str, alignment: Alignment, grids: tuple[Grid, Grid]
    ) -> OptimiseResult:
        """Check the deformation and bring it to the fixed image's own lattice, smoothed where it folds."""
        # Half the resolution tells as much at an eighth of the work.
        coarse = coarser(grid, 2 * min(grid.spacing_mm))
        judge = Level(scene, coarse, "mi")
        assert isinstance(judge.similarity, MutualInformation)
        found = carry(ddf, grid, coarse)
        worse, numbers = worse_than(judge.similarity, found, judge.rest(), optimised)
        # Labels and landmarks may ask for what the images do not, the latter as long as it brings them nearer.
        landed = judge.pull is not None and judge.pull[1].nearer(found, judge.rest())
        kept_start = worse and scene.labels is None and not landed
        if kept_start:
            ddf = torch.zeros_like(ddf)
            self.messages.append("the result was worse than the start, which was kept")
        limit = self.settings.max_fold_percent
        for strictness in (1.0, 0.3, 0.0):
            ddf = unfold(ddf, limit * strictness)
            whole = whole_map(ddf, grid, grids[0], alignment.matrix, scene.guides.start_ddf)
            folds = fold_percent(whole)
            if folds <= limit:
                break
        self.messages.append(f"{numbers}; folds {folds:.4f} %")
        start = scene.start_on(grid)
        self.lap("checks and full size")
        return OptimiseResult(
            ddf=whole,
            deformation=ddf if start is None else compose(start, ddf),
            level_grid=grid,
            alignment=alignment,
            fixed_grid=grids[0],
            moving_grid=grids[1],
            fold_percent=folds,
            kept_start=kept_start,
            stopped="time limit" if self.cut_short or not self.levels else self.levels[-1].stopped,
            levels=self.levels,
            messages=self.messages,
            seconds=self.seconds,
        )
