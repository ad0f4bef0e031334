"""Words of the command line: file names stay text, unknown flags are told with a near miss, warnings are lines."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shared.errors import InputError, did_you_mean

__all__ = ["check_flags", "json_words", "literal_flags", "plain_warnings"]

JSON_WORDS = {"true": True, "false": False, "null": None}


def json_words(value: Any) -> Any:
    """Return a value of the command line with JSON's ``true``, ``false`` and ``null`` as what they mean.

    Fire knows Python's spelling and takes these for text; the plans and configs that they come from are JSON.

    Args:
        value: plain containers, nested as they may be.
    """
    if isinstance(value, Mapping):
        return {key: json_words(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_words(v) for v in value]
    return JSON_WORDS.get(value, value) if isinstance(value, str) else value


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


def _named(arguments: list[str], parameters: Mapping[str, inspect.Parameter], words: bool) -> list[str]:
    """Return the flags of a command line without their dashes; unless ``words``, what else stands must be a value."""
    given: list[str] = []
    takes = False
    for argument in arguments:
        if not re.match("-[A-Za-z]|--.", argument):
            if not takes and not words:
                raise InputError(f"found the word {argument!r} that belongs to no option, expected --option value")
            takes = False
            continue
        name, equals, _ = argument.partition("=")
        flag = name.removeprefix("--").replace("-", "_") if name.startswith("--") else name
        if flag not in parameters and flag.removeprefix("no") not in parameters:
            raise InputError(
                f"found the option {name}{did_you_mean(flag, parameters)}, expected some of "
                f"{', '.join(f'--{known}' for known in parameters)}"
            )
        given.append(flag)
        # A switch stands alone: the word after it is none of its own.
        takes = not equals and flag in parameters and not isinstance(parameters[flag].default, bool)
    return given


def check_flags(arguments: list[str], command: Callable[..., Any], words: bool = False) -> None:
    """Raise InputError where words are none of the command's flags with their values, or where a flag is missing.

    Left to itself, fire runs the command first and stumbles over what is left afterwards.

    Args:
        arguments: of the command line, without the command.
        command: whose parameters are the flags.
        words: it takes words without a flag as well: folders, or the name of a plan.
    """
    parameters = {
        name: p
        for name, p in inspect.signature(command).parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    given = _named(arguments, parameters, words)
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
