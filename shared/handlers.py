"""Handlers for ignite engines: a progress bar over the whole run, and the training log."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from tqdm import tqdm

from .errors import check_bools
from .files import write_csv

__all__ = ["TrainingLog"]


class TrainingLog:
    """Show progress with loss and time left; log the mean of every loss part to CSV and TensorBoard.

    Only rank 0 shows and writes. The device is waited for once per ``interval`` iterations. The rows live in
    ``engine.log_rows``, which the trainer keeps in its checkpoint, so that a resumed run continues the table without
    gap or repetition.

    Args:
        run_dir: gets ``metrics.csv`` and ``tensorboard/``.
        interval: iterations that one row averages.
        tensorboard: also write TensorBoard events.
    """

    def __init__(self, run_dir: str | Path, interval: int = 10, tensorboard: bool = True) -> None:
        check_bools(tensorboard=tensorboard)
        self.run_dir, self.interval = Path(run_dir), interval
        self.active, self.tensorboard = True, tensorboard
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bar: Any = None
        self._writer: Any = None
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 1)
        done = engine.state.iteration
        self._sums, self._counts, self._since = {}, {}, time.perf_counter()
        self.active = getattr(engine, "rank", 0) == 0
        if not self.active:
            return
        name = getattr(engine, "task", "training")
        self._bar = tqdm(total=total, initial=done, desc=f"training {name}", unit="it", dynamic_ncols=True)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=done + 1)

    def _collect(self, engine: Engine) -> None:
        for name, value in engine.state.output.items():
            total = value.detach().double()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + 1
        if self._bar is not None:
            self._bar.update()
        if engine.state.iteration % self.interval == 0:
            self._row(engine)

    def _row(self, engine: Engine) -> None:
        if not self._sums:
            return
        values = torch.stack(list(self._sums.values())).tolist()
        means = {n: v / self._counts[n] for n, v in zip(self._sums, values, strict=True)}
        seconds = (time.perf_counter() - self._since) / max(self._counts.values())
        self._sums, self._counts, self._since = {}, {}, time.perf_counter()
        iteration = engine.state.iteration
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"iteration {iteration}: the loss is {means['loss']} ({means}); lower the learning rate (or SAM's "
                "rho), or look at the data"
            )
        engine.log_rows.append({"iteration": iteration, "seconds_per_iteration": round(seconds, 4), **means})
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False)
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(f"train/{name}", value, iteration)

    def _write(self, engine: Engine) -> None:
        self._row(engine)
        if self.active:
            write_csv(self.run_dir / "metrics.csv", engine.log_rows)
        if self._writer is not None:
            self._writer.flush()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error
