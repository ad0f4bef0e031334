"""All ordered pairs of a plain list of images, each made when it is asked for: n images take the memory of n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["ItemPairs", "images_of"]

Pair = dict[str, Any]
_ROLES = ("image", "label", "mask", "points")


class ItemPairs(Sequence[Pair]):
    """The pairs (0, 1), (0, 2), ..., (1, 0), ... of n images, fixed before moving: n * (n - 1), or those that meet.

    Args:
        items: ``{image}`` each, with ``label``, ``mask`` and ``points`` where there are.
        task: of all pairs.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], task: str = "images") -> None:
        self.items = [{role: str(item[role]) for role in _ROLES if item.get(role)} for item in items]
        self.task = task
        self._boxes: tuple[np.ndarray, np.ndarray] | None = None
        self._share = 0.0
        self._starts = np.arange(len(self.items) + 1) * (len(self.items) - 1)

    def meeting(self, low: np.ndarray, high: np.ndarray, share: float) -> ItemPairs:
        """Return the pairs whose boxes have along every axis at least ``share`` of the smaller one in common.

        Args:
            low: (n, d), the lowest corner of each image's box.
            high: (n, d), the highest.
            share: of the smaller extent.
        """
        kept = ItemPairs(self.items, self.task)
        kept._boxes, kept._share = (low, high), share
        counts = [int(kept.partners(fixed).sum()) for fixed in range(len(self.items))]
        kept._starts = np.concatenate([[0], np.cumsum(counts)])
        return kept if len(kept) < len(self) else self

    def partners(self, fixed: int) -> np.ndarray:
        """Tell which images (n,) are the moving ones of an image's pairs."""
        if self._boxes is None:
            found = np.ones(len(self.items), dtype=bool)
        else:
            low, high = self._boxes
            common = np.minimum(high, high[fixed]) - np.maximum(low, low[fixed])
            found = (common >= self._share * np.minimum(high - low, high[fixed] - low[fixed])).all(1)
        found[fixed] = False
        return found

    def sides(self, index: int) -> tuple[int, int]:
        """Return the numbers of a pair's fixed and moving image."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"found index {index}, expected one of {len(self)} pairs")
        index %= len(self)
        fixed = int(np.searchsorted(self._starts, index, side="right")) - 1
        place = index - int(self._starts[fixed])
        if self._boxes is None:
            return fixed, place + (place >= fixed)
        return fixed, int(np.flatnonzero(self.partners(fixed))[place])

    def paired(self) -> list[int]:
        """Return the numbers of the images that are in any pair."""
        return np.flatnonzero(np.diff(self._starts)).tolist()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        sides = zip(("fixed", "moving"), self.sides(index), strict=True)
        files = {f"{side}_{role}": file for side, number in sides for role, file in self.items[number].items()}
        return {**files, "fixed_modality": "auto", "moving_modality": "auto", "task": self.task}


def images_of(pairs: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the image files of pairs."""
    if isinstance(pairs, ItemPairs):
        return {pairs.items[number]["image"] for number in pairs.paired()}
    return {pair[f"{side}_image"] for pair in pairs for side in ("fixed", "moving")}
