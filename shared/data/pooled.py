"""Several tasks' pairs, or several sites' slices, as one dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from ..errors import InputError
from .kept import SHARE
from .learn2reg import by_task
from .pairs import PairDataset, form_pairs
from .slice_dataset import SliceDataset, site_of

__all__ = ["PooledPairs", "PooledSlices", "pooled_pairs", "pooled_slices"]


class _Pooled(Dataset):
    """Samples of several tasks in turn, so that each has the same share whatever its size.

    Of n tasks, index i is sample ``(i // n) % len(task)`` of task ``i % n``. A pass over the dataset meets every sample
    of the largest task once, those of the others more often.

    Args:
        datasets: one a task.

    Raises:
        InputError: no dataset.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        if not datasets:
            raise InputError("found no task to pool, expected at least one")
        self.datasets = list(datasets)

    def __len__(self) -> int:
        return len(self.datasets) * max(len(dataset) for dataset in self.datasets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"found index {index}, expected 0 to {len(self) - 1}")
        turn, task = divmod(index, len(self.datasets))
        dataset = self.datasets[task]
        return dataset[turn % len(dataset)]

    @property
    def unread(self) -> int:
        """How many images are not read when the datasets are made."""
        return sum(dataset.unread for dataset in self.datasets)

    @property
    def kept(self) -> int:
        """How many images can be kept in memory."""
        return sum(dataset.kept for dataset in self.datasets)

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples, task by task."""
        return {str(number): dataset.settings() for number, dataset in enumerate(self.datasets)}

    def check(self) -> None:
        """Look at every sample once, so that bad input is found before work begins.

        Raises:
            InputError: as the datasets.
        """
        for dataset in self.datasets:
            dataset.check()


class PooledPairs(_Pooled):
    """Pairs of several tasks, each with the same share: ``PairDataset`` objects, in turn."""

    @property
    def pairs(self) -> list[dict[str, Any]]:
        """Every task's pairs, once."""
        return [pair for dataset in self.datasets for pair in dataset.pairs]

    @property
    def images(self) -> set[str]:
        """The image files of all tasks' pairs."""
        return set().union(*(dataset.images for dataset in self.datasets))


class PooledSlices(_Pooled):
    """Slices of several sites, each with the same share: ``SliceDataset`` objects, in turn."""

    @property
    def items(self) -> list[dict[str, Any]]:
        """Every site's images, once."""
        return [item for dataset in self.datasets for item in dataset.items]


def _divided(options: dict[str, Any], count: int) -> dict[str, Any]:
    """Return options with a ``count``-th of the memory: the datasets of a pool share what one may take."""
    return {**options, "cache_share": options.get("cache_share", SHARE) / count}


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
    formed = form_pairs(data, len(spatial_size))
    tasks = by_task(formed)
    options = _divided(options, len(tasks))
    datasets = [PairDataset(pairs, spatial_size, **options) for pairs in tasks.values()]
    return datasets[0] if len(datasets) == 1 else PooledPairs(datasets)


def pooled_slices(
    data: Sequence[Mapping[str, Any]], spatial_size: Sequence[int], **options: Any
) -> SliceDataset | PooledSlices:
    """Return slices of one or several sites as a dataset in which each site has the same share.

    Takes the place of :class:`SliceDataset` in a config: what that is given holds for every site.

    Args:
        data: items, whose ``site`` says where they belong, or a plain list of ``{image, label}``, which is one site.
        spatial_size: of the network's slices or patches.
        options: of :class:`SliceDataset`.

    Returns:
        a :class:`SliceDataset` where there is one site, else :class:`PooledSlices`.

    Raises:
        InputError: as :class:`SliceDataset`.
    """
    sites: dict[str, list[Mapping[str, Any]]] = {}
    for item in data:
        sites.setdefault(site_of(item), []).append(item)
    options = _divided(options, len(sites))
    datasets = [SliceDataset(items, spatial_size, **options) for items in sites.values()]
    return datasets[0] if len(datasets) == 1 else PooledSlices(datasets)
