"""The one exception that users meet for bad input, and its short form on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType

__all__ = ["InputError", "report_input_errors"]


class InputError(ValueError):
    """Something that the user handed over cannot be used: says which file, what was found, what is expected."""


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
