"""Words of the command line: file names stay text, unknown flags are told with a near miss, warnings are lines."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shared.errors import InputError, did_you_mean

__all__ = ["check_flags", "literal_flags", "plain_warnings"]


def literal_flags(
    arguments: list[str], paths: Collection[str], short: Mapping[str, str] | None = None, repeated: str = ""
) -> list[str]:
    """Rewrite the flags that name files as Python literals, a repeated one as one list.

    Left to itself, fire keeps the last of several equal flags, and takes file names for numbers or comments.

    Args:
        arguments: of the command line; ``--flag value`` and ``--flag=value`` count.
        paths: the flags that name files.
        short: other spellings, as ``{"-t": "transform"}``.
        repeated: the flag that may come several times.

    Raises:
        InputError: a flag without its value, or several times.
    """
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    waiting = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = (short or {}).get(name, name.removeprefix("--"))
        if waiting and not argument.startswith("--"):
            values.setdefault(waiting, []).append(argument)
            waiting = ""
        elif waiting:
            break
        elif argument.startswith("-") and flag in paths:
            if equals:
                values.setdefault(flag, []).append(value)
            waiting = "" if equals else flag
        else:
            kept.append(argument)
    if waiting:
        raise InputError(f"found --{waiting} without a value, expected a file after it")
    again = [flag for flag, found in values.items() if flag != repeated and len(found) > 1]
    if again:
        raise InputError(f"found --{again[0]} {len(values[again[0]])} times, expected it once")
    return [*kept, *(f"--{f}={found if f == repeated else repr(found[0])}" for f, found in values.items())]


def check_flags(arguments: list[str], command: Callable[..., Any]) -> None:
    """Raise InputError where a ``--flag`` is none of the command's, naming the nearest one, or where one is missing.

    Args:
        arguments: of the command line, without the command.
        command: whose parameters are the flags.
    """
    every = inspect.signature(command).parameters
    parameters = {name: p for name, p in every.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    given = [a[2:].partition("=")[0].replace("-", "_") for a in arguments if a.startswith("--") and len(a) > 2]
    for flag in given:
        if flag not in parameters and flag.removeprefix("no") not in parameters:
            raise InputError(
                f"found the option --{flag}{did_you_mean(flag, parameters)}, expected some of "
                f"{', '.join(f'--{name}' for name in parameters)}"
            )
    needed = [name for name, p in parameters.items() if p.default is p.empty]
    missing = [name for name in needed if name not in given]
    if missing:
        listed = ", ".join(f"--{name}" for name in needed)
        raise InputError(f"found no --{missing[0]}, expected {listed}; --help tells all options")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings for the user as plain lines on stderr, every one of them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        sys.stderr.write(f"warning: {message}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
