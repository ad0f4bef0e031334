"""The scores in a report: R as heat maps, single cases as violins."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .report_chains import BEFORE
from .report_figures import NEUTRAL, violins
from .report_groups import Group, splits_of
from .report_tables import heat_map, heat_scale, metrics_of, tabs
from .report_words import Metric, identifier

__all__ = ["cases", "matrices"]

Violin = tuple[str, int, list[float]]


def _remark(metric: Metric) -> str:
    words = "; ".join(part for part in (metric.meaning, metric.direction) if part)
    return f'<p class="soft">{escape(f"{metric.heading}: {words}." if words else metric.heading)}</p>'


def matrices(groups: Sequence[Group]) -> str:
    """Return R of every metric as heat maps."""
    if not metrics_of(groups):
        return ""
    keys = (
        '<ul class="keys"><li><i class="now"></i>the task just learnt</li>'
        '<li><i class="later"></i>a task not learnt, or not yet</li></ul>'
    )
    text = (
        '<p class="soft">Each row is a moment of the chain, each column a task. Read a column downwards: the outlined '
        "cell is the score right after the task was learnt, the cells below it show what later tasks left of it. "
        f"{_colours(groups)}</p>"
    )
    maps = []
    for metric in metrics_of(groups):
        largest = heat_scale(groups, metric)
        if len(groups) == 1:
            maps.append((metric.heading, heat_map(groups[0], metric, largest)))
            continue
        inside = "".join(heat_map(group, metric, largest, escape(group.label)) for group in groups)
        maps.append((metric.heading, f'{_remark(metric)}<div class="grid">{inside}</div>'))
    if len(groups) == 1:
        return f'{text}{keys}<div class="grid">{"".join(content for _, content in maps)}</div>'
    return text + keys + tabs("matrix", maps)


def _colours(groups: Sequence[Group]) -> str:
    if any(chain.registers for group in groups for chain in group.chains):
        return "Blue is better than the images before registration, orange is worse."
    return "The bluer the better; of distances, the more orange the worse."


def _rows_of_cases(groups: Sequence[Group], metric: Metric, task: str) -> list[Violin]:
    """Return the violins of a task: unregistered, then each strategy's end; for one chain also when it was learnt."""
    chains = groups[0].scored
    rows = [(BEFORE, NEUTRAL, [v for c in chains[:1] for v in c.case_scores(metric.key, BEFORE, task)])]
    if len(groups) > 1:
        for i, group in enumerate(groups):
            rows.append((group.label, i, _at_the_end(group, metric, task)))
        return rows
    chain = chains[0]
    learnt = chain.stage_of(task)
    if chain.kind == "continued" and learnt is not None and learnt < len(chain.done) - 1:
        values = [v for c in chains for v in c.case_scores(metric.key, c.stages[learnt], task)]
        rows.append(("when it was learnt", 4, values))
    rows.append(("at the end" if chain.is_finished else "so far", 0, _at_the_end(groups[0], metric, task)))
    return rows


def _at_the_end(group: Group, metric: Metric, task: str) -> list[float]:
    return [v for c in group.scored if c.done for v in c.case_scores(metric.key, c.end_of(task), task)]


def _panel(title: str, cases: int, seeds: int, figure: str) -> str:
    if not cases:
        return f'<div class="card"><h3>{identifier(title)}</h3><p class="soft">not measured</p></div>'
    size = f"{cases} cases{f', {seeds} seeds' if seeds > 1 else ''}"
    return f'<div class="card"><h3>{identifier(title)}<small>{size}</small></h3><figure>{figure}</figure></div>'


def cases(groups: Sequence[Group]) -> str:
    """Return violins of the single cases, a panel for each task, a tab for each metric."""
    chains = [chain for group in groups for chain in group.scored]
    if not chains:
        return ""
    tasks = list(dict.fromkeys(task for chain in chains for task in chain.columns))
    seeds = max(len(group.scored) for group in groups)
    tabbed = []
    for metric in metrics_of(groups):
        drawn = {task: _rows_of_cases(groups, metric, task) for task in tasks}
        every = [v for rows in drawn.values() for _, _, values in rows for v in values]
        if not every:
            continue
        margin = 0.04 * (max(every) - min(every)) or 0.5
        limits = (min(every) - margin, max(every) + margin)
        panels = []
        for i, (task, rows) in enumerate(drawn.items()):
            title = chains[0].label(task)
            count = max(len(c.case_scores(metric.key, c.done[-1], task)) for c in chains if c.done)
            name, label = f"violin-{metric.key}-{i}", f"{metric.heading} of single cases, {title}"
            panels.append(_panel(title, count, seeds, violins(name, label, rows, limits) if count else ""))
        tabbed.append((metric.heading, f'{_remark(metric)}<div class="grid">{"".join(panels)}</div>'))
    if not tabbed:
        return ""
    case = "pair of images" if chains[0].registers else "image"
    splits = " or ".join(splits_of(chains))
    where = f" of the {splits} split" if splits else ""
    pooled = " Cases of all seeds are put together." if seeds > 1 else ""
    return (
        f'<p class="soft">Each dot is one {case}{where}; the body shows how many lie where, the bar the '
        f"middle half of them, the ring the median.{pooled}</p>" + tabs("cases", tabbed)
    )
