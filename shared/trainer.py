"""The trainer of registration networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from .data.pairs import Sample, stack_pairs
from .run_trainer import RunTrainer

__all__ = ["RegistrationTrainer"]


class RegistrationTrainer(RunTrainer):
    """Train a registration network on pairs; runs, checkpoints and arguments are those of :class:`RunTrainer`.

    ``network`` takes (B, 2, *S), ``loss_function`` is an :class:`~shared.losses.Objective`, ``dataset`` gives pairs. A
    subclass overrides what differs in an iteration: :meth:`call_network` and :meth:`learn`.
    """

    def prepare(self, sample: Sample) -> Sample:
        """Move a sample to the device, ready for :meth:`backward`."""
        return self.loss_function.prepare(sample, self.state.device)

    def call_network(self, network: nn.Module, image: Tensor) -> Any:
        """Return what the loss takes for ``image`` (B, 2, *S): a hook, called under ``autocast``.

        For another method than ``forward`` there is :func:`~shared.distributed.call_method`.
        """
        return network(image)

    def predict(self, image: Tensor, network: nn.Module | None = None) -> Any:
        """Return the trained (or another) network's output for ``image`` (B, 2, *S), computed as training does."""
        with self.precision():
            return self.call_network(self.network if network is None else network, image)

    def backward(
        self, samples: Sequence[Sample], extra: Callable[[Tensor, Any], dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Leave the gradient of the mean loss of prepared samples in the parameters; return the parts by name.

        Args:
            samples: of :meth:`prepare`.
            extra: returns terms by name, for the network's input and its output, that are added to the loss. The
                part ``loss`` stays the objective alone, comparable between methods.
        """
        self.optimizer.zero_grad(set_to_none=True)
        image = stack_pairs(samples)
        output = self.predict(image)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss, parts = self.loss_function(output, samples)
        more = extra(image, output) if extra is not None else {}
        total = torch.stack([loss, *more.values()]).sum() if more else loss
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        total.backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.passes += len(samples)
        return {"loss": loss.detach(), **parts, **{name: value.detach() for name, value in more.items()}}

    def learn(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Do one iteration on raw samples and return the loss parts by name: a hook; here, one optimizer step."""
        parts = self.backward([self.prepare(sample) for sample in samples])
        self.optimizer.step()
        return parts
