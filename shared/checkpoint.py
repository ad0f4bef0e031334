"""States of other people's objects for a checkpoint: optimizers, schedulers, handlers of MONAI and ignite."""

from __future__ import annotations

import copy
import io
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["handler_states", "plain", "restore_handlers", "tensor_bytes"]


def plain(content: Any) -> Any:
    """Return nested containers with numpy's numbers as Python's, and dicts without their functions.

    Schedulers have both: a schedule that calls numpy leaves its number in the optimizer as learning rate, and ignite
    hooks a method of its own into torch's ``ReduceLROnPlateau``. ``torch.load(weights_only=True)`` refuses either.
    """
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, dict):
        kept = copy.copy(content)  # of the same type: MultiStepLR counts its milestones in a Counter
        kept.clear()
        kept.update({k: plain(v) for k, v in content.items() if not callable(v)})
        return kept
    if type(content) in (list, tuple):
        return type(content)(plain(v) for v in content)
    return content


def tensor_bytes(content: Any) -> int:
    """Return the bytes of all tensors in nested plain containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(tensor_bytes(v) for v in content.values())
    return sum(tensor_bytes(v) for v in content) if isinstance(content, (list, tuple)) else 0


def handler_states(handlers: Iterable[Any]) -> dict[str, Any]:
    """Return the state of every handler that keeps one, ready for `restore_handlers`.

    These are handlers with ``state_dict`` and ``load_state_dict`` (ignite's parameter schedulers), and MONAI's
    ``LrScheduleHandler``, whose torch scheduler keeps it. A state that a checkpoint cannot hold is left out with a
    warning.
    """
    states = {}
    for name, holder in _holders(handlers).items():
        state = plain(holder.state_dict())
        if _is_readable(state):
            states[name] = state
        else:
            warnings.warn(
                f"{name}: its state holds more than tensors and plain containers, so a resumed run starts it afresh",
                stacklevel=2,
            )
    return states


def restore_handlers(handlers: Iterable[Any], states: dict[str, Any]) -> None:
    """Give handlers back their states; one that has none among ``states`` stays as it is."""
    for name, holder in _holders(handlers).items():
        if name in states:
            holder.load_state_dict(states[name])


def _holders(handlers: Iterable[Any]) -> dict[str, Any]:
    """Return what keeps the handlers' states, by class and place among those of its class: others may come and go."""
    found: dict[str, Any] = {}
    places: Counter[str] = Counter()
    seen: set[int] = set()
    for handler in handlers:
        for holder in (handler, getattr(handler, "lr_scheduler", None)):
            if all(callable(getattr(holder, verb, None)) for verb in ("state_dict", "load_state_dict")):
                if id(holder) not in seen:
                    kind = type(handler).__name__
                    found[f"{kind} {places[kind]}"] = holder
                    places[kind] += 1
                    seen.add(id(holder))
                break
    return found


def _is_readable(state: Any) -> bool:
    """Whether `load_tensors` reads what `save_tensors` would write."""
    stream = io.BytesIO()
    try:
        torch.save(state, stream)
        stream.seek(0)
        torch.load(stream, weights_only=True)
    except Exception:
        return False
    return True
