"""The generator's phase of a site: denoiser and prompt learn from the site's images, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared.diffusion import DiffusionTrainer, MovingAverage, parameter_groups, to_channels

from .labelling import site_statistics
from .pretending import pretend

__all__ = ["GeneratorTrainer", "MovingAverage", "parameter_groups"]


class GeneratorTrainer(DiffusionTrainer):
    """Teach a generator one site; ``model.pt`` holds the averaged weights, with the site's statistics.

    Items of the dataset hold ``image`` (channels, *S) in [0, 1] and ``label`` (1, *S).

    Args:
        mirror_axis: of *S, along which every second image is mirrored, at random: the one from right to left, where
            anatomy is alike on both sides. None mirrors nothing.
        options: of :class:`~shared.diffusion.DiffusionTrainer`.

    Raises:
        InputError: as there.
        ValueError: as there.
    """

    def __init__(self, *, mirror_axis: int | None = None, **options: Any) -> None:
        self.mirror_axis = mirror_axis
        super().__init__(**options)

    def clean(self, samples: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return images, with ``label_channels`` also labels; some are mirrored, some in a pretended contrast."""
        device = self.state.device
        samples = [self._mirrored(sample) for sample in samples]
        images, labels = (torch.stack([s[key] for s in samples]).to(device) for key in ("image", "label"))
        images, numbers = pretend(self.site_generator, images.float(), self.numbers(samples), self.generator)
        return to_channels(self.site_generator, images, labels), numbers

    def _mirrored(self, sample: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return image and label, or both mirrored."""
        if self.mirror_axis is None or torch.rand((), generator=self.generator) < 0.5:
            return sample
        return {key: sample[key].flip(self.mirror_axis + 1) for key in ("image", "label")}

    def statistics(self) -> dict[str, Any]:
        """Return those of the site's images and labels."""
        return site_statistics(self.data_loader.dataset, self.site)

    def extra_settings(self) -> dict[str, Any]:
        """Return the site, the average's decay and the mirrored axis."""
        return {**super().extra_settings(), "mirror_axis": self.mirror_axis}
