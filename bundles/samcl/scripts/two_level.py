"""SAMCL that also goes only part of the way from task to task: a change of the method, under an id of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shared.continual import Parts, interpolate
from shared.data.pairs import Sample
from shared.weights import trainable

from .sam import SAM
from .strategies import SAMCL, PairMemory

if TYPE_CHECKING:
    from .trainer import ContinualTrainer

__all__ = ["TwoLevelSAMCL"]


class TwoLevelSAMCL(SAMCL):
    """SAMCL with Reptile on two levels, and SAM in every n-th iteration. This project's own, not the paper's.

    Within an iteration Reptile stands as in :class:`SAMCL`. From the second task on it stands once more over the whole
    task: at its end the weights are set ``gamma`` of the way from where the task found them. On the embedded tasks the
    loss met no barrier on that way: it gave back much of the old tasks for little of the new one (across-batch
    Reptile: Riemer et al., ICLR 2019, algorithm 1; the same between finished models: Ilharco et al., "Patching
    open-vocabulary models by interpolating weights", NeurIPS 2022). SAM in some iterations only costs a part of its
    second passes (Zhao, Zhang & Hu, SS-SAM, arXiv 2203.09962, 2022); the others are iterations of MER.

    Args:
        memory: of past pairs.
        rho: radius of SAM.
        adaptive: adaptive SAM.
        beta: share of the way within an iteration.
        replay_ratio: replayed pairs for each pair of the batch.
        gamma: share of the way over a task; 1 leaves out the second level.
        every: SAM in every n-th iteration; 1 is SAM in all.

    Raises:
        ValueError: ``beta`` or ``gamma`` outside [0, 1], a ratio or ``every`` below 1, or an ``adaptive`` that is
            neither True nor False.
    """

    def __init__(
        self,
        memory: PairMemory,
        rho: float = 0.05,
        adaptive: bool = True,
        beta: float = 0.25,
        replay_ratio: int = 1,
        gamma: float = 0.75,
        every: int = 4,
    ) -> None:
        if not 0 <= gamma <= 1:
            raise ValueError(f"found gamma {gamma}, expected 0 to 1")
        if every < 1:
            raise ValueError(f"found every {every}, expected at least 1")
        super().__init__(memory, rho, adaptive, beta, replay_ratio)
        self.gamma, self.every = gamma, every
        self._tasks = 0
        self._start: dict[str, Tensor] = {}

    def begin_task(self, trainer: ContinualTrainer) -> None:
        """Remember where the task finds the weights; the first task finds nothing worth keeping."""
        super().begin_task(trainer)
        if trainer.state.iteration == 0:
            weights = trainable(trainer.network) if self._tasks else {}
            self._start = {name: p.detach().clone() for name, p in weights.items()}

    def start_from(self, weights: Mapping[str, Tensor]) -> str:
        """Say that these weights are not gone back to, as those of the first task are not."""
        return f"{type(self).__name__} does not go back towards these weights at the end of this task"

    def descend(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one step, of SAM in every n-th iteration."""
        rho = self.rho if trainer.state.iteration % self.every == 0 else 0.0
        return SAM(trainer.optimizer, rho, self.adaptive).step(lambda: trainer.backward(samples))

    def end_task(self, trainer: ContinualTrainer) -> None:
        """Go part of the way back."""
        super().end_task(trainer)
        if self._start:
            weights = trainable(trainer.network)
            start = [value.to(weights[name]) for name, value in self._start.items()]
            interpolate([weights[name] for name in self._start], start, self.gamma)
            self._start = {}
        self._tasks += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of tasks learnt, and the weights at the start of this one."""
        return {"tasks": self._tasks, "start": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self._tasks, self._start = int(state["tasks"]), dict(state["start"])
