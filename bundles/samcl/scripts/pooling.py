"""The pairs of several tasks as one set of training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.embedded import load_pairs
from shared.data.pairs import PairDataset
from shared.data.pooled import PooledPairs
from shared.errors import InputError

__all__ = ["pooled_pairs"]


def pooled_pairs(
    data: Sequence[tuple[str | Path, str]], spatial_size: Sequence[int], with_self: bool = False, **options: Any
) -> PooledPairs:
    """Return the training pairs of several tasks, each with the same share (joint training).

    Takes the place of :class:`~shared.data.pairs.PairDataset` in a config: what that is given holds for every task, so
    that ``paper.json`` and the command line reach it here too.

    Args:
        data: (dataset_dir, task) of each task; an embedded task is written first where it is missing.
        spatial_size: voxels of the network's grid.
        with_self: also pairs of an image with itself.
        options: of ``PairDataset``.

    Raises:
        InputError: not a list of such pairs, or as :func:`load_pairs` and ``PairDataset``.
    """
    if isinstance(data, str) or any(isinstance(entry, str) or len(entry) != 2 for entry in data):
        raise InputError(f"found tasks {data}, expected a list of [dataset_dir, task]")
    pairs = [load_pairs(folder, task, "train", with_self) for folder, task in data]
    return PooledPairs([PairDataset(p, spatial_size, **options) for p in pairs])
