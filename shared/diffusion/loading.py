"""Generators from files: as they are, or made ready for a new site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import InputError
from .site_diffusion import SiteDiffusion, read_generator

__all__ = ["first_or_later", "load_generator", "prepare_generator"]

Value = TypeVar("Value")


def first_or_later(init_from: str | Path | None, first: Value, later: Value) -> Value:
    """Return an option for a first site where there is no generator to start from, else the one for later sites."""
    return first if init_from is None else later


def load_generator(path: str | Path, image_shape: Sequence[int] | None = None) -> SiteDiffusion:
    """Return the generator that a file holds, on the CPU; nothing else need be known of it.

    Args:
        path: a file, or the run_dir of a generator.
        image_shape: (C, *S) that its images must have: what the segmenter takes. None takes any.

    Raises:
        InputError: unreadable, no generator, or one of other images.
    """
    architecture, _ = read_generator(path)
    found = (architecture["channels"], *architecture["image_size"])
    if image_shape is not None and found != tuple(image_shape):
        raise InputError(f"{path}: found a generator of images {found}, expected {tuple(image_shape)}: the segmenter's")
    generator = SiteDiffusion(**architecture)
    generator.load_file(path)
    return generator


def prepare_generator(
    generator: SiteDiffusion, site: str, init_from: str | Path | None = None, later_sites: str = "prompt"
) -> SiteDiffusion:
    """Return the generator ready to learn a new site: earlier sites loaded, this one added, the rest frozen.

    Args:
        generator: without sites.
        site: to learn.
        init_from: run_dir of the generator of the previous site, or its weights; None where this is the first.
        later_sites: see ``SiteDiffusion.learn_only``.

    Raises:
        InputError: ``init_from`` does not fit, or knows the site already.
    """
    if init_from is not None:
        generator.load_file(init_from)
    generator.add_site(site)
    generator.learn_only(site, later_sites)
    return generator
