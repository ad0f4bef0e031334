"""Names, units and digits of everything that a report shows, in words for people who read images, not code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from shared.data.sites import SEGMENTATION_SITES

__all__ = [
    "ABSENT",
    "MEASURES",
    "METRICS",
    "SYNTHETIC",
    "UNSIGNED",
    "Metric",
    "amount",
    "bytes_text",
    "count_text",
    "identifier",
    "is_synthetic",
    "metric_of",
    "rough_text",
    "seconds_text",
    "spread",
    "table_value",
    "task_text",
]

SYNTHETIC = "synth_"
MODALITIES = {"mr": "MR", "ct": "CT", "mrct": "MR\N{NON-BREAKING HYPHEN}CT", "pet": "PET", "us": "US"}
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EN DASH}"


@dataclass(frozen=True)
class Metric:
    """How one column of scores is written.

    Attributes:
        key: column of the CSV files.
        name: heading without unit.
        unit: empty for a pure number.
        larger_is_better: None for a column that this page knows nothing about.
        digits: after the point.
        meaning: what it says about a result.
    """

    key: str
    name: str
    unit: str
    larger_is_better: bool | None
    digits: int
    meaning: str

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def direction(self) -> str:
        """Which way is good."""
        return {True: "larger is better", False: "smaller is better", None: ""}[self.larger_is_better]

    def text(self, value: float, sign: bool = False) -> str:
        """Write a value; ``sign`` also marks a gain."""
        return amount(value, self.digits, sign)

    def gain(self, value: float, before: float) -> float:
        """Return how much better ``value`` is than ``before``, in the metric's unit."""
        return value - before if self.larger_is_better else before - value


METRICS = {
    metric.key: metric
    for metric in (
        Metric("dice", "Dice", "", True, 3, "overlap of the same organ in both label maps; 1 is a perfect match"),
        Metric("tre_mm", "TRE", "mm", False, 2, "distance that is left between corresponding landmarks"),
        Metric("hd95_mm", "HD95", "mm", False, 2, "95 % of each organ's surface is closer than this to its partner"),
        Metric("assd_mm", "ASSD", "mm", False, 2, "mean distance between the surfaces of the same organ"),
        Metric("folds_percent", "Folds", "%", False, 2, "part of the image where the deformation turns inside out"),
        Metric("sdlogj", "SDlogJ", "", False, 3, "how unevenly the deformation swells and shrinks tissue"),
        Metric("round_trip_mm", "Round trip", "mm", False, 2, "how far there and back ends from where it began"),
    )
}

# Key of summary.json -> heading and meaning. Transfers are positive when they help, in every metric.
MEASURES = {
    "final_average": ("final average", "mean over the tasks after the last stage"),
    "backward_transfer": ("BWT", "backward transfer: change on earlier tasks since each was learnt; positive is good"),
    "forgetting": ("forgetting", "how far earlier tasks fell below their best; positive is bad"),
    "forward_transfer": ("FWT", "forward transfer: gain on a task before it was learnt; positive is good"),
    "unseen_average": ("unseen tasks", "mean over tasks that were never learnt"),
    "intransigence": ("intransigence", "how far a new task stays behind a model of its own; positive is bad"),
}

# Measures that are no gains: a plus sign before them would read as praise.
UNSIGNED = ("final_average", "unseen_average", "forgetting", "intransigence")


def metric_of(key: str) -> Metric:
    """Return the metric of a column, also of one that this page does not know."""
    return METRICS.get(key, Metric(key, key.replace("_", " "), "", None, 3, ""))


def amount(value: float, digits: int, sign: bool = False) -> str:
    """Write a number with a real minus; a dash where there is none, and no plain zero for a small positive one."""
    if not math.isfinite(value):
        return ABSENT
    if not float(f"{value:.{digits}f}"):
        return f"<{10.0**-digits:.{digits}f}" if value > 0 and not sign else f"{0:.{digits}f}"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def spread(values: Any, digits: int, sign: bool = False) -> tuple[str, str]:
    """Return mean and sample standard deviation of the finite ``values``; the second is empty where all are alike."""
    found = [float(v) for v in values if math.isfinite(v)]
    if not found:
        return ABSENT, ""
    mean = math.fsum(found) / len(found)
    if len(set(found)) < 2:
        return amount(mean, digits, sign), ""
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (len(found) - 1))
    return amount(mean, digits, sign), f"{deviation:.{digits}f}"


def seconds_text(value: float) -> str:
    """Write a duration in the two units that matter."""
    if not math.isfinite(value):
        return ABSENT
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def bytes_text(value: float) -> str:
    """Write a size in decimal units."""
    if not math.isfinite(value):
        return ABSENT
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def count_text(value: float) -> str:
    """Write a whole number in groups of three."""
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}") if math.isfinite(value) else ABSENT


def rough_text(value: float) -> str:
    """Write a number whose size is what matters."""
    return f"{value:.3g}".replace("-", MINUS) if math.isfinite(value) else ABSENT


def table_value(value: Any) -> str:
    """Write an option: anything that JSON can hold."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {table_value(v)}" for k, v in value.items()) or ABSENT
    if isinstance(value, (list, tuple)):
        return ", ".join(table_value(v) for v in value) or ABSENT
    return ABSENT if value is None or value == "" else str(value)


def is_synthetic(task: str) -> bool:
    """Whether a task's images are computed: an embedded one."""
    return task.startswith(SYNTHETIC) or task in SEGMENTATION_SITES


def task_text(task: str, mark_synthetic: bool = True) -> str:
    """Return the name of a task for people: ``synth_brain_mr`` is a (synthetic) brain MR; real data keeps its name."""
    if not task.startswith(SYNTHETIC):
        return task
    words = " ".join(MODALITIES.get(word, word) for word in task.removeprefix(SYNTHETIC).split("_"))
    return f"synthetic {words}" if mark_synthetic else words


def identifier(name: str) -> str:
    """Return HTML of a file-like name that may break after its underscores and slashes."""
    return re.sub(r"([_/])", r"\1<wbr>", escape(name))
