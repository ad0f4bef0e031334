"""Scale and shift of normalised features, site by site, inside a network that knows nothing of sites."""

from __future__ import annotations

from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from torch import Tensor, nn

__all__ = ["SiteNorm", "insert_site_norms", "modulate"]


class SiteNorm(nn.Module):
    """A normalisation whose output is scaled by ``1 + scale`` and shifted, each of its channels (Perez, AAAI 2018).

    Args:
        norm: gives (B, C, *S); it stays as it is, under the name ``norm``.
        channels: C.
    """

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        self.norm, self.channels = norm, channels
        self.scale_and_shift: Tensor | None = None  # (B, 2 C), set by :func:`modulate` for one pass

    def forward(self, features: Tensor) -> Tensor:
        """Return the modulated features; without :func:`modulate` the normalised ones."""
        features = self.norm(features)
        if self.scale_and_shift is None:
            return features
        shape = (-1, self.channels, *[1] * (features.ndim - 2))
        scale, shift = (part.reshape(shape).to(features.dtype) for part in self.scale_and_shift.chunk(2, dim=1))
        return features * (1 + scale) + shift


def insert_site_norms(denoiser: nn.Module) -> int:
    """Put a :class:`SiteNorm` around the second norm of every residual block: there the time of the noise has entered.

    Args:
        denoiser: a ``DiffusionModelUNet``, changed in place.

    Returns:
        how many numbers a site's modulation holds: two for each channel of each block.
    """
    size = 0
    for block in [m for m in denoiser.modules() if isinstance(m, DiffusionUNetResnetBlock)]:
        block.norm2 = SiteNorm(block.norm2, block.out_channels)
        size += 2 * block.out_channels
    return size


def modulate(denoiser: nn.Module, values: Tensor | None) -> None:
    """Set what the next pass is modulated by.

    Args:
        denoiser: of :func:`insert_site_norms`.
        values: (B, size); zeros change nothing; None takes the modulation away.
    """
    norms = [m for m in denoiser.modules() if isinstance(m, SiteNorm)]
    parts = [None] * len(norms) if values is None else values.split([2 * norm.channels for norm in norms], dim=1)
    for norm, part in zip(norms, parts, strict=True):
        norm.scale_and_shift = part
