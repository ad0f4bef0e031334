"""A generator and a site so small that a test can train and sample them many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundles.smdr.scripts.generator_trainer import GeneratorTrainer, parameter_groups
from shared.diffusion import DenoisingLoss, SiteDiffusion
from tests.tiny_diffusion import SIZE, known_of_site, make_generator

__all__ = ["SIZE", "TinySite", "known_of_site", "make_generator", "make_trainer"]


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
