"""How the cascade is trained and asked: the trainer, the inferer, and the blur that is taken away."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from monai.inferers import Inferer
from torch import Tensor, nn

from shared.data.augmentation import PairAugmentation
from shared.data.pairs import Sample
from shared.distributed import call_method
from shared.errors import InputError
from shared.fields import invert
from shared.trainer import RegistrationTrainer
from shared.warp import warp

from .objective import SymmetricObjective

__all__ = ["BlurSchedule", "CascadeInferer", "CascadeTrainer"]


class CascadeTrainer(RegistrationTrainer):
    """:class:`~shared.trainer.RegistrationTrainer` that shows the loss every scale, both directions and increments.

    Args:
        args: of ``RegistrationTrainer``.
        augmentation: changes training pairs at random; None leaves them as they are.
        kwargs: of ``RegistrationTrainer``.

    Raises:
        InputError: an augmentation that cannot be called; or as ``RegistrationTrainer``.
    """

    def __init__(self, *args: Any, augmentation: PairAugmentation | None = None, **kwargs: Any) -> None:
        if augmentation is not None and not callable(augmentation):
            raise InputError(f"augmentation: found {augmentation!r}, expected None or a PairAugmentation")
        self.augmentation = augmentation
        super().__init__(*args, **kwargs)

    def call_network(self, network: nn.Module, image: Tensor) -> dict[str, Any]:
        """Return ``SymmetricCascade.fields`` of ``image`` (B, 2, *S)."""
        return call_method(network, "fields", image)

    def prepare(self, sample: Sample) -> Sample:
        """Move a sample, augmented, to the device."""
        if self.augmentation is not None:
            sample = self.augmentation(sample, self.generator)
        return super().prepare(sample)

    def extra_settings(self) -> dict[str, Any]:
        """Return what the augmentation adds to the record."""
        return {"augmentation": repr(self.augmentation)}


class CascadeInferer(Inferer):
    """Pair in, both displacement fields out, and the moving image warped by the first."""

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return ``warped`` (B, 1, *S), ``ddf`` and ``inv_ddf`` (B, d, *S) in voxels for ``inputs`` (B, 2, *S).

        Of a network in training mode also the fields of every scale, see :meth:`SymmetricCascade.fields`. One without a
        reverse field gets its field inverted numerically.
        """
        fields = call_method(network, "fields", inputs)
        if "inv_ddf" not in fields:
            fields["inv_ddf"] = invert(fields["ddf"])[0]
        fields["warped"] = warp(inputs[:, :1], fields["ddf"])
        return fields if network.training else {name: fields[name] for name in ("warped", "ddf", "inv_ddf")}


class BlurSchedule:
    """Blur the images that the loss compares, less and less: an easy problem turns into the real one.

    The homotopy of Deng et al., arXiv 2411.02888, as this bundle reads it, beside the one over scales and steps.

    Args:
        loss: its ``blur_sigma`` is set.
        sigma: at the start, in voxels of the full resolution.
        share: of all iterations, until nothing is blurred.
    """

    def __init__(self, loss: SymmetricObjective, sigma: float = 2.0, share: float = 0.2) -> None:
        self.loss, self.sigma, self.share = loss, sigma, share

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def _set(self, engine: Engine) -> None:
        # From the iteration alone, so that a resumed run sees the same blur.
        total = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 1)
        left = 1 - (engine.state.iteration - 1) / max(1.0, self.share * total)
        self.loss.blur_sigma = self.sigma * max(0.0, left)
