"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.continual import EWC, SI, Sequential
from shared.data.embedded import load_sites
from shared.data.pooled import pooled_slices
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.distributed import local_device, start_processes, stop_processes
from shared.errors import report_input_errors
from shared.handlers import TrainingLog
from shared.weights import load_weights

from .augmentation import SliceAugmentation
from .evaluation import SegmentationEvaluator, evaluate_tasks, validation_title
from .inference import LabelOnImaged, LoadVolumed, SliceInferer, segment_files
from .memory import ExemplarMemory
from .network import SliceUNet
from .pooling import load_tasks
from .replay import ReplayDataset
from .strategies import ER, SMDR, LwF
from .trainer import SegmenterTrainer

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "BUNDLE_ROOT",
    "ER",
    "EWC",
    "SI",
    "SMDR",
    "ExemplarMemory",
    "LabelOnImaged",
    "LoadVolumed",
    "LwF",
    "ReplayDataset",
    "SegmentationEvaluator",
    "SegmenterTrainer",
    "Sequential",
    "SliceAugmentation",
    "SliceDataset",
    "SliceInferer",
    "SliceUNet",
    "TrainingLog",
    "VolumeDataset",
    "evaluate_tasks",
    "load_sites",
    "load_tasks",
    "load_weights",
    "local_device",
    "pooled_slices",
    "report_input_errors",
    "segment_files",
    "start_processes",
    "stop_processes",
    "validation_title",
]
