"""Continual strategies: what one training iteration does with the current batch and the past.

One short class each, chosen by the config id ``strategy``; their base is in ``shared/continual/strategy.py``. Here:
strategies that replay or flatten; others are in ``consolidation.py`` and ``gradient_projection.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from shared.continual import Parts, Sequential, Strategy, interpolate, project_conflict
from shared.data.pairs import Sample
from shared.distributed import on_all_ranks
from shared.errors import check_bools
from shared.weights import trainable

from .diffusion_memory import DiffusionMemory
from .memory import ReservoirMemory
from .sam import SAM

if TYPE_CHECKING:
    from .trainer import ContinualTrainer

__all__ = ["AGEM", "ER", "MER", "SAMCL", "Parts", "Sequential", "SharpnessAware", "Strategy"]

PairMemory: TypeAlias = "ReservoirMemory | DiffusionMemory"


class SharpnessAware(Strategy):
    """Sharpness-aware minimisation alone, without memory (Foret et al., ICLR 2021; adaptive: Kwon et al., ICML 2021).

    Flat minima tolerate the next task's steps better (Mehta et al., JMLR 2023). Two passes a sample.

    Args:
        rho: radius of SAM.
        adaptive: scale the neighbourhood by the weights.

    Raises:
        InputError: an ``adaptive`` that is neither True nor False.
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = True) -> None:
        check_bools(adaptive=adaptive)
        self.rho, self.adaptive = rho, adaptive

    def descend(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one SAM step."""
        return SAM(trainer.optimizer, self.rho, self.adaptive).step(lambda: trainer.backward(samples))


class Replay(Strategy):
    """Base of strategies that step on the batch and on pairs drawn from a memory.

    Args:
        memory: a reservoir of pairs, or generated ones.
    """

    def __init__(self, memory: PairMemory) -> None:
        self.memory: PairMemory = memory

    def begin_task(self, trainer: ContinualTrainer) -> None:
        """Let the memory get ready."""
        self.memory.begin_task(trainer)

    def end_task(self, trainer: ContinualTrainer) -> None:
        """Let the memory take down what later tasks need."""
        self.memory.end_task(trainer)

    def _offer(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self.memory.offer(sample, trainer.generator)

    def _draw(self, trainer: ContinualTrainer, count: int, before: int | None = None) -> Callable[[], list[Sample]]:
        """Choose pairs, and return what gives them: a memory on disk is read while the steps in between compute."""
        coming = self.memory.draw_ahead(count, trainer.generator, before)

        def prepared() -> list[Sample]:
            with trainer.waiting():
                pairs = coming()
            return [trainer.prepare(pair) for pair in pairs]

        return prepared

    def _each_then_replay(self, trainer: ContinualTrainer, samples: Sequence[Sample], ratio: int = 1) -> Parts:
        """Step on each sample alone, then on ``ratio`` times as many replayed ones, drawn after these were offered.

        The samples' parts come back averaged.
        """
        self._offer(trainer, samples)
        replayed = self._draw(trainer, ratio * len(samples))
        seen = [self.descend(trainer, [trainer.prepare(sample)]) for sample in samples]
        replay = self.descend(trainer, replayed())
        names = dict.fromkeys(name for parts in seen for name in parts)
        parts = {k: torch.stack([p[k] for p in seen if k in p]).mean() for k in names}
        return {**parts, "replay_loss": replay["loss"]}


class ER(Replay):
    """Experience replay (Rolnick et al., NeurIPS 2019; Chaudhry et al., "On tiny episodic memories", 2019).

    Two passes a sample.

    Args:
        memory: of past pairs.
        steps: "joint": one optimizer step on the mean of two losses, of the batch and of an equally large one drawn
            from the memory before the batch is offered to it. "each": a step on each sample alone, then on a replayed
            batch, as MER does it.

    Raises:
        ValueError: other ``steps``.
    """

    def __init__(self, memory: PairMemory, steps: str = "joint") -> None:
        if steps not in ("joint", "each"):
            raise ValueError(f"found steps {steps!r}, expected joint or each")
        super().__init__(memory)
        self.steps = steps

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do the update described above."""
        if self.steps == "each":
            return self._each_then_replay(trainer, samples)
        draw = self._draw(trainer, len(samples))
        parts = trainer.backward([trainer.prepare(s) for s in samples])
        if replayed := draw():
            current = _gradients(trainer)
            parts["replay_loss"] = trainer.backward(replayed)["loss"]
            _set_gradients(trainer, torch._foreach_mul(torch._foreach_add(current, _gradients(trainer)), 0.5))
        trainer.optimizer.step()
        self._offer(trainer, samples)
        return parts


class MER(Replay):
    """Meta-experience replay (Riemer et al., ICLR 2019, algorithm 6).

    One iteration: remember the weights; a step on each sample of the batch alone; offer the samples to the reservoir;
    a step on a batch drawn from it; then move only ``beta`` of the way from the remembered weights to the new ones
    (Reptile, Nichol et al., 2018). The gradients met on the way come out more alike. Two passes a sample with the
    ratio 1.

    Args:
        memory: of past pairs.
        beta: 1 leaves out the interpolation, 0 learns nothing.
        replay_ratio: replayed pairs for each pair of the batch; 1 in the paper.

    Raises:
        ValueError: ``beta`` outside [0, 1], or a ratio below 1.
    """

    def __init__(self, memory: PairMemory, beta: float = 0.5, replay_ratio: int = 1) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"found beta {beta}, expected 0 to 1")
        if replay_ratio < 1:
            raise ValueError(f"found replay_ratio {replay_ratio}, expected at least 1")
        super().__init__(memory)
        self.beta, self.replay_ratio = beta, replay_ratio

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do the update described above; the parts are those of the current samples, averaged."""
        weights = list(trainable(trainer.network).values())
        start = [p.detach().clone() for p in weights]
        parts = self._each_then_replay(trainer, samples, self.replay_ratio)
        interpolate(weights, start, self.beta)
        return parts


class SAMCL(MER):
    """Sharpness-aware meta-continual learning (Wang, Luo & Zhuang, MICCAI 2024): MER whose every step is a SAM step.

    The gradients met on the way come out more alike, and at flat minima. The optimizer's moments run through all tasks.
    With a batch of k and the replay ratio r: 2 (k + r k) passes, k + 1 optimizer steps.

    Args:
        memory: of past pairs.
        rho: radius of SAM; 0 leaves MER.
        adaptive: adaptive SAM.
        beta: 1 leaves out the interpolation, 0 learns nothing.
        replay_ratio: replayed pairs for each pair of the batch; 1 in the paper.

    Raises:
        ValueError: ``beta`` outside [0, 1], a ratio below 1, or an ``adaptive`` that is neither True nor False.
    """

    def __init__(
        self, memory: PairMemory, rho: float = 0.05, adaptive: bool = True, beta: float = 0.25, replay_ratio: int = 1
    ) -> None:
        check_bools(adaptive=adaptive)
        super().__init__(memory, beta, replay_ratio)
        self.rho, self.adaptive = rho, adaptive

    def descend(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one SAM step."""
        return SAM(trainer.optimizer, self.rho, self.adaptive).step(lambda: trainer.backward(samples))


