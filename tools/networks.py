"""A bundle's trained network, built by its own ``inference.json``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from shared.errors import InputError, did_you_mean
from shared.register import NetworkField

from .plan import ROOT

__all__ = ["load_network", "registering_bundles"]


def registering_bundles() -> list[str]:
    """Return the bundles whose inference registers files."""
    configs = sorted((ROOT / "bundles").glob("*/configs/inference.json"))
    return [path.parents[1].name for path in configs if "register_files" in path.read_text()]


@contextmanager
def _scripts_of(folder: Path) -> Iterator[None]:
    """Let ``import scripts`` mean one bundle's: all of them call their code so."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "scripts"}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.modules.update(before)


def load_network(bundle: str, model: str | None, device: str) -> NetworkField:
    """Build a bundle's network and load its weights.

    Args:
        bundle: its name.
        model: weights; None takes the bundle's own, ``models/model.pt``.
        device: to put it on.

    Raises:
        InputError: an unknown bundle, no weights, or those of another architecture.
    """
    known = registering_bundles()
    if bundle not in known:
        raise InputError(
            f"found the bundle '{bundle}'{did_you_mean(bundle, [*known, 'none'])}, expected none or one of "
            f"{', '.join(known)}"
        )
    folder = ROOT / "bundles" / bundle
    weights = Path(model) if model is not None else folder / "models" / "model.pt"
    if not weights.is_file():
        raise InputError(f"{weights}: no such weights for {bundle}; train it, name a file by --model, or --bundle none")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.update({"device": torch.device(device), "model": str(weights)})
    with _scripts_of(folder):
        network, inferer = (parser.get_parsed_content(name) for name in ("network", "pair_inferer"))
        parser.get_parsed_content("inference#1")
        size, spacing, window = (parser.get_parsed_content(k) for k in ("spatial_size", "spacing_mm", "ct_window"))
    network.eval()

    def predict(pair: Tensor) -> Tensor:
        return inferer(pair, network)["ddf"]

    return NetworkField(predict, tuple(size), spacing, window, bundle)
