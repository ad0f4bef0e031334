"""A cascade so small that a test can train it many times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bundles.dccnn_lstm_reg.scripts.engine import CascadeTrainer
from bundles.dccnn_lstm_reg.scripts.objective import SymmetricObjective
from shared.networks import SymmetricCascade
from tests import tiny


def make_network(**options: Any) -> SymmetricCascade:
    """Return a cascade of two scales that is the same at every call."""
    torch.manual_seed(0)
    return SymmetricCascade(**{"levels": 2, "widths": 4, "hidden": 4, "steps_per_level": 1, **options})


def make_trainer(run_dir: Path, **options: Any) -> CascadeTrainer:
    """Return a trainer on the CPU; every option can be overridden."""
    options = {"loss_function": SymmetricObjective(windows=(3,)), **options}
    network = options.pop("network", None) or make_network()
    return tiny.make_trainer(run_dir, CascadeTrainer, network=network, **options)
