"""Pairs of one or several tasks; the embedded tasks are written where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..errors import InputError
from ..files import sole_owner, writable_dir
from .learn2reg import find_task, known_tasks, read_pairs
from .synthetic import REGISTRATION_TASKS, is_current, write_registration_tasks

__all__ = ["load_pairs", "task_name", "task_names"]


def task_names(task: str | Sequence[str]) -> list[str]:
    """Return the names of one or several tasks.

    Raises:
        InputError: no name, a name given twice, or something that is no name.
    """
    names = [task] if isinstance(task, str) else list(task)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"found tasks {names}, expected one name or several different ones")
    return names


def task_name(task: str | Sequence[str]) -> str:
    """Return a name for messages and folders: the task itself, or the names of several joined by "+".

    Raises:
        InputError: as :func:`task_names`.
    """
    return "+".join(task_names(task))


def _embedded_folder(dataset_dir: str | Path, task: str) -> Path:
    """Return where an embedded task lies or should lie: ``dataset_dir`` may be the task's own folder."""
    found = known_tasks(dataset_dir).get(task)
    if found is not None:
        return found.absolute().parent
    root = Path(dataset_dir).absolute()
    return root if root.name == task else root / task


def _write_embedded(dataset_dir: str | Path, task: str) -> None:
    """Write an embedded task where it is missing; with several processes the first writes and the others wait."""
    several = dist.is_available() and dist.is_initialized()
    if several and dist.get_rank() > 0:
        dist.barrier()
    elif task in REGISTRATION_TASKS:
        folder = _embedded_folder(dataset_dir, task)
        # A folder of another name is a copy that somebody made: nothing is written beside it.
        if folder.name == task and not is_current(folder):
            # Chains side by side need the same data: the first writes, the others find it written.
            with sole_owner(writable_dir(folder), "writer of embedded data", patience=600):
                if not is_current(folder):
                    write_registration_tasks(folder.parent, [task], progress=True)
    if several and dist.get_rank() == 0:
        dist.barrier()


def load_pairs(
    dataset_dir: str | Path, task: str | Sequence[str], split: str, with_self: bool = False
) -> list[dict[str, Any]]:
    """Return the pairs of Learn2Reg tasks; an embedded task is written first where it is missing.

    Args:
        dataset_dir: folder of dataset folders, or one dataset folder.
        task: name, or several: their pairs come one task after another, and each pair's ``task`` says whose it is.
        split: "train", "val" or "test".
        with_self: see :func:`~shared.data.learn2reg.read_pairs`.

    Raises:
        InputError: unknown task (the known ones are listed), a task given twice, or an unusable folder.
    """
    pairs = []
    for name in task_names(task):
        _write_embedded(dataset_dir, name)
        find_task(dataset_dir, name, REGISTRATION_TASKS)
        pairs += read_pairs(dataset_dir, name, split, with_self)
    return pairs
