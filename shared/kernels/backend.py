"""Which code warps and sums, and why: the environment variable ``WARP_BACKEND`` chooses, :func:`warp_backend` tells."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

from torch import Tensor

from .build import BuildError, library
from .operators import use_library, use_triton

__all__ = ["Choice", "usable", "warp_backend"]

VARIABLE = "WARP_BACKEND"
WANTED = ("auto", "torch", "compiled")


class Choice(NamedTuple):
    """The backend in use, ``torch``, ``cpp`` or ``triton``, and the reason in words."""

    name: str
    reason: str


def warp_backend(device: str = "cpu") -> Choice:
    """Return what warps on a type of device; builds the CPU kernels at the first call where they are wanted.

    It also says what computes the losses that have kernels.

    ``WARP_BACKEND=torch`` is ``grid_sample``; ``compiled`` the kernels in C++ on the CPU and in
    Triton on CUDA; ``auto``, the default, the kernels where they can be had.

    Args:
        device: type of device, as in ``torch.device(...).type``.

    Raises:
        ValueError: another value of the variable.
        RuntimeError: ``compiled`` was asked for and is not to be had.
    """
    return _choose(os.environ.get(VARIABLE, "auto").strip().lower() or "auto", device)


@cache
def _choose(wanted: str, device: str) -> Choice:
    if wanted not in WANTED:
        raise ValueError(f"found {VARIABLE}={wanted}, expected one of {', '.join(WANTED)}")
    if wanted == "torch":
        return Choice("torch", f"{VARIABLE}=torch")
    choice = {"cpu": _cpp, "cuda": _triton}.get(device, _none)(device)
    if wanted == "compiled" and choice.name == "torch":
        raise RuntimeError(f"found {VARIABLE}=compiled, but {choice.reason}")
    return choice


def _cpp(device: str) -> Choice:
    try:
        path = library()
    except BuildError as error:
        return Choice("torch", f"the kernels cannot be built: {error}")
    use_library(path)
    return Choice("cpp", f"compiled kernels ({path})")


def _triton(device: str) -> Choice:
    try:
        use_triton()
    except ImportError as error:
        return Choice("torch", f"Triton cannot be imported: {error}")
    return Choice("triton", "Triton kernels")


def _none(device: str) -> Choice:
    return Choice("torch", f"there are no kernels for {device}")


def usable(image: Tensor, field: Tensor) -> bool:
    """Whether kernels serve these tensors, of one floating dtype: image axes of 2 to 2^22 voxels, nothing empty."""
    size, device = image.shape[2:], image.device.type
    fits = min(size) > 1 and max(size) < 2**22 and size.numel() < 2**31 and field.numel() > 0 and image.numel() > 0
    return fits and image.device == field.device and warp_backend(device).name != "torch"
