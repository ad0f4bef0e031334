"""The pairs of several tasks, each from a folder of its own, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.embedded import load_pairs, task_name
from shared.errors import InputError

__all__ = ["load_tasks"]


def load_tasks(tasks: Sequence[tuple[str | Path, str]], split: str, with_self: bool = False) -> list[dict[str, Any]]:
    """Return the pairs of several tasks, one task after another; embedded tasks are written where they are missing.

    Args:
        tasks: (dataset_dir, task) of each.
        split: "train", "val" or "test".
        with_self: also pairs of an image with itself.

    Raises:
        InputError: not a list of such pairs, a task given twice, or as :func:`load_pairs`.
    """
    if isinstance(tasks, str) or any(isinstance(entry, str) or len(entry) != 2 for entry in tasks):
        raise InputError(f"found tasks {tasks}, expected a list of [dataset_dir, task]")
    task_name([task for _, task in tasks])
    return [pair for folder, task in tasks for pair in load_pairs(folder, task, split, with_self)]
