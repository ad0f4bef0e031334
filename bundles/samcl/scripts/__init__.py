"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.data.pairs import PairDataset
from shared.errors import report_input_errors
from shared.evaluation import RegistrationEvaluator, validation_title
from shared.handlers import TrainingLog

from .consolidation import EWC, SI, LwF
from .distributed import local_device, start_processes, stop_processes
from .gradient_projection import GPM
from .inference import load_pairs, register_files
from .memory import ReservoirMemory
from .network import LKUNet
from .objective import RegistrationObjective, VelocityInferer
from .pooling import pooled_pairs
from .scoring import evaluate_tasks
from .strategies import AGEM, ER, MER, SAMCL, Sequential, SharpnessAware
from .trainer import ContinualTrainer, load_weights

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "AGEM",
    "BUNDLE_ROOT",
    "ER",
    "EWC",
    "GPM",
    "MER",
    "SAMCL",
    "SI",
    "ContinualTrainer",
    "LKUNet",
    "LwF",
    "PairDataset",
    "RegistrationEvaluator",
    "RegistrationObjective",
    "ReservoirMemory",
    "Sequential",
    "SharpnessAware",
    "TrainingLog",
    "VelocityInferer",
    "evaluate_tasks",
    "load_pairs",
    "load_weights",
    "local_device",
    "pooled_pairs",
    "register_files",
    "report_input_errors",
    "start_processes",
    "stop_processes",
    "validation_title",
]
