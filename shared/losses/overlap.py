"""Overlap of label maps as smoothed probabilities, after warping or before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ..errors import check_bools
from ..smoothing import gaussian_smooth
from .warped_overlap import warped_sums

__all__ = ["SoftDiceLoss", "label_probabilities", "soft_dice"]


def label_probabilities(label: Tensor, labels: Sequence[int] | Tensor, sigma: float = 1.0) -> Tensor:
    """Turn a label map into one smoothed channel for each of ``labels``.

    The one-hot maps are smoothed by a Gaussian cut off at three sigma and summing to one, the edge of the
    volume repeated. They depend on the label map alone, so they can be computed once and kept.

    Args:
        label: (B, 1, *S) map of whole numbers in any dtype.
        labels: the L values wanted, in channel order; other values in the map are left out.
        sigma: in voxels; 0 gives the one-hot maps.

    Returns:
        (B, L, *S) float32 in [0, 1], without gradient.

    Raises:
        ValueError: when ``label`` is not (B, 1, *S), ``labels`` is empty or not 1-D, or sigma is negative.
    """
    if label.ndim not in (4, 5) or label.shape[1] != 1:
        raise ValueError(f"label must be (B, 1, *S) with 2 or 3 spatial dims, got {tuple(label.shape)}")
    values = torch.as_tensor(labels)
    if values.ndim != 1 or values.numel() == 0:
        raise ValueError(f"labels must be a 1-D list of at least one value, got shape {tuple(values.shape)}")
    if sigma < 0:
        raise ValueError(f"sigma must be 0 or more, got {sigma}")
    # Compared with Python numbers: a tensor of labels would have to be copied to the device.
    one_hot = torch.cat([label == value for value in values.tolist()], dim=1).float()
    return gaussian_smooth(one_hot, sigma)


def soft_dice(p: Tensor, q: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the Dice overlap of probability maps, ``2 sum(pq) / (sum(p^2) + sum(q^2) + eps)``.

    Milletari et al., 3DV 2016, sec. 3.

    Args:
        p: (B, L, *S).
        q: (B, L, *S).
        eps: keeps labels absent from both (whose Dice is 0) from dividing by zero.

    Returns:
        (B, L), 1 for equal maps.

    Raises:
        ValueError: when the shapes differ.
    """
    cross, squares = warped_sums(p, None, q, None)
    return 2.0 * cross / (squares + eps)


class SoftDiceLoss(_Loss):
    """One minus the soft Dice overlap.

    Every sample is averaged over the labels that it holds, in ``p`` or in ``q``, then the batch is
    averaged; a sample without any of the labels adds 0. With ``pooled`` sums run over the batch as well
    and the mean is over all L channels, absent ones counting as a Dice of 0: the published SAMCL training
    does so, and mixes up labels that mean different things in a batch drawn from several tasks.

    Args:
        pooled: pool batch and space for each label.
        eps: see `soft_dice`.
    """

    def __init__(self, pooled: bool = False, eps: float = 1e-5) -> None:
        check_bools(pooled=pooled)
        super().__init__(reduction="mean")
        self.pooled = pooled
        self.eps = eps

    def forward(self, p: Tensor, q: Tensor) -> Tensor:
        """Return a scalar for ``p`` and ``q`` of shape (B, L, *S).

        Raises:
            ValueError: when the shapes differ.
        """
        return self.warped(p, None, q, None)

    def warped(self, p: Tensor, p_ddf: Tensor | None, q: Tensor, q_ddf: Tensor | None) -> Tensor:
        """Return the loss of maps pulled back by fields, zero outside, without making the warped maps where it can.

        Args:
            p: (B, L, *S), constant.
            p_ddf: (B, d, *T) in voxels, or None for the maps as they are.
            q: (B, L, *S), constant.
            q_ddf: as ``p_ddf``.

        Raises:
            ValueError: when the warped maps differ in shape.
        """
        cross, squares = warped_sums(p, p_ddf, q, q_ddf)
        if self.pooled:
            return 1.0 - (2.0 * cross.sum(dim=0) / (squares.sum(dim=0) + self.eps)).mean()
        # Probabilities are not negative: their squares sum to zero exactly where they do.
        present = (squares.detach() > 0).to(squares.dtype)
        loss = present * (1.0 - 2.0 * cross / (squares + self.eps))
        return (loss.sum(dim=1) / present.sum(dim=1).clamp_min(1.0)).mean()
