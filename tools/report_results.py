"""The first screen of a report on one chain: what came out, in sentences, in a strip of numbers, in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .report_chains import BEFORE, Chain, mean, number
from .report_groups import Group
from .report_tables import metrics_of, plain_table, tiles
from .report_words import ABSENT, MEASURES, METRICS, UNSIGNED, Metric, bytes_text, count_text, identifier, seconds_text

__all__ = ["final", "kept", "lead_metric", "learnt", "results", "single_lead", "terms"]


# Tiles that say nothing of a segmentation.
OF_REGISTRATION = ("Help for new tasks", "Landmark error (TRE)", "Folds")


def lead_metric(chains: Sequence[Chain]) -> Metric:
    """Return the metric that the first screen speaks of: Dice, or what there is in its place."""
    there = (m for m in METRICS.values() if any(math.isfinite(final(c, m)) for c in chains))
    return next(there, METRICS["dice"])


def final(chain: Chain, metric: Metric) -> float:
    """Return the average over the tasks at the end; of an unfinished chain over the tasks learnt so far."""
    value = chain.measure(metric.key, "final_average") if chain.is_finished else math.nan
    return value if math.isfinite(value) or not chain.done else chain.average(metric.key)


def learnt(chain: Chain, metric: Metric) -> float:
    """Return the mean gain over the unregistered images of each task, right after it was learnt.

    Of segmentations there is nothing before: then the mean score itself.
    """
    pairs = [(stage, task) for stage in chain.done for task in chain.learns(stage)]
    if not chain.registers:
        return mean(chain.score(metric.key, stage, task) for stage, task in pairs)
    return mean(
        metric.gain(chain.score(metric.key, stage, task), chain.score(metric.key, BEFORE, task))
        for stage, task in pairs
    )


def kept(chain: Chain, metric: Metric) -> float:
    """Return backward transfer."""
    return chain.measure(metric.key, "backward_transfer")


def single_lead(chain: Chain, metric: Metric) -> str:
    """Return the outcome of a chain in a few sentences."""
    count, strategy = len(chain.tasks), chain.settings["strategy"]
    tasks = f"{count} tasks" if count > 1 else "1 task"
    if not chain.is_finished:
        text = f"{len(chain.done)} of {len(chain.stages)} stages are done with the strategy {strategy}."
    elif chain.kind == "pooled":
        text = f"{tasks} were learnt together ({strategy}): what a chain could reach if nothing were forgotten."
    elif chain.kind == "separate":
        text = f"{tasks} were learnt by a model each ({strategy}): there is nothing to forget, and nothing to share."
    else:
        text = f"{tasks} {'were learnt one after another' if count > 1 else 'was learnt'} with the strategy {strategy}."
    before, after = chain.average(metric.key, before=True), final(chain, metric)
    if math.isfinite(before) and math.isfinite(after):
        verb = "rose" if after > before else "fell" if after < before else "stayed"
        which = "tasks" if chain.is_finished else "tasks learnt so far"
        text += (
            f" Averaged over the {which}, {metric.heading} {verb} from {metric.text(before)} before registration to "
            f"{metric.text(after)}."
        )
    elif math.isfinite(after):
        which = "tasks" if chain.is_finished else "tasks learnt so far"
        text += f" Averaged over the {which}, {metric.heading} is {metric.text(after)}."
    if math.isfinite(change := kept(chain, metric)):
        verb = "gained" if change > 0 else "lost"
        text += f" Since they were learnt, earlier tasks {verb} {metric.text(abs(change))} on average."
    return text


def results(chain: Chain, metric: Metric) -> str:
    """Return strip and tables of one chain."""
    if not chain.done:
        return ""

    def cost(key: str) -> float:
        return number(chain.summary.get(key))

    def change(key: str) -> str:
        return metric.text(chain.measure(metric.key, key), sign=key not in UNSIGNED)

    def before(other: Metric) -> str:
        value = chain.average(other.key, before=True)
        return f"before registration {_with_unit(other, value)}" if math.isfinite(value) else other.meaning

    tre, folds = METRICS["tre_mm"], METRICS["folds_percent"]
    name, end = metric.name, "at the end" if chain.is_finished else "so far"
    gain = f"gain in {name}" if chain.registers else name
    passes = f"{count_text(cost('passes'))} passes of the network" if math.isfinite(cost("passes")) else ""
    strip = [
        (f"{name} {end}", _with_unit(metric, final(chain, metric)), before(metric)),
        ("Learnt", metric.text(learnt(chain, metric), sign=chain.registers), f"{gain} right after learning a task"),
        ("Kept", change("backward_transfer"), "change on earlier tasks since then (backward transfer)"),
        ("Forgotten", change("forgetting"), "earlier tasks, below their best (forgetting)"),
        ("Help for new tasks", change("forward_transfer"), "gain on a task before it is learnt (forward transfer)"),
        ("Landmark error (TRE)", _with_unit(tre, final(chain, tre)), before(tre)),
        ("Folds", _with_unit(folds, final(chain, folds)), folds.meaning),
        ("Training time", seconds_text(cost("seconds")), passes),
        ("Replay memory", bytes_text(cost("memory_bytes")), "kept of earlier tasks"),
        ("Peak memory", bytes_text(cost("peak_memory_bytes")), "of the program"),
    ]
    strip = [tile for tile in strip if chain.registers or tile[0] not in OF_REGISTRATION]
    return tiles(strip) + _measures(chain) + _spoilt(chain)


def _with_unit(metric: Metric, value: float) -> str:
    return f"{metric.text(value)} {metric.unit}".rstrip() if math.isfinite(value) else ABSENT


def _measures(chain: Chain) -> str:
    """Return the continual measures of every metric that has any."""
    metrics = metrics_of([Group("", [chain])])
    names = [
        n for n in MEASURES if n != "final_average" and any(math.isfinite(chain.measure(m.key, n)) for m in metrics)
    ]
    if not names:
        return ""
    rows = [
        [
            escape(metric.heading),
            *([metric.text(chain.average(metric.key, before=True))] if chain.registers else []),
            metric.text(final(chain, metric)),
            *(metric.text(chain.measure(metric.key, n), sign=n not in UNSIGNED) for n in names),
        ]
        for metric in metrics
    ]
    head = ["", *([BEFORE] if chain.registers else []), *(MEASURES[n][0] for n in ("final_average", *names))]
    return f'<div class="card">{plain_table(head, rows)}{terms(("final_average", *names))}</div>'


def terms(names: Iterable[str], remark: str = "") -> str:
    """Return the meaning of measures, after a remark."""
    entries = [f"<li><b>{MEASURES[name][0]}</b> {MEASURES[name][1]}</li>" for name in names]
    return f'<ul class="terms">{f"<li>{remark}</li>" if remark else ""}{"".join(entries)}</ul>'


def _spoilt(chain: Chain) -> str:
    """Return the scores on images that were spoilt on purpose, beside those on the images as they are."""
    spoilt = chain.summary.get("corrupted") or {}
    metrics = [m for m in METRICS.values() if any(math.isfinite(number(row.get(m.key))) for row in spoilt.values())]
    if not metrics:
        return ""
    rows = [["images as they are", *(m.text(final(chain, m)) for m in metrics)]]
    rows += [[identifier(name), *(m.text(number(row.get(m.key))) for m in metrics)] for name, row in spoilt.items()]
    table = plain_table(["", *(escape(m.heading) for m in metrics)], rows)
    heading = "<h3>Spoilt images<small>the learnt tasks, with images made worse on purpose</small></h3>"
    return f'<div class="card">{heading}{table}</div>'
