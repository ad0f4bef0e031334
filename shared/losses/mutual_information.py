"""Mutual information of two images of any modalities."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.loss import _Loss

from ..kernels import warp_backend

__all__ = ["MutualInformationLoss", "joint_histogram"]

# Voxels whose weights are held at once by the code without kernels: they stay in the cache.
CHUNK = 1 << 14
# The kernels take the seven bins next to an intensity; what lies beyond must be less than this of the largest weight.
NEGLIGIBLE = 1e-9
REACH = 3


class MutualInformationLoss(_Loss):
    """Minus the mutual information of two images, in nats.

    ``-sum p(a, b) log(p(a, b) / (p(a) p(b)))`` over a joint histogram with Gaussian windows of ``sigma_ratio`` bins
    (Viola and Wells, IJCV 1997; the windows of MONAI's ``GlobalMutualInformationLoss("gaussian")``, whose value and
    gradient it has). Weights are computed again for the gradient, so that nothing of size voxels times bins exists.

    Args:
        bins: from intensity 0 to 1.
        sigma_ratio: width of the windows in bins.
        smooth: keeps empty bins from dividing by zero.

    Raises:
        ValueError: fewer than 2 bins, or ``sigma_ratio`` not positive.
    """

    def __init__(self, bins: int = 32, sigma_ratio: float = 0.5, smooth: float = 1e-7) -> None:
        super().__init__(reduction="mean")
        if bins < 2 or sigma_ratio <= 0:
            raise ValueError(f"bins must be 2 or more and sigma_ratio positive, got {bins} and {sigma_ratio}")
        self.bins, self.sigma_ratio, self.smooth = bins, sigma_ratio, smooth

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Return a scalar, the mean over the batch, in float32 or wider.

        Args:
            pred: (B, C, *S), intensities in [0, 1]; what lies outside counts as the end it is past.
            target: as ``pred``.

        Raises:
            ValueError: when the shapes differ.
        """
        joint = joint_histogram(pred, target, self.bins, self.sigma_ratio)
        product = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
        information = joint * torch.log((joint + self.smooth) / (product + self.smooth))
        return -information.sum(dim=(1, 2)).mean()


def joint_histogram(x: Tensor, y: Tensor, bins: int = 32, sigma_ratio: float = 0.5) -> Tensor:
    """Return the share of every pair of bins, ``mean_v w_a(x_v) w_b(y_v)``, with Gaussian weights that sum to one.

    Args:
        x: (B, C, *S), intensities in [0, 1].
        y: as ``x``.
        bins: from 0 to 1.
        sigma_ratio: width of the windows in bins.

    Returns:
        (B, bins, bins) in float32 or wider, summing to one; differentiable once with respect to both.

    Raises:
        ValueError: when the shapes differ.
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"expected two images of one shape (B, C, *S), got {tuple(x.shape)} and {tuple(y.shape)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    flat = [image.to(dtype).flatten(1).contiguous() for image in (x, y)]
    joint: Tensor = _JointHistogram.apply(*flat, bins, 0.5 / sigma_ratio**2)
    return joint


class _JointHistogram(torch.autograd.Function):
    """The histogram of (B, N) images; ``k`` is 1 / (2 sigma^2) in bins."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, bins: int, k: float) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.k = k
        if _kernels_take(x, k):
            total = torch.ops.registration.joint_histogram(x, y, bins, k)
        else:
            total = torch.zeros(len(x), bins, bins, dtype=torch.float64, device=x.device)
            for start in range(0, x.shape[1], CHUNK):
                a, b = (_weights(image[:, start : start + CHUNK], bins, k) for image in (x, y))
                total += a.transpose(1, 2) @ b
        return (total / x.shape[1]).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        grad = grad.contiguous() / x.shape[1]
        if _kernels_take(x, ctx.k):
            return (*torch.ops.registration.joint_histogram_adjoint(grad, x, y, ctx.k), None, None)
        found = torch.empty_like(x), torch.empty_like(y)
        for start in range(0, x.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            a, b = (_weights(image[:, part], grad.shape[1], ctx.k) for image in (x, y))
            for to, image, own, pull in ((found[0], x, a, b @ grad.transpose(1, 2)), (found[1], y, b, a @ grad)):
                to[:, part] = _weights_adjoint(image[:, part], own, pull, ctx.k)
        return (*found, None, None)


def _weights(image: Tensor, bins: int, k: float) -> Tensor:
    """Return the weights (B, N, bins) of intensities (B, N)."""
    centres = torch.arange(bins, dtype=image.dtype, device=image.device)
    distance = (image.clamp(0.0, 1.0) * (bins - 1))[..., None] - centres
    weight = distance.square_().mul_(-k).exp_()
    return weight.div_(weight.sum(dim=-1, keepdim=True))


def _weights_adjoint(image: Tensor, weight: Tensor, pull: Tensor, k: float) -> Tensor:
    """Return the gradient (B, N) from that to the weights: ``d w_j / d t = 2 k w_j (j - mean of j)``."""
    bins = weight.shape[-1]
    centres = torch.arange(bins, dtype=image.dtype, device=image.device)
    mean = weight @ centres
    pulled = pull.mul_(weight)
    slope = pulled @ centres - mean * pulled.sum(dim=-1)
    return slope.mul_(2.0 * k * (bins - 1)) * ((image >= 0) & (image <= 1))


def _kernels_take(image: Tensor, k: float) -> bool:
    narrow = math.exp(-k * (REACH + 0.5) ** 2) < NEGLIGIBLE * math.exp(-k * 0.25) and k < 20
    # Not every version of Triton multiplies matrices in double precision.
    fits = 0 < image.numel() < 2**31 and not (image.is_cuda and image.dtype == torch.float64)
    return narrow and fits and warp_backend(image.device.type).name != "torch"
