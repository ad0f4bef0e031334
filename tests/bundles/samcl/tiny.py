"""A trainer so small that a test can run it many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import SAMCL, Strategy
from bundles.samcl.scripts.trainer import ContinualTrainer

SIZE = 8


class TinyPairs(torch.utils.data.Dataset):
    """Six smooth random pairs with a label."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        knots = torch.rand(6, 2, 4, 4, 4, generator=generator)
        self.images = torch.nn.functional.interpolate(knots, size=(SIZE,) * 3, mode="trilinear", align_corners=True)
        self.pairs = [{"fixed_image": f"f{seed}_{i}", "moving_image": f"m{seed}_{i}"} for i in range(6)]

    def settings(self) -> dict[str, Any]:
        return {"pairs": str(self.pairs)}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        moving, fixed = self.images[index][:1], self.images[index][1:]
        ones = torch.ones(1, SIZE, SIZE, SIZE, dtype=torch.uint8)
        return {
            "moving_image": moving,
            "fixed_image": fixed,
            "moving_mask": ones,
            "fixed_mask": ones,
            "moving_label": (moving > 0.5).to(torch.int16),
            "fixed_label": (fixed > 0.5).to(torch.int16),
            "labels": [1],
            "task": "tiny",
            "pair": self.pairs[index],
        }


def make_network(channels: int = 2) -> LKUNet:
    """Return a network whose head is awake, so that every weight gets a gradient at once."""
    torch.manual_seed(0)
    network = LKUNet(3, channels=channels, depth=1)
    torch.nn.init.normal_(network.head.conv.weight, std=0.05)
    return network


def make_trainer(run_dir: Path, strategy: Strategy | None = None, **options: Any) -> ContinualTrainer:
    """Return a trainer on the CPU; every option can be overridden."""
    network = options.pop("network", None) or make_network()
    optimizer = options.pop("optimizer", None) or torch.optim.Adam(network.parameters(), lr=1e-3)
    defaults: dict[str, Any] = {
        "device": torch.device("cpu"),
        "loss_function": RegistrationObjective(window=3, steps=2),
        "dataset": TinyPairs(),
        "batch_size": 2,
        "max_epochs": 2,
        "epoch_length": 2,
        "task": "tiny",
    }
    return ContinualTrainer(
        network=network,
        optimizer=optimizer,
        strategy=strategy or SAMCL(ReservoirMemory(3)),
        run_dir=run_dir,
        **{**defaults, **options},
    )


def weights(trainer: ContinualTrainer) -> dict[str, torch.Tensor]:
    """Return a copy of the trainer's weights."""
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
