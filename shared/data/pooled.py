"""Several tasks' pairs as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import InputError
from .learn2reg import by_task, pairs_of_items
from .pairs import PairDataset, Sample

__all__ = ["PooledPairs", "pooled_pairs"]


class PooledPairs(Dataset):
    """Pairs of several tasks in turn, so that each has the same share whatever its size.

    Of n tasks, index i is pair ``(i // n) % len(task)`` of task ``i % n``. A pass over the dataset meets every pair of
    the largest task once, those of the others more often.

    Args:
        datasets: one a task.

    Raises:
        InputError: no dataset.
    """

    def __init__(self, datasets: Sequence[PairDataset]) -> None:
        if not datasets:
            raise InputError("found no task to pool, expected at least one")
        self.datasets = list(datasets)

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Every task's pairs, once."""
        return [pair for dataset in self.datasets for pair in dataset.pairs]

    def __len__(self) -> int:
        return len(self.datasets) * max(len(dataset) for dataset in self.datasets)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"found index {index}, expected 0 to {len(self) - 1}")
        turn, task = divmod(index, len(self.datasets))
        dataset = self.datasets[task]
        return dataset[turn % len(dataset)]

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples, task by task."""
        return {str(number): dataset.settings() for number, dataset in enumerate(self.datasets)}

    def check(self) -> None:
        """Look at every pair once, so that bad input is found before work begins.

        Raises:
            InputError: as ``PairDataset``.
        """
        for dataset in self.datasets:
            dataset.check()


def pooled_pairs(
    data: Sequence[Mapping[str, Any]], spatial_size: Sequence[int], **options: Any
) -> PairDataset | PooledPairs:
    """Return pairs of one or several tasks as a dataset in which each task has the same share.

    Takes the place of :class:`PairDataset` in a config: what that is given holds for every task.

    Args:
        data: pairs, whose ``task`` says where they belong, or a plain list of ``{image, label}``, which is one task.
        spatial_size: voxels of the network's grid.
        options: of :class:`PairDataset`.

    Returns:
        a :class:`PairDataset` where there is one task, else :class:`PooledPairs`.

    Raises:
        InputError: as :class:`PairDataset`.
    """
    datasets = [PairDataset(pairs, spatial_size, **options) for pairs in by_task(pairs_of_items(data)).values()]
    return datasets[0] if len(datasets) == 1 else PooledPairs(datasets)
