"""Evaluation measures."""

from .registration import assd_per_label, dice_per_label, fold_percent, hd95_per_label, sdlogj, tre_mm

__all__ = ["assd_per_label", "dice_per_label", "fold_percent", "hd95_per_label", "sdlogj", "tre_mm"]
