"""Several strategies on the same tasks and budget, several seeds each: one table, one report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from shared.errors import InputError
from shared.files import atomic_write, read_json, write_csv

from .budget import matched, unequal_passes
from .chain import Chain
from .plan import Plan
from .results import BEFORE, read_rows

__all__ = ["budget_notes", "caption", "compare", "table_rows", "write_tables"]

# Column -> (heading, digits); all in the unit of the heading.
COLUMNS = {
    "dice": ("Dice, final average", 3),
    "forgetting": ("Dice forgotten", 3),
    "backward_transfer": ("Dice BWT", 3),
    "forward_transfer": ("Dice FWT", 3),
    "intransigence": ("Dice intransigence", 3),
    "unseen": ("Dice, unseen tasks", 3),
    "corrupted": ("Dice, spoilt images", 3),
    "tre_mm": ("TRE mm", 1),
    "hd95_mm": ("HD95 mm", 1),
    "folds_percent": ("folds %", 3),
    "sharpness": ("sharpness", 3),
    "passes": ("passes a task", 0),
    "minutes": ("minutes", 1),
    "memory_mib": ("memory MiB", 1),
}


@dataclass(frozen=True)
class Run:
    """One chain of a comparison; ``name`` is that of its strategy or variant."""

    name: str
    plan: Plan
    seed: int
    folder: Path


def compare(
    plan: Plan,
    strategies: Sequence[str],
    seeds: Sequence[int],
    folder: str | Path,
    match: str = "passes",
    jobs: int = 1,
    progress: Callable[[float, str], None] | None = None,
) -> list[Run]:
    """Run every strategy with every seed, each in ``folder/<strategy>/seed<k>``; finished chains are skipped.

    Args:
        plan: tasks and budget; its own strategy sets the budget.
        strategies: names of the bundle's strategies and of the plan's variants.
        seeds: of weights, order and memory.
        folder: of the comparison.
        match: see :func:`~tools.budget.matched`.
        jobs: chains side by side; they share the CPU's cores.
        progress: called with the share done (0 to 1) and a text.

    Raises:
        InputError: no or an unknown strategy, another chain in a folder, or a stage that failed.
    """
    if not strategies:
        raise InputError(f"the plan {plan.name}: found no strategies to compare, expected at least one")
    plans = {name: matched(plan, name, match) for name in dict.fromkeys(strategies)}
    # Seed by seed: a comparison that is stopped early has every strategy.
    runs = [Run(name, plans[name], seed, Path(folder) / name / f"seed{seed}") for seed in seeds for name in plans]
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    done = dict.fromkeys(range(len(runs)), 0.0)
    stopped = Event()

    def one(number: int) -> None:
        run = runs[number]

        def tell(share: float, text: str) -> None:
            if stopped.is_set():
                raise InterruptedError("another chain failed")
            done[number] = share
            if progress is not None:
                progress(sum(done.values()) / len(runs), f"seed {run.seed} {text}")

        Chain(run.plan, run.folder, run.seed, threads, tell).run()
        done[number] = 1.0

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        tasks = [pool.submit(one, number) for number in range(len(runs))]
        try:
            # As they end, not in their order: whichever fails first stops the others.
            for task in as_completed(tasks):
                task.result()
        except BaseException:
            # The chains beside it stop within a second; what they have done is kept.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return runs


def budget_notes(plan: Plan, runs: Sequence[Run], match: str) -> list[str]:
    """Return what a reader must know of the budget, from what the chains measured."""
    if match != "passes":
        return []
    measured: dict[str, list[float]] = {}
    for run in runs:
        measured.setdefault(run.name, []).append(read_json(run.folder / "summary.json")["passes"])
    drawn = dict.fromkeys(run.name for run in runs if run.plan.strategy_config().get("past") == "replay_sets")
    generators = [f"The passes of the image generator of {', '.join(drawn)} come on top."] if drawn else []
    return unequal_passes(plan, measured) + generators


def _scores(run: Run) -> dict[str, float]:
    """Return one chain's row of the table."""
    summary = read_json(run.folder / "summary.json")
    dice = summary["metrics"].get("dice", {})
    names = ("forgetting", "backward_transfer", "forward_transfer")
    corrupted = [scores["dice"] for scores in summary["corrupted"].values() if "dice" in scores]
    sharpness = [v for v in summary["sharpness"].values() if v is not None]
    row = {
        **{
            m: summary["metrics"].get(m, {}).get("final_average")
            for m in ("dice", "tre_mm", "hd95_mm", "folds_percent")
        },
        **{name: dice.get(name) for name in names},
        "unseen": dice.get("unseen_average"),
        "corrupted": float(np.mean(corrupted)) if corrupted else None,
        "sharpness": float(np.mean(sharpness)) if sharpness else None,
        "passes": summary["passes"] / len(run.plan.tasks),
        "minutes": summary["seconds"] / 60,
        "memory_mib": summary["memory_bytes"] / 2**20,
    }
    return {k: np.nan if v is None else float(v) for k, v in row.items()}


