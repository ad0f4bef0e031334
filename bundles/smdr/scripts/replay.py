"""A site's replay set: generated images with labels, as files beside an index, made so that a kill costs one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from shared.data.kept import KeptItems
from shared.diffusion import SiteDiffusion, draw_samples, sample_seed
from shared.errors import InputError
from shared.files import atomic_write, read_json, save_json, sole_owner, writable_dir
from shared.hashes import hash_of_file, hash_of_weights
from shared.settings import differences

from .labelling import Labeller, SampleFilter, judge
from .leakage import LeakFilter

__all__ = ["INDEX", "ReplayDataset", "make_replay", "read_index"]

INDEX = "index.json"
_FORMAT = 1
_TOO_NEAR = "too near to a training image"


@dataclass(frozen=True)
class _Rules:
    """Who labels the samples of a set, and which are dropped."""

    labels: Labeller
    keep: SampleFilter
    originals: LeakFilter | None


def make_replay(
    generator: SiteDiffusion,
    site: str,
    folder: str | Path,
    labels: Labeller,
    count: int = 500,
    keep: SampleFilter | None = None,
    seed: int = 0,
    steps: int = 50,
    batch_size: int = 16,
    exclude: Sequence[int] = (),
    patience: int = 20,
    originals: LeakFilter | None = None,
) -> Path:
    """Draw samples of a site until ``count`` of them are fit for training, and write them.

    Fit is what ``keep`` lets through; of samples without foreground no larger share is kept than the site has.

    Each sample has a number, and its seed follows from ``seed``, site and number. An interrupted call goes on where
    the last complete batch ended, and leaves the same bytes as an unbroken one (same machine, CPU). A call for a
    complete set checks its files and returns.

    Args:
        generator: on the device that computes; with the site's statistics, as its training run leaves them.
        site: one that it knows.
        folder: gets ``sample_<number>.npz`` and ``index.json``.
        labels: who labels.
        count: samples to keep.
        keep: which; None takes the filter's defaults.
        seed: of the set.
        steps: of DDIM.
        batch_size: samples drawn at a time; part of what decides their bits.
        exclude: numbers left out: those that a leak test found too near to a patient.
        patience: give up when so many times ``count`` have been drawn.
        originals: which samples are too near to an image that the generator was trained on: they are dropped before
            anything of them is written. None where no real image is at hand: not compared.

    Returns:
        the index.

    Raises:
        InputError: an unknown site, or one without statistics; a folder with another set or with changed files;
            originals of another size; or hardly any sample is fit.
    """
    folder, keep = writable_dir(folder), keep or SampleFilter()
    _check_site(generator, site)
    settings: dict[str, Any] = {
        "site": site,
        "generator": hash_of_weights(generator.state_dict()),
        **labels.settings(),
        **keep.settings(),
        "count": count,
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "exclude": sorted(exclude),
        "leak_threshold": None if originals is None else originals.threshold,
    }
    with sole_owner(folder, "sampling"):
        _fill(generator, folder, _begin(folder, settings), _Rules(labels, keep, originals), patience)
    return folder / INDEX


def _check_site(generator: SiteDiffusion, site: str) -> None:
    """Raise InputError unless the generator knows the site, with its statistics."""
    generator.number(site)
    if "area" not in generator.sites[site]:
        raise InputError(f"found no statistics of site {site!r} in the generator, expected those of its training run")


def _fill(generator: SiteDiffusion, folder: Path, index: dict[str, Any], rules: _Rules, patience: int) -> None:
    """Draw batches until the set is complete; raise InputError where hardly any sample is fit."""
    site, count, done = index["settings"]["site"], index["settings"]["count"], len(index["samples"])
    with tqdm(total=count, initial=done, desc=f"replay of {site}", unit="image", dynamic_ncols=True) as bar:
        while not index["complete"]:
            if index["drawn"] >= patience * count:
                raise InputError(
                    f"{folder}: found {len(index['samples'])} fit samples of {site!r} among {index['drawn']} "
                    f"({_in_words(index['dropped'])}), expected {count}: train generator or segmenter longer, or "
                    "lower min_confidence; fewer are too near to a training image with more patients to learn from"
                )
            _draw_batch(generator, folder, index, rules)
            bar.update(len(index["samples"]) - bar.n)
            bar.set_postfix(drawn=index["drawn"])


def _in_words(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {fault}" for fault, count in sorted(dropped.items())) or "none dropped"


def _begin(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the index to go on with."""
    for leftover in folder.glob(".tmp-*"):
        with suppress(FileNotFoundError):
            leftover.unlink()
    if not (folder / INDEX).exists():
        counts = {"complete": False, "drawn": 0, "samples": [], "dropped": {}}
        index: dict[str, Any] = {"format": _FORMAT, "settings": settings, **counts}
        save_json(folder / INDEX, index)
        return index
    index = read_index(folder, complete=False)
    changed = differences({"leak_threshold": None, **index["settings"]}, settings)  # older sets were not compared
    if changed:
        raise InputError(
            f"{folder}: holds another replay set ({changed}); expected the same settings to go on with it, or an "
            "empty folder"
        )
    return index


