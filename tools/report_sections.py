"""How the chains of a report came about: training curves, pictures, settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import numpy as np

from .report_chains import Chain, number
from .report_figures import WIDTH, Line, curves, embedded
from .report_groups import Group
from .report_tables import legend, nice_stage, plain_table, tabs
from .report_words import ABSENT, bytes_text, count_text, identifier, rough_text, seconds_text, table_value

__all__ = ["pictures", "settings", "training"]

# Beyond this many pictures each is made smaller, so that the page can still be sent by e-mail.
MANY_PICTURES = 24
MANY_LINES = 8
# Keys of chain.json that are settings of one value, or few.
FACTS = ("name", "bundle", "strategy", "seed", "split", "configs", "phases", "corruptions", "threads")


def _course(chain: Chain) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[tuple[float, str], ...]]:
    """Return iterations since the chain began, columns (NaN where a stage has none), and the ends of the stages."""
    offset = 0.0
    xs, lengths, ends = [np.array([])], [], []
    for stage, curve in zip(chain.stages, chain.curves, strict=False):
        steps = curve.get("iteration", np.array([])) + offset
        # One more point without a value: the line breaks where a new task begins.
        xs.append(np.append(steps, steps[-1:]))
        lengths.append((len(steps), len(xs[-1])))
        offset = float(steps[-1]) if len(steps) else offset
        ends.append((offset, stage))
    columns = {}
    for name in dict.fromkeys(name for curve in chain.curves for name in curve):
        if name not in {"iteration", "seconds_per_iteration"}:
            pieces = [np.full(padded, math.nan) for _, padded in lengths]
            for piece, (count, _), curve in zip(pieces, lengths, chain.curves, strict=True):
                piece[:count] = curve.get(name, math.nan)
            columns[name] = np.concatenate(pieces)
    columns = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    return np.concatenate(xs), columns, tuple(ends)


def _lines(group: Group, series: int, name: str) -> Iterator[Line]:
    """Yield a line for all seeds together where their iterations agree."""
    courses = [_course(chain) for chain in group.chains]
    alike: dict[tuple[float, ...], list[tuple[np.ndarray, tuple[tuple[float, str], ...]]]] = {}
    for x, columns, ends in courses:
        if name in columns:
            alike.setdefault(tuple(x), []).append((columns[name], ends))
    for steps, found in alike.items():
        yield Line(np.array(steps), np.stack([y for y, _ in found]), series, found[0][1])


def training(groups: Sequence[Group]) -> str:
    """Return the parts of the loss over iterations, and what each stage cost."""
    names = list(dict.fromkeys(name for group in groups for chain in group.chains for name in _course(chain)[1]))
    figures: list[str] = []
    for name in names:
        lines = [line for i, group in enumerate(groups) for line in _lines(group, i, name)]
        title = name.replace("_", " ")
        svg = curves(f"curve-{len(figures)}", f"{title} over iterations", lines)
        figures.append(f'<div class="card"><h3>{escape(title)}</h3><figure>{svg}</figure></div>')
    parts = []
    if figures:
        chain = next((g.chains[0] for g in groups if g.chains[0].kind != "pooled"), groups[0].chains[0])
        stages = [] if chain.kind == "pooled" else [f"{i} {chain.label(task)}" for i, task in enumerate(chain.tasks, 1)]
        marks = f" The numbers above mark the tasks: {escape(', '.join(stages))}." if stages else ""
        seeds = " Lines are means over the seeds." if any(len(g.chains) > 1 for g in groups) else ""
        parts.append(f'<p class="soft">Parts of the loss over the training iterations.{marks}{seeds}</p>')
        parts.append(legend(groups, "line") if len(groups) > 1 else "")
        parts.append(f'<div class="grid small">{"".join(figures)}</div>')
    if len(groups) == 1 and len(groups[0].chains) == 1 and groups[0].chains[0].records:
        parts.append(f'<div class="card costs"><h3>What each stage cost</h3>{_costs(groups[0].chains[0])}</div>')
    return "".join(parts)


def _costs(chain: Chain) -> str:
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("training time", "seconds", seconds_text),
        ("passes of the network", "passes", count_text),
        ("replay memory", "memory_bytes", bytes_text),
        ("peak memory", "peak_memory_bytes", bytes_text),
        ("peak memory of the GPU", "peak_gpu_bytes", bytes_text),
        ("sharpness", "sharpness", rough_text),
    ]
    columns = [c for c in columns if any(math.isfinite(number(record.get(c[1]))) for record in chain.records)]
    rows = [
        [identifier(stage), *(write(number(record.get(key))) for _, key, write in columns)]
        for stage, record in zip(chain.stages, chain.records, strict=False)
    ]
    return plain_table(["stage", *(heading for heading, _, _ in columns)], rows)


def pictures(groups: Sequence[Group]) -> str:
    """Return the example pair of every task: after each stage of one chain, or at the end of each strategy."""
    several = len(groups) > 1
    found: dict[str, list[tuple[str, Any]]] = {}
    for group in groups:
        chain = group.scored[0]
        for task in chain.columns:
            if not chain.done:
                continue
            for stage in chain.done if chain.kind == "continued" and not several else [chain.end_of(task)]:
                if path := chain.picture(stage, task):
                    found.setdefault(task, []).append((group.label if several else nice_stage(chain, stage), path))
    if not found:
        return ""
    registers = groups[0].scored[0].registers
    case = "pair" if registers else "image"
    shown = "one pair of images before and after registration" if registers else "one image and its segmentation"
    total = sum(len(entries) for entries in found.values())
    width = WIDTH if total <= MANY_PICTURES else round(WIDTH * (MANY_PICTURES / total) ** 0.5)
    cards = []
    for i, (task, entries) in enumerate(found.items()):
        title = groups[0].scored[0].label(task)
        panels = []
        for label, path in entries:
            picture = embedded(path, f"{title}, {label}: {shown}", width)
            panels.append((label, f'<div class="film">{picture}</div>'))
        flip = tabs(f"film-{i}", panels, 0 if several else len(panels) - 1, print_all=False)
        cards.append(f'<div class="card"><h3>{identifier(title)}</h3>{flip}</div>')
    what = "strategies (last stage, first seed)" if several else "stages"
    return (
        f'<p class="soft">The same {case} of each task. Flip between {what}: with the arrow keys the picture changes '
        f"in place, and so shows what changed.</p>{''.join(cards)}"
    )


def _facts(chain: Chain) -> dict[str, str]:
    """Return every setting of a chain as text."""
    known = chain.settings
    facts = {key: table_value(known.get(key)) for key in FACTS}
    for place, task in enumerate(known["tasks"], 1):
        parts = [task["task"], table_value(task.get("dataset_dir")), table_value(task.get("options") or None)]
        facts[f"task {place}"] = ", ".join(p for p in parts if p != ABSENT)
    if unseen := chain.columns[len(chain.tasks) :]:
        facts["scored only"] = table_value(unseen)
    for title, content in (("option", known.get("options")), ("version", chain.versions)):
        facts |= {f"{title} {k}": table_value(v) for k, v in (content or {}).items()}
    return facts | {"folder": str(chain.folder)}


def _folded(title: str, content: str, lines: int) -> str:
    """Return a card; a long one starts closed."""
    if lines > MANY_LINES:
        content = f"<details><summary>show {lines} lines</summary>{content}</details>"
    return f'<div class="card facts"><h3>{title}</h3>{content}</div>'


def settings(groups: Sequence[Group]) -> str:
    """Return what the chains were made with: what they share, what differs, the commands."""
    chains = [chain for group in groups for chain in group.chains]
    facts = [_facts(chain) for chain in chains]
    names = list(dict.fromkeys(name for fact in facts for name in fact))
    shared = [n for n in names if len({fact.get(n) for fact in facts}) == 1]
    rows = [[escape(name), identifier(facts[0][name])] for name in shared]
    parts = [f'<div class="card facts">{plain_table((), rows, numeric=False)}</div>']
    if differs := [n for n in names if n not in shared]:
        head = ["folder", *(n for n in differs if n != "folder")]
        rows = [[identifier(fact.get(name, "")) for name in head] for fact in facts]
        table = plain_table([escape(name) for name in head], rows, numeric=False)
        parts.append(_folded("What differs", table, len(rows)))
    commands = list(dict.fromkeys(table_value(c.settings.get("command")) for c in chains if c.settings.get("command")))
    if commands:
        text = "\n".join(map(escape, commands))
        parts.append(_folded("Commands" if len(commands) > 1 else "Command", f"<pre>{text}</pre>", len(commands)))
    return "".join(parts)
