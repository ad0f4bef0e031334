"""What all continual strategies have in common, for registration and segmentation alike.

A strategy has three verbs, ``begin_task``, ``step`` and ``end_task``. What it must remember is in ``state_dict``
(tensors and plain containers) and ``memory``. Of a trainer it uses ``prepare``, ``backward``, ``predict``,
``draw_samples``, ``optimizer``, ``network`` and ``generator``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Memory", "Parts", "Sequential", "Strategy", "knows_nothing"]

Parts = dict[str, Tensor]
Sample = dict[str, Any]


class Memory(Protocol):
    """Samples that a strategy keeps, as files in the run's folder."""

    folder: Path | None

    @property
    def nbytes(self) -> int:
        """Bytes that the samples take."""

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the samples that ``folder`` lacks; return an index of plain containers. Nothing is deleted."""

    def load(self, folder: str | Path, index: dict[str, Any], keep_folder: bool = True) -> None:
        """Take up an index of :meth:`save`; go on writing there, or with ``keep_folder`` False only read."""

    def prune(self) -> None:
        """Delete the files of samples that are no longer kept."""


class Strategy:
    """Base of all strategies: remembers nothing, and does one optimizer step on the batch."""

    memory: Any = None  # a Memory

    def begin_task(self, trainer: Any) -> None:
        """Get ready for a task, with weights, moments and memory of the earlier ones in place.

        Called again when a killed run goes on, then with the state of the checkpoint.
        """

    def step(self, trainer: Any, samples: Sequence[Sample]) -> Parts:
        """Do one iteration on samples of the current task; return the loss parts by name."""
        return self.descend(trainer, [trainer.prepare(s) for s in samples])

    def descend(self, trainer: Any, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on prepared samples; return the loss parts by name."""
        parts = trainer.backward(samples)
        trainer.optimizer.step()
        return parts

    def end_task(self, trainer: Any) -> None:
        """Take down what later tasks need of this one; a killed run does it again, with the same random numbers."""

    def start_from(self, weights: Mapping[str, Tensor]) -> str:
        """Start the first task of this strategy from weights that know another one's tasks, or a file's.

        Called before :meth:`begin_task`.

        Args:
            weights: state dict of the network, loaded.

        Returns:
            what the strategy lacks then, for the user; empty where it has all that it needs.
        """
        return ""

    def settings(self) -> dict[str, Any]:
        """Return what defines the strategy, for the run's record: public attributes of plain type."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, (bool, int, float, str)) and k[0] != "_"}
        return {"name": type(self).__name__, **plain, "memory": repr(self.memory)}

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy knows beside weights, moments and memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""


class Sequential(Strategy):
    """Plain training on one task after another: the baseline that forgets.

    Also what joint training (all tasks pooled) and single training (a network a task) do: they differ in the data.
    """


def knows_nothing(strategy: Strategy) -> str:
    """Return what :meth:`Strategy.start_from` says where weights alone do not tell a strategy what to hold on to."""
    return f"{type(strategy).__name__} knows nothing of what these weights learnt; this task is plain training"
