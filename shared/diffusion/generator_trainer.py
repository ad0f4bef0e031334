"""The training of a generator on one site or task: denoiser and prompt learn, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from ..run_directory import RunDirectory
from ..run_trainer import RunTrainer
from ..weights import trainable, unwrap
from .site_diffusion import SiteDiffusion

__all__ = ["DiffusionTrainer", "MovingAverage", "parameter_groups"]


def parameter_groups(
    generator: SiteDiffusion, learning_rate: float, prompt_learning_rate: float
) -> list[dict[str, Any]]:
    """Return what learns in groups for an optimizer: a prompt is small and takes larger steps than the denoiser.

    Args:
        generator: of ``prepare_generator``, which froze what does not learn.
        learning_rate: of the denoiser.
        prompt_learning_rate: of prompt and modulation; first in the list, they decide what a log shows.
    """
    weights = {name: p for name, p in trainable(generator).items() if p.numel()}
    denoiser = [p for name, p in weights.items() if name.startswith("denoiser.")]
    site = [p for name, p in weights.items() if not name.startswith("denoiser.")]
    groups = [{"params": site, "lr": prompt_learning_rate}, {"params": denoiser, "lr": learning_rate}]
    return [group for group in groups if group["params"]]


class MovingAverage:
    """Exponential moving average of the parameters that learn; frozen ones are not touched, so their bits stay.

    The average follows quickly at first: its decay is at most (1 + n) / (10 + n) after n updates.

    Args:
        network: whose parameters.
        decay: share of the average that an update keeps; 0 keeps none: the average is the last value.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"found decay {decay} of the average, expected at least 0 and below 1")
        self.network, self.decay, self.updates = network, decay, 0
        self.values = {name: p.detach().clone() for name, p in trainable(network).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in trainable(self.network).items():
            self.values[name].lerp_(p.detach(), 1 - decay)
        self.updates += 1

    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take up what a checkpoint holds."""
        for name, value in values.items():
            if value.numel():  # checkpoints of before may list a tensor without numbers, which does not learn
                self.values[name].copy_(value)
        self.updates = updates


class DiffusionTrainer(RunTrainer):
    """Teach a generator one site; ``model.pt`` holds the averaged weights, with what is known of the site.

    The network is a ``SiteDiffusion`` from ``prepare_generator``, which also takes the generator of the sites before;
    the loss is a ``DenoisingLoss``. A subclass says what of a sample is learnt, :meth:`clean`, and what is kept of the
    site beside weights, :meth:`statistics`.

    Args:
        site: that learns; the last of the network's.
        average_decay: see :class:`MovingAverage`.
        options: of :class:`~shared.run_trainer.RunTrainer`; ``task`` is the site.

    Raises:
        InputError: as there; or the network does not know the site.
        ValueError: as there; or ``init_from``.
    """

    def __init__(self, *, site: str, average_decay: float = 0.999, **options: Any) -> None:
        if options.get("init_from") is not None:
            raise ValueError("found init_from, expected it with prepare_generator: it adds the site to that generator")
        network = options["network"]
        self.site, self.site_number = site, unwrap(network).number(site)
        self.average = MovingAverage(network, average_decay)
        super().__init__(**{"task": site, **options})

    @property
    def site_generator(self) -> SiteDiffusion:
        """The network, without its wrapper."""
        return unwrap(self.network)  # type: ignore[return-value]

    def clean(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return what the generator learns (B, channels + label_channels, *S) in [-1, 1], and the sites' numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it learns; expected a method clean")

    def statistics(self) -> dict[str, Any]:
        """Return what travels with the weights of the site, plain containers: a hook."""
        return {}

    def numbers(self, samples: Sequence[Any]) -> Tensor:
        """Return the site's number (B,), once a sample."""
        return torch.full((len(samples),), self.site_number, device=self.state.device)

    def learn(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Do one optimizer step on the error of the noise."""
        clean, numbers = self.clean(samples)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.loss_function(self.network, clean, numbers, self.generator)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        loss.backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.optimizer.step()
        self.average.update()
        self.passes += len(samples)
        return {"loss": loss.detach()}

    def begin(self) -> None:
        """Find what is kept of the site, unless the checkpoint has it."""
        generator = self.site_generator
        if not generator.sites[self.site]:
            generator.sites[self.site] = self.statistics()
        self._frozen = generator.frozen_hash()

    def end(self) -> None:
        """Check that what is frozen did not change: earlier sites' images hang on every bit of it.

        Raises:
            RuntimeError: something wrote into frozen weights.
        """
        if self.site_generator.frozen_hash() != self._frozen:
            raise RuntimeError(
                f"{self.run_directory.path}: frozen weights changed while {self.site!r} was learned; expected an "
                "optimizer over what learns alone, see parameter_groups"
            )

    def extra_settings(self) -> dict[str, Any]:
        """Return the site and the average's decay."""
        return {"site": self.site, "average_decay": self.average.decay}

    def extra_state(self) -> dict[str, Any]:
        """Return the averaged weights."""
        return {"average": self.average.values, "updates": self.average.updates}

    def load_extra_state(self, state: dict[str, Any], run: RunDirectory) -> None:
        """Take up the averaged weights."""
        self.average.load(state["average"], state["updates"])

    def final_weights(self) -> dict[str, Tensor]:
        """Return the averaged weights, and the frozen ones as they are."""
        return {**self.site_generator.state_dict(), **self.average.values}
