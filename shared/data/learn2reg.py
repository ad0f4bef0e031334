"""Registration tasks in the Learn2Reg folder layout, and plain lists of images: both become pairs of files.

Layout: Hering et al., "Learn2Reg: comprehensive multi-task medical image registration challenge", TMI 2022.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json

__all__ = ["find_task", "known_tasks", "label_names", "pairs_of_items", "read_pairs"]

Pair = dict[str, Any]
_SPLITS = {"train": "training", "val": "registration_val", "test": "registration_test"}


def known_tasks(dataset_dir: str | Path) -> dict[str, Path]:
    """Return task name -> JSON file of every Learn2Reg folder at or directly below ``dataset_dir``."""
    root = Path(dataset_dir)
    files = sorted([*root.glob("*_dataset.json"), *root.glob("*/*_dataset.json")])
    return {path.name.removesuffix("_dataset.json"): path for path in files}


def find_task(dataset_dir: str | Path, task: str) -> Path:
    """Return the dataset JSON of a task.

    Raises:
        InputError: no such task; the known ones and the nearest name are listed.
    """
    if not Path(dataset_dir).is_dir():
        raise InputError(f"{dataset_dir}: no such folder; expected a folder of Learn2Reg datasets (dataset_dir)")
    known = known_tasks(dataset_dir)
    if task not in known:
        near = get_close_matches(task, known, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        listed = ", ".join(known) or "none: no *_dataset.json there"
        raise InputError(f"{dataset_dir}: found no task '{task}'{hint}; known tasks: {listed}")
    return known[task]


def _items(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, str]]:
    """Return the items of a section; two-modality sets may group them by modality index."""
    section = content.get(key, [])
    if isinstance(section, Mapping):
        section = [item for group in section.values() for item in group]
    if not isinstance(section, list) or any(not isinstance(i, Mapping) or "image" not in i for i in section):
        raise InputError(f"{path}: '{key}' is not a list of {{'image': ...}} entries, as Learn2Reg writes them")
    return [dict(item) for item in section]


def _modality(content: Mapping[str, Any], image: str) -> str:
    """Learn2Reg names end in _0000, _0001: the index into `modality`. Single-modality sets list one entry."""
    names = {str(k): str(v).lower() for k, v in dict(content.get("modality", {})).items()}
    stem = Path(image).name.split(".")[0].rsplit("_", 1)[-1]
    index = str(int(stem)) if stem.isdigit() else "0"
    name = names.get(index, names.get("0", ""))
    return "ct" if "ct" in name else "mr" if name.startswith(("mr", "t1", "t2")) else "auto"


class _Folder:
    """Files of one dataset: finds what belongs to an image and checks that it is there."""

    def __init__(self, json_path: Path, content: Mapping[str, Any]) -> None:
        self.root, self.json_path, self.content = json_path.parent, json_path, content
        self.items = {}
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

    def side(self, side: str, image: str) -> Pair:
        entry = self.items.get(self._name(image), {"image": image})
        found: Pair = {f"{side}_image": self.file(entry["image"], "image")}
        found[f"{side}_modality"] = _modality(self.content, image)
        for role in ("label", "mask"):
            if entry.get(role):
                found[f"{side}_{role}"] = self.file(entry[role], role)
        keypoints = next((v for k, v in entry.items() if k.startswith("keypoints") and v), None)
        if keypoints:
            found[f"{side}_points"] = self.file(keypoints, "keypoints")
        return found

    def pair(self, fixed: str, moving: str, **extra: Any) -> Pair:
        return {**self.side("fixed", fixed), **self.side("moving", moving), **extra}


def _named_pairs(folder: _Folder, key: str) -> list[Pair]:
    pairs = []
    for entry in folder.content.get(key) or []:
        if not isinstance(entry, Mapping) or not {"fixed", "moving"} <= set(entry):
            raise InputError(f"{folder.json_path}: '{key}' holds {entry!r}, expected {{'fixed': ..., 'moving': ...}}")
        extra = {"truth": folder.file(entry["truth"], "truth")} if "truth" in entry else {}
        pairs.append(folder.pair(entry["fixed"], entry["moving"], **extra))
    return pairs


def _held_out(content: Mapping[str, Any]) -> set[str]:
    entries = [entry for key in (_SPLITS["val"], _SPLITS["test"]) for entry in content.get(key) or []]
    return {Path(entry[side]).name for entry in entries for side in ("fixed", "moving")}


def _training_pairs(folder: _Folder, with_self: bool, hold_out: bool = True) -> list[Pair]:
    """Pair the training images that no validation or test pair uses, as the dataset's `pairings` asks."""
    content = folder.content
    held_out = _held_out(content) if hold_out else set()
    paired = [
        folder.pair(entry["fixed"], entry["moving"])
        for entry in content.get("training_paired_images") or []
        if not {Path(entry["fixed"]).name, Path(entry["moving"]).name} & held_out
    ]
    if content.get("pairings") == "paired":
        return paired
    names = [i["image"] for i in _items(content, "training", folder.json_path) if Path(i["image"]).name not in held_out]
    modalities = dict(content.get("modality", {}))
    if len({str(v) for v in modalities.values()}) > 1:
        # Two modalities: the direction of the dataset decides which of them is fixed.
        direction = content.get("registration_direction", {"fixed": 0, "moving": 1})
        sides = {
            side: [n for n in names if Path(n).name.split(".")[0].endswith(f"_{int(direction[side]):04d}")]
            for side in ("fixed", "moving")
        }
        return paired + [folder.pair(f, m) for f, m in itertools.product(sides["fixed"], sides["moving"])]
    return [folder.pair(f, m) for f, m in itertools.product(names, names) if with_self or f != m]


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
        raise InputError(f"found split '{split}', expected one of {', '.join(_SPLITS)}")
    path = find_task(dataset_dir, task)
    content = read_json(path)
    if not isinstance(content, Mapping) or not _items(content, "training", path):
        raise InputError(f"{path}: found no 'training' items, expected a Learn2Reg dataset with at least one image")
    folder = _Folder(path, content)
    pairs = _training_pairs(folder, with_self) if split == "train" else _named_pairs(folder, _SPLITS[split])
    if not pairs and split == "train":
        pairs = _training_pairs(folder, with_self, hold_out=False)
        warnings.warn(
            f"{path}: every training image is also a validation or test image, so training uses them: its "
            "scores show the fit, not what the network learnt",
            stacklevel=2,
        )
    if not pairs:
        expected = "at least two images" if split == "train" else f"pairs under '{_SPLITS[split]}'"
        raise InputError(f"{path}: found no {split} pairs, expected {expected}")
    for pair in pairs:
        pair["task"] = task
    return pairs


