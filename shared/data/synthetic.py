"""Embedded registration tasks: four Learn2Reg folders of synthetic patients whose true motion is known.

The patients differ from task to task in anatomy, contrast, field of view and motion, so that a network
forgets one task while it learns the next. Everything a method may be measured with is written too: labels,
masks, corresponding key points, and for validation and test pairs the true displacement field.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import atomic_write, read_json, save_json, writable_dir
from .motion import Motion
from .patients import TASKS, PatientSource, RegistrationTask

__all__ = ["REGISTRATION_TASKS", "write_registration_tasks"]

FORMAT_VERSION = 3
REGISTRATION_TASKS = tuple(task.name for task in TASKS)

Item = dict[str, str]


def write_registration_tasks(
    root: str | os.PathLike[str],
    tasks: Iterable[str] | None = None,
    *,
    size: int = 32,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Write synthetic Learn2Reg folders, each once: a complete folder of the same settings is left alone.

    The dataset file is written last and marks a folder as complete; after a kill the next call writes the
    folder anew. Equal arguments give equal bytes. Each pair of ``registration_val`` and ``registration_test``
    names in ``truth`` a field (*S, 3) in voxels of the fixed grid: ``moving(x + truth(x))`` matches ``fixed(x)``.

    Args:
        root: folder that receives one folder a task.
        tasks: some of `REGISTRATION_TASKS`; None for all.
        size: voxels along each edge; the field of view stays the same.
        seed: another seed draws other patients, textures and vessels.
        counts: override of the number of ``training`` subjects and ``validation`` and ``test`` pairs.
        progress: show a progress bar.

    Returns:
        The folder of each task, in the order asked for.

    Raises:
        InputError: an unknown task or count, a size below 8, a folder that cannot be written, or one that holds a
            dataset that this function did not write.
    """
    if isinstance(tasks, str):
        raise InputError(f"found tasks {tasks!r}, expected a list of names")
    known = {task.name: task for task in TASKS}
    names = REGISTRATION_TASKS if tasks is None else tuple(tasks)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"found unknown tasks {unknown}, expected some of {list(REGISTRATION_TASKS)}")
    if size < 8:
        raise InputError(f"found size {size}, expected at least 8 voxels")
    folders = {}
    for name in names:
        task = known[name]
        wanted = {**task.counts, **(counts or {})}
        if wanted.keys() != task.counts.keys() or min(wanted.values()) < 0:
            raise InputError(f"found counts {dict(counts or {})}, expected {list(task.counts)}, none negative")
        folders[name] = Path(root) / name
        settings = {"version": FORMAT_VERSION, "size": size, "seed": seed, "counts": wanted}
        if not _is_reusable(folders[name], name, settings):
            writable_dir(folders[name])
            _write_task(folders[name], task, settings, progress)
    return folders


