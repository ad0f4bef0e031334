"""A generator's architecture as plain options: what fits together, and the schedules of noise that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from shared.errors import InputError

__all__ = ["PREDICTIONS", "check_architecture", "ddim_scheduler", "training_scheduler"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")
_MOST_SIGNAL = 0.05  # of the image's variance that may be left where sampling begins with noise alone


def check_architecture(options: Mapping[str, Any]) -> None:
    """Check that options of a ``SiteDiffusion`` fit each other.

    Raises:
        InputError: they do not.
    """
    features, attention = options["features"], options["attention"]
    if options["conditioning"] not in ("prompt", "film"):
        raise InputError(f"found conditioning {options['conditioning']!r}, expected prompt or film")
    if options["prediction"] not in PREDICTIONS:
        raise InputError(f"found prediction {options['prediction']!r}, expected one of: {', '.join(PREDICTIONS)}")
    if len(features) != len(attention) or not any(attention):
        raise InputError(
            f"found features {features} with attention {attention}, expected as many of each, and one level or more "
            "with attention: there the prompt enters"
        )
    patch = options["patch"]
    if patch < 1:
        raise InputError(f"found patch {patch}, expected 1 or more pixels")
    divisor = patch * 2 ** (len(features) - 1)
    if any(size % divisor for size in options["image_size"]):
        pixels = f" of patches of {patch} pixels" if patch > 1 else ""
        raise InputError(
            f"found image_size {options['image_size']}, expected multiples of {divisor}: features has "
            f"{len(features)} levels{pixels}"
        )
    groups, head = options["norm_groups"], options["head_channels"]
    for width, attends in zip(features, attention, strict=True):
        if width % groups or (attends and width % head):
            raise InputError(
                f"found a level of {width} features, expected a multiple of norm_groups ({groups}) and, with "
                f"attention, of head_channels ({head})"
            )


def training_scheduler(options: Mapping[str, Any]) -> DDPMScheduler:
    """Return the scheduler that adds noise (Ho, NeurIPS 2020).

    Raises:
        InputError: its last step leaves much of the image, while sampling begins with noise alone.
    """
    scheduler = _scheduler(DDPMScheduler, options)
    left = float(scheduler.alphas_cumprod[-1])
    if left > _MOST_SIGNAL:
        raise InputError(
            f"found a schedule {options['schedule']} that leaves {left:.0%} of the image at its end; expected noise: "
            "more timesteps, larger betas, or schedule cosine"
        )
    return scheduler


def ddim_scheduler(options: Mapping[str, Any], steps: int) -> DDIMScheduler:
    """Return the scheduler of deterministic sampling (Song, ICLR 2021) in so many steps.

    MONAI spreads its timesteps differently from version to version, while the size of a step is T // steps in all.
    Here they lie T // steps apart and begin at the last, where an image is noise, so that the noise which the network
    is told is the noise that is there.

    Raises:
        InputError: steps does not divide T.
    """
    total = options["timesteps"]
    if steps < 1 or total % steps:
        raise InputError(f"found {steps} sampling steps, expected a number that divides timesteps, {total}")
    scheduler = _scheduler(DDIMScheduler, options)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.arange(total - 1, -1, -(total // steps))
    return scheduler


def _scheduler(kind: type, options: Mapping[str, Any]) -> Any:
    return kind(
        num_train_timesteps=options["timesteps"],
        schedule=options["schedule"],
        prediction_type=options["prediction"],
        **options["schedule_options"],
    )
