"""Which code warps, and why: the environment variable ``WARP_BACKEND`` chooses, :func:`warp_backend` tells."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

from torch import Tensor

from .build import BuildError, library

__all__ = ["Choice", "usable", "warp_backend"]

VARIABLE = "WARP_BACKEND"
BACKENDS = ("auto", "torch", "cpp")


class Choice(NamedTuple):
    """The backend in use, ``torch`` or ``cpp``, and the reason in words."""

    name: str
    reason: str


def warp_backend() -> Choice:
    """Return the backend of warps on the CPU; builds the kernels at the first call where they are wanted.

    ``WARP_BACKEND=torch`` is ``grid_sample``; ``cpp`` the compiled kernels of ``warp_cpu.cpp``; ``auto``, the default,
    the kernels where they can be built. Elsewhere than on the CPU ``grid_sample`` warps.

    Raises:
        ValueError: another name.
        RuntimeError: ``cpp`` was asked for and cannot be built.
    """
    return _choose(os.environ.get(VARIABLE, "auto").strip().lower() or "auto")


@cache
def _choose(wanted: str) -> Choice:
    if wanted not in BACKENDS:
        raise ValueError(f"found {VARIABLE}={wanted}, expected one of {', '.join(BACKENDS)}")
    if wanted == "torch":
        return Choice("torch", f"{VARIABLE}=torch")
    try:
        path = library()
        from .operators import load

        load(path)
    except BuildError as error:
        if wanted == "cpp":
            raise RuntimeError(f"found {VARIABLE}=cpp, but the kernels cannot be built: {error}") from error
        return Choice("torch", f"the compiled kernels cannot be built: {error}")
    return Choice("cpp", f"compiled kernels ({path})")


def usable(image: Tensor, field: Tensor) -> bool:
    """Whether the compiled kernels serve these tensors, of one floating dtype: on the CPU, axes of 2 to 2^22 voxels."""
    size = image.shape[2:]
    fits = min(size) > 1 and max(size) < 2**22 and size.numel() < 2**31 and field.numel() > 0 and image.numel() > 0
    return fits and image.device.type == field.device.type == "cpu" and warp_backend().name == "cpp"
