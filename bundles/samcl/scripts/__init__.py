"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.atlas import AtlasInferer, LoadAtlasPairsd, PropagateLabelsd, atlas_choices
from shared.data.embedded import load_pairs
from shared.data.pairs import PairDataset
from shared.data.pooled import pooled_pairs
from shared.data.validation import validation_pairs
from shared.distributed import local_device, start_processes, stop_processes
from shared.errors import report_input_errors
from shared.evaluation import RegistrationEvaluator, validation_title
from shared.export import export_network
from shared.handlers import TrainingLog
from shared.host_run import HostRun
from shared.inference import register_files
from shared.networks import SymmetricCascade
from shared.run_directory import checkpoint_count
from shared.scoring import evaluate_tasks
from shared.weights import load_weights

from .consolidation import EWC, SI, LwF
from .diffusion_memory import DiffusionMemory
from .gradient_projection import GPM
from .memory import ReservoirMemory
from .network import LKUNet
from .objective import RegistrationObjective, VelocityInferer
from .pair_generator import PairGenerator
from .past import EmbeddedPast
from .pooling import joint_name, load_tasks
from .strategies import AGEM, ER, MER, SAMCL, Sequential, SharpnessAware
from .trainer import ContinualTrainer
from .two_level import TwoLevelSAMCL

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
    "AtlasInferer",
    "ContinualTrainer",
    "DiffusionMemory",
    "EmbeddedPast",
    "HostRun",
    "LKUNet",
    "LoadAtlasPairsd",
    "LwF",
    "PairDataset",
    "PairGenerator",
    "PropagateLabelsd",
    "RegistrationEvaluator",
    "RegistrationObjective",
    "ReservoirMemory",
    "Sequential",
    "SharpnessAware",
    "SymmetricCascade",
    "TrainingLog",
    "TwoLevelSAMCL",
    "VelocityInferer",
    "atlas_choices",
    "checkpoint_count",
    "evaluate_tasks",
    "export_network",
    "joint_name",
    "load_pairs",
    "load_tasks",
    "load_weights",
    "local_device",
    "pooled_pairs",
    "register_files",
    "report_input_errors",
    "start_processes",
    "stop_processes",
    "validation_pairs",
    "validation_title",
]
