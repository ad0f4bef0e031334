"""Registration tasks in the Learn2Reg folder layout, and plain lists of images: both become pairs of files.

Layout: Hering et al., "Learn2Reg: comprehensive multi-task medical image registration challenge", TMI 2022.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..files import read_json
from .item_pairs import ItemPairs

__all__ = ["find_task", "known_tasks", "label_names", "pairs_of_items", "read_pairs"]

Pair = dict[str, Any]
_SPLITS = {"train": "training", "val": "registration_val", "test": "registration_test"}


def known_tasks(dataset_dir: str | Path) -> dict[str, Path]:
    """Return task name -> JSON file of every Learn2Reg folder at or directly below ``dataset_dir``."""
    root = Path(dataset_dir)
    files = sorted([*root.glob("*_dataset.json"), *root.glob("*/*_dataset.json")])
    return {path.name.removesuffix("_dataset.json"): path for path in files}


def find_task(dataset_dir: str | Path, task: str, also_known: Sequence[str] = ()) -> Path:
    """Return the dataset JSON of a task.

    Args:
        dataset_dir: folder of dataset folders, or one dataset folder.
        task: name in ``<task>_dataset.json``.
        also_known: names for the message that need no folder yet: tasks that the caller can write.

    Raises:
        InputError: no such task; the known ones and the nearest name are listed.
    """
    found = known_tasks(dataset_dir)
    if task in found:
        return found[task]
    known = list(dict.fromkeys([*found, *also_known]))
    if not known and not Path(dataset_dir).is_dir():
        raise InputError(f"{dataset_dir}: no such folder; expected a folder of Learn2Reg datasets (dataset_dir)")
    listed = ", ".join(known) or "none: no *_dataset.json there"
    raise InputError(f"{dataset_dir}: found no task {task!r}{did_you_mean(task, known)}; known tasks: {listed}")


def _items(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, str]]:
    """Return the items of a section; two-modality sets may group them by modality index."""
    section = content.get(key, [])
    if isinstance(section, Mapping):
        section = [item for group in section.values() for item in (group if isinstance(group, list) else [group])]
    if not isinstance(section, list) or not all(
        isinstance(i, Mapping) and isinstance(i.get("image"), str) for i in section
    ):
        raise InputError(f"{path}: {key!r} is not a list of {{'image': ...}} entries, as Learn2Reg writes them")
    return [dict(item) for item in section]


def _entries(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, str]]:
    """Return the pairs of a section as ``{fixed, moving}``; AbdomenMRCT names the two by modality index instead."""
    section = content.get(key) or []
    direction = _direction(content, path)
    entries = []
    for entry in section if isinstance(section, list) else [section]:
        found = dict(entry) if isinstance(entry, Mapping) else {}
        names = {side: found.get(side, found.get(str(direction[side]))) for side in ("fixed", "moving")}
        if not all(isinstance(name, str) for name in names.values()):
            raise InputError(f"{path}: {key!r} holds {entry!r}, expected {{'fixed': ..., 'moving': ...}}")
        entries.append({**found, **names})
    return entries


def _direction(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    direction = content.get("registration_direction") or {"fixed": 0, "moving": 1}
    try:
        return {side: int(direction[side]) for side in ("fixed", "moving")}
    except (TypeError, KeyError, ValueError):
        raise InputError(
            f"{path}: 'registration_direction' is {direction!r}, expected {{'fixed': 0, 'moving': 1}}"
        ) from None


def _modalities(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    modality = content.get("modality") or {}
    if not isinstance(modality, Mapping):
        raise InputError(f"{path}: 'modality' is {modality!r}, expected names by index as in {{'0': 'MR', '1': 'CT'}}")
    return {str(k): str(v).lower() for k, v in modality.items()}


def _modality(names: Mapping[str, str], image: str) -> str:
    """Learn2Reg names end in _0000, _0001: the index into `modality`. Single-modality sets list one entry."""
    stem = Path(image).name.split(".")[0].rsplit("_", 1)[-1]
    index = str(int(stem)) if stem.isdigit() else "0"
    name = names.get(index, names.get("0", ""))
    return "ct" if "ct" in name else "mr" if name.startswith(("mr", "t1", "t2")) else "auto"


class _Folder:
    """Files of one dataset: finds what belongs to an image and checks that it is there."""

    def __init__(self, json_path: Path, content: Mapping[str, Any]) -> None:
        self.root, self.json_path, self.content = json_path.parent, json_path, content
        self.modalities = _modalities(content, json_path)
        self.items: dict[str, dict[str, str]] = {}
        self._sides: dict[str, Pair] = {}  # OASIS makes 155,000 pairs of 394 images
        for key in ("training", "test"):
            self.items.update({self._name(item["image"]): item for item in _items(content, key, json_path)})

    @staticmethod
    def _name(image: str) -> str:
        return Path(image).name

    def file(self, relative: str, role: str) -> str:
        path = self.root / relative
        if not path.is_file() and role == "keypoints":
            # Some released files list keypoints under the image's suffix.
            path = path.with_name(path.name.split(".")[0] + ".csv")
        if not path.is_file():
            raise InputError(f"{path}: no such file; {self.json_path} names it as {role}")
        return str(path)

    def knows(self, image: str) -> bool:
        """Whether an image is listed, or at least there."""
        return self._name(image) in self.items or (self.root / image).is_file()

    def _side(self, image: str) -> Pair:
        if image not in self._sides:
            entry = self.items.get(self._name(image), {"image": image})
            found: Pair = {"image": self.file(entry["image"], "image"), "modality": _modality(self.modalities, image)}
            for role in ("label", "mask"):
                if entry.get(role):
                    found[role] = self.file(entry[role], role)
            keypoints = next((v for k, v in entry.items() if k.startswith("keypoints") and v), None)
            if keypoints:
                found["points"] = self.file(keypoints, "keypoints")
            self._sides[image] = found
        return self._sides[image]

    def pair(self, fixed: str, moving: str, **extra: Any) -> Pair:
        pair = {f"fixed_{k}": v for k, v in self._side(fixed).items()}
        pair.update({f"moving_{k}": v for k, v in self._side(moving).items()})
        return {**pair, **extra}


def _named_pairs(folder: _Folder, key: str) -> list[Pair]:
    pairs = []
    for entry in _entries(folder.content, key, folder.json_path):
        extra = {"truth": folder.file(entry["truth"], "truth")} if "truth" in entry else {}
        pairs.append(folder.pair(entry["fixed"], entry["moving"], **extra))
    return pairs


def _held_out(folder: _Folder) -> set[str]:
    keys = (_SPLITS["val"], _SPLITS["test"])
    entries = [entry for key in keys for entry in _entries(folder.content, key, folder.json_path)]
    return {Path(entry[side]).name for entry in entries for side in ("fixed", "moving")}


def _training_pairs(folder: _Folder, with_self: bool, hold_out: bool = True) -> list[Pair]:
    """Pair the training images that no validation or test pair uses, as the dataset's `pairings` asks."""
    content, path = folder.content, folder.json_path
    held_out = _held_out(folder) if hold_out else set()
    listed = [(entry["fixed"], entry["moving"]) for entry in _entries(content, "training_paired_images", path)]
    # Released files misspell some names (NLST_00101, AbdomenMRCT_A0005).
    unknown = [name for names in listed for name in names if not folder.knows(name)]
    if unknown:
        warnings.warn(
            f"{path}: 'training_paired_images' names {', '.join(unknown[:4])}, not listed under 'training' and not "
            "there; these pairs are left out",
            stacklevel=3,
        )
    pairs = [names for names in listed if not {Path(n).name for n in names} & held_out and not {*names} & {*unknown}]
    if content.get("pairings") != "paired":
        images = [i["image"] for i in _items(content, "training", path) if Path(i["image"]).name not in held_out]
        if len(set(folder.modalities.values())) > 1:
            # Two modalities: the direction of the dataset decides which of them is fixed.
            sides = (f"_{index:04d}" for index in _direction(content, path).values())
            fixed, moving = ([n for n in images if Path(n).name.split(".")[0].endswith(side)] for side in sides)
            pairs += itertools.product(fixed, moving)
        else:
            pairs += [(f, m) for f, m in itertools.product(images, images) if with_self or f != m]
    return [folder.pair(fixed, moving) for fixed, moving in dict.fromkeys(pairs)]


