"""Batches of raw samples, read ahead by threads while the training step computes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch.utils.data import Dataset

from .kept import local_processes
from .sampler import ResumableSampler

__all__ = ["SampleLoader"]

MOST_THREADS = 4
# Batches that are read, or being read, before they are asked for.
AHEAD = 2


class SampleLoader:
    """An endless stream of batches, lists of samples in the sampler's order, whichever thread reads first.

    Threads, not processes: they share the images that the dataset keeps, and reading and unpacking files leaves
    Python's lock free. What is held is bounded: the batch in hand, and ``AHEAD`` more (or one sample a thread).

    Args:
        dataset: of samples, which it may read from several threads at once. Its ``unread``, where it has one, says
            how many images are not in memory when training starts.
        sampler: endless.
        batch_size: samples a batch.
        threads: that read ahead. None: 4, or as many CPU cores as there are for this process, where the dataset has
            anything ``unread``; else none, and samples are taken from memory when they are asked for.
    """

    def __init__(
        self, dataset: Dataset, sampler: ResumableSampler, batch_size: int = 1, threads: int | None = None
    ) -> None:
        if threads is None:
            cores = (os.cpu_count() or 1) // local_processes()
            threads = max(1, min(MOST_THREADS, cores)) if getattr(dataset, "unread", 0) else 0
        self.dataset, self.sampler, self.batch_size, self.threads = dataset, sampler, batch_size, threads
        self.waited = 0.0  # seconds that the training waited for samples

    def describe(self) -> str:
        """Return a line for the log; empty where everything is in memory."""
        unread = getattr(self.dataset, "unread", 0)
        if not unread:
            return ""
        kept = f"{getattr(self.dataset, 'kept', 0)} of its images can be kept in memory"
        size = f"{len(self.dataset)} samples" if isinstance(self.dataset, Sized) else "samples"
        how = f"{self.threads} threads read ahead" if self.threads else "they are read when they are asked for"
        return f"{size}, {unread} images not read yet: {kept}, {how}"

    def __iter__(self) -> Iterator[list[Any]]:
        batches = self._read_ahead() if self.threads else self._read()
        try:
            while True:
                start = time.perf_counter()
                batch = next(batches)
                self.waited += time.perf_counter() - start
                yield batch
        finally:
            batches.close()

    def _read(self) -> Generator[list[Any], None, None]:
        numbers = iter(self.sampler)
        while True:
            yield [self.dataset[next(numbers)] for _ in range(self.batch_size)]

    def _read_ahead(self) -> Generator[list[Any], None, None]:
        numbers = iter(self.sampler)
        depth = max(AHEAD * self.batch_size, self.threads)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="read-ahead")
        coming: deque[Future] = deque()
        try:
            while True:
                while len(coming) < depth + self.batch_size:
                    coming.append(pool.submit(self.dataset.__getitem__, next(numbers)))
                yield [coming.popleft().result() for _ in range(self.batch_size)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
