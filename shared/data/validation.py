"""Validation data that may be missing: a labelling host holds back none, or a single image, when few are labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from .pairs import PairDataset
from .slice_dataset import VolumeDataset

__all__ = ["NoCases", "validation_pairs", "validation_volumes"]


class NoCases(Dataset):
    """Nothing to validate on.

    Args:
        reason: why, for the log.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.pairs: list[dict[str, Any]] = []
        self.items: list[dict[str, Any]] = []
        self.images: set[str] = set()

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise IndexError(f"found index {index}, expected none: {self.reason}")

    def check(self) -> None:
        """There is nothing to look at."""


def validation_pairs(
    data: Sequence[Mapping[str, Any]], spatial_size: Sequence[int], **options: Any
) -> PairDataset | NoCases:
    """Return the pairs of a :class:`PairDataset`, or none where there is no image, or a single one.

    Args:
        data: pairs, or a plain list of ``{image, label}``, of which all ordered pairs are taken.
        spatial_size: voxels of the network's grid.
        options: of :class:`PairDataset`.

    Raises:
        InputError: as :class:`PairDataset`.
    """
    if not data:
        return NoCases("no image was held back")
    if len(data) == 1 and "fixed_image" not in data[0]:
        return NoCases(f"one image was held back ({data[0].get('image')}), and a pair takes two")
    return PairDataset(data, spatial_size, **options)


def validation_volumes(
    data: Sequence[Mapping[str, Any]], spatial_size: Sequence[int], **options: Any
) -> VolumeDataset | NoCases:
    """Return the images of a :class:`VolumeDataset`, or none where there is no image.

    Args:
        data: items.
        spatial_size: rows and columns of a slice.
        options: of :class:`VolumeDataset`.

    Raises:
        InputError: as :class:`VolumeDataset`.
    """
    return VolumeDataset(data, spatial_size, **options) if data else NoCases("no image was held back")
