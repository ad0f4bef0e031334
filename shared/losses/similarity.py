"""Image similarity: local cross-correlation within one modality, self-similarity across two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.loss import _Loss

from ..kernels import warp_backend

__all__ = ["LocalNCCLoss", "MINDSSCLoss", "mind_ssc"]


class LocalNCCLoss(_Loss):
    """One minus the mean squared correlation of two images within a window around every voxel.

    ``1 - sum(mask * cc) / sum(mask)`` with ``cc = cross^2 / (var_pred * var_target + eps)`` (Avants et al.,
    MedIA 2008, eq. 5); ``cross`` and ``var`` are sums over the voxels of the window that lie in the volume,
    about their own mean, so brightness offsets cost nothing, up to the very border. In the interior this
    is ``1 +`` MONAI's ``LocalNormalizedCrossCorrelationLoss`` with a rectangular kernel. Windows that are
    constant to within rounding count as uncorrelated.

    The gradient is exact and formed together with the value, so that only the gradient is kept for
    ``backward``. It cannot be differentiated again. On CUDA Triton kernels do the work where they can be had.

    Args:
        window: odd edge length of the window in voxels.
        eps: keeps constant windows from dividing by zero; in (intensity^2 x voxels)^2.

    Raises:
        ValueError: when ``window`` is even or below 3.
    """

    def __init__(self, window: int = 9, eps: float = 1e-5) -> None:
        super().__init__(reduction="mean")
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 3, got {window}")
        self.window = window
        self.eps = eps

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a scalar in float32 or wider.

        Args:
            pred: (B, C, *S) image.
            target: (B, C, *S) image.
            mask: (B, 1, *S) or (B, C, *S) weight of each voxel, not negative, boolean welcome; no gradient
                flows to it. Where all of it is zero the loss is 1, with zero gradient.

        Raises:
            ValueError: when the shapes do not fit.
        """
        _check_images(pred, target, mask)
        dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
        weight = _weight(mask, pred, dtype)
        return 1.0 - _mean_local_ncc(pred.to(dtype), target.to(dtype), weight, self.window, self.eps)


