"""Every name that a config of this bundle may use."""

from pathlib import Path

from shared.data.embedded import load_sites
from shared.data.slice_dataset import SliceDataset
from shared.distributed import local_device, start_processes, stop_processes
from shared.errors import report_input_errors
from shared.handlers import TrainingLog

from .assessment import assess_replay, sample_sheet
from .denoising import DenoisingLoss
from .diffusion import SiteDiffusion
from .generator_trainer import GeneratorTrainer, parameter_groups
from .labelling import SampleFilter, choose_labels
from .loading import first_or_later, load_generator, prepare_generator
from .privacy import check_private
from .replay import make_replay

BUNDLE_ROOT = str(Path(__file__).resolve().parents[1])

__all__ = [
    "BUNDLE_ROOT",
    "DenoisingLoss",
    "GeneratorTrainer",
    "SampleFilter",
    "SiteDiffusion",
    "SliceDataset",
    "TrainingLog",
    "assess_replay",
    "check_private",
    "choose_labels",
    "first_or_later",
    "load_generator",
    "load_sites",
    "local_device",
    "make_replay",
    "parameter_groups",
    "prepare_generator",
    "report_input_errors",
    "sample_sheet",
    "start_processes",
    "stop_processes",
]
