"""From files to files: a moving image registered to a fixed one, with transforms, scores and a verdict."""

from .report import summary
from .run import register
from .start import INITS, NetworkField

__all__ = ["INITS", "NetworkField", "register", "summary"]
