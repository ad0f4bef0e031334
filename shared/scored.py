"""Scores that a folder holds already: taken where they belong to what is asked for, made again where they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .files import read_json, save_json
from .hashes import hash_of_weights
from .settings import differences
from .weights import network_settings, unwrap

__all__ = ["holds_scores", "record_scores", "scores_of"]


# Of an inferer's attributes, what is written down: options, not the objects that are made of them.
_PLAIN = (bool, int, float, str, list, tuple)


def scores_of(network: nn.Module, inferer: Callable, **asked: Any) -> dict[str, Any]:
    """Return what decides scores: a network's weights and options, the inferer's, and what else is asked for."""
    options = {name: value for name, value in getattr(inferer, "__dict__", {}).items() if isinstance(value, _PLAIN)}
    return {
        "weights": hash_of_weights(unwrap(network).state_dict()),
        "network": network_settings(network),
        "inferer": {"class": type(inferer).__name__, **options},
        **asked,
    }


def holds_scores(folder: Path, settings: dict[str, Any]) -> bool:
    """Return whether a folder holds the scores of these settings; says so where they are of others.

    Args:
        folder: of ``evaluation_summary.json``.
        settings: of :func:`scores_of`.
    """
    if not (folder / "evaluation_summary.json").is_file():
        return False
    record = folder / "evaluation_settings.json"
    changed = differences(read_json(record), settings, limit=3) if record.is_file() else "they are not noted down"
    if changed:
        print(f"{folder}: the scores there are of other settings ({changed}): they are made again", flush=True)
        # Gone before the new scores are there: those of a killed evaluation must not pass for the old ones.
        record.unlink(missing_ok=True)
    return not changed


def record_scores(folder: Path, settings: dict[str, Any]) -> None:
    """Note down what the scores in a folder are of."""
    save_json(folder / "evaluation_settings.json", settings)
