"""Contrasts that no scanner has, shown along with the first site, so that a prompt comes to mean something.

A denoiser that has only ever seen one prompt has no reason to heed it: frozen after the first site, it hardly follows
another. Our remedy: some of the first site's images are shown in one of a fixed number of made-up contrasts, each with
a prompt of its own, a pretended site. Later sites find a denoiser that knows how prompts change contrast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shared.diffusion import SiteDiffusion

__all__ = ["contrast", "pretend"]


def contrast(images: Tensor, number: int) -> Tensor:
    """Return images in a pretended site's contrast: a range within [0, 1] that may be turned over, and a gamma.

    Args:
        images: any shape, in [0, 1].
        number: of the pretended site, from 0; it alone decides the contrast.
    """
    width, low, gamma, turned = torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist()
    width = 0.25 + 0.75 * width
    low *= 1 - width
    curve = images.clamp(0, 1) ** (4 ** (gamma - 0.5))
    return low + width * (1 - curve if turned < 0.5 else curve)


def pretend(
    generator: SiteDiffusion, images: Tensor, numbers: Tensor, random: torch.Generator, share: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Show some images as those of pretended sites, while the denoiser learns its first site; later change nothing.

    Args:
        generator: whose pretended sites they are.
        images: (B, C, *S) in [0, 1].
        numbers: (B,) of the images' sites.
        random: decides which images, and which pretended sites; on the CPU.
        share: of the images, in the mean.

    Returns:
        images and numbers; a pretended site's is below zero.
    """
    count = generator.architecture["pretended"]
    if not count or not generator.pretended.requires_grad:
        return images, numbers
    shown = torch.rand(len(images), generator=random) < share
    sites = torch.randint(count, (len(images),), generator=random)
    images, numbers = images.clone(), numbers.clone()
    for index in shown.nonzero().flatten().tolist():
        images[index] = contrast(images[index], int(sites[index]))
        numbers[index] = -1 - sites[index]
    return images, numbers
