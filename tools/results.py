"""What a chain measured: per-case scores, the matrix of what was kept for every metric, and its summary."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.files import atomic_write, read_json, save_json, write_csv
from shared.metrics import METRICS, continual

__all__ = ["BEFORE", "collect", "read_rows", "score_matrices"]

BEFORE = "before registration"


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Read a CSV file with a header."""
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def _mean(rows: Iterable[Mapping[str, str]], column: str) -> float:
    return _finite_mean(np.array([float(row[column]) for row in rows if row.get(column)], dtype=np.float64))


def _finite_mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _cases(folder: Path, stages: Sequence[str], tasks: Sequence[str]) -> list[dict[str, str]]:
    """Return every scored pair after every finished stage."""
    return [
        {"stage": stage, **row}
        for stage in stages
        for task in tasks
        for row in read_rows(folder / stage / "evaluation" / task / "evaluation_cases.csv")
    ]


def score_matrices(
    cases: Sequence[Mapping[str, str]], stages: Sequence[str], tasks: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return metric -> row name -> mean score on each task, NaN where a metric does not apply.

    Registration is scored before it too: its first row holds the pairs as they came, what a network without any
    training (the identity) leaves. Metrics without a column in any case are left out; some tasks have labels, others
    landmarks.
    """
    by_place: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in cases:
        by_place.setdefault((row["stage"], row["task"]), []).append(row)
    columns = {column for row in cases for column in row} if cases else set(METRICS)
    matrices = {}
    for metric in [m for m in METRICS if m in columns]:
        rows = {}
        if stages and f"{metric}_before" in columns:
            rows[BEFORE] = [_mean(by_place.get((stages[0], t), []), f"{metric}_before") for t in tasks]
        rows.update({stage: [_mean(by_place.get((stage, t), []), metric) for t in tasks] for stage in stages})
        matrices[metric] = rows
    return matrices


def _measures(rows: Mapping[str, Sequence[float]], better: bool, learnt: int, kind: str) -> dict[str, float]:
    """Return the continual measures of one metric's matrix.

    Args:
        rows: of :func:`score_matrices`.
        better: whether larger is better.
        learnt: how many of the tasks the chain trains; the rest is unseen.
        kind: "continued", "separate" (a model a task: each is judged on its own task) or "pooled".
    """
    scores = np.array([values for name, values in rows.items() if name != BEFORE])
    baseline = rows.get(BEFORE, [math.nan] * scores.shape[1])
    trained: list[int | None] = [None] if kind == "pooled" else list(range(learnt))
    if kind == "separate":
        own = np.full((1, scores.shape[1]), np.nan)
        own[0, : len(scores)] = np.diagonal(scores)[:learnt]
        return {**continual.summary(own, baseline, None, better, [None]), "unseen_average": math.nan}
    if kind == "pooled":
        # One stage for all tasks: the unseen ones come after those that it learnt.
        return {
            **continual.summary(scores[:, :learnt], baseline[:learnt], None, better, trained),
            "unseen_average": _finite_mean(scores[-1, learnt:]),
        }
    return continual.summary(scores, baseline, None, better, trained)


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {k: None if math.isnan(v) else round(v, 6) for k, v in values.items()}


def _sharpness(records: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """Return task -> sharpness of the model that serves it at the end: the last one, or each task's own."""
    if kind == "separate":
        found = [(task, record["sharpness"]) for record in records for task in record["tasks"]]
        return {task: known[task] for task, known in found if task in known}
    return dict(records[-1]["sharpness"]) if records else {}


def _corrupted(folder: Path, tasks: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return corruption -> mean of every metric over the tasks, each task counting once."""
    scores = {}
    for name in names:
        rows = [read_rows(folder / "evaluation" / "corrupted" / name / task / "evaluation_cases.csv") for task in tasks]
        means = {metric: np.array([_mean(task, metric) for task in rows]) for metric in METRICS}
        scores[name] = _plain({m: float(v[np.isfinite(v)].mean()) for m, v in means.items() if np.isfinite(v).any()})
    return scores


def collect(
    folder: str | Path,
    tasks: Sequence[str],
    learnt: int,
    stages: Sequence[str],
    kind: str,
    corruptions: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``cases.csv``, ``R.csv`` and ``summary.json`` of the stages that are finished.

    Args:
        folder: the chain's.
        tasks: all scored tasks, the learnt ones first, in their order.
        learnt: how many of them are learnt.
        stages: names of the chain's stages; those without ``stage.json`` are left out.
        kind: see the strategy overlays: "continued", "separate" or "pooled".
        corruptions: scored after the last stage, on the learnt tasks' spoilt images.

    Returns:
        the summary.
    """
    folder = Path(folder)
    finished = [stage for stage in stages if (folder / stage / "stage.json").is_file()]
    cases = _cases(folder, finished, tasks)
    matrices = score_matrices(cases, finished, tasks)
    write_csv(folder / "cases.csv", cases)
    lines = [",".join(["metric", "after", *tasks])]
    for metric, rows in matrices.items():
        lines += [",".join([metric, name, *(f"{v:.6f}" for v in values)]) for name, values in rows.items()]
    atomic_write(folder / "R.csv", lambda stream: stream.write(("\n".join(lines) + "\n").encode()))
    records = [read_json(folder / stage / "stage.json") for stage in finished]
    summary = {
        "stages_finished": len(finished),
        "stages": len(stages),
        "metrics": {
            metric: _plain(_measures(rows, METRICS[metric][1], learnt, kind)) if finished else {}
            for metric, rows in matrices.items()
        },
        **{key: sum(record[key] for record in records) for key in ("passes", "seconds")},
        **{key: max((r[key] or 0 for r in records), default=0) for key in ("peak_memory_bytes", "memory_bytes")},
        "corrupted": _corrupted(folder / stages[-1], tasks[:learnt], corruptions) if finished == [*stages] else {},
        "sharpness": _sharpness(records, kind),
    }
    save_json(folder / "summary.json", summary)
    return summary
