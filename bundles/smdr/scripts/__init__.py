"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.continual import EWC, SI, Sequential
from shared.data.embedded import load_sites
from shared.data.pooled import pooled_slices
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.data.validation import validation_volumes
from shared.diffusion import (
    DenoisingLoss,
    SiteDiffusion,
    first_or_later,
    load_generator,
    parameter_groups,
    prepare_generator,
)
from shared.distributed import local_device, start_processes, stop_processes
from shared.errors import report_input_errors
from shared.handlers import TrainingLog
from shared.host_run import HostRun
from shared.run_directory import checkpoint_count
from shared.weights import load_weights

from .assessment import assess_replay, sample_sheet
from .augmentation import SliceAugmentation
from .evaluation import SegmentationEvaluator, evaluate_tasks, validation_title
from .generator_trainer import GeneratorTrainer
from .inference import LabelOnImaged, LoadVolumed, SliceInferer, segment_files
from .labelling import SampleFilter, choose_labels
from .leakage import RealImages
from .memory import ExemplarMemory
from .network import SliceUNet, image_channels
from .pooling import load_tasks
from .privacy import check_private
from .rehearsal import CaseRehearsal
from .replay import ReplayDataset, make_replay
from .strategies import ER, SMDR, LwF
from .trainer import SegmenterTrainer

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "BUNDLE_ROOT",
    "ER",
    "EWC",
    "SI",
    "SMDR",
    "CaseRehearsal",
    "DenoisingLoss",
    "ExemplarMemory",
    "GeneratorTrainer",
    "HostRun",
    "LabelOnImaged",
    "LoadVolumed",
    "LwF",
    "RealImages",
    "ReplayDataset",
    "SampleFilter",
    "SegmentationEvaluator",
    "SegmenterTrainer",
    "Sequential",
    "SiteDiffusion",
    "SliceAugmentation",
    "SliceDataset",
    "SliceInferer",
    "SliceUNet",
    "TrainingLog",
    "VolumeDataset",
    "assess_replay",
    "check_private",
    "checkpoint_count",
    "choose_labels",
    "evaluate_tasks",
    "first_or_later",
    "image_channels",
    "load_generator",
    "load_sites",
    "load_tasks",
    "load_weights",
    "local_device",
    "make_replay",
    "parameter_groups",
    "pooled_slices",
    "prepare_generator",
    "report_input_errors",
    "sample_sheet",
    "segment_files",
    "start_processes",
    "stop_processes",
    "validation_title",
    "validation_volumes",
]
