"""The first screen of a report on several chains: who came out first, by how much, and at what price."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .report_chains import Chain, mean, number
from .report_figures import points
from .report_groups import Group, are_comparable
from .report_results import final, kept, learnt, terms
from .report_tables import legend, plain_table
from .report_words import MEASURES, METRICS, UNSIGNED, Metric, bytes_text, count_text, rough_text, seconds_text, spread

__all__ = ["best_first", "comparison", "comparison_lead"]


def best_first(groups: Sequence[Group], metric: Metric) -> list[Group]:
    """Return the groups by their final average, unfinished ones last; in their order where none may be ranked."""
    ranked = are_comparable(groups)

    def rank(group: Group) -> tuple[bool, bool, float]:
        if not ranked:
            return not group.is_finished, False, 0.0
        value = mean(final(c, metric) for c in group.scored)
        return not group.is_finished, not math.isfinite(value), -value if metric.larger_is_better else value

    return sorted(groups, key=rank)


@dataclass(frozen=True)
class _Column:
    """One column of the table of strategies."""

    heading: str
    value: Callable[[Chain], float]
    larger_is_better: bool | None
    write: Callable[[float], str] = str
    digits: int | None = None
    sign: bool = False

    def cell(self, group: Group) -> tuple[str, str]:
        """Return mean and deviation over the seeds; a cost is written without deviation."""
        values = group.values(self.value)
        return (self.write(mean(values)), "") if self.digits is None else spread(values, self.digits, self.sign)


def _columns(metric: Metric) -> list[_Column]:
    def scored(of: Metric) -> _Column:
        return _Column(of.heading, lambda c: final(c, of), of.larger_is_better, digits=of.digits)

    def measure(key: str, better: bool) -> _Column:
        signed = key not in UNSIGNED
        heading = f"{MEASURES[key][0]} {metric.name}"
        return _Column(heading, lambda c: c.measure(metric.key, key), better, digits=metric.digits, sign=signed)

    def cost(heading: str, key: str, write: Callable[[float], str], better: bool | None = False) -> _Column:
        return _Column(heading, lambda c: number(c.summary.get(key)), better, write)

    def unseen(chain: Chain) -> float:
        return chain.measure(metric.key, "unseen_average")

    def spoilt(chain: Chain) -> float:
        return mean(number(row.get(metric.key)) for row in (chain.summary.get("corrupted") or {}).values())

    return [
        scored(metric),
        measure("backward_transfer", True),
        measure("forgetting", False),
        measure("forward_transfer", True),
        _Column(f"{metric.name}, unseen tasks", unseen, metric.larger_is_better, digits=metric.digits),
        _Column(f"{metric.name}, spoilt images", spoilt, metric.larger_is_better, digits=metric.digits),
        *(scored(m) for m in (METRICS["tre_mm"], METRICS["folds_percent"]) if m != metric),
        cost("sharpness", "sharpness", rough_text),
        cost("passes", "passes", count_text, None),
        cost("training time", "seconds", seconds_text),
        cost("replay memory", "memory_bytes", bytes_text),
        cost("peak memory", "peak_memory_bytes", bytes_text),
    ]


def _best(groups: Sequence[Group], columns: Sequence[_Column], texts: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """Return the cells that read as the best among the groups that compete; none in a column where all are alike."""
    if not are_comparable(groups):
        return set()
    found = set()
    for j, column in enumerate(columns):
        values = {i: mean(g.values(column.value)) for i, g in enumerate(groups) if g.competes}
        values = {i: v for i, v in values.items() if math.isfinite(v)}
        if column.larger_is_better is None or len({texts[i][j] for i in values}) < 2:
            continue
        best = (max if column.larger_is_better else min)(values, key=lambda i: values[i])
        # Two columns stand before: the strategy and its seeds.
        found |= {(i, j + 2) for i in values if texts[i][j] == texts[best][j]}
    return found


NO_RANKING = "The chains are scored on other tasks or another split each: they are shown side by side, not ranked."
# How a group that is no contender learns: the bounds to compare with.
KINDS = {"pooled": "all tasks at once", "separate": "a model a task"}


def _small(deviation: str) -> str:
    return f"<br><small>±\N{THIN SPACE}{deviation}</small>" if deviation else ""


def _name(group: Group) -> str:
    """Return the first cell of a row: the label, and what keeps the group from being the best."""
    chain = group.scored[0]
    if not group.is_finished:
        state = f"unfinished: {len(chain.done)} of {len(chain.stages)} stages"
    else:
        state = KINDS.get(chain.kind, "")
    return escape(group.label) + (f"<br><small>{state}</small>" if state else "")


def comparison(groups: Sequence[Group], metric: Metric) -> str:
    """Return table and figures of several chains."""
    columns = [c for c in _columns(metric) if any(math.isfinite(mean(g.values(c.value))) for g in groups)]
    cells = [[column.cell(group) for column in columns] for group in groups]
    rows = [
        [_name(group), str(len(group.scored)), *(escape(middle) + _small(deviation) for middle, deviation in row)]
        for group, row in zip(groups, cells, strict=True)
    ]
    best = _best(groups, columns, [[middle for middle, _ in row] for row in cells])
    table = plain_table(["strategy", "seeds", *(c.heading for c in columns)], rows, best=best)
    several = any(len(group.scored) > 1 for group in groups)
    remark = "Means over the tasks after the last stage."
    remark += " Bold: the best of a column." if are_comparable(groups) else f" {NO_RANKING}"
    remark += " ± is the standard deviation over the seeds." if several else " One seed each."
    names = ("backward_transfer", "forgetting", "forward_transfer")
    return f'<div class="card">{table}{terms(names, remark)}</div><div class="grid">{_figures(groups, metric)}</div>'


def _figures(groups: Sequence[Group], metric: Metric) -> str:
    """Return what was learnt against what was kept, and the outcome against its price."""
    unit = f" ({metric.unit})" if metric.unit else ""
    gain = "gain in " if all(chain.registers for group in groups for chain in group.chains) else ""
    drawings = [
        (
            "Learnt and kept",
            "right: learns more; up: keeps more",
            (lambda c: learnt(c, metric), f"{gain}{metric.name}{unit} right after learning a task"),
            (lambda c: kept(c, metric), f"change on earlier tasks{unit}"),
        ),
        (
            "Outcome and price",
            metric.direction,
            (lambda c: number(c.summary.get("seconds")) / 60, "training time (minutes)"),
            (lambda c: final(c, metric), f"{metric.name} at the end{unit}"),
        ),
    ]
    cards: list[str] = []
    for title, remark, (right, x_label), (up, y_label) in drawings:
        series = []
        for i, group in enumerate(groups):
            places = [(right(chain), up(chain)) for chain in group.scored]
            series.append((i, [(x, y) for x, y in places if math.isfinite(x) and math.isfinite(y)]))
        if any(places for _, places in series):
            shown = [group for group, (_, places) in zip(groups, series, strict=True) if places]
            name = title.replace(" ", "-").lower()
            svg = points(name, f"{title}: one dot a chain", series, (x_label, y_label), zero=not cards)
            colours = legend(groups, only=shown)
            heading = f"<h3>{title}<small>{escape(remark)}</small></h3>"
            cards.append(f'<div class="card">{heading}<figure>{svg}</figure>{colours}</div>')
    return "".join(cards)


def comparison_lead(groups: Sequence[Group], metric: Metric) -> str:
    """Return who came out first, and whether that means anything."""
    if not are_comparable(groups):
        return NO_RANKING
    results_of = {g.label: g.values(lambda chain: final(chain, metric)) for g in groups}
    ranked = [g.label for g in groups if g.competes and math.isfinite(mean(results_of[g.label]))]
    joint = [g.label for g in groups if g.is_finished and g.chains[0].kind == "pooled"]
    if len(ranked) < 2:
        return ""
    first, second = ranked[:2]
    texts = {label: spread(values, metric.digits)[0] for label, values in results_of.items()}
    most = "highest" if metric.larger_is_better else "lowest"
    text = (
        f"Of {len(ranked)} strategies that learn task after task, {first} ends with the {most} average "
        f"{metric.heading}: {texts[first]}, before {second} with {texts[second]}."
    )
    scatter = [float(s) for s in (spread(results_of[label], metric.digits)[1] for label in ranked[:2]) if s]
    lead = abs(mean(results_of[first]) - mean(results_of[second]))
    if not scatter:
        text += " With one seed a strategy, their order may be chance."
    elif lead <= max(scatter):
        text += f" Their distance ({metric.text(lead)}) is no larger than the scatter between seeds: not a ranking."
    if joint:
        text += f" Learning all tasks at once ({joint[0]}), as if nothing could be forgotten, gives {texts[joint[0]]}."
    return text
