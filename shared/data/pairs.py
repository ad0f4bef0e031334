"""Pairs of files -> pairs of tensors on the network's grid."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, check_bools
from ..transform_io import Grid, affine_ddf, network_grid, points_to_grid
from ..warp import warp
from .images import read_grid, read_image, read_label, read_points
from .intensity import find_ct_window, looks_like_ct, normalise
from .item_pairs import ItemPairs, images_of
from .kept import SHARE, KeptItems
from .learn2reg import by_task, pairs_of_items, task_of
from .pair_entries import ItemEntries, ListedEntries
from .resampling import anti_alias

__all__ = ["PairDataset", "Sample", "form_pairs", "prepare_item", "stack_pairs"]

Sample = dict[str, Any]
# Of the smaller image's extent, along each axis: what a pair of a plain list must have in common.
SMALLEST_OVERLAP = 0.25


def stack_pairs(samples: Sequence[Sample]) -> Tensor:
    """Return the network's input (B, 2, *S): channel 0 moving, 1 fixed."""
    return torch.stack([torch.cat([s["moving_image"], s["fixed_image"]]) for s in samples])


def form_pairs(data: Sequence[Mapping[str, Any]], spatial_dims: int = 3) -> Sequence[dict[str, Any]]:
    """Return pairs as they are; of a plain list of ``{image, label}``, all ordered pairs that share a place.

    Images of different patients may lie anywhere in the world: pairs are left out, with a warning, whose boxes have in
    common less than a quarter of the smaller one along an axis.

    Args:
        data: pairs or items.
        spatial_dims: of the images.

    Returns:
        a list, or :class:`~shared.data.item_pairs.ItemPairs`, which makes them one by one.

    Raises:
        InputError: as :func:`~shared.data.learn2reg.pairs_of_items`, an unusable image, or no pair that meets.
    """
    pairs = pairs_of_items(data)
    if not isinstance(pairs, ItemPairs) or pairs is data:
        return pairs
    grids = {item["image"]: read_grid(item["image"], spatial_dims) for item in pairs.items}
    boxes = {image: grid.box() for image, grid in grids.items()}
    low, high = (np.array([boxes[item["image"]][end] for item in pairs.items]) for end in (0, 1))
    kept = pairs.meeting(low, high, SMALLEST_OVERLAP)
    if not kept:
        first, second = list(grids)[:2]
        raise InputError(
            f"{first}: does not overlap with {second}, nor do other two of the {len(grids)} images: found the boxes "
            f"({grids[first].box_mm()}) and ({grids[second].box_mm()}), expected images in one world frame"
        )
    if len(kept) < len(pairs):
        warnings.warn(
            f"{len(pairs) - len(kept)} of {len(pairs)} pairs are left out: their images hardly overlap in world space",
            stacklevel=3,
        )
    return kept


def prepare_item(entry: Mapping[str, Any]) -> Sample:
    """Read one image with what belongs to it, and put it on a grid.

    Args:
        entry: ``image``, optional ``label``, ``mask``, ``modality``, ``ct_window``, and ``grid``, the target.

    Returns:
        ``image`` (1, *S) in [0, 1], ``mask`` (1, *S) uint8, zero where the image does not reach, ``label`` (1, *S)
        int16 and ``labels``, the values present, where there is one.
    """
    target: Grid = entry["grid"]
    dims = len(target.shape)
    voxels, source = read_image(entry["image"], dims)
    image = normalise(voxels, entry.get("modality", "auto"), entry.get("ct_window"))
    same = source.key == target.key
    mapping = None if same else affine_ddf(target, source)

    def place(volume: Tensor, mode: str) -> Tensor:
        return volume if mapping is None else warp(volume[None], mapping, mode=mode)[0]

    item: Sample = {"image": place(image if same else anti_alias(image, source, target), "bilinear")}
    mask = torch.ones_like(voxels)
    if entry.get("mask"):
        mask = (read_label(entry["mask"], source, dims, role="mask") > 0).float()
        if not bool(mask.any()):
            raise InputError(f"{entry['mask']}: found an empty mask, expected voxels above zero where the image counts")
    item["mask"] = place(mask, "nearest").to(torch.uint8)
    label = entry.get("label") or None
    if label:
        item["label"] = place(read_label(label, source, dims).float(), "nearest").to(torch.int16)
        item["labels"] = [int(v) for v in torch.unique(item["label"]) if v > 0]
    return item