class AGEM(Replay):
    """Averaged gradient episodic memory (Chaudhry et al., ICLR 2019).

    The batch's gradient loses its part against the gradient of an equally large batch of earlier tasks' pairs, so that
    to first order no step raises their loss. On the first task, plain training; then two passes a sample.

    Args:
        memory: of past pairs; pairs of the current task are offered, and serve as reference from the next on.
    """

    def __init__(self, memory: PairMemory) -> None:
        super().__init__(memory)
        self._past = 0

    def begin_task(self, trainer: ContinualTrainer) -> None:
        """Note how many pairs earlier tasks have offered."""
        super().begin_task(trainer)
        if trainer.state.iteration == 0:
            self._past = self.memory.seen

    def step(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do the update described above; ``replay_loss`` is that of the earlier tasks' pairs."""
        draw = self._draw(trainer, len(samples), self._past)
        parts = trainer.backward([trainer.prepare(s) for s in samples])
        replayed = draw()
        if on_all_ranks(bool(replayed), trainer.state.device):
            current = _gradients(trainer)
            parts["replay_loss"] = trainer.backward(replayed)["loss"]
            _set_gradients(trainer, project_conflict(current, _gradients(trainer)))
        trainer.optimizer.step()
        self._offer(trainer, samples)
        return parts

    def state_dict(self) -> dict[str, Any]:
        """Return how many pairs earlier tasks have offered."""
        return {"past": self._past}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self._past = int(state["past"])


def _gradients(trainer: ContinualTrainer) -> list[Tensor]:
    """Return copies of all gradients, zero where a weight has none."""
    weights = trainable(trainer.network).values()
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in weights]


def _set_gradients(trainer: ContinualTrainer, gradients: Sequence[Tensor]) -> None:
    for weight, gradient in zip(trainable(trainer.network).values(), gradients, strict=True):
        weight.grad = gradient
