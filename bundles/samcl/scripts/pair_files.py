"""Pairs that a memory keeps: as small as training allows, and each in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.data.pairs import Sample
from shared.errors import InputError
from shared.files import atomic_write

__all__ = ["compact", "delete_pairs", "pair_file", "read_pair", "restore", "write_pair"]

_KEPT = ("fixed_image", "moving_image", "fixed_label", "moving_label", "fixed_mask", "moving_mask")
_POINTS = ("fixed_points", "moving_points")


def compact(sample: Sample) -> Sample:
    """Copy what training needs: images as float16, labels and masks as the smallest integers that hold them."""
    kept: Sample = {"task": sample["task"]}
    for key in _KEPT:
        if key in sample:
            value: Tensor = sample[key].cpu()
            if key.endswith("image"):
                kept[key] = value.half()
            else:
                kept[key] = value.to(torch.uint8 if int(value.max()) <= 255 else torch.int16)
    for key in _POINTS:
        if key in sample:
            kept[key] = sample[key].cpu().clone()
    if "labels" in sample:
        kept["labels"] = list(sample["labels"])
    return kept


def restore(sample: Sample) -> Sample:
    """Return a pair for training again: images as float32."""
    return {k: v.float() if k.endswith("image") else v for k, v in sample.items()}


def pair_file(folder: Path, number: int) -> Path:
    """Return the file of a pair."""
    return folder / f"pair_{number:07d}.npz"


def delete_pairs(folder: Path | None, kept: Iterable[int]) -> None:
    """Delete the files of all pairs but those of the numbers ``kept``; a folder that is not there yet holds none."""
    if folder is None or not folder.is_dir():
        return
    names = {pair_file(folder, number).name for number in kept}
    for path in folder.glob("pair_*.npz"):
        if path.name not in names:
            path.unlink()


def write_pair(path: Path, sample: Sample) -> None:
    """Write a pair of :func:`compact`, atomically: compressed npz without pickle."""
    arrays = {k: v.numpy() for k, v in sample.items() if isinstance(v, Tensor)}
    arrays["labels"] = np.asarray(sample.get("labels", [-1]), dtype=np.int16)
    arrays["task"] = np.frombuffer(sample["task"].encode(), dtype=np.uint8)
    atomic_write(path, lambda stream: np.savez_compressed(stream, **arrays))


def read_pair(path: Path) -> Sample:
    """Read a pair of :func:`write_pair`.

    Raises:
        InputError: missing or unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content: dict[str, Any] = {k: arrays[k] for k in arrays.files}
    except Exception as error:
        raise InputError(f"{path}: not readable as a memory pair ({type(error).__name__})") from error
    sample: Sample = {"task": content.pop("task").tobytes().decode()}
    labels = content.pop("labels").tolist()
    if labels != [-1]:
        sample["labels"] = labels
    sample.update({k: torch.from_numpy(v) for k, v in content.items()})
    return sample
