"""Images of segmentation sites as the tensors that a network sees: whole volumes, slices, or 3D patches."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, check_bools
from .intensity import scale_percentiles
from .kept import SHARE, KeptItems
from .resampling import resample
from .slices import adjacent_slices, slice_grid, slice_window
from .volumes import read_volume, read_volume_grid, read_volume_label

__all__ = ["SliceDataset", "VolumeDataset", "known_label", "prepare_volume", "site_of"]

Sample = dict[str, Any]


def site_of(item: Mapping[str, Any]) -> str:
    """Return the name of the site that an item belongs to; "images" where it does not say."""
    return str(item.get("site", "images"))


def known_label(label: Tensor, item: Mapping[str, Any], classes: int, label_map: Mapping[int, int] | None) -> Tensor:
    """Return a label map in the network's classes.

    Args:
        label: values as in the file, any shape.
        item: ``label`` (the file) and ``names`` (value -> name) for the message.
        classes: of the network, the background included.
        label_map: value in the file -> class, for sets that divide what the network does not; None takes values as
            classes.

    Raises:
        InputError: values that the network does not know; they are named.
    """
    values = [int(v) for v in torch.unique(label)]
    mapping = {v: v for v in values} if label_map is None else {0: 0, **{int(k): v for k, v in label_map.items()}}
    unknown = [v for v in values if not 0 <= mapping.get(v, -1) < classes]
    if unknown:
        names = item.get("names") or {}
        listed = ", ".join(f"{v} ({names[v]})" if v in names else str(v) for v in unknown)
        known = f"0..{classes - 1}" if label_map is None else ", ".join(str(v) for v in sorted(mapping))
        raise InputError(f"{item['label']}: found the label values {listed}, unknown to the network; expected {known}")
    if label_map is None:
        return label
    mapped = torch.zeros_like(label)
    for value in values:
        mapped[label == value] = mapping[value]
    return mapped


def prepare_volume(entry: Mapping[str, Any]) -> Sample:
    """Read one image, with its label map if there is one, and put it on the network's grid.

    Args:
        entry: ``item`` (with ``image``, optional ``label``), ``channels``, ``classes``, ``label_map``, ``channel_wise``
            and ``grid``, the target.

    Returns:
        ``image`` (C, H, W, n) in [0, 1] and, where there is one, ``label`` (1, H, W, n) int16.

    Raises:
        InputError: unusable files, see `read_volume`, `read_volume_label` and `known_label`.
    """
    item = entry["item"]
    voxels, source = read_volume(item["image"], entry["channels"])
    image = scale_percentiles(voxels, entry["channel_wise"])
    volume = {"image": resample(image, source, entry["grid"])}
    if item.get("label"):
        label = read_volume_label(item["label"], source)
        label = known_label(label, item, entry["classes"], entry["label_map"])
        volume["label"] = resample(label, source, entry["grid"], mode="nearest")
    return volume


class VolumeDataset(Dataset):
    """Whole images on the network's grid, for prediction and for scores on the image's own grid.

    A sample holds ``image`` (C, H, W, n) in [0, 1], where known ``label`` (1, H, W, n) int16, ``site``, ``item`` (the
    files) and ``grids`` (``network`` and ``image``).

    Args:
        data: items of :func:`~shared.data.decathlon.read_site`, of one or several sites, or a plain list of
            ``{image, label}``.
        spatial_size: rows and columns of a slice; a third number, the depth of 3D patches, plays no part here.
        spacing_mm: of rows and columns; slices are then cropped or padded around the centre. A third value is the
            distance of new slices. None stretches the size over the field of view and keeps the slices.
        channels: of the images.
        classes: of the network, the background included.
        label_map: label value in the files -> class; None takes values as classes.
        channel_wise: scale each channel by itself, see `scale_percentiles`.
        cache_num: how many volumes stay in memory; None: as many as fit into ``cache_share`` of what is free.
        cache_share: see there.
        progress: show a bar while images are read.

    Raises:
        InputError: an empty list, options that describe no grid, or any file that cannot be used.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float] | None = None,
        channels: int = 1,
        classes: int = 2,
        label_map: Mapping[int, int] | None = None,
        channel_wise: bool = False,
        cache_num: int | None = None,
        cache_share: float = SHARE,
        progress: bool = False,
    ) -> None:
        check_bools(channel_wise=channel_wise)
        self.items = [dict(item) for item in data]
        if not self.items or not all(item.get("image") for item in self.items):
            raise InputError("found a data list without images, expected {image, label} items")
        _check_slices(spatial_size, spacing_mm)
        self.size = tuple(int(n) for n in spatial_size)
        self.spacing_mm = None if spacing_mm is None else tuple(spacing_mm)
        self.channels, self.classes, self.channel_wise = channels, classes, channel_wise
        self.label_map = None if label_map is None else {int(k): int(v) for k, v in label_map.items()}
        self.image_grids = [read_volume_grid(item["image"]) for item in self.items]
        self.network_grids = [slice_grid(grid, self.size, self.spacing_mm) for grid in self.image_grids]
        options = {"channels": channels, "classes": classes, "label_map": self.label_map, "channel_wise": channel_wise}
        entries = [
            {"item": item, "grid": grid, **options} for item, grid in zip(self.items, self.network_grids, strict=True)
        ]
        largest = max(math.prod(grid.shape) for grid in self.network_grids)
        self._volumes = KeptItems(
            entries, prepare_volume, (4 * channels + 2) * largest, cache_num, cache_share, progress
        )

    @property
    def unread(self) -> int:
        """How many volumes are not read when the dataset is made."""
        return self._volumes.unread

    @property
    def kept(self) -> int:
        """How many volumes can be kept in memory."""
        return self._volumes.kept

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        volume = self._volumes[index]
        grids = {"network": self.network_grids[index], "image": self.image_grids[index]}
        return {**volume, "site": site_of(self.items[index]), "item": self.items[index], "grids": grids}

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples: options, and a digest of the files' names."""
        names = [[Path(str(item[k])).name for k in ("image", "label") if item.get(k)] for item in self.items]
        return {
            "volumes": len(self.items),
            "files": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "spatial_size": str(self.size),
            "spacing_mm": str(self.spacing_mm),
            "channels": self.channels,
            "classes": self.classes,
            "label_map": str(self.label_map),
            "channel_wise": self.channel_wise,
        }

    def check(self) -> None:
        """Look at every volume once, so that bad input is found before work begins.

        Raises:
            InputError: as :meth:`__getitem__`.
        """
        for index in range(len(self)):
            self[index]


