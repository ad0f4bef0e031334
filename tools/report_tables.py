"""The HTML of a report that is text: tiles, heat maps, tables, tabs."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from html import escape

from .report_chains import BEFORE, Chain, mean
from .report_figures import colour
from .report_groups import Group
from .report_words import METRICS, Metric, identifier, metric_of, spread

__all__ = ["heat_map", "heat_scale", "legend", "metrics_of", "nice_stage", "plain_table", "tabs", "tiles"]


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return the strip of (heading, value, remark)."""
    cells = [
        f"<div><dt>{escape(heading)}</dt><dd><b>{escape(value)}</b>{escape(remark)}</dd></div>"
        for heading, value, remark in entries
    ]
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def tabs(name: str, panels: Sequence[tuple[str, str]], checked: int = 0, print_all: bool = True) -> str:
    """Return panels of (label, HTML) of which one shows at a time; works without a script.

    Args:
        name: unique on the page.
        panels: the label is plain text.
        checked: which shows first.
        print_all: show all of them on paper, else the chosen one.
    """
    parts = []
    for i, (label, content) in enumerate(panels):
        state = " checked" if i == checked else ""
        parts.append(
            f'<input type="radio" name="{name}" id="{name}-{i}" autocomplete="off"{state}>'
            f'<label for="{name}-{i}">{identifier(label)}</label>'
            f'<div class="panel{" each" if print_all else ""}">{content}</div>'
        )
    return f'<div class="tabs" role="group">{"".join(parts)}</div>'


def legend(groups: Sequence[Group], kind: str = "", only: Sequence[Group] = ()) -> str:
    """Return the colours of the groups.

    Args:
        groups: all of the page, in their order: it decides the colour.
        kind: "line" for curves.
        only: leave out the others.
    """
    entries = "".join(
        f'<li><i class="{kind}" style="--c:{colour(i)}"></i>{escape(group.label)}</li>'
        for i, group in enumerate(groups)
        if not only or group in only
    )
    return f'<ul class="keys">{entries}</ul>'


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numeric: bool = True, best: Container[tuple[int, int]] = ()
) -> str:
    """Return a table of HTML cells; the first of each row is its heading.

    Args:
        head: headings, or nothing.
        rows: cells.
        numeric: align all but the first column to the right.
        best: (row, column) of the cells to mark, both from 0.
    """

    def kind(row: int, column: int) -> str:
        return f' class="n{" best" if (row, column) in best else ""}"' if numeric else ""

    top = "".join(f'<th scope="col"{kind(-1, j) if j else ""}>{cell}</th>' for j, cell in enumerate(head))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{kind(i, j)}>{cell}</td>" for j, cell in enumerate(row) if j)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    top = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table class="plain">{top}<tbody>{body}</tbody></table></div>'


def metrics_of(groups: Sequence[Group]) -> list[Metric]:
    """Return the metrics that have a score anywhere, known ones first."""
    found = {key for group in groups for chain in group.chains for key, rows in chain.scores.items() if _any(rows)}
    return [metric_of(key) for key in [*(k for k in METRICS if k in found), *sorted(found - set(METRICS))]]


def _any(rows: dict[str, dict[str, float]]) -> bool:
    return any(math.isfinite(value) for row in rows.values() for value in row.values())


def nice_stage(chain: Chain, stage: str) -> str:
    """Return the name of a row of R for people."""
    if stage == BEFORE:
        return BEFORE
    if chain.kind == "pooled":
        return "after all tasks together"
    if chain.kind == "separate":
        return f"model of {chain.label(chain.learns(stage)[0])}"
    return f"after {chain.stages.index(stage) + 1}: {chain.label(chain.learns(stage)[0])}"


def _colour(metric: Metric, value: float, before: float) -> float:
    """Return what the colour stands for: the gain over the unregistered images, as a share of these for errors.

    Where there is nothing before, the score itself.
    """
    if metric.larger_is_better is None or not math.isfinite(value):
        return math.nan
    if math.isfinite(before) and not metric.larger_is_better:
        return metric.gain(value, before) / before if before else math.nan
    if math.isfinite(before):
        return metric.gain(value, before)
    return abs(value) if metric.larger_is_better else -abs(value)


