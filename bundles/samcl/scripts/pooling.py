"""The pairs of several tasks, each from a folder of its own, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.embedded import load_from_folders, load_pairs, names_in_folders

__all__ = ["joint_name", "load_tasks"]


def joint_name(tasks: Sequence[tuple[str | Path, str]]) -> str:
    """Return the name of a run that learns several tasks at once: ``joint_A_B``; arguments as :func:`load_tasks`."""
    return "_".join(["joint", *names_in_folders(tasks)])


def load_tasks(tasks: Sequence[tuple[str | Path, str]], split: str, with_self: bool = False) -> list[dict[str, Any]]:
    """Return the pairs of several tasks, one task after another; embedded tasks are written where they are missing.

    Args:
        tasks: (dataset_dir, task) of each.
        split: "train", "val" or "test".
        with_self: also pairs of an image with itself.

    Raises:
        InputError: not a list of such pairs, a task given twice, or as :func:`load_pairs`.
    """
    return load_from_folders(load_pairs, tasks, split, with_self)
