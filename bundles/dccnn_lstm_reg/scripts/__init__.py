"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.atlas import AtlasInferer, LoadAtlasPairsd, PropagateLabelsd, atlas_choices
from shared.data.augmentation import PairAugmentation
from shared.data.embedded import load_pairs, task_name
from shared.data.pairs import PairDataset
from shared.data.pooled import pooled_pairs
from shared.data.validation import validation_pairs
from shared.distributed import local_device, start_processes, stop_processes
from shared.errors import report_input_errors
from shared.evaluation import RegistrationEvaluator, validation_title
from shared.export import export_network
from shared.handlers import TrainingLog
from shared.host_past import EmbeddedPairs
from shared.host_run import HostRun
from shared.inference import register_files
from shared.networks import SymmetricCascade
from shared.run_directory import checkpoint_count
from shared.scoring import evaluate_tasks
from shared.weights import load_weights

from .engine import BlurSchedule, CascadeInferer, CascadeTrainer
from .objective import SymmetricObjective

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "BUNDLE_ROOT",
    "AtlasInferer",
    "BlurSchedule",
    "CascadeInferer",
    "CascadeTrainer",
    "EmbeddedPairs",
    "HostRun",
    "LoadAtlasPairsd",
    "PairAugmentation",
    "PairDataset",
    "PropagateLabelsd",
    "RegistrationEvaluator",
    "SymmetricCascade",
    "SymmetricObjective",
    "TrainingLog",
    "atlas_choices",
    "checkpoint_count",
    "evaluate_tasks",
    "export_network",
    "load_pairs",
    "load_weights",
    "local_device",
    "pooled_pairs",
    "register_files",
    "report_input_errors",
    "start_processes",
    "stop_processes",
    "task_name",
    "validation_pairs",
    "validation_title",
]
