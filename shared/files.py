"""Writing that a kill or a full disk cannot spoil: temporary file, flush, rename."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from filelock import FileLock, Timeout

from .errors import InputError

__all__ = [
    "atomic_path",
    "atomic_write",
    "load_tensors",
    "read_json",
    "save_json",
    "save_tensors",
    "sole_owner",
    "writable_dir",
    "write_csv",
]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, with the same suffixes; rename it to ``path`` when all went well.

    Raises:
        InputError: the folder cannot be written or the disk is full; ``path`` keeps what it held.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}); expected a writable folder with free space"
        ) from error
    finally:
        # Where the folder itself is unusable, so is its temporary file: the error above says so already.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a binary stream that becomes ``path`` in one step."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        write(stream)


def save_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    atomic_write(path, lambda stream: stream.write((json.dumps(content, indent=2) + "\n").encode()))


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, unreadable or no JSON; the message names file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a JSON file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); expected a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: malformed JSON ({error}); expected a valid JSON document") from error


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; columns in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, lambda stream: stream.write(text.getvalue().encode()))


def save_tensors(path: str | Path, content: Any) -> None:
    """``torch.save`` of tensors and plain containers, atomically."""

    # torch reports a full disk as RuntimeError from its zip writer; ours is an OSError like every other file's.
    def write(stream: IO[bytes]) -> None:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise OSError(str(error)) from error

    atomic_write(path, write)


def load_tensors(path: str | Path) -> Any:
    """Read what :func:`save_tensors` wrote, on the CPU, with ``weights_only=True``.

    Raises:
        InputError: missing, truncated, or not a file of tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights or state written by this bundle")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path}: not readable as weights ({type(error).__name__}); expected a torch file of tensors"
        ) from error


def writable_dir(path: str | Path) -> Path:
    """Make a folder and check that it takes a file.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".tmp-{os.getpid()}-probe"
        probe.write_bytes(b"x")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); expected a writable folder with free space"
        ) from error
    return path


@contextmanager
def sole_owner(folder: str | Path, work: str, patience: float = 5.0) -> Iterator[None]:
    """Hold a folder that only one process may work in. The system lets go of it when the process dies.

    Args:
        folder: gets a file ``.lock``.
        work: what is done in it, for the message.
        patience: seconds to wait for another owner; one that was killed needs a moment to be gone.

    Raises:
        InputError: another process holds it.
    """
    try:
        guard = FileLock(Path(folder) / ".lock").acquire(timeout=patience)
    except Timeout:
        raise InputError(f"{folder}: found another {work} at work in this folder; expected one at a time") from None
    with guard:
        yield
