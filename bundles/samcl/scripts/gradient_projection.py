"""The continual strategy that steps only where the earlier tasks' layers will not notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.continual import check_convolution, extend_basis, input_columns, knows_nothing, project_out
from shared.data.pairs import Sample, stack_pairs
from shared.distributed import from_first_rank
from shared.networks.convolution import Conv3
from shared.weights import trainable, unwrap

from .layers import LargeKernelBlock
from .strategies import Parts, Strategy

if TYPE_CHECKING:
    from .trainer import ContinualTrainer

__all__ = ["GPM"]

Named = dict[str, Tensor]


class GPM(Strategy):
    """Gradient projection memory (Saha, Garg & Roy, ICLR 2021).

    After each task, a basis of what every convolution's kernel met in training pairs. Later updates are orthogonal to
    it, so that what the convolutions answered to it stays; biases and activations are frozen. The gradient is
    projected, for the optimizer's moments to hold only what may be learnt, and then the update itself, since Adam's
    scaling and weight decay leave the subspace. One pass a sample.

    Args:
        threshold: share of the inputs' energy that the basis holds after the first task.
        threshold_step: added to it with every later task, up to 1.
        samples: training pairs that are looked at.
        patches: places of each of them, a convolution.
    """

    def __init__(
        self, threshold: float = 0.97, threshold_step: float = 0.005, samples: int = 64, patches: int = 16
    ) -> None:
        self.threshold, self.threshold_step, self.samples, self.patches = threshold, threshold_step, samples, patches
        self.bases: Named = {}
        self._tasks = 0

    def begin_task(self, trainer: ContinualTrainer) -> None:
        """Move the bases to the network's device.

        Raises:
            ValueError: the network has weights that are no convolution's, or a convolution with groups, dilation, or
                another padding than zeros.
        """
        network = unwrap(trainer.network)
        covered = {id(c.weight) for _, group in _convolutions(network) for c in group}
        other = [k for k, w in trainable(network).items() if w.ndim > 1 and id(w) not in covered]
        if other:
            raise ValueError(f"found weights {other}, expected a network of convolutions for GPM")
        for _, group in _convolutions(network):
            for convolution in group:
                check_convolution(convolution)
        self.bases = {k: v.to(trainer.state.device) for k, v in self.bases.items()}

    def start_from(self, weights: Mapping[str, Tensor]) -> str:
        """Say that no basis is known: the weights alone do not tell what their convolutions met."""
        return knows_nothing(self)

    def descend(self, trainer: ContinualTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step, orthogonal to the bases."""
        parts = trainer.backward(samples)
        if not self.bases:
            trainer.optimizer.step()
            return parts
        weights = trainable(trainer.network)
        transposed = self._transposed(trainer)
        for name, weight in weights.items():
            free = name in self.bases and weight.grad is not None
            # An optimizer leaves weights without a gradient alone.
            weight.grad = project_out(weight.grad, self.bases[name], transposed[name]) if free else None  # type: ignore[arg-type]
        before = {name: weights[name].detach().clone() for name in self.bases if name in weights}
        trainer.optimizer.step()
        with torch.no_grad():
            for name, old in before.items():
                update = project_out(weights[name] - old, self.bases[name], transposed[name])
                weights[name].copy_(old + update)
        return parts

    def end_task(self, trainer: ContinualTrainer) -> None:
        """Extend the bases by what the convolutions meet in this task's pairs; rank 0 decides for all."""
        bases = from_first_rank(lambda: self._extended(trainer))
        self.bases = {k: v.to(trainer.state.device) for k, v in bases.items()}
        self._tasks += 1

    def _extended(self, trainer: ContinualTrainer) -> Named:
        threshold = min(1.0, self.threshold + self.threshold_step * self._tasks)
        bases = {}
        for name, columns in self._columns(trainer).items():
            bases[name] = extend_basis(self.bases.get(name), columns, threshold).cpu()
        return bases

    @torch.no_grad()
    def _columns(self, trainer: ContinualTrainer) -> Named:
        """Return the sampled inputs of each convolution, by weight."""
        network = unwrap(trainer.network).eval()
        names = {id(w): k for k, w in trainable(network).items()}
        found: dict[str, list[Tensor]] = {}

        def look(group: Sequence[nn.Module], image: Tensor) -> None:
            for conv in group:
                columns = input_columns(image, conv, self.patches, trainer.generator)
                found.setdefault(names[id(conv.weight)], []).append(columns)

        hooks = [
            module.register_forward_pre_hook(lambda module, inputs, group=group: look(group, inputs[0]))
            for module, group in _convolutions(network)
        ]
        try:
            for sample in trainer.draw_samples(self.samples):
                trainer.predict(stack_pairs([sample]), network)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(columns, dim=1) for name, columns in found.items()}

    @staticmethod
    def _transposed(trainer: ContinualTrainer) -> dict[str, bool]:
        network = unwrap(trainer.network)
        kinds = {id(c.weight): bool(c.transposed) for _, group in _convolutions(network) for c in group}
        return {k: kinds[id(w)] for k, w in trainable(network).items() if id(w) in kinds}

    def state_dict(self) -> dict[str, Any]:
        """Return the bases by weight, and how many tasks they hold."""
        return {"bases": self.bases, "tasks": self._tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self.bases, self._tasks = {k: v.clone() for k, v in state["bases"].items()}, int(state["tasks"])


def _convolutions(network: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Yield modules with the convolutions that see their input; our layers use these without calling them."""
    inner: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, LargeKernelBlock):
            group: list[nn.Module] = [module.conv3, module.conv1, module.conv5]
        elif isinstance(module, Conv3):
            group = [module.conv]
        elif isinstance(module, nn.modules.conv._ConvNd) and module not in inner:
            group = [module]
        else:
            continue
        inner.update(group)
        yield module, group
