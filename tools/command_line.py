"""Command lines of what trains, reports or packs: names of files and plans stay text, numbers are numbers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shared.errors import InputError

from .flags import check_flags, literal_flags

__all__ = ["check_foreign_flags", "plain_arguments", "whole_number"]

# Flags whose values name files, folders, plans and places.
PATHS = ("plan", "out", "dataset_dir", "bundle", "verify", "schema", "large_files_url", "repo", "version")
# As fire tells flags from values, negative numbers among them.
_FLAG = re.compile(r"--|-[a-zA-Z]")


def plain_arguments(arguments: Sequence[str], command: Callable[..., Any]) -> list[str]:
    """Return the arguments of a command with names as Python literals; fire takes "5" and "x#1" for other things.

    Args:
        arguments: of the command line, without the command.
        command: a flag that it does not know is an error, unless it takes any.

    Raises:
        InputError: an unknown flag, with the nearest one; a name without its value, or given twice.
    """
    parameters = inspect.signature(command).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        check_flags(list(arguments), command, words=True)
    return list(_literal_names(literal_flags(list(arguments), PATHS)))


def _literal_names(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments; those that belong to no flag name plans, folders or bundles."""
    waits = False
    for argument in arguments:
        is_flag = _FLAG.match(argument) is not None
        yield argument if is_flag or waits else repr(argument)
        waits = is_flag and "=" not in argument


def check_foreign_flags(changes: Mapping[str, Any], command: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Raise InputError where one of the ``changes`` of a command is a flag of the other command alone."""
    own, known = ([f"--{name}" for name in inspect.signature(c).parameters] for c in (command, other))
    for name in changes:
        if f"--{name}" in known:
            expected = ", ".join(flag for flag in own if flag != "--changes")
            raise InputError(
                f"found --{name}, an option of {other.__name__} alone; {command.__name__} takes {expected}, keys of a "
                "plan and options of the bundle's training"
            )


def whole_number(name: str, value: Any, least: int) -> int | None:
    """Return a whole number from ``least`` on, or None.

    Raises:
        InputError: anything else.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise InputError(f"found --{name} {value!r}, expected a whole number from {least} on")
    return value
