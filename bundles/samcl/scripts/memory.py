"""A bounded memory of past pairs, filled by reservoir sampling."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.pairs import Sample
from shared.errors import InputError, check_bools

from .pair_files import compact, delete_pairs, pair_file, read_pair, restore, write_pair

__all__ = ["ReservoirMemory", "TaskHooks"]

READERS = 2


class TaskHooks:
    """What a memory may do before and after a task; as they stand here, nothing."""

    def begin_task(self, trainer: Any) -> None:
        """Get ready for a task; called again when a killed run goes on, with the state of the checkpoint."""

    def end_task(self, trainer: Any) -> None:
        """Take down what later tasks need; a killed run does it again, with the same random numbers."""


def _file(folder: Path | None, number: int) -> Path:
    if folder is None:
        raise InputError("the memory has no folder yet; expected a run_dir when it is kept on disk")
    return pair_file(folder, number)


class ReservoirMemory(TaskHooks):
    """Keep each pair ever offered with the same probability, capacity / seen (Vitter, TOMS 1985, algorithm R).

    The rule holds while the capacity stays; a larger one fills up with new pairs first. A pair lies in RAM, or with
    ``on_disk`` in one npz file. Files that :meth:`save` does not name are left over from later steps of a killed run;
    :meth:`prune` removes them.

    Args:
        capacity: most pairs kept.
        on_disk: read pairs from ``folder`` at every draw instead of holding them in RAM; threads read them. Without a
            folder, before the first :meth:`save`, they are in RAM.

    Raises:
        ValueError: a capacity below 1, or an ``on_disk`` that is neither True nor False.
    """

    def __init__(self, capacity: int = 200, on_disk: bool = False) -> None:
        check_bools(on_disk=on_disk)
        if capacity < 1:
            raise ValueError(f"found capacity {capacity}, expected at least 1")
        self.capacity, self.on_disk = capacity, on_disk
        self.seen = 0
        self.folder: Path | None = None
        self._source: Path | None = None  # where the pairs on disk lie: an earlier run's folder until the first save
        self._slots: list[tuple[int, Sample | None]] = []  # (number when offered, pair; None when on disk)
        self._written: set[int] = set()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="replay")  # no thread before the first pair

    def __repr__(self) -> str:
        return f"ReservoirMemory(capacity={self.capacity})"

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Bytes that the pairs take: tensors in RAM, files on disk."""
        in_ram = sum(v.nbytes for _, s in self._slots if s for v in s.values() if isinstance(v, Tensor))
        return in_ram + sum(_file(self._source, n).stat().st_size for n, s in self._slots if s is None)

    def offer(self, sample: Sample, generator: torch.Generator) -> bool:
        """Offer a pair; return whether it was taken in."""
        number, self.seen = self.seen, self.seen + 1
        slot = len(self._slots)
        if slot >= self.capacity:
            slot = int(torch.randint(0, self.seen, (1,), generator=generator))
            if slot >= self.capacity:
                return False
        kept = compact(sample)
        # Offered before a run has begun, pairs have no folder yet: the first save writes them.
        to_disk = self.on_disk and self.folder is not None
        if to_disk:
            self._write(number, kept)
        entry = (number, None if to_disk else kept)
        if slot == len(self._slots):
            self._slots.append(entry)
        else:
            self._slots[slot] = entry
        return True

    def draw(self, count: int, generator: torch.Generator, before: int | None = None) -> list[Sample]:
        """Draw up to ``count`` different pairs, uniformly; with ``before``, of those offered when ``seen`` was less."""
        return self.draw_ahead(count, generator, before)()

    def draw_ahead(
        self, count: int, generator: torch.Generator, before: int | None = None
    ) -> Callable[[], list[Sample]]:
        """Do :meth:`draw`, but return what waits for the pairs: those on disk are read while the caller goes on.

        Until then nothing may be pruned.
        """
        slots = self._slots if before is None else [slot for slot in self._slots if slot[0] < before]
        chosen = [slots[int(i)] for i in torch.randperm(len(slots), generator=generator)[:count]]
        coming = [self._readers.submit(self._pair, *slot) if slot[1] is None else slot[1] for slot in chosen]
        return lambda: [restore(c.result() if isinstance(c, Future) else c) for c in coming]

    def _part(self, count: int) -> list[int]:
        """Choose which of ``count`` pairs a smaller memory takes over: a random part, the same at every call."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seen))
        return sorted(order[: self.capacity].tolist())

    def _pair(self, number: int, sample: Sample | None) -> Sample:
        return read_pair(_file(self._source, number)) if sample is None else sample

    def _write(self, number: int, sample: Sample) -> None:
        write_pair(_file(self.folder, number), sample)
        self._written.add(number)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in one dict of tensors and plain containers; :meth:`save` writes file by file instead."""
        slots = [(number, self._pair(number, sample)) for number, sample in self._slots]
        return {"seen": self.seen, "numbers": [n for n, _ in slots], "pairs": [dict(s) for _, s in slots]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`, into RAM."""
        self.seen, self.folder, self._written = int(state["seen"]), None, set()
        self._slots = list(zip(state["numbers"], state["pairs"], strict=True))
        if len(self._slots) > self.capacity:
            self._slots = [self._slots[i] for i in self._part(len(self._slots))]

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the pairs that ``folder`` lacks and return the index: plain numbers for the checkpoint.

        Nothing is deleted, so an older index stays readable until :meth:`prune`.
        """
        folder = Path(folder)
        if folder != self.folder:
            self._written.clear()
            self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for number, sample in self._slots:
            if number not in self._written:
                self._write(number, self._pair(number, sample))
        self._source = folder
        if self.on_disk:
            self._slots = [(n, None) for n, _ in self._slots]
        return {"seen": self.seen, "numbers": [n for n, _ in self._slots]}

    def prune(self) -> None:
        """Delete the files of pairs that are no longer kept."""
        numbers = {n for n, _ in self._slots}
        delete_pairs(self.folder, numbers)
        self._written &= numbers

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
        if "numbers" not in index:
            raise InputError(f"{folder}: holds generated pairs, expected the real ones of a reservoir: the same memory")
        numbers = [int(n) for n in index["numbers"]]
        self.seen = int(index["seen"])
        if len(numbers) > self.capacity:
            numbers = [numbers[i] for i in self._part(len(numbers))]
        slots: list[tuple[int, Sample | None]] = []
        for n in numbers:
            pair = read_pair(_file(folder, n))  # also where it stays on disk: whatever is missing shows here
            slots.append((n, None if self.on_disk else pair))
        self._slots, self._source = slots, folder
        self.folder = folder if keep_folder else None
        self._written = set(numbers) if keep_folder else set()
