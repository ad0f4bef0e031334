"""A continual trainer so small that a test can run it many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import SAMCL, Strategy
from bundles.samcl.scripts.trainer import ContinualTrainer
from tests import tiny


def make_network(channels: int = 2) -> LKUNet:
    """Return a network whose head is awake, so that every weight gets a gradient at once."""
    torch.manual_seed(0)
    network = LKUNet(3, channels=channels, depth=1)
    torch.nn.init.normal_(network.head.conv.weight, std=0.05)
    return network


def make_trainer(run_dir: Path, strategy: Strategy | None = None, **options: Any) -> ContinualTrainer:
    """Return a trainer on the CPU; every option can be overridden."""
    options = {"loss_function": RegistrationObjective(window=3, steps=2), **options}
    network = options.pop("network", None) or make_network()
    strategy = strategy or SAMCL(ReservoirMemory(3))
    return tiny.make_trainer(run_dir, ContinualTrainer, network=network, strategy=strategy, **options)
