"""How near a site's generated images are to its real ones, with MONAI's metrics and features that need no download.

Features: a convolutional network of fixed random weights by default. Distances in the features of random networks rank
generators sensibly, also outside natural images (Naeem et al., ICML 2020); they are the same for all sites and runs,
while a segmenter's features change with its training and were made to ignore what differs between sites. Values of FID
compare with values of the same features only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.metrics import FIDMetric, MMDMetric, MultiScaleSSIMMetric
from torch import Tensor, nn

from shared.errors import InputError

__all__ = ["RandomFeatures", "diversity", "sample_quality"]

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Asilomar 2003
_KERNEL = 7


class RandomFeatures(nn.Module):
    """Mean of every channel of strided convolutions with fixed random weights: (B, C, *S) in [0, 1] to (B, F).

    Args:
        channels: C.
        spatial_dims: 2 or 3.
        widths: channels of the layers; F is their sum.
        seed: of the weights.
    """

    def __init__(
        self, channels: int = 1, spatial_dims: int = 2, widths: tuple[int, ...] = (8, 16, 24), seed: int = 0
    ) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        kind = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.layers = nn.ModuleList()
        for width in widths:
            layer = nn.utils.skip_init(kind, channels, width, 3, stride=2, padding=1)
            with torch.no_grad():
                fan = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * (2 / fan) ** 0.5)
                layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=random))
            self.layers.append(layer)
            channels = width
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        found, images = [], 2 * images - 1
        for layer in self.layers:
            images = F.leaky_relu(layer(images), 0.2)
            found.append(images.flatten(2).mean(2))
        return torch.cat(found, dim=1)


def sample_quality(
    samples: Tensor,
    real: Tensor,
    features: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, float]:
    """Return figures of a set of samples against real images of the same site.

    ``fid`` (Heusel, NeurIPS 2017) and ``mmd`` (Gretton, JMLR 2012, linear kernel) compare features, each scaled to unit
    deviation over the real images; 0 is the same distribution. ``fid_of_real`` is that of one half of the real images
    against the other: what chance gives with half as many. ``ms_ssim`` is the likeness of two samples, and
    ``ms_ssim_of_real`` that of two real images: much higher ones of samples say that the generator repeats itself.

    Args:
        samples: (N, C, *S) in [0, 1].
        real: (M, C, *S), better held out than trained on.
        features: takes (B, C, *S), returns (B, F); None takes :class:`RandomFeatures`.
        seed: of halves and pairs.
        batch_size: images at a time.

    Raises:
        InputError: sizes differ, or there are not more images than features.
    """
    if samples.shape[1:] != real.shape[1:]:
        raise InputError(f"found samples of {tuple(samples.shape[1:])}, expected {tuple(real.shape[1:])} as real ones")
    if features is None:
        features = RandomFeatures(samples.shape[1], samples.ndim - 2).to(samples.device)
    random = torch.Generator().manual_seed(seed)
    found, known = (torch.cat([features(part).double().cpu() for part in x.split(batch_size)]) for x in (samples, real))
    if min(len(found), len(known) // 2) <= known.shape[1]:
        raise InputError(
            f"found {len(found)} samples and {len(known)} real images, expected more than {known.shape[1]}, the number "
            "of features, and twice as many real ones: fewer have no covariance to compare"
        )
    centre, scale = known.mean(0), known.std(0).clamp(min=1e-6)
    found, known = (found - centre) / scale, (known - centre) / scale
    shuffled = known[torch.randperm(len(known), generator=random)]
    half, count = len(known) // 2, min(len(found), len(known))
    fid = FIDMetric()
    return {
        "fid": round(float(fid(found, known)), 4),
        "fid_of_real": round(float(fid(shuffled[:half], shuffled[half:])), 4),
        "mmd": round(float(MMDMetric()(shuffled[:count], found[:count])), 4),
        "ms_ssim": round(diversity(samples, random), 4),
        "ms_ssim_of_real": round(diversity(real, random), 4),
    }


def diversity(images: Tensor, random: torch.Generator, pairs: int = 200) -> float:
    """Return the mean MS-SSIM of pairs of different images: high where all look alike.

    Small images have fewer scales than the usual five, so values compare between sets of one size only.

    Args:
        images: (B, C, *S) in [0, 1].
        random: draws the pairs.
        pairs: how many.

    Raises:
        InputError: fewer than two images, or images of fewer than 8 voxels along an axis.
    """
    if len(images) < 2 or min(images.shape[2:]) <= _KERNEL:
        raise InputError(
            f"found {len(images)} images of {tuple(images.shape[2:])}, expected two or more of over {_KERNEL} voxels "
            "an axis"
        )
    smallest = min(images.shape[2:])
    fits = [n for n in range(1, 6) if smallest // max(1, n - 1) ** 2 >= _KERNEL and smallest >> (n - 1) >= _KERNEL]
    weights = _SCALE_WEIGHTS[: max(fits)]
    first = torch.randint(len(images), (pairs,), generator=random)
    second = (first + torch.randint(1, len(images), (pairs,), generator=random)) % len(images)
    metric = MultiScaleSSIMMetric(
        images.ndim - 2, kernel_size=_KERNEL, weights=[w / sum(weights) for w in weights], reduction="mean"
    )
    for a, b in zip(first.split(50), second.split(50), strict=True):
        metric(images[a], images[b])
    return float(metric.aggregate())
