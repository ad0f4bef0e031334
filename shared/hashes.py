"""Hashes of weights and of files: what shows that something did not change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .errors import InputError

__all__ = ["hash_of_file", "hash_of_weights"]


def hash_of_weights(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: of names, types, shapes and every bit; the order does not count."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def hash_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a file") from error
