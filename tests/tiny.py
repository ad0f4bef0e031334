"""A registration so small that a test can train it many times: pairs, network, objective, trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events

from shared.losses import prepare_sample
from shared.trainer import RegistrationTrainer
from shared.warp import warp

SIZE = 8


class Killed(BaseException):
    """Like a kill, nothing in the code may catch it."""


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


class TinyNetwork(torch.nn.Module):
    """Fields of two scales; called, it returns the finer one alone."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Conv3d(2, channels, 3, padding=1), torch.nn.PReLU())
        self.coarse, self.fine = (torch.nn.Conv3d(channels, 3, 3, padding=1) for _ in range(2))
        self.scale = 1.0

    def settings(self) -> dict[str, float]:
        return {"scale": self.scale}

    def fields(self, image: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Return the fields of both scales, nested as a network may nest them."""
        features = self.encoder(image)
        coarse = self.coarse(F.avg_pool3d(features, 2))
        finer = 2 * F.interpolate(coarse, scale_factor=2.0, mode="trilinear", align_corners=True)
        return {"fields": [coarse, self.scale * (finer + self.fine(features))]}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fields(image)["fields"][-1]


class TinyObjective(torch.nn.Module):
    """Squared difference after warping, and small fields; takes a field or fields of all scales."""

    def __init__(self, smoothness: float = 0.1) -> None:
        super().__init__()
        self.smoothness = smoothness

    def extra_repr(self) -> str:
        return f"smoothness={self.smoothness}"

    def prepare(self, sample: dict[str, Any], device: torch.device) -> dict[str, Any]:
        return prepare_sample(sample, device)

    def forward(self, output: Any, samples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fields = output["fields"] if isinstance(output, dict) else [output]
        moving, fixed = (torch.stack([s[f"{side}_image"] for s in samples]) for side in ("moving", "fixed"))
        similarity = F.mse_loss(warp(moving, fields[-1].float()), fixed)
        small = torch.stack([field.square().mean() for field in fields]).sum()
        loss = similarity + self.smoothness * small
        return loss, {"similarity": similarity.detach(), "small": small.detach()}


def make_network(channels: int = 2) -> TinyNetwork:
    """Return a network that is the same at every call."""
    torch.manual_seed(0)
    return TinyNetwork(channels)


def make_trainer(run_dir: Path, kind: type[RegistrationTrainer] = RegistrationTrainer, **options: Any) -> Any:
    """Return a trainer on the CPU; every option can be overridden."""
    network = options.pop("network", None) or make_network()
    optimizer = options.pop("optimizer", None) or torch.optim.Adam(network.parameters(), lr=1e-3)
    defaults: dict[str, Any] = {
        "device": torch.device("cpu"),
        "loss_function": TinyObjective(),
        "dataset": TinyPairs(),
        "batch_size": 2,
        "max_epochs": 2,
        "epoch_length": 2,
        "task": "tiny",
    }
    return kind(network=network, optimizer=optimizer, run_dir=run_dir, **{**defaults, **options})


def kill_at(trainer: RegistrationTrainer, iteration: int) -> None:
    """Run a trainer until it dies at the end of an iteration."""

    def stop(engine: Engine) -> None:
        if engine.state.iteration == iteration:
            raise Killed

    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    with pytest.raises(Killed):
        trainer.run()


def weights(trainer: RegistrationTrainer) -> dict[str, torch.Tensor]:
    """Return a copy of the trainer's weights."""
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
