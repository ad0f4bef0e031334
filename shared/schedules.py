"""Learning rate schedules of a run: which objects are any."""

from __future__ import annotations

from typing import Any

from .errors import InputError

__all__ = ["check_scheduler"]


def check_scheduler(scheduler: Any) -> None:
    """Raise InputError unless ``scheduler`` is None or can be stepped and saved as torch's schedulers can."""
    verbs = ("step", "state_dict", "load_state_dict")
    usable = not isinstance(scheduler, type) and all(callable(getattr(scheduler, verb, None)) for verb in verbs)
    if scheduler is not None and not usable:
        raise InputError(f"scheduler: found {scheduler!r}, expected None or a torch learning rate scheduler")
