"""Continual strategies: what one training iteration does with the current batch and the past.

A strategy has three verbs, ``begin_task``, ``step`` and ``end_task``; one short class each, chosen by the config id
``strategy``. What a strategy must remember is in ``state_dict`` (tensors and plain containers) and ``memory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.data.pairs import Sample

from .memory import ReservoirMemory
from .sam import SAM

if TYPE_CHECKING:
    from .trainer import ContinualTrainer

__all__ = ["SAMCL", "Sequential", "Strategy"]

Parts = dict[str, Tensor]


class Strategy:
    """Base of all strategies: remembers nothing."""

    memory: ReservoirMemory | None = None

    def begin_task(self, trainer: ContinualTrainer) -> None:
        """Get ready for a task, with weights, moments and memory of the earlier ones in place.

        Called again when a killed run goes on, then with the state of the checkpoint.
        """

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one iteration on samples of the current task; return the loss parts by name."""
        raise NotImplementedError

    def end_task(self, trainer: ContinualTrainer) -> None:
        """Take down what later tasks need of this one."""

    def settings(self) -> dict[str, Any]:
        """Return what defines the strategy, for the run's record."""
        plain = {k: v for k, v in vars(self).items() if isinstance(v, (bool, int, float, str))}
        return {"name": type(self).__name__, **plain, "memory": repr(self.memory)}

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy knows beside weights, moments and memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""


class Sequential(Strategy):
    """Plain training on one task after another: the baseline that forgets."""

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on the batch."""
        parts = trainer.backward([trainer.prepare(s) for s in samples])
        trainer.optimizer.step()
        return parts


class SAMCL(Strategy):
    """Sharpness-aware meta-continual learning (Wang, Luo & Zhuang, MICCAI 2024).

    One iteration: remember the weights; a SAM step on each sample of the batch alone; offer the samples to the
    reservoir; a SAM step on a batch drawn from it; then move only ``beta`` of the way from the remembered weights
    to the new ones (Reptile, Nichol et al., 2018). The gradients met on the way come out more alike, and at flat
    minima. The optimizer's moments run through all tasks. With a batch of k: 2 (k + k) passes, k + 1 optimizer steps.

    Args:
        memory: reservoir of past pairs.
        rho: radius of SAM; 0 leaves MER (Riemer et al., ICLR 2019).
        adaptive: adaptive SAM.
        beta: 1 leaves out the interpolation, 0 learns nothing.

    Raises:
        ValueError: ``beta`` outside [0, 1].
    """

    def __init__(self, memory: ReservoirMemory, rho: float = 0.05, adaptive: bool = True, beta: float = 0.25) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"found beta {beta}, expected 0 to 1")
        self.memory: ReservoirMemory = memory
        self.rho, self.adaptive, self.beta = rho, adaptive, beta

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do the update described above; the parts are those of the current samples, averaged."""
        sam = SAM(trainer.optimizer, self.rho, self.adaptive)
        weights = [p for p in trainer.network.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in weights]
        seen = [self._sam_step(sam, trainer, [trainer.prepare(sample)]) for sample in samples]
        for sample in samples:
            self.memory.offer(sample, trainer.generator)
        replayed = [trainer.prepare(s) for s in self.memory.draw(len(samples), trainer.generator)]
        replay = self._sam_step(sam, trainer, replayed)
        with torch.no_grad():
            # theta <- theta + (1 - beta) (theta0 - theta), in place: the optimizer's views stay valid.
            torch._foreach_lerp_(weights, start, 1.0 - self.beta)
        names = dict.fromkeys(name for parts in seen for name in parts)
        parts = {k: torch.stack([p[k] for p in seen if k in p]).mean() for k in names}
        return {**parts, "replay_loss": replay["loss"]}

    @staticmethod
    def _sam_step(sam: SAM, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        return sam.step(lambda: trainer.backward(samples))
