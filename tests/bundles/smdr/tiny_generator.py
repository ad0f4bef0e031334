"""A generator and a site so small that a test can train and sample them many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundles.smdr.scripts.denoising import DenoisingLoss
from bundles.smdr.scripts.diffusion import SiteDiffusion
from bundles.smdr.scripts.generator_trainer import GeneratorTrainer, parameter_groups

SIZE = 8


class TinySite(torch.utils.data.Dataset):
    """Six images of a bright square on a darker ground; a site is a pair of grey values."""

    def __init__(self, outside: float = 0.2, inside: float = 0.8, channels: int = 1, spatial_dims: int = 2) -> None:
        self.values = (outside, inside)
        self.samples = []
        for shift in range(6):
            label = torch.zeros(1, *[SIZE] * spatial_dims, dtype=torch.int16)
            rows, columns = 1 + shift % 3, 1 + shift // 3
            label[:, rows : rows + 4, columns : columns + 4] = 1
            image = torch.where(label > 0, inside, outside).repeat(channels, *[1] * spatial_dims)
            self.samples.append({"image": image.float(), "label": label})

    def settings(self) -> dict[str, Any]:
        return {"values": str(self.values)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.samples[index]


def make_generator(site: str | None = "first", **options: Any) -> SiteDiffusion:
    """Return a generator, the same at every call, whose last layer is awake: an untrained one finds no noise at all."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "image_size": SIZE,
        "features": (8, 8),
        "attention": (False, True),
        "head_channels": 8,
        "tokens": 3,
        "token_size": 12,
        "pretended": 0,
        "timesteps": 10,
        "schedule": "cosine",
    }
    generator = SiteDiffusion(**{**defaults, **options})
    for name, parameter in generator.denoiser.named_parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1 if name.startswith("out.") else 0.05)
    if site is not None:
        generator.add_site(site, known_of_site())
    return generator


def known_of_site() -> dict[str, Any]:
    """Return statistics under which any label passes."""
    return {"images": 6, "empty": 0.5, "area": [0.0, 1.0], "intensity": [0.4, 0.3]}


def make_trainer(run_dir: Path, generator: SiteDiffusion, site: str = "first", **options: Any) -> GeneratorTrainer:
    """Return a trainer on the CPU; every option can be overridden."""
    defaults: dict[str, Any] = {
        "device": torch.device("cpu"),
        "loss_function": DenoisingLoss(),
        "dataset": TinySite(),
        "batch_size": 2,
        "max_epochs": 2,
        "epoch_length": 2,
        "average_decay": 0.9,
        "optimizer": torch.optim.AdamW(parameter_groups(generator, 1e-3, 1e-2)),
    }
    return GeneratorTrainer(network=generator, site=site, run_dir=run_dir, **{**defaults, **options})