class SliceDataset(Dataset):
    """Slices with their neighbours as channels, or 3D patches of whole slices.

    With a ``spatial_size`` of two numbers a sample's ``image`` is (slices * C, H, W) and its ``label`` (1, H, W);
    with three, (C, H, W, D) and (1, H, W, D): D adjacent slices, the last one repeated where the volume has fewer.
    ``site``, ``item`` and ``slice`` (the number of the slice, or of the first of a patch) say where it comes from.

    Args:
        data: as for :class:`VolumeDataset`.
        spatial_size: rows and columns of a slice, and for 3D patches their depth.
        slices: adjacent slices that a 2D network sees at once, odd.
        margin: leave out slices farther than this from a labelled one (patches: by their middle slice); None keeps
            all.
        options: of :class:`VolumeDataset`.

    Raises:
        InputError: as :class:`VolumeDataset`; no slice left; or ``slices`` not odd.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        spatial_size: Sequence[int],
        slices: int = 3,
        margin: int | None = None,
        **options: Any,
    ) -> None:
        if slices < 1 or slices % 2 == 0:
            raise InputError(f"found slices {slices}, expected an odd number: a slice and as many on either side")
        self.volumes = VolumeDataset(data, spatial_size, **options)
        self.slices, self.margin = slices, margin
        self.depth = self.volumes.size[2] if len(self.volumes.size) == 3 else None
        self._index = [(v, s) for v in range(len(self.volumes)) for s in self._starts(v)]
        if not self._index:
            raise InputError(f"{self.volumes.items[0]['image']}: found no labelled slice in it nor in the other images")

    def _starts(self, volume: int) -> Iterable[int]:
        """Return the slices, or the first slices of the patches, that are used of a volume."""
        n, depth = self.volumes.network_grids[volume].shape[2], self.depth or 1
        starts = range(max(1, n - depth + 1))
        if self.margin is None:
            return starts
        label = self.volumes[volume].get("label")
        labelled = [] if label is None else torch.nonzero(label.flatten(0, 2).any(dim=0)).flatten().tolist()
        middle = {start: min(start + depth // 2, n - 1) for start in starts}
        return [s for s in starts if any(abs(middle[s] - z) <= self.margin for z in labelled)]

    @property
    def items(self) -> list[dict[str, Any]]:
        """The images' items."""
        return self.volumes.items

    @property
    def unread(self) -> int:
        """How many volumes are not read when the dataset is made."""
        return self.volumes.unread

    @property
    def kept(self) -> int:
        """How many volumes can be kept in memory."""
        return self.volumes.kept

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Sample:
        volume, start = self._index[index]
        sample = self.volumes[volume]
        image, label = sample["image"], sample.get("label")
        found: Sample = {"site": sample["site"], "item": sample["item"], "slice": start}
        if self.depth is not None:
            found["image"] = slice_window(image, start, self.depth)
            if label is not None:
                found["label"] = slice_window(label, start, self.depth)
            return found
        first, last = max(0, start - self.slices // 2), start + self.slices // 2 + 1
        found["image"] = adjacent_slices(image[..., first:last], self.slices)[start - first]
        if label is not None:
            found["label"] = label[..., start]
        return found

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples."""
        return {**self.volumes.settings(), "slices": self.slices, "margin": str(self.margin)}

    def check(self) -> None:
        """Look at every volume once, see :meth:`VolumeDataset.check`."""
        self.volumes.check()


def _check_slices(size: Sequence[int], spacing_mm: Sequence[float] | None) -> None:
    """Raise InputError unless size, and spacing where given, describe slices or patches."""
    if len(size) not in (2, 3) or any(int(n) != n or n < 1 for n in size):
        raise InputError(f"found spatial_size {list(size)}, expected two or three whole numbers above zero")
    if spacing_mm is not None and (len(spacing_mm) not in (2, 3) or not all(s > 0 for s in spacing_mm)):
        raise InputError(f"found spacing_mm {list(spacing_mm)}, expected two or three numbers above zero")
