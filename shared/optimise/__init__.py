"""Registration of one pair by optimisation: alignment, then a diffeomorphic deformation, without any network."""

from .align import Alignment
from .inputs import Guides
from .register import optimise
from .result import LevelLog, OptimiseResult
from .settings import OptimiseSettings

__all__ = ["Alignment", "Guides", "LevelLog", "OptimiseResult", "OptimiseSettings", "optimise"]
