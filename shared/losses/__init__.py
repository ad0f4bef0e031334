"""Losses for registration: images, labels, landmarks and the field itself."""

from .landmarks import LandmarkLoss
from .mutual_information import MutualInformationLoss
from .objective import Objective, prepare_sample
from .overlap import SoftDiceLoss, label_probabilities, soft_dice
from .regularity import BendingEnergyLoss, FoldingLoss, MembraneEnergyLoss
from .similarity import LocalNCCLoss, MINDSSCLoss, mind_ssc

__all__ = [
    "BendingEnergyLoss",
    "FoldingLoss",
    "LandmarkLoss",
    "LocalNCCLoss",
    "MINDSSCLoss",
    "MembraneEnergyLoss",
    "MutualInformationLoss",
    "Objective",
    "SoftDiceLoss",
    "label_probabilities",
    "mind_ssc",
    "prepare_sample",
    "soft_dice",
]
