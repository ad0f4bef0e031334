"""What differs when a labelling host, MONAI Label, starts a training: it hands over the cases that its users labelled.

A bundle's ``train.json`` reads folders of tasks or sites; the host puts a plain list of ``{image, label}`` in their
place. Such a run gets a folder of its own, starts from the bundle's model, and at its end becomes the bundle's model.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .data.embedded import task_name
from .data.images import existing, load_voxels
from .distributed import from_first_rank, is_first_rank, process_count
from .errors import InputError, check_bools
from .files import atomic_path, read_json, writable_dir
from .run_directory import RunDirectory

__all__ = ["HostRun", "is_handed_over"]


def is_handed_over(data: Sequence[Mapping[str, Any]]) -> bool:
    """Whether data are a host's plain ``{image, label}`` items; those of folders say which task or site they are of."""
    return all(not {"task", "site", "fixed_image"} & set(item) for item in data)


class HostRun:
    """Where a run starts, where it is written and what it is called; cases of a host change that, folders do not.

    Args:
        data: the training data: pairs, items of sites, or a host's plain list of ``{image, label}``.
        bundle_root: folder of the bundle.
        task: name, or names, of a run on folders.
        init_from: where a run on folders starts.
        rehearses: start from the run that made the bundle's model, where it still lies in ``runs``: its memory is
            rehearsed. Else from the weights alone.
        fewest: cases needed.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        bundle_root: str | Path,
        task: str | Sequence[str],
        init_from: str | Path | None = None,
        rehearses: bool = False,
        fewest: int = 1,
    ) -> None:
        check_bools(rehearses=rehearses)
        self.cases = list(data) if is_handed_over(data) else None
        self.bundle_root, self.rehearses, self.fewest = Path(bundle_root), rehearses, fewest
        self._task, self._init_from = task_name(task), init_from
        self._run_dir: str | None = None
        self._start: Path | None = None

    @property
    def run_dir(self) -> str:
        """Folder of the run: of folders, the task's; of a host's cases, a new one each time."""
        if self._run_dir is None:
            runs = self.bundle_root / "runs"
            self._run_dir = (
                str(runs / self._task) if self.cases is None else from_first_rank(partial(_new_folder, runs))
            )
        return self._run_dir

    @property
    def task(self) -> str:
        """Name for the run's record."""
        return self._task if self.cases is None else Path(self.run_dir).name

    @property
    def model(self) -> Path:
        """The bundle's weights."""
        return self.bundle_root / "models" / "model.pt"

    @property
    def init_from(self) -> str | Path | None:
        """Where the run starts: what was asked for; for a host's cases, the bundle's model with its memory."""
        if self.cases is None or self._init_from is not None:
            return self._init_from
        if self._start is None:
            self._start = self._find_start()
        return self._start

    def _find_start(self) -> Path | None:
        if not self.model.is_file():
            self.say(f"{self.model}: no such file; the training starts afresh")
            return None
        if not self.rehearses:
            return self.model
        for folder in sorted(self.model.parents[1].glob("runs/*"), reverse=True):
            run = RunDirectory(folder, read_only=True)
            if not run.is_done() or not filecmp.cmp(run.model, self.model, shallow=False):
                continue
            if _processes(run) == process_count():
                self.say(f"{folder}: the training starts from this run and rehearses from its memory")
                return folder
            self.say(f"{folder}: found a run of {_processes(run)} processes, each with a memory of its own")
        self.say(
            f"{self.model}: found no run in {self.bundle_root / 'runs'} that made these weights with {process_count()} "
            "process(es), so there is no memory of what they learnt before"
        )
        return self.model

    def check(self) -> None:
        """Look at the cases of a host before anything is trained.

        Raises:
            InputError: too few, a case without label, or an empty label map.
        """
        if self.cases is None:
            return
        if len(self.cases) < self.fewest:
            found = ", ".join(str(item.get("image")) for item in self.cases) or "none"
            raise InputError(
                f"found {len(self.cases)} labelled images to train on ({found}), expected at least {self.fewest}: "
                "label more, or lower val_split"
            )
        for item in self.cases:
            if not item.get("label"):
                raise InputError(f"{item.get('image')}: found no label, expected {{image, label}} items to train on")
            if not np.any(load_voxels(existing(item["label"], "label"))[0] > 0):
                raise InputError(f"{item['label']}: found an empty label map, expected labelled voxels to train on")

    def publish(self, run_dir: str | Path) -> None:
        """Make the weights of a run on a host's cases the bundle's model; the former one becomes ``model_previous.pt``.

        Args:
            run_dir: of the complete run.
        """
        if self.cases is None or not is_first_rank():
            return
        writable_dir(self.model.parent)
        if self.model.is_file():
            _copy(self.model, self.model.with_name("model_previous.pt"))
        _copy(RunDirectory(run_dir, read_only=True).model, self.model)
        self.say(f"{self.model}: renewed; the former weights are in model_previous.pt")

    def say(self, text: str) -> None:
        """Print a line for the host's log, once."""
        if is_first_rank():
            print(text, flush=True)


def _processes(run: RunDirectory) -> int:
    """Return how many processes made a run."""
    settings = run.path / "settings.json"
    return int(read_json(settings).get("world", 1)) if settings.is_file() else 1


def _new_folder(runs: Path) -> str:
    """Make the next ``labelled_0001``; processes side by side get different ones."""
    writable_dir(runs)
    numbers = [path.name.rpartition("_")[2] for path in runs.glob("labelled_*")]
    number = max((int(n) for n in numbers if n.isdigit()), default=0)
    while True:
        number += 1
        folder = runs / f"labelled_{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
