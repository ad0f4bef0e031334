"""A generator so small that a test can train and sample it many times."""

from __future__ import annotations

from typing import Any

import torch

from shared.diffusion import SiteDiffusion

SIZE = 8


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
