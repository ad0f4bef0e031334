"""Image similarities with exact gradients for a compositive update.

Each takes the displacement of a level and returns a loss and its gradient to a small displacement ``v`` that is put
before it, ``ddf <- v + ddf(x + v)``: the loss' gradient to the warped image times the slope of the warped image.

**Masks.** A voxel weighs ``fixed weight(x) * moving weight(x + ddf(x))``: the intersection of both masks and of the
moving image's field of view, the moving mask carried along as the field changes. The loss is the weighted mean, and no
gradient flows to the weights, so that content cannot lower the loss by leaving the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.similarity import LocalNCCLoss, mind_ssc
from ..warp import warp

__all__ = ["MINDSSC", "LocalNCC", "MutualInformation", "Similarity", "slopes"]


class Similarity:
    """What the similarities share: the images of one level.

    Args:
        fixed: (1, C, *S) image or features.
        moving: (1, C, *P) of a lattice that is ``margin`` voxels larger at each end.
        fixed_weight: (1, 1, *S), not negative.
        moving_weight: (1, 1, *P).
        margin: of the moving lattice, per axis.
    """

    def __init__(
        self, fixed: Tensor, moving: Tensor, fixed_weight: Tensor, moving_weight: Tensor, margin: Sequence[int]
    ) -> None:
        self.fixed = fixed
        self.fixed_weight = fixed_weight
        # One sampling serves image and weight.
        self.moving = torch.cat([moving, moving_weight], dim=1)
        # Filled, not copied from the host.
        self.shift = torch.stack([fixed.new_full((), float(m)) for m in margin]).view(1, -1, *[1] * (fixed.ndim - 2))

    def warped(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moving image or features under ``ddf`` (1, d, *S), and the weight of each voxel."""
        sampled = warp(self.moving, ddf + self.shift, padding_mode="border")
        return sampled[:, :-1], sampled[:, -1:] * self.fixed_weight

    def surroundings(self, width: int) -> tuple[Tensor, Tensor]:
        """Return the moving image or features and their weight on the fixed lattice, ``width`` voxels wider."""
        size = self.fixed.shape[2:]
        margin = [(p - n) // 2 for p, n in zip(self.moving.shape[2:], size, strict=True)]
        # Cut where the margin is wider, repeated where it is narrower; the repeated edge weighs nothing.
        moving = self.moving
        for dim, m in enumerate(margin, start=2):
            n = moving.shape[dim]
            index = torch.arange(m - width, n - m + width, device=moving.device).clamp_(0, n - 1)
            moving = moving.index_select(dim, index)
        return moving[:, :-1], moving[:, -1:]

    def __call__(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar on the device, and its gradient (1, d, *S)."""
        raise NotImplementedError


class LocalNCC(Similarity):
    """`LocalNCCLoss`: one minus the squared local correlation."""

    loss = LocalNCCLoss(window=7)

    def __call__(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (1, d, *S)."""
        image, weight = self.warped(ddf)
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            value = self.loss(leaf, self.fixed, weight)
            (on_image,) = torch.autograd.grad(value, leaf)
        return value.detach(), torch.cat([on_image * slope for slope in slopes(image)], dim=1)


class MINDSSC(Similarity):
    """Mean squared difference of self-similarity contexts, described once a level and warped as they are.

    That leaves out how a descriptor turns with the image, which the next level makes up for. Patches of the moving
    image that reach over its field of view are not trusted: its weight is cut back by one voxel. Both images are
    described with the same margin, as what is flat to a descriptor depends on all that it sees.
    """

    def __init__(
        self, fixed: Tensor, moving: Tensor, fixed_weight: Tensor, moving_weight: Tensor, margin: Sequence[int]
    ) -> None:
        wide = F.pad(fixed, [m for m in reversed(margin) for _ in range(2)], mode="replicate")
        features = [mind_ssc(image, radius=1, dilation=1)[:, 0] for image in (wide, moving)]
        for dim, (m, n) in enumerate(zip(margin, fixed.shape[2:], strict=True), start=2):
            features[0] = features[0].narrow(dim, m, n)
        super().__init__(features[0].contiguous(), features[1], fixed_weight, _eroded(moving_weight), margin)

    def __call__(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (1, d, *S)."""
        features, weight = self.warped(ddf)
        difference = features - self.fixed
        share = weight / (weight.sum().clamp_min(1e-6) * features.shape[1])
        weighted = difference * share
        value = (difference * weighted).sum()
        gradient = [2.0 * torch.sum(weighted * slope, dim=1, keepdim=True) for slope in slopes(features)]
        return value, torch.cat(gradient, dim=1)


class MutualInformation(Similarity):
    """Negative mutual information of a Parzen histogram, after Mattes et al., TMI 2003.

    Hat kernel for the fixed, cubic B-spline for the moving image; both in [0, 1].
    """

    bins = 32

    def __init__(
        self, fixed: Tensor, moving: Tensor, fixed_weight: Tensor, moving_weight: Tensor, margin: Sequence[int]
    ) -> None:
        super().__init__(fixed, moving, fixed_weight, moving_weight, margin)
        self.centres = torch.arange(self.bins, dtype=self.fixed.dtype, device=self.fixed.device)
        self.fixed_kernel = (1 - (self._distance(self.fixed)).abs()).clamp_min_(0)

    def _distance(self, image: Tensor) -> Tensor:
        """Distance (N, bins) of each voxel to each bin; the outermost bins are left free for the kernel's width."""
        return (image.flatten()[:, None] * (self.bins - 5) + 2.0) - self.centres

    def information(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negative mutual information of a warped image in nats, and its gradient to the image."""
        x = self._distance(image)
        a = x.abs()
        near, tail = a < 1, (2 - a).clamp_min(0)
        kernel = torch.where(near, (4 - 6 * a * a + 3 * a**3) / 6, tail**3 / 6)
        slope = torch.where(near, (1.5 * a - 2) * x, -0.5 * torch.sign(x) * tail * tail)
        share = (weight / weight.sum().clamp_min(1e-6)).flatten()[:, None]
        joint = (self.fixed_kernel * share).T @ kernel
        gain = torch.log((joint + 1e-12) / (joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True) + 1e-12))
        on_image = ((self.fixed_kernel @ gain) * slope).sum(1, keepdim=True) * share * (self.bins - 5)
        return -(joint * gain).sum(), -on_image.view_as(image)

    def __call__(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (1, d, *S)."""
        image, weight = self.warped(ddf)
        value, on_image = self.information(image, weight)
        return value, torch.cat([on_image * slope for slope in slopes(image)], dim=1)


def slopes(image: Tensor) -> list[Tensor]:
    """Return the central differences of (1, C, *S) along each axis; zero at the two ends."""
    gradients = []
    for dim in range(2, image.ndim):
        n = image.shape[dim]
        gradient = torch.zeros_like(image)
        if n > 2:
            inner = gradient.narrow(dim, 1, n - 2)
            torch.sub(image.narrow(dim, 2, n - 2), image.narrow(dim, 0, n - 2), out=inner)
            inner.mul_(0.5)
        gradients.append(gradient)
    return gradients


def _eroded(weight: Tensor) -> Tensor:
    """Take one voxel off a weight, the outside counting as zero; thin axes are left alone."""
    d = weight.ndim - 2
    for dim in range(2, weight.ndim):
        if weight.shape[dim] > 8:
            pad = [0, 0] * d
            pad[2 * (d + 1 - dim)] = pad[2 * (d + 1 - dim) + 1] = 1
            shifted = F.pad(weight, pad)
            n = weight.shape[dim]
            weight = torch.minimum(torch.minimum(shifted.narrow(dim, 0, n), weight), shifted.narrow(dim, 2, n))
    return weight
