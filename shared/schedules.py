"""Learning rate schedules of a run: which objects are any, and what is written down of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .checkpoint import plain
from .errors import InputError

__all__ = ["check_scheduler", "schedule_settings"]


# What torch's schedulers count with: no setting, and not the same in every version of torch.
_COUNTERS = ("_get_lr_called_within_step", "_is_initial", "_last_lr", "_step_count")


def check_scheduler(scheduler: Any) -> None:
    """Raise InputError unless ``scheduler`` is None or can be stepped and saved as torch's, without a metric."""
    verbs = ("step", "state_dict", "load_state_dict")
    usable = not isinstance(scheduler, type) and all(callable(getattr(scheduler, verb, None)) for verb in verbs)
    if scheduler is not None and not usable:
        raise InputError(f"scheduler: found {scheduler!r}, expected None or a torch learning rate scheduler")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InputError(
            "scheduler: found ReduceLROnPlateau, which asks for a metric at each step, expected one that needs none; "
            "MONAI's LrScheduleHandler among the handlers gives it one"
        )


def schedule_settings(scheduler: Any) -> dict[str, Any]:
    """Return what decides a schedule, for a run's record: its class and the plain values of its state.

    Of functions (``LambdaLR``) nothing can be told, and other objects are left out.

    Args:
        scheduler: as constructed, not stepped yet.
    """
    if scheduler is None:
        return {"class": None}
    return {"class": type(scheduler).__name__, **_values(plain(scheduler.state_dict()))}


def _values(content: Any) -> Any:
    """Return nested containers with what JSON can hold, tensors as numbers."""
    if isinstance(content, Tensor):
        return content.tolist()
    if isinstance(content, Mapping):
        return {str(k): _values(v) for k, v in content.items() if k not in _COUNTERS and _is_told(v)}
    if isinstance(content, (list, tuple)):
        return [_values(v) for v in content if _is_told(v)]
    return content


def _is_told(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, Tensor, Mapping, list, tuple))
