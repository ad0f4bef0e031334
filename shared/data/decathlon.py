"""Segmentation sites in the Medical Decathlon folder layout.

Layout: Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022: ``dataset.json`` beside
``imagesTr``, ``labelsTr``, ``imagesTs``. A site's name is its folder's. Beyond that layout, ``training`` entries may
name their ``patient``: name it where one has several images, so that none of them is scored after another was learnt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..files import read_json

__all__ = ["DATASET_FILE", "channel_names", "find_site", "known_sites", "label_names", "read_site", "split_patients"]

DATASET_FILE = "dataset.json"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.25

Item = dict[str, Any]


def known_sites(dataset_dir: str | Path) -> dict[str, Path]:
    """Return site name -> ``dataset.json`` of every Decathlon folder at or directly below ``dataset_dir``."""
    root = Path(dataset_dir).absolute()
    return {path.parent.name: path for path in sorted([*root.glob(DATASET_FILE), *root.glob(f"*/{DATASET_FILE}")])}


def find_site(dataset_dir: str | Path, site: str, also_known: Sequence[str] = ()) -> Path:
    """Return the ``dataset.json`` of a site.

    Args:
        dataset_dir: folder of Decathlon folders, or one of them.
        site: name of its folder.
        also_known: names for the message that need no folder yet: sites that the caller can write.

    Raises:
        InputError: no such site; the known ones and the nearest name are listed.
    """
    found = known_sites(dataset_dir)
    if site in found:
        return found[site]
    known = list(dict.fromkeys([*found, *also_known]))
    if not known and not Path(dataset_dir).is_dir():
        raise InputError(f"{dataset_dir}: no such folder; expected a folder of Medical Decathlon folders (dataset_dir)")
    listed = ", ".join(known) or f"none: no {DATASET_FILE} there"
    raise InputError(f"{dataset_dir}: found no site {site!r}{did_you_mean(site, known)}; known sites: {listed}")


def split_patients(
    names: Sequence[str], seed: int = 0, parts: Sequence[str] = ("training", "validation", "test")
) -> dict[str, list[str]]:
    """Split patients into 60 % for training, 15 % for validation and 25 % for the test, at least one each.

    The order follows a hash of seed and name: it does not depend on the order of the list, nor on any library.

    Args:
        names: one a patient, all different.
        seed: another seed splits otherwise.
        parts: what to split into; where "validation" or "test" is missing, training keeps its share.

    Returns:
        part -> its names, sorted.

    Raises:
        InputError: fewer patients than parts.
    """
    if len(names) < len(parts):
        raise InputError(f"found {len(names)} patients, expected at least {len(parts)}: for {', '.join(parts)}")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    split: dict[str, list[str]] = {}
    for part, share in (("validation", VALIDATION_SHARE), ("test", TEST_SHARE)):
        if part in parts:
            count = max(1, int(share * len(names) + 0.5))
            split[part], order = sorted(order[:count]), order[count:]
    return {part: split[part] if part in split else sorted(order) for part in parts}


def _content(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    if not isinstance(content, Mapping) or not content.get("training"):
        raise InputError(f"{path}: found no 'training' items, expected a Medical Decathlon dataset with at least one")
    return content


def _names(path: Path, key: str) -> dict[int, str]:
    """Return index -> name of ``labels`` or ``modality``."""
    names = _content(path).get(key) or {}
    if not isinstance(names, Mapping) or not all(str(k).isdigit() for k in names):
        raise InputError(f"{path}: {key!r} is {names!r}, expected names by number as in {{'0': ..., '1': ...}}")
    return {int(k): str(v) for k, v in sorted(names.items(), key=lambda entry: int(entry[0]))}


def label_names(dataset_dir: str | Path, site: str) -> dict[int, str]:
    """Return label value -> name from the JSON, without the background; empty where it lists none.

    Raises:
        InputError: unknown site, or a malformed JSON.
    """
    return {value: name for value, name in _names(find_site(dataset_dir, site), "labels").items() if value > 0}


def channel_names(dataset_dir: str | Path, site: str) -> list[str]:
    """Return the names of the images' channels from the JSON; empty where it lists none.

    Raises:
        InputError: unknown site, or a malformed JSON.
    """
    return list(_names(find_site(dataset_dir, site), "modality").values())


def _section(content: Mapping[str, Any], key: str, path: Path) -> list[Item]:
    """Return the items of a section; the Decathlon lists test images by their path alone."""
    section = content.get(key) or []
    items = [{"image": item} if isinstance(item, str) else item for item in section]
    if not isinstance(section, list) or not all(
        isinstance(item, Mapping) and isinstance(item.get("image"), str) for item in items
    ):
        raise InputError(f"{path}: {key!r} is not a list of {{'image': ..., 'label': ...}} entries")
    return [dict(item) for item in items]


def _by_patient(training: Sequence[Item], path: Path) -> dict[str, list[Item]]:
    """Return patient -> images, in the order of their paths; without the key ``patient`` an image is one's only one."""
    named = [item for item in training if item.get("patient") is not None]
    if named and len(named) < len(training):
        lacking = next(item["image"] for item in training if item.get("patient") is None)
        raise InputError(
            f"{path}: found a 'patient' for {len(named)} of {len(training)} 'training' images (none for {lacking}), "
            "expected it for all of them, or for none where each image is of another patient"
        )
    patients: dict[str, list[Item]] = {}
    for image, item in sorted({item["image"]: item for item in training}.items()):
        patients.setdefault(str(item["patient"]) if named else image, []).append(item)
    return patients


