"""Evaluation measures."""

from .continual import (
    backward_transfer,
    final_average,
    forgetting,
    forward_transfer,
    intransigence,
    summary,
    unseen_average,
)
from .registration import (
    METRICS,
    assd_per_label,
    dice_per_label,
    fold_percent,
    hd95_per_label,
    labels_of_both,
    round_trip_mm,
    sdlogj,
    tre_mm,
)

__all__ = [
    "METRICS",
    "assd_per_label",
    "backward_transfer",
    "dice_per_label",
    "final_average",
    "fold_percent",
    "forgetting",
    "forward_transfer",
    "hd95_per_label",
    "intransigence",
    "labels_of_both",
    "round_trip_mm",
    "sdlogj",
    "summary",
    "tre_mm",
    "unseen_average",
]