def _check_lattice(size: Sequence[int], spacing_mm: Sequence[float] | None) -> None:
    """Raise InputError unless size, and spacing where given, describe a lattice in 2D or 3D."""
    if len(size) not in (2, 3) or any(int(n) != n or n < 1 for n in size):
        raise InputError(f"found spatial_size {list(size)}, expected two or three whole numbers above zero")
    if spacing_mm is not None and (len(spacing_mm) != len(size) or not all(s > 0 for s in spacing_mm)):
        raise InputError(f"found spacing_mm {list(spacing_mm)}, expected {len(size)} numbers above zero, one an axis")


class PairDataset(Dataset):
    """Pairs as tensors on the network's grid, which follows each pair's fixed image.

    A sample holds ``fixed_image``, ``moving_image`` (1, *S) in [0, 1]; ``fixed_mask``, ``moving_mask`` uint8; where
    known ``fixed_label``, ``moving_label`` int16 with ``labels`` (values present in either), ``fixed_points``,
    ``moving_points`` (N, d) in voxels of the grid; ``pair`` (the files) and ``grids`` (network, fixed, moving).
    Images are read once per grid and kept in memory while they fit, see :class:`~shared.data.kept.KeptItems`.

    Args:
        data: pairs (see :func:`~shared.data.learn2reg.read_pairs`) or a plain list of ``{image, label}``.
        spatial_size: voxels of the network's grid.
        spacing_mm: voxel size of the grid; ``None`` stretches it over the fixed image's field of view.
        ct_window: HU window for CT; ``None`` tells chest from the rest by the first CT of each task, for all of its
            pairs alike.
        cache_num: how many images stay in memory; None: as many as fit into ``cache_share`` of what is free.
        cache_share: see there.
        mask_as_label: use the mask as label where a pair has no label map (lung CT).
        mask_images: set both images to zero outside their masks.
        progress: show a bar while images are read.

    Raises:
        InputError: an option or a file that cannot be used, or a pair whose images do not overlap in world space (of a
            plain list: none that do, see :func:`form_pairs`).
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float] | None = None,
        ct_window: Sequence[float] | None = None,
        cache_num: int | None = None,
        cache_share: float = SHARE,
        mask_as_label: bool = True,
        mask_images: bool = False,
        progress: bool = False,
    ) -> None:
        _check_lattice(spatial_size, spacing_mm)
        check_bools(mask_as_label=mask_as_label, mask_images=mask_images)
        self.pairs = form_pairs(data, len(spatial_size))
        self.size, self.spacing_mm = tuple(spatial_size), spacing_mm
        self.mask_as_label, self.mask_images = mask_as_label, mask_images
        self.ct_windows = {
            task: self._first_ct_window(pairs[0]) if ct_window is None else ct_window
            for task, pairs in by_task(self.pairs).items()
        }
        self._headers: dict[str, Grid] = {}
        self._network_grids: dict[str, Grid] = {}
        self._entries = self._find_entries()
        voxel_bytes = 4 + 1 + 2  # image, mask, label
        self._items = KeptItems(
            self._entries, prepare_item, voxel_bytes * math.prod(self.size), cache_num, cache_share, progress
        )

    @property
    def images(self) -> set[str]:
        """The image files of all pairs."""
        return images_of(self.pairs)

    @property
    def unread(self) -> int:
        """How many images are not read when the dataset is made."""
        return self._items.unread

    @property
    def kept(self) -> int:
        """How many images can be kept in memory."""
        return self._items.kept

    def _first_ct_window(self, pair: Mapping[str, Any]) -> Sequence[float] | None:
        """Choose one window for a whole task, by its first CT: two windows within a pair would be two contrasts."""
        for side in ("fixed", "moving"):
            modality = pair.get(f"{side}_modality", "auto")
            if modality != "mr":
                image, _ = read_image(pair[f"{side}_image"], len(self.size))
                if modality == "ct" or looks_like_ct(image):
                    return find_ct_window(image)
        return None

    def _grid(self, path: str) -> Grid:
        if path not in self._headers:
            self._headers[path] = read_grid(path, len(self.size))
        return self._headers[path]

    def _network_grid(self, fixed_image: str) -> Grid:
        if fixed_image not in self._network_grids:
            self._network_grids[fixed_image] = network_grid(self._grid(fixed_image), self.size, self.spacing_mm)
        return self._network_grids[fixed_image]

    def _find_entries(self) -> ListedEntries | ItemEntries:
        for image in sorted(self.images):
            self._grid(image)
        if isinstance(self.pairs, ItemPairs):
            window = self.ct_windows[self.pairs.task]
            return ItemEntries(self.pairs, self._network_grid, window, self.mask_as_label)
        return ListedEntries(self.pairs, self._network_grid, self.ct_windows, self.mask_as_label)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        fixed, moving = (self._items[number] for number in self._entries.sides(index))
        grids = {side: self._grid(pair[f"{side}_image"]) for side in ("fixed", "moving")}
        grids["network"] = self._network_grid(pair["fixed_image"])
        if not bool(moving["mask"].any()):
            raise InputError(
                f"{pair['moving_image']}: does not overlap with {pair['fixed_image']}: found the boxes "
                f"({grids['moving'].box_mm()}) and ({grids['fixed'].box_mm()}), expected images in one world frame"
            )
        sample: Sample = {"pair": pair, "grids": grids, "task": task_of(pair)}
        for side, item in (("fixed", fixed), ("moving", moving)):
            sample.update({f"{side}_{k}": v for k, v in item.items() if k != "labels"})
            points = pair.get(f"{side}_points")
            if points:
                raw = read_points(points, len(self.size))
                sample[f"{side}_points"] = points_to_grid(raw, grids[side], grids["network"])
            if self.mask_images:
                sample[f"{side}_image"] = sample[f"{side}_image"] * sample[f"{side}_mask"]
        if "labels" in fixed and "labels" in moving:
            sample["labels"] = sorted(set(fixed["labels"]) | set(moving["labels"]))
        self._check_points(sample)
        return sample

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples: options, and a digest of the file names of the pairs, or of a plain list."""
        listed = self.pairs.items if isinstance(self.pairs, ItemPairs) else self.pairs
        names = [[f"{k}={Path(str(entry[k])).name}" for k in sorted(entry)] for entry in listed]
        windows = {task: str(window) for task, window in self.ct_windows.items()}
        return {
            "pairs": len(self.pairs),
            "files": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "spatial_size": str(self.size),
            "spacing_mm": str(self.spacing_mm),
            "ct_window": windows if len(set(windows.values())) > 1 else next(iter(windows.values())),
            "mask_as_label": self.mask_as_label,
            "mask_images": self.mask_images,
        }

    def check(self) -> None:
        """Look at every pair once, so that bad input is found before work begins.

        Raises:
            InputError: as :meth:`__getitem__`.
        """
        for index in range(len(self)):
            self[index]

    @staticmethod
    def _check_points(sample: Sample) -> None:
        counts = [len(sample[f"{side}_points"]) for side in ("fixed", "moving") if f"{side}_points" in sample]
        if len(counts) == 1 or (counts and counts[0] != counts[1]):
            pair = sample["pair"]
            raise InputError(
                f"{pair.get('fixed_points')}, {pair.get('moving_points')}: found {counts} points, "
                "expected as many in both files, matching line by line"
            )