def _split(content: Mapping[str, Any], path: Path) -> dict[str, list[Item]]:
    """Return the labelled items of each split; what the JSON does not split is split by patient."""
    listed = {key: _section(content, key, path) for key in SPLITS.values()}
    training = listed["training"]
    unlabelled = [item["image"] for item in training if not item.get("label")]
    if unlabelled:
        raise InputError(
            f"{path}: found no label for {len(unlabelled)} of {len(training)} 'training' images ({unlabelled[0]}), "
            "expected {'image': ..., 'label': ...} entries"
        )
    missing = [key for key in ("validation", "test") if not any(item.get("label") for item in listed[key])]
    if missing:
        patients = _by_patient(training, path)
        try:
            parts = split_patients(list(patients), parts=("training", *missing))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        listed.update({part: [item for name in names for item in patients[name]] for part, names in parts.items()})
    return {key: [item for item in items if item.get("label")] for key, items in listed.items()}


def read_site(dataset_dir: str | Path, site: str, split: str = "train") -> list[Item]:
    """Read the labelled images of one split of a site.

    An item holds the paths ``image`` and ``label``, ``site``, and ``names``, label value -> name. Where the JSON has
    no labelled ``validation`` or ``test`` images (the Decathlon keeps its test labels to itself), they are taken from
    ``training`` by :func:`split_patients`, always the same ones: the images of a ``patient`` that the entries name all
    into one split. Where none is named, each image counts as another patient's.

    Args:
        dataset_dir: folder of Decathlon folders, or one of them.
        site: name of its folder.
        split: "train", "val" or "test".

    Raises:
        InputError: unknown site or split, malformed JSON, images without labels, a patient named for some of them
            only, too few to split, or a file that the JSON names and that is not there.
    """
    if split not in SPLITS:
        raise InputError(f"found split {split!r}, expected one of {', '.join(SPLITS)}")
    path = find_site(dataset_dir, site)
    names = label_names(dataset_dir, site)
    items: list[Item] = []
    for entry in _split(_content(path), path)[SPLITS[split]]:
        files = {role: str(path.parent / entry[role]) for role in ("image", "label")}
        for role, file in files.items():
            if not Path(file).is_file():
                raise InputError(f"{file}: no such file; {path} names it as {role}")
        items.append({**files, "site": site, "names": names})
    return items