class MINDSSCLoss(_Loss):
    """Mean squared difference of two images' self-similarity contexts, for images of different modality.

    Heinrich et al., MICCAI 2013 (MIND-SSC); see `mind_ssc` for the descriptor.

    Args:
        radius: of the patches compared, in voxels.
        dilation: distance of the six (in 2D: four) patches from the voxel described, in voxels.

    Raises:
        ValueError: when either is below 1.
    """

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        super().__init__(reduction="mean")
        if radius < 1 or dilation < 1:
            raise ValueError(f"radius and dilation must be 1 or more, got {radius} and {dilation}")
        self.radius = radius
        self.dilation = dilation

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return a scalar for ``pred`` and ``target`` (B, C, *S) and a mask as in `LocalNCCLoss`.

        An empty mask gives 0.

        Raises:
            ValueError: when the shapes do not fit.
        """
        _check_images(pred, target, mask)
        difference = mind_ssc(pred, self.radius, self.dilation) - mind_ssc(target, self.radius, self.dilation)
        return (difference.square().mean(dim=2) * _weight(mask, pred, difference.dtype)).sum()


def mind_ssc(image: Tensor, radius: int = 2, dilation: int = 2) -> Tensor:
    """Describe every voxel by how alike the patches around it are to each other.

    Patches are centred on the face neighbours of the voxel; each pair that is not opposite gives a
    channel ``exp(-(D - min D) / V)``, with D the pair's mean squared difference and V the mean of D over
    the channels, kept within 1e-3 and 1e3 times its mean over the image (Heinrich et al., MICCAI 2013,
    eq. 2-3). At the border the image repeats its edge.

    Args:
        image: (B, C, *S) with 2 or 3 spatial dims.
        radius: of the patches in voxels.
        dilation: distance of the neighbours in voxels.

    Returns:
        (B, C, K, *S), K = 12 in 3D and 4 in 2D, values in (0, 1], float32 or wider.
    """
    d = image.ndim - 2
    size = image.shape[2:]
    x = image.to(torch.promote_types(image.dtype, torch.float32)).flatten(0, 1)[:, None]
    padded = F.pad(x, [dilation] * (2 * d), mode="replicate")
    neighbours = [
        _crop(padded, [offset if a == axis else dilation for a in range(d)], size)
        for axis in range(d)
        for offset in (0, 2 * dilation)
    ]
    pairs = [(p, q) for p, q in combinations(range(2 * d), 2) if p // 2 != q // 2]
    squares = torch.cat([(neighbours[p] - neighbours[q]).square() for p, q in pairs], dim=1)
    window = 2 * radius + 1
    distance = _box_sum(squares, window) * _inverse_counts(squares, window)
    variance = distance.mean(dim=1, keepdim=True)
    level = variance.detach().mean(dim=tuple(range(1, variance.ndim)), keepdim=True)
    # A constant image has no variance at all; any positive number serves there.
    variance = variance.clamp(1e-3 * level, 1e3 * level).clamp_min(1e-12)
    descriptor = torch.exp((distance.amin(dim=1, keepdim=True) - distance) / variance)
    return descriptor.unflatten(0, image.shape[:2])


def _mean_local_ncc(x: Tensor, y: Tensor, weight: Tensor, window: int, eps: float) -> Tensor:
    """Return the weighted sum of the squared local correlation: by the Triton kernels, where they serve."""
    differentiate = torch.is_grad_enabled()
    if not _kernels_take(x):
        mean: Tensor = _MeanLocalNCC.apply(x, y, weight, window, eps, differentiate)
        return mean
    full = weight if weight.ndim > 0 else weight.view([1] * x.ndim)
    wanted = [differentiate and image.requires_grad for image in (x, y)]
    tensors = [tensor.contiguous() for tensor in (x, y, full)]
    return torch.ops.registration.local_ncc(*tensors, window, eps, *wanted)[0].sum()


def _kernels_take(image: Tensor) -> bool:
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    counts = 0 < image.numel() < 2**31 // 5  # five sums a voxel lie in one tensor, counted in 32 bits
    return not recorded and counts and warp_backend(image.device.type).name == "triton"


class _MeanLocalNCC(torch.autograd.Function):
    """Weighted sum of the squared local correlation, and its gradient to the images that need it."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, weight: Tensor, window: int, eps: float, differentiate: bool
    ) -> Tensor:
        # Sums of squares about zero cancel when intensities are far from it (CT in HU, float32).
        dims = tuple(range(2, pred.ndim))
        x, y = (image - image.mean(dim=dims, keepdim=True) for image in (pred, target))
        inverse_counts = _inverse_counts(x, window)
        sum_x, sum_y = _box_sum(x, window), _box_sum(y, window)
        mean_x, mean_y = sum_x * inverse_counts, sum_y * inverse_counts
        var_x, flat_x = _variance(x, sum_x, mean_x, window)
        var_y, flat_y = _variance(y, sum_y, mean_y, window)
        cross = _box_sum(x * y, window).addcmul_(sum_x, mean_y, value=-1).masked_fill_(flat_x | flat_y, 0.0)
        ratio = cross / torch.addcmul(torch.full_like(cross, eps), var_x, var_y)
        value = (cross * ratio * weight).sum()

        needs = [differentiate and need for need in ctx.needs_input_grad[:2]]
        gradients: list[Tensor | None] = [None, None]
        if any(needs):
            on_cross = 2.0 * weight * ratio
            on_var = on_cross * ratio
            summed = _box_sum(on_cross, window)
            if needs[0]:
                gradients[0] = _gradient(x, y, mean_x, mean_y, on_cross, on_var * var_y, summed, window)
            if needs[1]:
                gradients[1] = _gradient(y, x, mean_y, mean_x, on_cross, on_var * var_x, summed, window)
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else grad * g for g in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _variance(x: Tensor, sum_x: Tensor, mean_x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Return the windowed sum of squares about the mean, and where it is nothing but rounding."""
    power = _box_sum(x * x, window)
    variance = torch.addcmul(power, sum_x, mean_x, value=-1)
    flat = variance <= power.mul_(16 * torch.finfo(x.dtype).eps)
    return variance.masked_fill_(flat, 0.0), flat


def _gradient(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, on_cross: Tensor, on_var: Tensor, summed: Tensor, window: int
) -> Tensor:
    """Gradient to ``x``, from ``d cross / d x = y - mean_y`` and ``d var / d x = 2 (x - mean_x)`` per window.

    A zero-padded box sum is its own adjoint. The mean over the image that was taken off ``x`` adds
    nothing, because the value does not change with a constant.
    """
    offsets = _box_sum((on_cross * mean_y).addcmul_(on_var, mean_x, value=-1), window)
    return torch.addcmul(offsets.neg_(), y, summed).addcmul_(x, _box_sum(on_var, window), value=-1)


def _box_sum(x: Tensor, window: int) -> Tensor:
    """Sum (B, C, *S) over a centred window of odd edge length, zero outside the volume.

    Sums over 1, 2, 4, ... voxels come from adding shifted copies; those that make up ``window`` in binary
    are put together (9 = 8 + 1).
    """
    radius = window // 2
    for dim in range(2, x.ndim):
        n = x.shape[dim]
        part = F.pad(x, [0, 0] * (x.ndim - 1 - dim) + [radius, radius])
        total, start, width = part.narrow(dim, 0, n), 1, 1
        while width * 2 <= window:
            length = part.shape[dim] - width
            part = part.narrow(dim, 0, length) + part.narrow(dim, width, length)
            width *= 2
            if window & width:
                total = total + part.narrow(dim, start, n)
                start += width
        x = total
    return x


def _crop(x: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    for dim, (first, n) in enumerate(zip(start, size, strict=True), start=2):
        x = x.narrow(dim, first, n)
    return x


def _inverse_counts(x: Tensor, window: int) -> Tensor:
    """One over the number of in-volume voxels in each window, (*S)."""
    radius = window // 2
    counts = x.new_ones(())
    for n in x.shape[2:]:
        index = torch.arange(n, device=x.device)
        along = (index + radius).clamp_max(n - 1) - (index - radius).clamp_min(0) + 1
        counts = counts[..., None] / along.to(x.dtype)
    return counts


def _weight(mask: Tensor | None, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Mask over its sum, so that weights add up to one over (B, C, *S), or all are zero."""
    if mask is None:
        return torch.full((), 1.0 / image.numel(), dtype=dtype, device=image.device)
    weight = mask.detach().to(dtype)
    total = weight.sum() * (image.shape[1] / mask.shape[1])
    return weight * torch.where(total > 0, 1.0 / total, 0.0)


def _check_images(pred: Tensor, target: Tensor, mask: Tensor | None) -> None:
    if pred.ndim not in (4, 5) or pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have one shape (B, C, *S) with 2 or 3 spatial dims, "
            f"got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if mask is not None and mask.shape not in (pred.shape, (pred.shape[0], 1, *pred.shape[2:])):
        raise ValueError(f"mask must be (B, 1, *S) or as the images {tuple(pred.shape)}, got {tuple(mask.shape)}")
