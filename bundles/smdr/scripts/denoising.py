"""The generator at work: the loss that teaches it, images drawn from it, and how images and labels become channels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.inferers import DiffusionInferer
from torch import Tensor, nn

from shared.errors import InputError
from shared.weights import unwrap

from .architecture import ddim_scheduler
from .diffusion import SiteDiffusion

__all__ = ["DenoisingLoss", "draw_samples", "from_channels", "sample_seed", "to_channels"]


_MOST = 20.0  # weight of an image's error: where there is hardly any noise, nothing is left to be learnt


class DenoisingLoss(nn.Module):
    """The error of what a generator finds in noisy images, at random times (Ho, NeurIPS 2020).

    Args:
        norm: "l2" or "l1".
        min_snr: None, or the gamma of min-SNR weighting (Hang, ICCV 2023; 5 there): times at which the image is hardly
            noisy count less.

    Raises:
        ValueError: another norm, or a gamma that is not above zero.
    """

    def __init__(self, norm: str = "l2", min_snr: float | None = None) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f"found norm {norm!r}, expected l1 or l2")
        if min_snr is not None and not min_snr > 0:
            raise ValueError(f"found min_snr {min_snr}, expected null or a number above 0")
        self.norm, self.min_snr = norm, min_snr

    def extra_repr(self) -> str:
        """Return the options in words."""
        return f"norm={self.norm}, min_snr={self.min_snr}"

    def weight(self, generator: SiteDiffusion, timesteps: Tensor) -> Tensor:
        """Return the weight (B,) of each time: with gamma, min(SNR, gamma) of the error in the clean image.

        Without it an error counts as it is; one of the image as that of its velocity, up to a limit.
        """
        kept = generator.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        ratio = kept / (1 - kept)
        # An error e of the noise is an error e / sqrt(SNR) of the image, one of the velocity e / sqrt(SNR + 1).
        to_image = {"epsilon": ratio, "v_prediction": ratio + 1, "sample": torch.ones_like(ratio)}
        if self.min_snr is not None:
            return ratio.clamp(max=self.min_snr) / to_image[generator.architecture["prediction"]]
        return (ratio + 1).clamp(max=_MOST) if generator.architecture["prediction"] == "sample" else to_image["sample"]

    def forward(self, network: nn.Module, clean: Tensor, numbers: Tensor, random: torch.Generator) -> Tensor:
        """Return the loss, a scalar.

        Args:
            network: a :class:`SiteDiffusion`, may be wrapped in ``DistributedDataParallel``.
            clean: (B, channels + label_channels, *S) in [-1, 1].
            numbers: (B,) of the images' sites.
            random: draws times and noise, on the CPU, so that all devices see the same.
        """
        generator = unwrap(network)
        scheduler = generator.scheduler
        timesteps = torch.randint(scheduler.num_train_timesteps, (len(clean),), generator=random).to(clean.device)
        noise = torch.randn(clean.shape, generator=random).to(clean.device)
        found = DiffusionInferer(scheduler)(clean, network, noise, timesteps, condition=numbers).float()
        target = {"epsilon": noise, "sample": clean}.get(generator.architecture["prediction"])
        target = scheduler.get_velocity(clean, noise, timesteps) if target is None else target
        error = (F.l1_loss if self.norm == "l1" else F.mse_loss)(found, target, reduction="none")
        return (self.weight(generator, timesteps) * error.flatten(1).mean(1)).mean()


def sample_seed(seed: int, site: str, number: int) -> int:
    """Return the seed of one sample: the same whenever and however many are drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{site}/{number}".encode()).digest()[:7], "big")


@torch.no_grad()
def draw_samples(generator: SiteDiffusion, site: str, seeds: Sequence[int], steps: int = 50) -> Tensor:
    """Draw one sample a seed by DDIM, without noise on the way: the seed alone decides a sample.

    On one machine, the bits are the same for the same seeds in the same batch.

    Args:
        generator: on the device that computes; its mode (train or eval) does not matter, it has no dropout.
        site: one that it knows.
        seeds: one a sample.
        steps: a divisor of the generator's timesteps.

    Returns:
        (B, channels + label_channels, *S) in [-1, 1], on that device.

    Raises:
        InputError: an unknown site, or steps that do not divide the timesteps.
    """
    shape = (generator.architecture["channels"] + generator.architecture["label_channels"],)
    shape += tuple(generator.architecture["image_size"])
    noise = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    device = next(generator.denoiser.parameters()).device
    numbers = torch.full((len(seeds),), generator.number(site), device=device)
    scheduler = ddim_scheduler(generator.architecture, steps)
    inferer = DiffusionInferer(scheduler)
    return inferer.sample(noise.to(device), generator, scheduler, conditioning=numbers, verbose=False).clamp(-1, 1)


def to_channels(generator: SiteDiffusion, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return what the generator learns: images, and with ``label_channels`` one channel more for each foreground class.

    Args:
        generator: decides which images fit.
        images: (B, channels, *S) in [0, 1].
        labels: (B, 1, *S) of classes 0 (background), 1, 2 ...; needed with ``label_channels`` only.

    Returns:
        (B, channels + label_channels, *S) in [-1, 1]; a label's channel is 1 inside and -1 outside.

    Raises:
        InputError: another image size or number of channels, labels missing, or a class too many.
    """
    options = generator.architecture
    expected = (options["channels"], *options["image_size"])
    if tuple(images.shape[1:]) != expected:
        raise InputError(
            f"found images of {tuple(images.shape[1:])}, expected {expected}: what the generator generates"
        )
    classes = options["label_channels"]
    if not classes:
        return 2 * images - 1
    if labels is None:
        raise InputError(f"found images without labels, expected labels: the generator draws {classes} along")
    if int(labels.max()) > classes:
        raise InputError(f"found label {int(labels.max())}, expected at most {classes}: the generator's label_channels")
    inside = torch.cat([labels == c for c in range(1, classes + 1)], dim=1)
    return 2 * torch.cat([images, inside.to(images.dtype)], dim=1) - 1


def from_channels(generator: SiteDiffusion, channels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Take apart what the generator drew.

    Returns:
        images (B, channels, *S) in [0, 1]; and None, or probabilities (B, 1 + label_channels, *S) with the background
        first, as far as the label channels are from their two ends.
    """
    count = generator.architecture["channels"]
    images = (channels[:, :count] + 1) / 2
    if not generator.architecture["label_channels"]:
        return images, None
    inside = (channels[:, count:] + 1) / 2
    outside = 1 - inside.amax(1, keepdim=True)
    scores = torch.cat([outside, inside], dim=1)
    return images, scores / scores.sum(1, keepdim=True)
