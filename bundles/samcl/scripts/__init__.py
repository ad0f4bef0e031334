"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.data.pairs import PairDataset
from shared.errors import report_input_errors
from shared.evaluation import RegistrationEvaluator, validation_title
from shared.handlers import TrainingLog

from .distributed import local_device, start_processes, stop_processes
from .inference import load_pairs, register_files
from .memory import ReservoirMemory
from .network import LKUNet
from .objective import RegistrationObjective, VelocityInferer
from .strategies import SAMCL, Sequential
from .trainer import ContinualTrainer, load_weights

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "BUNDLE_ROOT",
    "SAMCL",
    "ContinualTrainer",
    "LKUNet",
    "PairDataset",
    "RegistrationEvaluator",
    "RegistrationObjective",
    "ReservoirMemory",
    "Sequential",
    "TrainingLog",
    "VelocityInferer",
    "load_pairs",
    "load_weights",
    "local_device",
    "register_files",
    "report_input_errors",
    "start_processes",
    "stop_processes",
    "validation_title",
]