def read_pairs(dataset_dir: str | Path, task: str, split: str = "train", with_self: bool = False) -> list[Pair]:
    """Read the pairs of one split of a Learn2Reg task.

    A pair is a dict of file paths: ``fixed_image``, ``moving_image`` and where the dataset has them ``*_label``,
    ``*_mask``, ``*_points``, ``truth``; ``*_modality`` is "ct", "mr" or "auto".

    Args:
        dataset_dir: folder of dataset folders, or one dataset folder.
        task: name in ``<task>_dataset.json``.
        split: "train" (pairs that share no image with validation or test), "val" or "test".
        with_self: also pair every training image with itself (unpaired sets).

    Raises:
        InputError: unknown task or split, malformed JSON, an empty list, or a file that the JSON names and that is
            not there.
    """
    if split not in _SPLITS:
        raise InputError(f"found split {split!r}, expected one of {', '.join(_SPLITS)}")
    path = find_task(dataset_dir, task)
    content = read_json(path)
    if not isinstance(content, Mapping) or not _items(content, "training", path):
        raise InputError(f"{path}: found no 'training' items, expected a Learn2Reg dataset with at least one image")
    folder = _Folder(path, content)
    pairs = _training_pairs(folder, with_self) if split == "train" else _named_pairs(folder, _SPLITS[split])
    if not pairs and split == "train":
        pairs = _training_pairs(folder, with_self, hold_out=False)
        warnings.warn(
            f"{path}: no training pair is free of validation and test images, so training uses them: the scores show "
            "the fit, not what the network learnt",
            stacklevel=2,
        )
    if not pairs:
        expected = "at least two images" if split == "train" else f"pairs under {_SPLITS[split]!r}"
        raise InputError(f"{path}: found no {split} pairs, expected {expected}")
    for pair in pairs:
        pair["task"] = task
    return pairs


