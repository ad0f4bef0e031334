"""Compiled kernels behind :mod:`shared.warp` and the losses, and which of them is in use.

On the CPU in C++: warping, scaling and squaring, the Dice overlap of warped maps, joint histograms for mutual
information. On CUDA in Triton: the same, joint histograms in single precision only, and local cross-correlation.
"""

from .backend import Choice, warp_backend

__all__ = ["Choice", "warp_backend"]
