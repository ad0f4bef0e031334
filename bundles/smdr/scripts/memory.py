"""Where samples of earlier sites come from: real slices that were kept, or replay sets; both are drawn alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from shared.errors import InputError
from shared.files import atomic_write

__all__ = ["ExemplarMemory", "Past", "draw_evenly"]

Sample = dict[str, Any]


class Past(Protocol):
    """Samples of earlier sites: :class:`ExemplarMemory`, or a ``ReplayDataset``."""

    sites: dict[str, range]

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, number: int) -> Sample:
        """Return ``image`` (C, *S) float32 in [0, 1], ``label`` (1, *S) int16 and ``site``."""

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples."""


def draw_evenly(past: Past, count: int, generator: torch.Generator) -> list[Sample]:
    """Draw ``count`` samples, as many of each site as of any other; who gives one more is drawn as well.

    With more sites than ``count``, so many of them give one each. Of one site, different samples as far as it has so
    many. Without earlier sites, none.
    """
    names = list(past.sites)
    if not names:
        return []
    chosen: list[int] = []
    for place, which in enumerate(torch.randperm(len(names), generator=generator).tolist()):
        part = past.sites[names[which]]
        share = count // len(names) + (place < count % len(names))
        rounds = [torch.randperm(len(part), generator=generator) for _ in range(-(-share // len(part)))]
        chosen += [part.start + i for order in rounds for i in order.tolist()][:share]
    return [past[number] for number in chosen]


class ExemplarMemory:
    """Keep a bounded number of real slices, the same share of it for each site learnt (iCaRL's rule, CVPR 2017).

    At a site's end the earlier sites give up the last of their slices, in the random order in which they were drawn,
    and the new site's are drawn. Images are held as float16.

    Args:
        capacity: most slices kept, of all sites together.

    Raises:
        ValueError: no capacity.
    """

    def __init__(self, capacity: int = 200) -> None:
        if capacity < 1:
            raise ValueError(f"found capacity {capacity}, expected at least 1")
        self.capacity = capacity
        self.folder: Path | None = None
        self._next = 0  # number of the next slice; numbers name files
        self._slices: dict[str, list[tuple[int, Sample]]] = {}
        self._written: set[int] = set()

    def __repr__(self) -> str:
        return f"ExemplarMemory(capacity={self.capacity})"

    @property
    def sites(self) -> dict[str, range]:
        """Which items are of which site."""
        places, start = {}, 0
        for site, slices in self._slices.items():
            places[site] = range(start, start + len(slices))
            start += len(slices)
        return places

    @property
    def nbytes(self) -> int:
        """Bytes that the slices take."""
        return sum(s[key].nbytes for slices in self._slices.values() for _, s in slices for key in ("image", "label"))

    def __len__(self) -> int:
        return sum(map(len, self._slices.values()))

    def __getitem__(self, number: int) -> Sample:
        for site, part in self.sites.items():
            if number in part:
                sample = self._slices[site][number - part.start][1]
                return {"image": sample["image"].float(), "label": sample["label"].to(torch.int16), "site": site}
        raise IndexError(f"found slice {number}, expected 0 to {len(self) - 1}")

    def settings(self) -> dict[str, Any]:
        """Return the capacity; what is kept follows from the run of ``init_from``."""
        return {"exemplars": self.capacity}

    def share_with(self, site: str) -> int:
        """Return how many slices each site may keep once this one is added; to be asked before it is learnt, too.

        Raises:
            InputError: the site is in the memory already, or there are more sites than slices may be kept.
        """
        if site in self._slices:
            raise InputError(f"found site {site!r} in the memory already, expected each site once")
        share = self.capacity // (len(self._slices) + 1)
        if share == 0:
            raise InputError(
                f"found {len(self._slices) + 1} sites and a memory of {self.capacity} slices, expected at least as "
                "many slices as sites (buffer_size)"
            )
        return share

    def add(self, site: str, dataset: torch.utils.data.Dataset, generator: torch.Generator) -> None:
        """Take slices of a site that was learnt.

        Args:
            site: its name, new to the memory.
            dataset: items with ``image`` and ``label``.
            generator: draws them.

        Raises:
            InputError: see :meth:`share_with`.
        """
        share = self.share_with(site)
        self._slices = {name: slices[:share] for name, slices in self._slices.items()}
        size = len(dataset)  # type: ignore[arg-type]
        added = []
        for index in torch.randperm(size, generator=generator)[:share].tolist():
            sample = dataset[index]
            image, label = sample["image"].cpu().half(), sample["label"].cpu().to(torch.uint8)
            added.append((self._next, {"image": image.contiguous(), "label": label.contiguous()}))
            self._next += 1
        self._slices[site] = added

    def _file(self, folder: Path, number: int) -> Path:
        return folder / f"slice_{number:07d}.npz"

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the slices that ``folder`` lacks and return the index, plain containers; nothing is deleted."""
        folder = Path(folder)
        if folder != self.folder:
            self.folder, self._written = folder, set()
        folder.mkdir(parents=True, exist_ok=True)
        for slices in self._slices.values():
            for number, sample in slices:
                if number not in self._written:
                    _write(self._file(folder, number), sample)
                    self._written.add(number)
        sites = {site: [number for number, _ in slices] for site, slices in self._slices.items()}
        return {"next": self._next, "sites": sites}

    def load(self, folder: str | Path, index: Mapping[str, Any], keep_folder: bool = True) -> None:
        """Take up the index of :meth:`save`.

        Args:
            folder: where the slices lie.
            index: what :meth:`save` returned.
            keep_folder: go on writing there (a resumed run); False reads only (the memory of an earlier site).

        Raises:
            InputError: no index of this memory, or a slice is missing or unreadable.
        """
        folder = Path(folder)
        if not {"next", "sites"} <= set(index):
            raise InputError(f"{folder}: found the memory of another strategy, expected slices by site")
        self._next = int(index["next"])
        share = self.capacity // max(1, len(index["sites"]))
        self._slices = {
            site: [(int(n), _read(self._file(folder, int(n)))) for n in numbers[:share]]
            for site, numbers in index["sites"].items()
        }
        self.folder = folder if keep_folder else None
        self._written = {n for s in self._slices.values() for n, _ in s} if keep_folder else set()

    def prune(self) -> None:
        """Delete the files of slices that are no longer kept."""
        if self.folder is not None and self.folder.is_dir():
            kept = {self._file(self.folder, n).name for slices in self._slices.values() for n, _ in slices}
            for path in self.folder.glob("slice_*.npz"):
                if path.name not in kept:
                    path.unlink()
            self._written &= {n for slices in self._slices.values() for n, _ in slices}


def _write(path: Path, sample: Sample) -> None:
    arrays = {key: sample[key].numpy() for key in ("image", "label")}
    atomic_write(path, lambda stream: np.savez_compressed(stream, **arrays))


def _read(path: Path) -> Sample:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in ("image", "label")}
    except Exception as error:
        raise InputError(f"{path}: not readable as a slice of the memory ({type(error).__name__})") from error
