"""What a trainer asks of the function that it minimises, and a pair made ready for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .overlap import label_probabilities

if TYPE_CHECKING:  # datasets load MONAI whole, which a loss by itself does without
    from ..data.pairs import Sample

__all__ = ["Objective", "prepare_sample"]


class Objective(Protocol):
    """The loss function of a registration trainer: any module with these three methods."""

    def prepare(self, sample: Sample, device: torch.device) -> Sample:
        """Return a sample of :class:`~shared.data.pairs.PairDataset` on the device, with what all passes need."""

    def __call__(self, output: Any, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a scalar to descend, and its detached parts by name, for the log.

        Args:
            output: what the network returned for the stacked samples; a tensor, or nested fields of several scales.
            samples: B samples of :meth:`prepare`.
        """

    def extra_repr(self) -> str:
        """Return the options that decide the loss, for the run's record."""


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: from pinned memory, where the device is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def prepare_sample(sample: Sample, device: torch.device, label_sigma: float | None = None) -> Sample:
    """Move a sample to the device and smooth its labels once, for all passes of a step over it.

    Args:
        sample: of :class:`~shared.data.pairs.PairDataset`.
        device: where it goes.
        label_sigma: smoothing of the one-hot labels in voxels; None leaves the labels as they are.

    Returns:
        the sample; with ``label_sigma`` and labels, also ``fixed_probabilities`` and ``moving_probabilities``, each
        (1, C, *S), see :func:`label_probabilities`.
    """
    ready: Sample = {k: _to(v, device) if isinstance(v, Tensor) else v for k, v in sample.items()}
    if label_sigma is not None and ready.get("labels"):
        for side in ("fixed", "moving"):
            label = ready[f"{side}_label"][None]
            ready[f"{side}_probabilities"] = label_probabilities(label, ready["labels"], label_sigma)
    return ready
