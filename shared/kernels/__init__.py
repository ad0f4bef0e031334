"""Compiled kernels behind :mod:`shared.warp`, and which of them is in use."""

from .backend import Choice, warp_backend

__all__ = ["Choice", "warp_backend"]
