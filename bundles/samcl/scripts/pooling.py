"""The pairs of several tasks, each from a folder of its own, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.embedded import load_from_folders, load_pairs

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
    return load_from_folders(load_pairs, tasks, split, with_self)