def pairs_of_items(data: Sequence[Mapping[str, Any]], task: str = "images") -> list[Pair]:
    """Return pairs as they are, or all ordered pairs of a plain list of ``{image, label}`` items.

    Raises:
        InputError: an empty list, a single image, or entries of neither kind.
    """
    entries = [dict(entry) for entry in data]
    if entries and all({"fixed_image", "moving_image"} <= set(e) for e in entries):
        return entries
    if not entries or any("image" not in e for e in entries):
        raise InputError("found a data list without pairs or images, expected {image, label} items or pairs")
    if len(entries) < 2:
        raise InputError(f"{entries[0]['image']}: found a single image, expected at least two to make a pair")
    pairs = []
    for fixed, moving in itertools.permutations(entries, 2):
        sides = (("fixed", fixed), ("moving", moving))
        files = {f"{s}_{k}": str(e[k]) for s, e in sides for k in ("image", "label", "mask", "points") if e.get(k)}
        pairs.append({**files, "fixed_modality": "auto", "moving_modality": "auto", "task": task})
    return pairs


def label_names(dataset_dir: str | Path, task: str) -> dict[int, str]:
    """Return label value -> name from the JSON, without the background; empty where it lists none."""
    labels = dict(read_json(find_task(dataset_dir, task)).get("labels") or {})
    groups = [v for v in labels.values() if isinstance(v, Mapping)] or [labels]
    names = {int(k): str(v) for group in groups for k, v in group.items() if str(k).isdigit()}
    return {k: v for k, v in sorted(names.items()) if k > 0}
