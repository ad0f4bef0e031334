"""Networks and parts of networks that more than one bundle uses."""

from .cascade import SymmetricCascade
from .convolution import Conv3
from .pyramid import FeaturePyramid

__all__ = ["Conv3", "FeaturePyramid", "SymmetricCascade"]
