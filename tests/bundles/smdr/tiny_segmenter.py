"""A segmenter and its trainer so small that a test can train it many times; replay sets that no generator drew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss

from bundles.smdr.scripts.augmentation import SliceAugmentation
from bundles.smdr.scripts.network import SliceUNet
from bundles.smdr.scripts.replay import INDEX, ReplayDataset
from bundles.smdr.scripts.strategies import SMDR
from bundles.smdr.scripts.trainer import SegmenterTrainer
from shared.continual import Strategy
from shared.files import save_json
from shared.hashes import hash_of_file
from tests import tiny
from tests.bundles.smdr.tiny_generator import TinySite

BRIGHT, DARK = TinySite(0.2, 0.8), TinySite(0.7, 0.3)


def make_network(seed: int = 0, **options: Any) -> SliceUNet:
    torch.manual_seed(seed)
    return SliceUNet(**{"slices": 1, "widths": (4, 8), "residual_units": 0, **options})


def make_trainer(run_dir: Path, strategy: Strategy | None = None, **options: Any) -> SegmenterTrainer:
    """Return a trainer on the CPU; every option can be overridden."""
    defaults: dict[str, Any] = {
        "loss_function": DiceCELoss(to_onehot_y=True, softmax=True),
        "dataset": BRIGHT,
        "task": "bright",
        "batch_size": 4,
        "augmentation": SliceAugmentation(),
        "network": make_network(),
    }
    strategy = strategy or SMDR(ReplayDataset([]))
    return tiny.make_trainer(run_dir, SegmenterTrainer, strategy=strategy, **{**defaults, **options})


def sgd(lr: float = 0.1, **options: Any) -> dict[str, Any]:
    """Return options whose step is the gradient itself."""
    network = make_network()
    return {"network": network, "optimizer": torch.optim.SGD(network.parameters(), lr=lr), **options}


def write_set(folder: Path, site: str, dataset: Sequence[dict[str, torch.Tensor]] = BRIGHT, **changes: Any) -> Path:
    """Write a complete replay set of given samples."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(len(dataset)):
        path = folder / f"sample_{number:07d}.npz"
        image, label = dataset[number]["image"].half().numpy(), dataset[number]["label"].to(torch.uint8).numpy()
        np.savez_compressed(path, image=image, label=label)
        scores = {"confidence": 1.0, "area": 0.25}
        samples.append({"file": path.name, "number": number, "sha256": hash_of_file(path), **scores})
    settings = {"site": site, "count": len(samples)}
    counts = {"complete": True, "drawn": len(samples), "dropped": {}}
    save_json(folder / INDEX, {"format": 1, "settings": settings, **counts, "samples": samples, **changes})
    return folder
