"""Losses for registration: images, labels, landmarks and the field itself."""

from .regularity import BendingEnergyLoss, FoldingLoss, MembraneEnergyLoss

__all__ = ["BendingEnergyLoss", "FoldingLoss", "MembraneEnergyLoss"]