def is_current(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a task, of any size and seed, as this version of the generator writes it.

    A dataset of the same name that was not written here counts as current: it is the user's own.
    """
    path = Path(folder) / f"{Path(folder).name}_dataset.json"
    if not path.is_file():
        return False
    settings = read_json(path).get("synthetic")
    return settings is None or settings.get("version") == FORMAT_VERSION


def _is_reusable(folder: Path, name: str, settings: Mapping[str, Any]) -> bool:
    """True where the folder is complete; the file that says so is removed where it speaks of other settings."""
    path = folder / f"{name}_dataset.json"
    if not path.exists():
        return False
    content = read_json(path)
    if "synthetic" not in content:
        raise InputError(
            f"{path}: found a dataset that was not written here, expected a synthetic one or another folder"
        )
    files = [file for item in content["training"] + content["test"] for file in item.values()]
    files += [pair["truth"] for pair in content["registration_val"] + content["registration_test"]]
    if content["synthetic"] == settings and all((folder / file).exists() for file in files):
        return True
    path.unlink()
    return False


def _write_task(folder: Path, task: RegistrationTask, settings: Mapping[str, Any], progress: bool) -> None:
    from tqdm import tqdm

    counts, size = settings["counts"], settings["size"]
    total = counts["training"] * (1 if task.breath else len(task.modalities)) + counts["validation"] + counts["test"]
    with tqdm(desc=task.name, disable=not progress, total=total) as bar:
        writer = _TaskWriter(folder, task, size, settings["seed"], bar.update)
        training, paired = writer.training(counts["training"])
        scans, validation = writer.pairs("Tr", counts["validation"])
        test, test_pairs = writer.pairs("Ts", counts["test"])
    labels = {"0": "background", **{str(i + 1): label for i, label in enumerate(task.labels)}}
    content = {
        "name": task.name,
        "release": str(FORMAT_VERSION),
        "description": f"{task.description}; synthetic",
        "licence": "Apache-2.0",
        "modality": {str(i): modality for i, modality in enumerate(task.modalities)},
        "labels": {str(i): labels for i in range(len(task.modalities))},
        "pairings": "paired" if task.breath else "unpaired",
        "registration_direction": {"fixed": 0, "moving": writer.moving_suffix},
        "tensorImageSize": "3D",
        "tensorImageShape": {str(i): [size] * 3 for i in range(len(task.modalities))},
        "numTraining": len(training) + len(scans),
        "training": training + scans,
        "numPairedTraining": len(paired),
        "training_paired_images": paired,
        "numRegistration_val": len(validation),
        "registration_val": validation,
        "numTest": len(test),
        "test": test,
        "numRegistration_test": len(test_pairs),
        "registration_test": test_pairs,
        "synthetic": dict(settings),
    }
    writer.remove_others()
    save_json(folder / f"{task.name}_dataset.json", content)


class _TaskWriter:
    """Writes the patients of one task; ``tell`` is called after each subject and pair."""

    def __init__(self, folder: Path, task: RegistrationTask, size: int, seed: int, tell: Callable[[], object]) -> None:
        self.folder, self.task, self.tell = folder, task, tell
        self.key = (seed, REGISTRATION_TASKS.index(task.name))
        self.source = PatientSource(task, size, np.random.default_rng(self.key))
        self.moving_suffix = 0 if task.within is None else 1
        self.number = 0
        self.written: set[Path] = set()
        spacing = task.spacing_mm * 32 / size
        self.affine = np.diag([spacing, spacing, spacing, 1.0])
        self.affine[:3, 3] = -spacing * (size - 1) / 2

    def training(self, count: int) -> tuple[list[Item], list[Item]]:
        """Write ``count`` subjects; returns their items and, where a subject has two scans, the pairs."""
        items: list[Item] = []
        paired: list[Item] = []
        suffixes = [(0, 1)] if self.task.breath else [(suffix,) for suffix in range(len(self.task.modalities))]
        for wanted in suffixes:
            for _ in range(count):
                rng = self._next_subject()
                motions = self.source.motions(rng)
                scans = [self._scan("Tr", suffix, motions[suffix], rng) for suffix in wanted]
                if len(scans) == 2:
                    paired.append({"fixed": scans[0]["image"], "moving": scans[1]["image"]})
                items += scans
                self.tell()
        return items, paired

    def pairs(self, split: str, count: int) -> tuple[list[Item], list[Item]]:
        """Write ``count`` pairs with their true fields; returns the items and the pairs."""
        items: list[Item] = []
        pairs: list[Item] = []
        for _ in range(count):
            rng = self._next_subject()
            first = self.number
            fixed_motion, moving_motion, ddf = self.source.pair(rng)
            fixed = self._scan(split, 0, fixed_motion, rng)
            self.number += self.task.within is None
            moving = self._scan(split, self.moving_suffix, moving_motion, rng)
            truth = f"./truth{split}/disp_{first:04d}_{self.number:04d}.nii.gz"
            self._save(truth, ddf)
            items += [fixed, moving]
            pairs.append({"fixed": fixed["image"], "moving": moving["image"], "truth": truth})
            self.tell()
        return items, pairs

    def remove_others(self) -> None:
        """Remove what an earlier call with other settings left under this task's file names."""
        for kind in ("images", "labels", "masks", "keypoints", "truth"):
            for pattern in (f"{kind}T[rs]/{self.task.name}_*", f"{kind}T[rs]/disp_*"):
                for path in set(self.folder.glob(pattern)) - self.written:
                    path.unlink()

    def _next_subject(self) -> np.random.Generator:
        self.number += 1
        return np.random.default_rng((*self.key, self.number))

    def _scan(self, split: str, suffix: int, motion: Motion, rng: np.random.Generator) -> Item:
        """Write image, label map, mask and key points of one scan; returns its item."""
        scan = self.source.scan(self.task.modalities[min(suffix, len(self.task.modalities) - 1)], motion, rng)
        stem = f"{self.task.name}_{self.number:04d}_{suffix:04d}"
        item = {kind: f"./{kind}s{split}/{stem}.nii.gz" for kind in ("image", "label", "mask")}
        for kind, path in item.items():
            self._save(path, getattr(scan, kind))
        item["keypoints"] = f"./keypoints{split}/{stem}.csv"
        lines = (",".join(f"{value:.4f}" for value in point) + "\n" for point in scan.keypoints)
        self._put(item["keypoints"], "".join(lines).encode())
        return item

    def _save(self, name: str, array: np.ndarray) -> None:
        import nibabel as nib

        image = nib.Nifti1Image(array, self.affine)
        image.header.set_xyzt_units("mm")
        # No time stamp in the gzip header: equal settings give equal bytes.
        self._put(name, gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))

    def _put(self, name: str, content: bytes) -> None:
        path = self.folder / name
        self.written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda stream: stream.write(content))