def _entry(group: Group, metric: Metric, row: str, task: str) -> list[float]:
    """Return an entry of R in every seed; stages are matched by their position."""
    return [chain.score(metric.key, row, task) for chain in group.scored]


def heat_scale(groups: Sequence[Group], metric: Metric) -> float:
    """Return the largest colour value of a metric, so that all heat maps of a page share one scale."""
    values = [
        abs(_colour(metric, mean(_entry(group, metric, row, task)), mean(_entry(group, metric, BEFORE, task))))
        for group in groups
        for row in group.scored[0].done
        for task in group.scored[0].columns
    ]
    return max((v for v in values if math.isfinite(v)), default=0.0)


def _cell(group: Group, metric: Metric, row: str, task: str, largest: float) -> str:
    chain, values = group.scored[0], _entry(group, metric, row, task)
    value, before = mean(values), mean(_entry(group, metric, BEFORE, task))
    kinds, remark, style, title = [], "", "", ""
    if row != BEFORE and math.isfinite(value):
        weight = _colour(metric, value, before) / largest if largest else 0.0
        if math.isfinite(weight) and weight:
            kinds.append("good" if weight > 0 else "bad")
            style = f' style="--w:{abs(weight):.0%}"'
        if math.isfinite(before):
            title = f' title="{metric.text(value - before, sign=True)} against before registration"'
    if row != BEFORE:
        stage, learnt = chain.stages.index(row), chain.stage_of(task)
        if learnt is None or learnt > stage or (chain.kind == "separate" and learnt < stage):
            kinds.append("later")
            remark = "not learnt"
        elif learnt == stage:
            kinds.append("now")
            remark = "just learnt"
    middle, deviation = spread(values, metric.digits)
    small = f"<small>±\N{THIN SPACE}{deviation}</small>" if deviation else ""
    spoken = f'<span class="sr"> ({remark})</span>' if remark else ""
    return f'<td class="{" ".join(kinds)}"{style}{title}>{escape(middle)}{small}{spoken}</td>'


def heat_map(group: Group, metric: Metric, largest: float, heading: str = "") -> str:
    """Return R of one metric, means over the seeds, with its legend.

    Args:
        group: whose finished chains count.
        metric: which R.
        largest: of :func:`heat_scale`.
        heading: HTML above the table; by default the metric.
    """
    chain = group.scored[0]
    columns = chain.columns
    rows = [r for r in (BEFORE, *chain.done) if r != BEFORE or _any({r: chain.scores.get(metric.key, {}).get(r, {})})]
    head = "".join(f'<th scope="col" title="{escape(task)}">{identifier(chain.label(task))}</th>' for task in columns)
    body = [
        f'<tr><th scope="row">{identifier(nice_stage(chain, row))}</th>'
        + "".join(_cell(group, metric, row, task, largest) for task in columns)
        + "</tr>"
        for row in rows
    ]
    heading = heading or f"{escape(metric.heading)}<small>{escape(metric.meaning)}</small>"
    table = (
        f'<table class="heat" style="--n:{len(columns)}"><colgroup><col>{"<col>" * len(columns)}</colgroup>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )
    below = _legend(group, metric, largest)
    return f'<div class="card"><h3>{heading}</h3><div class="scroll">{table}</div>{below}</div>'


def _legend(group: Group, metric: Metric, largest: float) -> str:
    """Return what the colours of a heat map mean."""
    if metric.larger_is_better is None:
        return ""
    compared = math.isfinite(mean(mean(_entry(group, metric, BEFORE, t)) for t in group.scored[0].columns))
    if not largest:
        return f'<div class="scale">{"as before registration" if compared else "zero"} everywhere</div>'
    if compared:
        end = metric.text(largest) if metric.larger_is_better else f"{100 * largest:.0f} %"
        low, high = f"{end} worse", f"{end} better than before registration"
        return f'<div class="scale"><span>{low}</span><i></i><span>{high}</span></div>'
    good = " good" if metric.larger_is_better else ""
    return f'<div class="scale one{good}"><span>0</span><i></i><span>{metric.text(largest)} {metric.unit}</span></div>'