def _draw_batch(generator: SiteDiffusion, folder: Path, index: dict[str, Any], rules: _Rules) -> None:
    """Draw the next batch, write what is fit, then the index that makes it count."""
    options, first = index["settings"], index["drawn"]
    site, size = options["site"], options["batch_size"]
    # Always whole batches: a smaller last one could round differently.
    seeds = [sample_seed(options["seed"], site, number) for number in range(first, first + size)]
    images, probabilities = rules.labels(generator, draw_samples(generator, site, seeds, options["steps"]))
    images = images.cpu().half()  # as they are written: whoever compares the files finds the same
    near = [False] * size if rules.originals is None else rules.originals(images.float())
    found, confidence, area = (t.cpu() for t in judge(probabilities))
    for place, number in enumerate(range(first, first + size)):
        if len(index["samples"]) == options["count"]:
            break
        index["drawn"] = number + 1
        scores = {"confidence": round(float(confidence[place]), 6), "area": round(float(area[place]), 6)}
        fault = _TOO_NEAR if near[place] else rules.keep.fault(**scores, statistics=generator.sites[site])
        fault = fault or ("one more empty" if _is_surplus(index, scores["area"], generator.sites[site]) else None)
        fault = "excluded" if number in options["exclude"] else fault
        if fault is not None:
            index["dropped"][fault] = index["dropped"].get(fault, 0) + 1
            continue
        path = folder / f"sample_{number:07d}.npz"
        _write(path, images[place], found[place])
        index["samples"].append({"file": path.name, "number": number, "sha256": hash_of_file(path), **scores})
    index["complete"] = len(index["samples"]) == options["count"]
    save_json(folder / INDEX, index)


def _is_surplus(index: dict[str, Any], area: float, statistics: Mapping[str, Any]) -> bool:
    """Whether a sample without foreground would be one more than the site's share of such."""
    empty = sum(entry["area"] == 0 for entry in index["samples"])
    return area == 0 and empty >= math.ceil(statistics["empty"] * index["settings"]["count"])


def _write(path: Path, image: Tensor, label: Tensor) -> None:
    arrays = {"image": image.numpy(), "label": label.numpy()}
    atomic_write(path, lambda stream: np.savez_compressed(stream, **arrays))


def read_index(folder: str | Path, complete: bool = True) -> dict[str, Any]:
    """Read a replay set's index and check its files.

    Args:
        folder: of :func:`make_replay`.
        complete: refuse a set that is not.

    Raises:
        InputError: no index, not complete, or files that are missing or changed since they were written.
    """
    folder = Path(folder)
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("format") != _FORMAT or "samples" not in index:
        raise InputError(f"{folder / INDEX}: found no index of a replay set, expected one of format {_FORMAT}")
    changed = [
        f"{entry['file']} is {'changed' if (folder / entry['file']).exists() else 'missing'}"
        for entry in index["samples"]
        if not (folder / entry["file"]).exists() or hash_of_file(folder / entry["file"]) != entry["sha256"]
    ]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise InputError(f"{folder}: {changed[0]}{more}, expected the {len(index['samples'])} files that were written")
    if complete and not index["complete"]:
        raise InputError(
            f"{folder}: holds {len(index['samples'])} of {index['settings']['count']} samples, expected a complete "
            "replay set: make it again, it goes on where it stopped"
        )
    return index


class ReplayDataset(Dataset):
    """The samples of one or several replay sets, for the training of the segmenter.

    An item holds ``image`` (C, *S) float32 in [0, 1], ``label`` (1, *S) int16 and ``site``.

    Samples are read once and kept while they fit in memory, see :class:`~shared.data.kept.KeptItems`.

    Args:
        folders: of :func:`make_replay`.
        cache_num: samples that stay in memory; None: as many as fit.

    Raises:
        InputError: see :func:`read_index`; or the sets' images differ in size.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], cache_num: int | None = None) -> None:
        self.sites: dict[str, range] = {}  # which items are of which site
        entries: list[dict[str, Any]] = []
        self._hashes: dict[str, str] = {}
        for folder in [Path(f) for f in ensure_tuple(folders)]:
            index = read_index(folder)
            site = index["settings"]["site"]
            if site in self.sites:
                raise InputError(f"{folder}: found a second replay set of site {site!r}, expected one a site")
            start = len(entries)
            entries += [{"path": folder / entry["file"], "site": site} for entry in index["samples"]]
            self.sites[site] = range(start, len(entries))
            self._hashes[site] = hash_of_file(folder / INDEX)
        largest = max(
            (sum(v.nbytes for v in _read(entries[part[0]]).values()) for part in self.sites.values()), default=0
        )
        self._site_of = [entry["site"] for entry in entries]
        self._items = KeptItems(entries, _read, largest, cache_num)
        shapes = {site: tuple(self[part[0]]["image"].shape) for site, part in self.sites.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"found replay sets of images {shapes}, expected one size")

    def settings(self) -> dict[str, Any]:
        """Return what decides the samples: the hash of each index, which holds those of the files."""
        return {"replay": dict(self._hashes)}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        sample = self._items[number]
        label = sample["label"].to(torch.int16, copy=True)  # what is kept is nobody's to change
        return {"image": sample["image"].float(), "label": label, "site": self._site_of[number]}


def _read(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read a sample as it was written: the image float16."""
    with np.load(entry["path"], allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in ("image", "label")}
