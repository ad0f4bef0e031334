"""A memory without any pair of a past task: a generator learns each task, and pairs that it draws are replayed.

Replay from a generator is the idea of Shin et al. (NeurIPS 2017); for registration this is this project's own, and
``docs/README.md`` says how it compares with a real buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.pairs import Sample
from shared.errors import InputError
from shared.run_directory import RunDirectory

from .memory import TaskHooks
from .pair_code import PairCode
from .pair_files import compact, delete_pairs, pair_file, read_pair, restore, write_pair
from .pair_generator import PairGenerator

__all__ = ["DiffusionMemory"]


class DiffusionMemory(TaskHooks):
    """Replay generated pairs of past tasks, and pairs of the present one straight from its dataset.

    Pairs that are offered are counted, never kept. A draw takes as many pairs of the present task as a reservoir would
    hold of it in the mean: its share of all pairs ever offered. After a task, the generator learns it and draws the
    pairs that stand for it from then on; past tasks have equal shares of the capacity. The folder holds generated
    pairs and, in ``generator``, the run of the generator.

    Args:
        capacity: most generated pairs kept, of all tasks together.
        generator: how pairs are learnt and drawn.

    Raises:
        ValueError: no capacity.
    """

    def __init__(self, capacity: int = 200, generator: PairGenerator | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"found capacity {capacity}, expected at least 1")
        self.capacity, self.generator = capacity, generator or PairGenerator()
        self.seen, self.folder = 0, None  # type: int, Path | None
        self._past = 0  # pairs that earlier tasks have offered
        self._next = 0  # number of the next pair; numbers name files
        self._pairs: dict[str, list[tuple[int, Sample]]] = {}
        self._written: set[int] = set()
        self._dataset: Any = None  # of the present task
        self._code: PairCode | None = None

    def __repr__(self) -> str:
        return f"DiffusionMemory(capacity={self.capacity}, generator={self.generator!r})"

    def __len__(self) -> int:
        return sum(map(len, self._pairs.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the generated pairs, and of the generator's weights."""
        pairs = sum(v.nbytes for s in self._pairs.values() for _, p in s for v in p.values() if isinstance(v, Tensor))
        model = None if self.folder is None else self.folder / "generator" / "model.pt"
        return pairs + (model.stat().st_size if model is not None and model.is_file() else 0)

    # -- during a task -------------------------------------------------------------------------------------------------

    def begin_task(self, trainer: Any) -> None:
        """Take the task's dataset to draw from, and check that the generator can learn it.

        Raises:
            InputError: several processes, a task that is in the memory already, or pairs that cannot be learnt.
        """
        if trainer.world > 1:
            raise InputError(
                f"found {trainer.world} processes, expected one: generated pairs are replayed on one device"
            )
        if trainer.task in self._pairs and not trainer.task_ended:
            raise InputError(f"found task {trainer.task!r} in the memory already, expected each task once")
        if trainer.state.iteration == 0:
            self._past = self.seen
        self._dataset = trainer.data_loader.dataset
        if not trainer.task_ended:
            self._code = self.generator.code(self._dataset, trainer.task)

    def offer(self, sample: Sample, generator: torch.Generator) -> bool:
        """Count a pair of the present task; it is not kept, and nothing is drawn from ``generator``."""
        self.seen += 1
        return False

    def draw(self, count: int, generator: torch.Generator, before: int | None = None) -> list[Sample]:
        """Draw up to ``count`` different pairs; with ``before``, generated ones of past tasks alone.

        Args:
            count: of pairs.
            generator: decides which.
            before: any number of pairs that had been offered when the present task began.
        """
        return self.draw_ahead(count, generator, before)()

    def draw_ahead(
        self, count: int, generator: torch.Generator, before: int | None = None
    ) -> Callable[[], list[Sample]]:
        """Do :meth:`draw`, but return what gives the pairs: all lie in memory."""
        past = [pair for pairs in self._pairs.values() for _, pair in pairs]
        present = 0
        if before is None and self.seen > self._past and self._dataset is not None:
            share = (self.seen - self._past) / self.seen if past else 1.0
            present = int((torch.rand(count, generator=generator) < share).sum())
        rows = torch.randperm(len(self._dataset), generator=generator)[:present].tolist() if present else []
        chosen = torch.randperm(len(past), generator=generator)[: count - present].tolist()
        return lambda: [self._dataset[row] for row in rows] + [restore(past[number]) for number in chosen]

    # -- after a task --------------------------------------------------------------------------------------------------

    def end_task(self, trainer: Any) -> None:
        """Let the generator learn the task and draw its pairs; after a kill, its training goes on where it stopped.

        Raises:
            InputError: as :class:`~.pair_generator.PairGenerator`; or more tasks than pairs may be kept.
        """
        share = self.capacity // (len(self._pairs) + 1)
        if share == 0:
            raise InputError(f"found {len(self._pairs) + 1} tasks, expected a memory of at least as many pairs")
        folder, task, seed = trainer.run_directory.memory, trainer.task, trainer.seed
        code = self._code or self.generator.code(self._dataset, task)
        before, device = self._generator_before(trainer), torch.device(trainer.state.device)
        model = self.generator.learn(task, self._dataset, code, folder / "generator", before, device, seed)
        self._pairs = {name: pairs[:share] for name, pairs in self._pairs.items()}
        self._pairs[task] = []
        for sample in self.generator.draw(model, task, share, seed):
            self._pairs[task].append((self._next, compact(sample)))
            self._next += 1
        self._dataset, self._past = None, self.seen

    @staticmethod
    def _generator_before(trainer: Any) -> Path | None:
        """Return the run of the generator of the tasks before, where the run that this one starts from has one."""
        if trainer.init_from is None or not trainer.init_from.is_dir():
            return None
        found = RunDirectory(trainer.init_from, trainer.rank, read_only=True).memory / "generator"
        return found if RunDirectory(found, read_only=True).is_done() else None

    # -- files ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the pairs that ``folder`` lacks and return the index, plain containers; nothing is deleted."""
        folder = Path(folder)
        if folder != self.folder:
            self.folder, self._written = folder, set()
        folder.mkdir(parents=True, exist_ok=True)
        for number, sample in [pair for pairs in self._pairs.values() for pair in pairs]:
            if number not in self._written:
                write_pair(pair_file(folder, number), sample)
                self._written.add(number)
        generated = {task: [number for number, _ in pairs] for task, pairs in self._pairs.items()}
        return {"seen": self.seen, "past": self._past, "next": self._next, "generated": generated}

    def load(self, folder: str | Path, index: dict[str, Any], keep_folder: bool = True) -> None:
        """Take up the index of :meth:`save`.

        Args:
            folder: where the pairs lie.
            index: what :meth:`save` returned.
            keep_folder: go on writing there (a resumed run); False reads only (the memory of an earlier task).

        Raises:
            InputError: the memory of another kind, or a pair is missing or unreadable.
        """
        folder = Path(folder)
        if "generated" not in index:
            raise InputError(f"{folder}: holds real pairs, expected generated ones: the same memory from task to task")
        self.seen, self._past, self._next = (int(index[key]) for key in ("seen", "past", "next"))
        share = self.capacity // max(1, len(index["generated"]))
        self._pairs = {
            task: [(int(n), read_pair(pair_file(folder, int(n)))) for n in numbers[:share]]
            for task, numbers in index["generated"].items()
        }
        self.folder = folder if keep_folder else None
        self._written = {n for pairs in self._pairs.values() for n, _ in pairs} if keep_folder else set()

    def prune(self) -> None:
        """Delete the files of pairs that are no longer kept."""
        numbers = {n for pairs in self._pairs.values() for n, _ in pairs}
        delete_pairs(self.folder, numbers)
        self._written &= numbers
