"""The command line of ``python -m tools apply``: repeated flags, warnings as lines, the result in words."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from shared.apply import apply_files
from shared.errors import InputError

from .flags import literal_flags, plain_warnings

__all__ = ["apply_transforms", "check_frame", "described", "file_flags", "listed_transforms"]

_PATHS = ("transform", "reference", "out", "input", "onto")


def file_flags(arguments: list[str]) -> list[str]:
    """Return the arguments of ``apply`` with files as literals; see :func:`tools.flags.literal_flags`."""
    return literal_flags(arguments, _PATHS, {"-t": "transform", "-r": "reference"}, "transform")


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


def check_frame(frame: Any) -> None:
    """Raise InputError unless a frame is a whole number from 0, or None."""
    if frame is not None and (isinstance(frame, bool) or not isinstance(frame, int) or frame < 0):
        raise InputError(f"found --frame {frame}, expected a whole number from 0")


def apply_transforms(*arguments: Any) -> dict[str, Any]:
    """Call :func:`shared.apply.apply_files`, with warnings as plain lines on stderr."""
    with plain_warnings():
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
