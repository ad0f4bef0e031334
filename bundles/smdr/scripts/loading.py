"""Generators from files: as they are, or made ready for a new site."""

from __future__ import annotations

from pathlib import Path

from .diffusion import SiteDiffusion, read_generator

__all__ = ["load_generator", "prepare_generator"]


def load_generator(path: str | Path) -> SiteDiffusion:
    """Return the generator that a file holds, on the CPU; nothing else need be known of it.

    Args:
        path: a file, or the run_dir of a generator.

    Raises:
        InputError: unreadable, or no generator.
    """
    architecture, _ = read_generator(path)
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
