"""The images of several sites, each from a folder of its own, as one list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.data.embedded import load_from_folders, load_sites

__all__ = ["load_tasks"]


def load_tasks(tasks: Sequence[tuple[str | Path, str]], split: str) -> list[dict[str, Any]]:
    """Return the images of several sites, one site after another; embedded sites are written where they are missing.

    Args:
        tasks: (dataset_dir, site) of each.
        split: "train", "val" or "test".

    Raises:
        InputError: not a list of such pairs, a site given twice, or as :func:`load_sites`.
    """
    return load_from_folders(load_sites, tasks, split)
