"""A first phase of a run in which some of the weights stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from monai.utils import ensure_tuple
from torch import nn

from .errors import InputError, did_you_mean
from .weights import trainable

__all__ = ["FrozenPhase"]


class FrozenPhase:
    """Keep weights unchanged for the first iterations of a run, as fine-tuning does with pretrained layers.

    A frozen weight has no gradient at the optimizer's step, so that moments and weight decay do not move it either. Its
    gradient is not computed, except under ``DistributedDataParallel``, which waits for that of every weight it has
    seen. After the phase, the weights train like all others.

    Args:
        network: may be wrapped.
        names: of parameters or of the modules that hold them, dotted; "encoder" stands for "encoder.conv.weight".
        iterations: length of the phase; 0 freezes nothing.

    Raises:
        InputError: a name that fits no trainable parameter, nothing left to train, or a negative length.
    """

    def __init__(self, network: nn.Module, names: str | Sequence[str] = (), iterations: int = 0) -> None:
        if iterations < 0:
            raise InputError(f"found frozen_iterations {iterations}, expected at least 0")
        weights = trainable(network)
        self.names, self.iterations = [str(name).rstrip(".") for name in ensure_tuple(names)], iterations
        for name in self.names:
            if not any(_fits(key, name) for key in weights):
                raise InputError(f"found frozen {name!r}{_near(name, weights)}, expected names of trained parameters")
        self._weights = [w for key, w in weights.items() if any(_fits(key, name) for name in self.names)]
        if iterations and len(self._weights) == len(weights):
            raise InputError(f"found frozen {self.names}: all parameters, expected some that are left to train")
        self._may_skip = not isinstance(network, nn.parallel.DistributedDataParallel)
        self.active = False

    def settings(self) -> dict[str, object]:
        """Return names and length for the run's record; empty where nothing is ever frozen."""
        if not self._weights or not self.iterations:
            return {}
        return {"frozen": {"names": self.names, "iterations": self.iterations}}

    def enter(self, iteration: int) -> None:
        """Freeze or release the weights for an iteration, counted from 1."""
        self._set(bool(self._weights) and iteration <= self.iterations)

    def release(self) -> None:
        """Let all weights train."""
        self._set(False)

    def drop_gradients(self) -> None:
        """Take the gradients away before the optimizer's step, while the phase lasts."""
        if self.active:
            for weight in self._weights:
                weight.grad = None

    def _set(self, active: bool) -> None:
        if active != self.active and self._may_skip:
            for weight in self._weights:
                weight.requires_grad_(not active)
        self.active = active


def _fits(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _near(name: str, keys: Sequence[str] | dict) -> str:
    """Return the nearest of all parameters and modules, for the message."""
    parts = [key.split(".") for key in keys]
    known = dict.fromkeys(".".join(p[: i + 1]) for p in parts for i in range(len(p)))
    return did_you_mean(name, known)