def _diagonal(run: Run) -> np.ndarray:
    """Return the Dice on each task right after it was learnt."""
    rows = [r for r in read_rows(run.folder / "R.csv") if r["metric"] == "dice" and r["after"] != BEFORE]
    scores = [float(row[task.task]) for row, task in zip(rows, run.plan.tasks, strict=False)]
    return np.array(scores or [np.nan] * len(run.plan.tasks))


def table_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one row a strategy: name, seeds, and mean and sd of every column; best final average first.

    Intransigence is measured against ``single`` of the same seed, where that is among the runs.
    """
    alone = {run.seed: _diagonal(run) for run in runs if run.name == "single"}
    grouped: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        scores = _scores(run)
        continued = run.plan.strategy_config().get("stages", "continued") == "continued"
        if continued and run.seed in alone:
            behind = alone[run.seed] - _diagonal(run)
            # Tasks without labels have no Dice.
            behind = behind[np.isfinite(behind)]
            scores["intransigence"] = float(behind.mean()) if len(behind) else np.nan
        grouped.setdefault(run.name, []).append(scores)
    rows = []
    for strategy, scored in grouped.items():
        row: dict[str, Any] = {"strategy": strategy, "seeds": len(scored)}
        for column in COLUMNS:
            values = np.array([s.get(column, np.nan) for s in scored])
            values = values[np.isfinite(values)]
            row[column] = float(values.mean()) if len(values) else None
            row[f"{column}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else None
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["dice"] if row["dice"] is not None else -np.inf))


def _cell(row: dict[str, Any], column: str) -> str:
    mean, sd, digits = row[column], row[f"{column}_sd"], COLUMNS[column][1]
    if mean is None:
        return ""
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f} ± {sd:.{digits}f}"


def caption(plan: Plan, match: str) -> str:
    """Return what a comparison's table shows, in a line."""
    cases = "images" if plan.segments else "pairs"
    return f"{plan.name}: {plan.split} {cases} of {len(plan.tasks)} tasks, matched {match}, mean ± sd"


def write_tables(runs: Sequence[Run], folder: str | Path, caption: str, notes: Sequence[str] = ()) -> str:
    """Write ``table.csv`` and ``table.md``, with notes below the table; return the latter's text."""
    rows = table_rows(runs)
    shown = [c for c in COLUMNS if any(row[c] is not None for row in rows)]
    lines = [caption, "", "| strategy | seeds | " + " | ".join(COLUMNS[c][0] for c in shown) + " |"]
    lines.append("|---" * (len(shown) + 2) + "|")
    for row in rows:
        cells = [f"`{row['strategy']}`", str(row["seeds"]), *(_cell(row, c) for c in shown)]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join([*lines, *(line for note in notes for line in ("", note))]) + "\n"
    write_csv(Path(folder) / "table.csv", rows)
    atomic_write(Path(folder) / "table.md", lambda stream: stream.write(text.encode()))
    return text
