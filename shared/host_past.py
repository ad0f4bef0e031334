"""What weights that ship have learnt, for a labelling host's training: pairs of the embedded tasks, computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .data.learn2reg import read_pairs
from .data.pairs import PairDataset
from .data.pooled import PooledPairs, pooled_pairs
from .data.synthetic import write_registration_tasks
from .distributed import from_first_rank
from .host_run import HostRun

__all__ = ["EmbeddedPairs"]


class EmbeddedPairs:
    """Pairs of the embedded tasks, for a host's training that starts from weights alone; others get none.

    Args:
        host: of the run.
        folder: where the tasks are written, as Learn2Reg folders.
        tasks: that the weights have learnt.
        options: of :class:`~shared.data.pairs.PairDataset`.
        images: of each task; 0 rehearses nothing.
        seed: of the images, other than those of ``load_pairs``.
    """

    def __init__(
        self,
        host: HostRun,
        folder: str | Path,
        tasks: Sequence[str],
        options: Mapping[str, Any],
        images: int = 6,
        seed: int = 7,
    ) -> None:
        self.host, self.folder = host, Path(folder)
        self.tasks, self.options = list(tasks), dict(options)
        self.images, self.seed = images, seed

    def are_wanted(self) -> bool:
        """Whether the run has a past of this kind: not on folders, from a run with a memory, or of 2D images."""
        start = self.host.init_from
        if self.host.cases is None or not self.tasks or not self.images or start is None or not Path(start).is_file():
            return False
        if len(self.options["spatial_size"]) != 3:
            self.host.say("the embedded tasks are 3D: nothing learnt before is rehearsed")
            return False
        return True

    def pairs(self) -> list[dict[str, Any]]:
        """Write the tasks, where they are not yet, and return their pairs."""
        from_first_rank(partial(self._write))
        return [pair for task in self.tasks for pair in read_pairs(self.folder, task)]

    def beside(self, dataset: PairDataset | PooledPairs) -> PairDataset | PooledPairs:
        """Return a dataset whose every second sample is of the past, each task with the same share; or ``dataset``.

        Args:
            dataset: the run's own.
        """
        if not self.are_wanted():
            return dataset
        past = pooled_pairs(self.pairs(), progress=True, **self.options)
        self.host.say(f"every second pair is one of {len(past.pairs)} of what the weights have learnt: {self.tasks}")
        return PooledPairs([dataset, past])

    def _write(self) -> list[str]:
        counts = {"training": self.images, "validation": 0, "test": 0}
        return [
            str(p) for p in write_registration_tasks(self.folder, self.tasks, seed=self.seed, counts=counts).values()
        ]
