"""Continual strategies without a memory of pairs: they hold on to the weights or the outputs of the earlier tasks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from shared.continual import EWC, SI, Distillation

__all__ = ["EWC", "SI", "LwF"]


class LwF(Distillation):
    """Learning without forgetting (Li & Hoiem, ECCV 2016), for registration: distil the previous task's velocity.

    Added to the loss: ``strength`` times the mean squared difference, in voxels, between the network's velocity and
    that of the network that the previous task ended with (or of the weights that the run starts from), on the current
    batch. One pass a sample, and a forward one.

    Args:
        strength: of the difference, in units of the loss per squared voxel.
    """

    def __init__(self, strength: float = 5.0) -> None:
        super().__init__(strength)

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared difference of velocities (B, d, *S)."""
        return F.mse_loss(output, target)
