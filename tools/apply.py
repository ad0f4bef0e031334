"""The command line of ``python -m tools apply``: repeated flags, warnings as lines, the result in words."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from shared.apply import apply_files
from shared.errors import InputError

__all__ = ["apply_transforms", "described", "listed_transforms", "literal_flags"]


_PATHS = ("transform", "reference", "out", "input", "onto")


def literal_flags(arguments: list[str]) -> list[str]:
    """Rewrite the flags that name files as Python literals, a repeated ``--transform`` as one list of them.

    Left to itself, fire keeps the last of several equal flags, and takes file names for numbers or comments.

    Args:
        arguments: of the command line; ``--flag value``, ``--flag=value``, ``-t value`` and ``-r value`` count.
    """
    kept: list[str] = []
    values: dict[str, list[str]] = {}
    waiting = ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = {"-t": "transform", "-r": "reference"}.get(name, name.removeprefix("--"))
        if waiting and not argument.startswith("--"):
            values.setdefault(waiting, []).append(argument)
            waiting = ""
        elif waiting:
            break
        elif argument.startswith("-") and flag in _PATHS:
            if equals:
                values.setdefault(flag, []).append(value)
            waiting = "" if equals else flag
        else:
            kept.append(argument)
    if waiting:
        raise InputError(f"found --{waiting} without a value, expected a file after it")
    again = [flag for flag, found in values.items() if flag != "transform" and len(found) > 1]
    if again:
        raise InputError(f"found --{again[0]} {len(values[again[0]])} times, expected it once")
    return [*kept, *(f"--{f}={found if f == 'transform' else repr(found[0])}" for f, found in values.items())]


def listed_transforms(values: str | Sequence[str]) -> list[tuple[str, bool]]:
    """Turn the values of ``--transform`` into (file, inverted) pairs.

    A value is a file, a list ``[a,b]``, or one file to invert as ANTs writes it, ``[a,1]``. A name with a comma goes in
    a value of its own, or in double quotes in a list.
    """
    found: list[tuple[str, bool]] = []
    for value in [values] if isinstance(values, str) else values:
        word = str(value).strip()
        if not (word.startswith("[") and word.endswith("]")):
            found.append((word, False))
            continue
        (names,) = csv.reader([word[1:-1]], skipinitialspace=True)
        names = [name.strip().strip("'") for name in names if name.strip()]
        if len(names) == 2 and names[1] in ("0", "1"):
            found.append((names[0], names[1] == "1"))
        else:
            found += [(name, False) for name in names]
    return found


def apply_transforms(*arguments: Any) -> dict[str, Any]:
    """Call :func:`shared.apply.apply_files`, with warnings as plain lines on stderr."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        sys.stderr.write(f"warning: {message}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        return apply_files(*arguments)


def described(result: dict[str, Any]) -> str:
    """Return what was done, in a line or two."""
    lines = []
    if "residual_mm" in result:
        lines.append(f"inverse: off by at most {result['residual_mm']:.3g} mm")
    if "covered" in result:
        lines.append(f"{result['covered']:.1%} of the reference's voxels come from the input")
    if "points" in result:
        outside = result["points_outside"]
        beyond = f", {outside} of them outside the reference image (kept)" if outside else ""
        lines.append(f"{result['points']} points carried{beyond}")
    return "\n".join([*lines, f"written: {result['out']}"])
