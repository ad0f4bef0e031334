"""Continual strategies without a memory of samples: they hold on to the weights or outputs of the earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_bools
from ..weights import trainable, unwrap
from .distillation import frozen_copy
from .importance import accumulate, add_penalty_gradient, add_to_path, path_importance, quadratic_penalty
from .strategy import Parts, Sample, Strategy, knows_nothing

__all__ = ["EWC", "SI", "Distillation"]

Named = dict[str, Tensor]


def _to(tensors: Mapping[str, Tensor], device: torch.device | str) -> Named:
    return {k: v.to(device) for k, v in tensors.items()}


def _copies(tensors: Mapping[str, Tensor]) -> Named:
    return {k: v.detach().clone() for k, v in tensors.items()}


class _Penalty(Strategy):
    """Base of EWC and SI: a quadratic penalty around the weights that the previous task ended with.

    Args:
        strength: factor of the penalty.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.anchor: Named = {}
        self.importance: Named = {}

    def begin_task(self, trainer: Any) -> None:
        """Move the state to the network's device."""
        self.anchor, self.importance = (_to(t, trainer.state.device) for t in (self.anchor, self.importance))

    def start_from(self, weights: Mapping[str, Tensor]) -> str:
        """Say that no importance is known: the weights alone do not tell what mattered to them."""
        return knows_nothing(self)

    def _add_penalty(self, trainer: Any) -> Parts:
        """Add the penalty's gradient to the loss's; on the first task there is none."""
        if not self.importance:
            return {}
        weights = trainable(trainer.network)
        anchor, importance = ([t[name] for name in weights] for t in (self.anchor, self.importance))
        penalty = self.strength * quadratic_penalty(list(weights.values()), anchor, importance)
        add_penalty_gradient(list(weights.values()), anchor, importance, self.strength)
        return {"penalty": penalty}

    def _consolidate(self, trainer: Any, importance: Sequence[Tensor], decay: float) -> None:
        """Take this task's importance in, and the weights as the new anchor."""
        weights = trainable(trainer.network)
        total = accumulate(list(self.importance.values()), importance, decay)
        self.importance, self.anchor = dict(zip(weights, total, strict=True)), _copies(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return anchor and importance by weight; empty on the first task."""
        return {"anchor": self.anchor, "importance": self.importance}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.anchor, self.importance = _copies(state["anchor"]), _copies(state["importance"])


class EWC(_Penalty):
    """Elastic weight consolidation, online (Kirkpatrick et al., PNAS 2017; Schwarz et al., ICML 2018).

    Penalty ``strength / 2 sum F (w - w0)^2``: w0 the weights after the previous task, F the running importance, after
    each task ``F <- decay F + F_task``. F_task is the diagonal of the empirical Fisher information: the mean squared
    gradient of the whole objective (regularisers too) over single training samples. One pass a sample.

    Args:
        strength: of the penalty. With ``normalise``, the curvature that it gives a weight of average importance, in
            units of the loss per squared weight; without, the factor of the Fisher information itself, whose mean over
            the weights may be tiny (2e-5 was seen): 0.1 here is then thousands there.
        decay: of the earlier tasks' importance.
        samples: training samples for the Fisher information; fewer where the task has fewer.
        normalise: scale each task's F to mean 1 over all weights, so that each task counts alike and ``strength`` does
            not depend on the loss's scale.

    Raises:
        InputError: a ``normalise`` that is neither True nor False.
    """

    def __init__(self, strength: float = 0.1, decay: float = 1.0, samples: int = 64, normalise: bool = True) -> None:
        check_bools(normalise=normalise)
        super().__init__(strength)
        self.decay, self.samples, self.normalise = decay, samples, normalise

    def descend(self, trainer: Any, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on loss and penalty."""
        parts = trainer.backward(samples)
        parts.update(self._add_penalty(trainer))
        trainer.optimizer.step()
        return parts

    def end_task(self, trainer: Any) -> None:
        """Add this task's Fisher information."""
        fisher = self.fisher(trainer)
        if self.normalise:
            mean = sum(f.sum() for f in fisher) / sum(f.numel() for f in fisher)
            fisher = [f / mean for f in fisher]
        self._consolidate(trainer, fisher, self.decay)

    def fisher(self, trainer: Any) -> list[Tensor]:
        """Return the mean squared gradient of each weight over single samples; zeros where it has no gradient."""
        weights = list(trainable(trainer.network).values())
        total = [torch.zeros_like(w) for w in weights]
        count = 0
        for sample in trainer.draw_samples(self.samples):
            trainer.backward([sample])
            for square, weight in zip(total, weights, strict=True):
                if weight.grad is not None:
                    square.addcmul_(weight.grad, weight.grad)
            count += 1
        return [square / count for square in total]


class SI(_Penalty):
    """Synaptic intelligence (Zenke, Poole & Ganguli, ICML 2017).

    A weight is important as far as its way through the task lowered the loss: the path integral of the loss's gradient
    (without the penalty) along the updates that the optimizer makes, divided by the squared distance gone. Importances
    of all tasks are summed. One pass a sample.

    Args:
        strength: factor of ``sum importance (w - w0)^2 / 2``; the importance is loss per squared weight.
        damping: added to the squared distance; a weight that moves less than its root counts for little.
    """

    def __init__(self, strength: float = 5.0, damping: float = 0.001) -> None:
        super().__init__(strength)
        self.damping = damping
        self.path: Named = {}

    def begin_task(self, trainer: Any) -> None:
        """Start the path, unless the checkpoint of a killed run or the previous task has it."""
        super().begin_task(trainer)
        weights = trainable(trainer.network)
        self.anchor = self.anchor or _copies(weights)
        self.path = _to(self.path, trainer.state.device) or {k: torch.zeros_like(w) for k, w in weights.items()}

    def descend(self, trainer: Any, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on loss and penalty, and follow the path."""
        parts = trainer.backward(samples)
        moving = {k: w for k, w in trainable(trainer.network).items() if w.grad is not None}
        gradients = [w.grad.clone() for w in moving.values() if w.grad is not None]
        parts.update(self._add_penalty(trainer))
        before = list(_copies(moving).values())
        trainer.optimizer.step()
        add_to_path([self.path[k] for k in moving], gradients, before, list(moving.values()))
        return parts

    def end_task(self, trainer: Any) -> None:
        """Turn the path into importance; the next one starts here."""
        weights = trainable(trainer.network)
        path, start = ([t[name] for name in weights] for t in (self.path, self.anchor))
        self._consolidate(trainer, path_importance(path, start, list(weights.values()), self.damping), decay=1.0)
        self.path = {k: torch.zeros_like(w) for k, w in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return anchor, importance and path by weight."""
        return {**super().state_dict(), "path": self.path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        super().load_state_dict(state)
        self.path = _copies(state["path"])


class Distillation(Strategy):
    """Learning without forgetting (Li & Hoiem, ECCV 2016): hold the outputs to those of the previous task's network.

    Added to the loss: ``strength`` times :meth:`distance` of the network's output from that of the network that the
    previous task ended with, or that the run starts from, on the current batch. One pass a sample, and a forward one. A
    base: what the distance is depends on the output.

    Args:
        strength: of the distance.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self._weights: Named = {}
        self._teacher: nn.Module | None = None

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return how far the output lies from the teacher's, a scalar: a hook."""
        raise NotImplementedError(f"{type(self).__name__} does not say how outputs differ; expected a method distance")

    def start_from(self, weights: Mapping[str, Tensor]) -> str:
        """Take the weights that the run starts from as the teacher: whatever they learnt is to be kept."""
        self._weights = _copies(weights)
        return ""

    def begin_task(self, trainer: Any) -> None:
        """Set up the teacher; on the first task there is none."""
        network = unwrap(trainer.network)
        self._teacher = frozen_copy(network, self._weights).to(trainer.state.device) if self._weights else None

    def descend(self, trainer: Any, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on loss and distillation."""
        teacher = self._teacher

        def distillation(image: Tensor, output: Tensor) -> Parts:
            assert teacher is not None
            with torch.no_grad():
                target = trainer.predict(image, teacher)
            return {"distillation": self.strength * self.distance(output.float(), target.float())}

        parts = trainer.backward(samples, extra=None if teacher is None else distillation)
        trainer.optimizer.step()
        return parts

    def end_task(self, trainer: Any) -> None:
        """Keep the network as the next task's teacher."""
        self._weights = _copies(unwrap(trainer.network).state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights; empty on the first task."""
        return {"teacher": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self._weights = _copies(state["teacher"])
