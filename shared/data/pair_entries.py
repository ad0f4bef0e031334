"""What is read for pairs: each image once a grid, with the label map and the mask that its pairs ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..transform_io import Grid
from .item_pairs import ItemPairs
from .learn2reg import task_of

__all__ = ["ItemEntries", "ListedEntries", "label_file"]

Entry = dict[str, Any]


def label_file(pair: Mapping[str, Any], side: str) -> str | None:
    """Return a side's label map; its mask where neither side has a label, so that like is compared with like."""
    role = "label" if pair.get("fixed_label") or pair.get("moving_label") else "mask"
    return pair.get(f"{side}_{role}") or None


class ListedEntries(list[Entry]):
    """The entries of listed pairs.

    Args:
        pairs: as :func:`~shared.data.learn2reg.read_pairs` returns them.
        network_grid: of a fixed image.
        ct_windows: of each task.
        mask_as_label: see :class:`~shared.data.pairs.PairDataset`.
    """

    def __init__(
        self,
        pairs: Sequence[Mapping[str, Any]],
        network_grid: Callable[[str], Grid],
        ct_windows: Mapping[str, Any],
        mask_as_label: bool,
    ) -> None:
        super().__init__()
        self._numbers: dict[tuple, int] = {}
        self._network_grid, self._ct_windows, self._mask_as_label = network_grid, ct_windows, mask_as_label
        self._sides = [(self._number(pair, "fixed"), self._number(pair, "moving")) for pair in pairs]

    def sides(self, index: int) -> tuple[int, int]:
        """Return the numbers of the entries of a pair's fixed and moving image."""
        return self._sides[index]

    def _number(self, pair: Mapping[str, Any], side: str) -> int:
        grid = self._network_grid(pair["fixed_image"])
        label = label_file(pair, side) if self._mask_as_label else pair.get(f"{side}_label")
        files = {"image": pair[f"{side}_image"], "label": label, "mask": pair.get(f"{side}_mask")}
        window = self._ct_windows[task_of(pair)]
        key = (*files.values(), grid.key, str(window))
        if key not in self._numbers:
            self._numbers[key] = len(self)
            modality = pair.get(f"{side}_modality", "auto")
            self.append({**files, "grid": grid, "modality": modality, "ct_window": window})
        return self._numbers[key]


class ItemEntries(Sequence[Entry]):
    """The entries of all pairs of a plain list, each made when it is asked for; one bit is kept for an image on a grid.

    Args:
        pairs: of the list.
        network_grid: of a fixed image.
        ct_window: of all.
        mask_as_label: see :class:`~shared.data.pairs.PairDataset`.
    """

    def __init__(
        self, pairs: ItemPairs, network_grid: Callable[[str], Grid], ct_window: Any, mask_as_label: bool
    ) -> None:
        self._pairs, self._ct_window = pairs, ct_window
        self._labelled = np.array(["label" in item for item in pairs.items])
        self._files: dict[tuple[str | None, ...], int] = {}
        # What is read of an image beside a labelled one, and beside one that is as unlabelled as itself.
        self._with_label = self._variants(False)
        self._without = self._variants(mask_as_label)
        self._variant = list(self._files)
        self._grids: list[Grid] = []
        self._grid_of = self._numbered_grids(network_grid)
        self._starts = np.zeros(len(self._grids) + 1, dtype=np.int64)
        self._bits = np.zeros((len(self._grids), (len(self._variant) + 7) // 8), dtype=np.uint8)
        for number in range(len(self._grids)):
            needed = self._needed(number)
            self._starts[number + 1] = self._starts[number] + needed.sum()
            self._bits[number] = np.packbits(needed)

    def sides(self, index: int) -> tuple[int, int]:
        """Return the numbers of the entries of a pair's fixed and moving image."""
        fixed, moving = self._pairs.sides(index)
        table = self._with_label if self._labelled[[fixed, moving]].any() else self._without
        grid = int(self._grid_of[fixed])
        row, start = self._row(grid), int(self._starts[grid])
        return start + int(row[: table[fixed]].sum()), start + int(row[: table[moving]].sum())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"found index {index}, expected one of {len(self)} entries")
        grid = int(np.searchsorted(self._starts, index, side="right")) - 1
        variant = int(np.flatnonzero(self._row(grid))[index - int(self._starts[grid])])
        files = dict(zip(("image", "label", "mask"), self._variant[variant], strict=True))
        return {**files, "grid": self._grids[grid], "modality": "auto", "ct_window": self._ct_window}

    def _row(self, grid: int) -> np.ndarray:
        """Tell which variants (V,) are read on a grid."""
        return np.unpackbits(self._bits[grid], count=len(self._variant))

    def _variants(self, mask_as_label: bool) -> np.ndarray:
        """Number image, label map and mask of every item (n,); the same files have the same number."""
        numbers = []
        for item in self._pairs.items:
            label = item.get("label") or (item.get("mask") if mask_as_label else None)
            files = (item["image"], label, item.get("mask"))
            numbers.append(self._files.setdefault(files, len(self._files)))
        return np.array(numbers)

    def _numbered_grids(self, network_grid: Callable[[str], Grid]) -> np.ndarray:
        """Number the grid of every item (n,) that is in a pair; equal grids have the same number."""
        known: dict[tuple, int] = {}
        numbers = np.full(len(self._pairs.items), -1)
        for item in self._pairs.paired():
            grid = network_grid(self._pairs.items[item]["image"])
            if grid.key not in known:
                known[grid.key] = len(self._grids)
                self._grids.append(grid)
            numbers[item] = known[grid.key]
        return numbers

    def _needed(self, grid: int) -> np.ndarray:
        """Find which variants (V,) the pairs of the fixed images on a grid ask for."""
        needed = np.zeros(len(self._variant), dtype=bool)
        for fixed in np.flatnonzero(self._grid_of == grid).tolist():
            partners = self._pairs.partners(fixed)
            beside_label = partners if self._labelled[fixed] else partners & self._labelled
            for table, moving in ((self._with_label, beside_label), (self._without, partners & ~beside_label)):
                if moving.any():
                    needed[table[moving]] = True
                    needed[table[fixed]] = True
        return needed
