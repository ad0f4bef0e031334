"""Continual strategies and their parts, for registration and segmentation alike."""

from .consolidation import EWC, SI, Distillation
from .distillation import frozen_copy
from .importance import accumulate, add_penalty_gradient, add_to_path, path_importance, quadratic_penalty
from .interpolation import interpolate
from .projection import check_convolution, extend_basis, input_columns, project_conflict, project_out
from .sharpness import loss_rise, worst_perturbation
from .strategy import Memory, Parts, Sequential, Strategy, knows_nothing
from .strategy_hooks import StrategyHooks

__all__ = [
    "EWC",
    "SI",
    "Distillation",
    "Memory",
    "Parts",
    "Sequential",
    "Strategy",
    "StrategyHooks",
    "accumulate",
    "add_penalty_gradient",
    "add_to_path",
    "check_convolution",
    "extend_basis",
    "frozen_copy",
    "input_columns",
    "interpolate",
    "knows_nothing",
    "loss_rise",
    "path_importance",
    "project_conflict",
    "project_out",
    "quadratic_penalty",
    "worst_perturbation",
]
