"""The one exception that users meet for bad input, and its short form on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches
from types import TracebackType
from typing import Any

__all__ = ["InputError", "check_bools", "did_you_mean", "report_input_errors"]


class InputError(ValueError):
    """Something that the user handed over cannot be used: says which file, what was found, what is expected."""


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the known name nearest to ``found``, or "" where none is near."""
    near = get_close_matches(found, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def check_bools(**options: Any) -> None:
    """Raise InputError where an option that is on or off is neither True nor False.

    A command line reads ``--option false`` as text, and text that is not empty counts as true.

    Args:
        options: values by name.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise InputError(f"{name}: found {value!r}, expected True or False")


def report_input_errors() -> None:
    """End a command-line run on bad input with the message alone, and exit code 1.

    MONAI wraps every exception of a config in its own; the wrapped traceback of an :class:`InputError` tells a
    user nothing. Any other exception keeps its traceback.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (InputError, KeyboardInterrupt)):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, InputError):
            sys.stderr.write(f"\nerror: {cause}\n")
        else:
            previous(kind, error, trace)

    sys.excepthook = hook
