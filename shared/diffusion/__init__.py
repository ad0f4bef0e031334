"""A diffusion model that learns site after site, or task after task, and draws what it learnt."""

from .architecture import PREDICTIONS, check_architecture, ddim_scheduler, training_scheduler
from .denoising import DenoisingLoss, draw_samples, from_channels, sample_seed, to_channels
from .generator_trainer import DiffusionTrainer, MovingAverage, parameter_groups
from .loading import first_or_later, load_generator, prepare_generator
from .modulation import SiteNorm, insert_site_norms, modulate
from .site_diffusion import LATER_SITES, SiteDiffusion, read_generator

__all__ = [
    "LATER_SITES",
    "PREDICTIONS",
    "DenoisingLoss",
    "DiffusionTrainer",
    "MovingAverage",
    "SiteDiffusion",
    "SiteNorm",
    "check_architecture",
    "ddim_scheduler",
    "draw_samples",
    "first_or_later",
    "from_channels",
    "insert_site_norms",
    "load_generator",
    "modulate",
    "parameter_groups",
    "prepare_generator",
    "read_generator",
    "sample_seed",
    "to_channels",
    "training_scheduler",
]
