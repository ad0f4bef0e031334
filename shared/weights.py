"""Weights of a network: behind its wrapper, and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .errors import InputError
from .files import load_tensors

__all__ = ["load_weights", "network_settings", "trainable", "unwrap"]


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel``, or the network itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in unwrap(network).named_parameters() if p.requires_grad}


def network_settings(network: nn.Module) -> dict[str, Any]:
    """Return what decides a network's output beside its weights: class, layers, and what its ``settings`` tells."""
    network = unwrap(network)
    describe = getattr(network, "settings", dict)
    return {"class": type(network).__name__, "layers": str(network), **describe()}


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load ``model.pt`` strictly; a module's own extra state, if any, is its own to check.

    Raises:
        InputError: unreadable, or weights of another architecture; the first differences are named.
    """
    weights = load_tensors(path)
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise InputError(f"{path}: holds a {type(weights).__name__} of other things; expected a dict of tensors")
    expected = unwrap(network).state_dict()
    differences = [
        f"{k}: found {tuple(weights[k].shape) if k in weights else 'nothing'}, "
        f"expected {tuple(expected[k].shape) if k in expected else 'nothing'}"
        for k in sorted({*weights, *expected})
        if k not in weights or k not in expected or not (weights[k].shape == expected[k].shape or _is_extra(k))
    ]
    if differences:
        raise InputError(
            f"{path}: holds a model of another architecture ({len(differences)} tensors differ; {differences[0]})"
        )
    unwrap(network).load_state_dict(weights)


def _is_extra(key: str) -> bool:
    """Whether an entry is what a module's ``get_extra_state`` returned: its size may differ between equal modules."""
    return key.rpartition(".")[2] == "_extra_state"
