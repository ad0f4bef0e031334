"""Rehearsal of what the weights that ship have learnt: pairs of the embedded tasks, computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.data.synthetic import write_registration_tasks
from shared.distributed import from_first_rank
from shared.host_run import HostRun

from .diffusion_memory import DiffusionMemory
from .memory import ReservoirMemory

__all__ = ["EmbeddedPast"]


class EmbeddedPast:
    """Fills the memory of a host's training that starts from weights without one.

    Args:
        host: of the run.
        memory: of the strategy, empty; one of generated pairs stays so.
        folder: where the tasks are written, as Learn2Reg folders.
        tasks: that the weights have learnt, one after another.
        options: of :class:`~shared.data.pairs.PairDataset`.
        images: of each task; what they give in pairs is offered to the memory.
        seen: pairs that such weights have met; new ones take their places as slowly as after so many.
        seed: of the images, other than those of ``load_pairs``, and of the memory.
    """

    def __init__(
        self,
        host: HostRun,
        memory: ReservoirMemory | DiffusionMemory,
        folder: str | Path,
        tasks: Sequence[str],
        options: Mapping[str, Any],
        images: int = 6,
        seen: int = 2400,
        seed: int = 7,
    ) -> None:
        self.host, self.memory, self.folder = host, memory, Path(folder)
        self.tasks, self.options = list(tasks), dict(options)
        self.images, self.seen, self.seed = images, seen, seed

    def fill(self) -> None:
        """Offer pairs of the tasks; a run on folders, from a run with a memory, or of 2D images is left alone."""
        if self.host.cases is None or not self.tasks or not self._starts_from_weights():
            return
        if not isinstance(self.memory, ReservoirMemory):
            self.host.say("weights without a generator: nothing learnt before is rehearsed")
            return
        if len(self.options["spatial_size"]) != 3:
            self.host.say("the embedded tasks are 3D: nothing learnt before is rehearsed")
            return
        from_first_rank(partial(self._write))
        pairs = [pair for task in self.tasks for pair in read_pairs(self.folder, task)]
        generator = torch.Generator().manual_seed(self.seed)
        dataset = PairDataset(pairs, progress=True, **self.options)
        for index in range(len(dataset)):
            self.memory.offer(dataset[index], generator)
        self.memory.seen = max(self.memory.seen, self.seen)
        self.host.say(f"rehearsed are {len(self.memory)} pairs of what weights that ship have learnt: {self.tasks}")

    def _starts_from_weights(self) -> bool:
        start = self.host.init_from
        return start is not None and Path(start).is_file()

    def _write(self) -> list[str]:
        counts = {"training": self.images, "validation": 0, "test": 0}
        return [
            str(p) for p in write_registration_tasks(self.folder, self.tasks, seed=self.seed, counts=counts).values()
        ]
