"""Pairs of tasks and images of sites, one or several; embedded ones are written where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..errors import InputError, check_bools
from ..files import sole_owner, writable_dir
from .decathlon import find_site, known_sites, read_site
from .learn2reg import find_task, known_tasks, read_pairs
from .sites import SEGMENTATION_SITES, is_current_site, write_sites
from .synthetic import REGISTRATION_TASKS, is_current, write_registration_tasks

__all__ = ["load_from_folders", "load_pairs", "load_sites", "names_in_folders", "task_name", "task_names"]


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


def _home(found: Path | None, dataset_dir: str | Path, name: str) -> Path:
    """Return where embedded data lie or should lie: ``dataset_dir`` may be their own folder."""
    if found is not None:
        return found.absolute().parent
    root = Path(dataset_dir).absolute()
    return root if root.name == name else root / name


def _ensure(folder: Path, name: str, known: Sequence[str], is_current: Callable, write: Callable[[Path], Any]) -> None:
    """Write embedded data where they are missing; with several processes the first writes and the others wait."""
    several = dist.is_available() and dist.is_initialized()
    if several and dist.get_rank() > 0:
        dist.barrier()
    # A folder of another name is a copy that somebody made: nothing is written beside it.
    elif name in known and folder.name == name and not is_current(folder):
        # Chains side by side need the same data: the first writes, the others find it written.
        with sole_owner(writable_dir(folder), "writer of embedded data", patience=600):
            if not is_current(folder):
                write(folder.parent)
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
    check_bools(with_self=with_self)
    pairs = []
    for name in task_names(task):
        folder = _home(known_tasks(dataset_dir).get(name), dataset_dir, name)
        write = partial(write_registration_tasks, tasks=[name], progress=True)
        _ensure(folder, name, REGISTRATION_TASKS, is_current, write)
        find_task(dataset_dir, name, REGISTRATION_TASKS)
        pairs += read_pairs(dataset_dir, name, split, with_self)
    return pairs


def load_sites(dataset_dir: str | Path, site: str | Sequence[str], split: str) -> list[dict[str, Any]]:
    """Return the labelled images of Decathlon sites; an embedded site is written first where it is missing.

    Args:
        dataset_dir: folder of dataset folders, or one dataset folder.
        site: name, or several: their images come one site after another, and each item's ``site`` says whose it is.
        split: "train", "val" or "test".

    Raises:
        InputError: unknown site (the known ones are listed), a site given twice, or an unusable folder.
    """
    items = []
    for name in task_names(site):
        folder = _home(known_sites(dataset_dir).get(name), dataset_dir, name)
        write = partial(write_sites, sites=[name], progress=True)
        _ensure(folder, name, SEGMENTATION_SITES, is_current_site, write)
        find_site(dataset_dir, name, SEGMENTATION_SITES)
        items += read_site(dataset_dir, name, split)
    return items


def names_in_folders(tasks: Sequence[tuple[str | Path, str]]) -> list[str]:
    """Return the names of tasks or sites, each in a folder of its own.

    Args:
        tasks: (dataset_dir, task) of each.

    Raises:
        InputError: not a list of such pairs, or a task given twice.
    """
    if isinstance(tasks, str) or any(isinstance(entry, str) or len(entry) != 2 for entry in tasks):
        raise InputError(f"found tasks {tasks}, expected a list of [dataset_dir, task]")
    return task_names([task for _, task in tasks])


def load_from_folders(
    load: Callable[..., list[dict[str, Any]]], tasks: Sequence[tuple[str | Path, str]], *options: Any
) -> list[dict[str, Any]]:
    """Return the items of several tasks or sites, each in a folder of its own, one after another.

    Args:
        load: :func:`load_pairs` or :func:`load_sites`.
        tasks: (dataset_dir, task) of each.
        options: of ``load``, the split first.

    Raises:
        InputError: not a list of such pairs, a task given twice, or as ``load``.
    """
    names_in_folders(tasks)
    return [item for folder, task in tasks for item in load(folder, task, *options)]
