"""Items that are read once and kept while they fit into memory; the others are read anew each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import CacheDataset
from monai.transforms import Transform
from tqdm import tqdm

from ..errors import InputError
from ..free_memory import free_bytes

__all__ = ["SHARE", "KeptItems", "local_processes"]

# Of the free memory: training and validation data may each take so much, networks and field maps want the rest.
SHARE = 0.25
# Read before anything else, so that bad files show early without a long wait for a large data set.
AT_ONCE = 256
# A dict with a few tensors takes so much beside their voxels.
BESIDE_VOXELS = 4096


def local_processes() -> int:
    """Return how many processes of this run share the machine: what `torchrun` says, else one."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Prepare(Transform):
    """A function for MONAI, whose ``CacheDataset`` keeps the results of ``Transform`` objects only."""

    def __init__(self, prepare: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self.prepare = prepare

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return self.prepare(data)


class KeptItems:
    """Items by number, from files; several threads may ask for them at once.

    The first ones are read when the object is made, the others when they are asked for; as many as ``kept`` says stay
    in memory (MONAI's ``CacheDataset``, filled at runtime).

    Args:
        entries: what ``prepare`` reads from, one an item.
        prepare: reads an item.
        item_bytes: of the largest item's voxels.
        cache_num: items that stay in memory; None: as many as fit into ``share`` of the free memory, which the
            processes of this run on this machine divide among them.
        share: see above.
        progress: show a bar while the first items are read.

    Raises:
        InputError: as ``prepare``, for the first items.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], dict[str, Any]],
        item_bytes: int,
        cache_num: int | None = None,
        share: float = SHARE,
        progress: bool = False,
    ) -> None:
        if cache_num is None:
            cache_num = int(share * free_bytes() / local_processes() / (item_bytes + BESIDE_VOXELS))
        self.kept = min(len(entries), cache_num)
        self._items = CacheDataset(
            entries, transform=_Prepare(prepare), cache_num=self.kept, copy_cache=False, runtime_cache="threads"
        )
        self._at_once = min(self.kept, AT_ONCE)
        for number in tqdm(range(self._at_once), desc="reading images", disable=not progress, dynamic_ncols=True):
            self[number]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def unread(self) -> int:
        """How many items are left to read after the first ones: where there are none, no file is read any more."""
        return len(self) - self._at_once

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            return self._items[number]
        except RuntimeError as error:
            raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """Dig out the InputError that MONAI's transform runner has wrapped."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    return cause or error
