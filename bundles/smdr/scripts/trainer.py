"""The segmenter's phase of a site: slices, augmented, through a strategy, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from shared.continual import Strategy, StrategyHooks
from shared.errors import InputError
from shared.run_trainer import RunTrainer
from shared.weights import trainable, unwrap

from .augmentation import SliceAugmentation

__all__ = ["SegmenterTrainer"]

Sample = dict[str, Any]
Batch = dict[str, Tensor]


class SegmenterTrainer(StrategyHooks, RunTrainer):
    """Teach a segmenter one site, with a strategy.

    Items of the dataset hold ``image`` (C, *S) in [0, 1] and ``label`` (1, *S). The loss takes scores (B, classes, *S)
    and labels (B, 1, *S), as MONAI's ``DiceCELoss`` does. Several processes average their gradients here, so that the
    network needs no wrapper: objectives of stepped weights could not use one.

    Args:
        strategy: see ``strategies.py``.
        augmentation: of every sample that is learnt, of this site or an earlier one; None leaves them as they are.
        batch_size: samples an iteration and process. Where the strategy replays earlier sites, half of them are of
            this one.
        init_from: see :class:`~shared.run_trainer.RunTrainer`.
        options: of :class:`~shared.run_trainer.RunTrainer`; ``task`` is the site.

    Raises:
        InputError: as there; an odd batch size with replay; images without labels, or other than the replayed ones.
        ValueError: as there.
    """

    def __init__(
        self,
        *,
        strategy: Strategy,
        augmentation: SliceAugmentation | None = None,
        batch_size: int = 8,
        init_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.augmentation = augmentation
        looks_back = getattr(strategy, "looks_back", None)
        if looks_back is not None and looks_back(init_from):
            if batch_size < 2 or batch_size % 2:
                raise InputError(f"found batch_size {batch_size}, expected an even number: half of it is replay")
            batch_size //= 2
        super().__init__(strategy=strategy, batch_size=batch_size, init_from=init_from, **options)

    def learn(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Let the strategy do one iteration on augmented samples."""
        return self.strategy.step(self, self.augment(samples))

    def augment(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return samples as they are learnt, with random numbers of the trainer's generator."""
        if self.augmentation is None:
            return list(samples)
        return [self.augmentation(sample, self.generator) for sample in samples]

    def prepare(self, sample: Sample) -> Sample:
        """Move a sample to the device."""
        return {key: sample[key].to(self.state.device) for key in ("image", "label")}

    def stack(self, samples: Sequence[Sample]) -> Batch:
        """Return samples as one batch on the device."""
        return {key: torch.stack([s[key] for s in samples]).to(self.state.device) for key in ("image", "label")}

    def predict(self, image: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return the trained (or another) network's scores (B, classes, *S), computed as training does."""
        with self.precision():
            return (unwrap(self.network) if network is None else network)(image)

    def loss(self, network: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar; ``network`` may run with other weights than the trained ones."""
        with self.precision():
            scores = network(batch["image"])
        return self.loss_function(scores.float(), batch["label"])

    def backward(
        self, samples: Sequence[Sample], extra: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Leave the gradient of the mean loss of samples in the parameters; return the parts by name.

        Args:
            samples: of :meth:`augment` or :meth:`prepare`.
            extra: returns terms by name, for the images and their scores, that are added to the loss. The part
                ``loss`` stays the loss alone.
        """
        batch = self.stack(samples)
        scores = self.predict(batch["image"]).float()
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = self.loss_function(scores, batch["label"])
        more = extra(batch["image"], scores) if extra is not None else {}
        self.differentiate(torch.stack([loss, *more.values()]).sum() if more else loss, len(samples))
        return {"loss": loss.detach(), **{name: value.detach() for name, value in more.items()}}

    def differentiate(self, objective: Tensor, passes: int) -> None:
        """Leave the gradient of a scalar in the parameters, averaged over the processes.

        Args:
            objective: with its graph.
            passes: samples that went forward for it, for the record.
        """
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        if self.world > 1:
            gradients = [p.grad for p in trainable(self.network).values() if p.grad is not None]
            together = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(together)
            parts = (together / self.world).split([g.numel() for g in gradients])
            torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.passes += passes

    def begin(self) -> None:
        """Look at a sample, then let the strategy begin."""
        sample = self.data_loader.dataset[0]
        if "label" not in sample:
            raise InputError(f"{self.task}: found an image without label, expected {{image, label}} items to train on")
        if self.world > 1:
            for weight in unwrap(self.network).parameters():
                dist.broadcast(weight.data, src=0)
        super().begin()

    def extra_settings(self) -> dict[str, Any]:
        """Return loss, strategy and augmentation."""
        return {
            "loss": _plain_options(self.loss_function),
            **super().extra_settings(),
            "augmentation": repr(self.augmentation),
        }


def _plain_options(module: nn.Module) -> dict[str, Any]:
    """Return class and options of a loss and of the losses in it: MONAI's do not print them."""
    options = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str)) and k[0] != "_"}
    options.pop("training", None)
    inner = {name: _plain_options(child) for name, child in module.named_children()}
    return {"name": type(module).__name__, **options, **inner}