def pairs_of_items(data: Sequence[Mapping[str, Any]], task: str = "images") -> Sequence[Pair]:
    """Return pairs as they are, or all ordered pairs of a plain list of ``{image, label}`` items, made one by one.

    Raises:
        InputError: an empty list, a single image, or entries of neither kind.
    """
    if isinstance(data, ItemPairs):
        return data
    entries = [dict(entry) for entry in data]
    if entries and all({"fixed_image", "moving_image"} <= set(e) for e in entries):
        return entries
    if not entries or any("image" not in e for e in entries):
        raise InputError("found a data list without pairs or images, expected {image, label} items or pairs")
    if len(entries) < 2:
        raise InputError(f"{entries[0]['image']}: found a single image, expected at least two to make a pair")
    return ItemPairs(entries, task)


def task_of(pair: Mapping[str, Any]) -> str:
    """Return the name of the task that a pair belongs to; "images" where it does not say."""
    return str(pair.get("task", "images"))


def by_task(pairs: Sequence[Pair]) -> dict[str, Sequence[Pair]]:
    """Return the pairs of each task, tasks and pairs in order of appearance."""
    if isinstance(pairs, ItemPairs):
        return {pairs.task: pairs}
    tasks: dict[str, list[Pair]] = {}
    for pair in pairs:
        tasks.setdefault(task_of(pair), []).append(pair)
    return dict(tasks)


def label_names(dataset_dir: str | Path, task: str) -> dict[int, str]:
    """Return label value -> name from the JSON, without the background; empty where it lists none."""
    labels = read_json(find_task(dataset_dir, task)).get("labels") or {}
    groups = [v for v in labels.values() if isinstance(v, Mapping)] or [labels]
    names = {int(k): str(v) for group in groups for k, v in group.items() if str(k).isdigit()}
    return {k: v for k, v in sorted(names.items()) if k > 0}
