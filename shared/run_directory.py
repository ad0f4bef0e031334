"""The folder of a run: everything that a killed run needs to go on, and that the next task starts from.

``state.pt`` is the one file that commits a checkpoint: it is renamed into place last, after each rank's memory. What a
kill leaves beside it is never read. ``model.pt`` and ``done.json`` are written when the run is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import InputError
from .files import load_tensors, read_json, save_json, save_tensors, sole_owner, writable_dir
from .settings import differences

__all__ = ["RunDirectory", "checkpoint_count"]


def checkpoint_count(iterations: int, interval: int) -> int:
    """Return how many checkpoints a run gets, about one each ``interval`` iterations, of equal lengths where possible.

    The count divides ``iterations``, so that none is left out: the divisor nearest to ``iterations / interval``, if it
    is within a factor of 2 of that; else the rounded number, and the run ends some iterations early.

    Args:
        iterations: of the run.
        interval: wanted from one checkpoint to the next.
    """
    wanted = iterations / interval
    near = [n for n in range(1, iterations + 1) if iterations % n == 0 and wanted / 2 <= n <= 2 * wanted]
    return min(near, key=lambda n: (abs(n - wanted), -n)) if near else max(1, round(wanted))


class RunDirectory:
    """One task's ``run_dir``.

    Args:
        path: made when missing.
        rank: of this process; rank 0 is the writer of what all share.
        read_only: leave the folder as it is: the run of an earlier task.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, path: str | Path, rank: int = 0, read_only: bool = False) -> None:
        self.path, self.rank = Path(path), rank
        if read_only:
            return
        writable_dir(self.path)
        if rank == 0:
            for leftover in self.path.rglob(".tmp-*"):
                if not leftover.name.endswith("-probe"):  # another rank may be at it
                    leftover.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def memory(self) -> Path:
        """Folder of this rank's memory."""
        return self.path / "memory" / f"rank{self.rank}"

    @property
    def state(self) -> Path:
        """The checkpoint."""
        return self.path / "state.pt"

    @property
    def settings(self) -> Path:
        """Record of the settings that the run was begun with."""
        return self.path / "settings.json"

    @property
    def model(self) -> Path:
        """The trained weights."""
        return self.path / "model.pt"

    @property
    def done(self) -> Path:
        """Record of a complete run."""
        return self.path / "done.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder (rank 0): nobody else trains in it. The system lets go of it when the process dies.

        Raises:
            InputError: another process holds it.
        """
        with sole_owner(self.path, "training") if self.rank == 0 else nullcontext():
            yield

    def check_settings(self, settings: dict[str, Any]) -> None:
        """Compare with the settings that the folder was begun with, or note them down.

        Raises:
            InputError: they differ; the message lists what was found and what is asked.
        """
        if self.has_begun():
            changed = differences(read_json(self.settings), settings)
            if changed:
                raise InputError(
                    f"{self.path}: holds a run with other settings ({changed}); expected the same settings to go on "
                    "with it, or another --run_dir"
                )
        elif self.rank == 0:
            save_json(self.settings, settings)

    def has_begun(self) -> bool:
        """Whether there is a checkpoint, or a complete run."""
        return self.state.exists() or self.done.exists()

    def is_done(self) -> bool:
        """Whether the run is complete."""
        return self.done.exists() and self.model.exists()

    def load_state(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None."""
        return load_tensors(self.state) if self.state.exists() else None

    def save_memory_index(self, iteration: int, index: dict[str, Any]) -> None:
        """Write this rank's memory index of one checkpoint (before :meth:`save_state` commits it)."""
        save_json(self.memory / f"index_{iteration:07d}.json", index)

    def memory_index(self, iteration: int) -> dict[str, Any]:
        """Read this rank's memory index of a checkpoint."""
        return read_json(self.memory / f"index_{iteration:07d}.json")

    def prune_memory_indices(self, iteration: int) -> None:
        """Delete the indices of other checkpoints than ``iteration``."""
        for path in self.memory.glob("index_*.json"):
            if path.name != f"index_{iteration:07d}.json":
                path.unlink()

    def save_state(self, state: dict[str, Any]) -> None:
        """Commit a checkpoint (rank 0 only)."""
        if self.rank == 0:
            save_tensors(self.state, state)

    def finish(self, weights: dict[str, Any], record: dict[str, Any]) -> None:
        """Write the model, then the record that says so (rank 0 only).

        Weights are written from the CPU: hosts that name no device read them where there is no GPU, too.
        """
        if self.rank == 0:
            save_tensors(self.model, {k: v.cpu() if isinstance(v, Tensor) else v for k, v in weights.items()})
            save_json(self.done, record)
