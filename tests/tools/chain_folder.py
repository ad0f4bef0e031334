"""Folders as `python -m tools chain` leaves them, made up in an instant: plausible scores, nothing trained."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.metrics import METRICS, summary

TASKS = ("synth_brain_mr", "synth_abdomen_ct", "synth_lung_ct", "synth_abdomen_mrct")
BEFORE = "before registration"
# metric -> (unregistered, right after learning, lost with each later task, spread of the cases)
SCORES = {
    "dice": (0.56, 0.70, -0.02, 0.04),
    "hd95_mm": (14.0, 9.5, 0.6, 1.2),
    "assd_mm": (5.2, 3.6, 0.3, 0.4),
    "tre_mm": (11.5, 8.2, 0.7, 0.9),
    "folds_percent": (math.nan, 0.03, 0.004, 0.01),
    "sdlogj": (math.nan, 0.17, 0.006, 0.015),
    "round_trip_mm": (math.nan, 0.12, 0.004, 0.02),
}
# strategy -> how much of a learnt task is lost, compared to the table above
FORGETS = {"samcl": 1.0, "er": 0.8, "mer": 1.2, "ewc": 2.2, "sequential": 4.0, "joint": 0.0, "single": 1.0}
KINDS = {"joint": "pooled", "single": "separate"}
REPLAYS = ("samcl", "er", "mer")

Rows = list[dict[str, object]]


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def change(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_picture(path: Path, seed: int) -> None:
    """A small stand-in for the page that evaluation draws."""
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, np.random.default_rng(seed).random((40, 84)), cmap="gray")


def write_curve(path: Path, generator: np.random.Generator, replay: bool, iterations: int) -> None:
    steps = np.arange(10, iterations + 1, 10)
    fall = np.exp(-steps / 120)
    parts = {
        "similarity": 0.35 + 0.15 * fall,
        "overlap": 0.12 + 0.1 * fall,
        "landmarks": 1.2 + 0.9 * fall,
        "bending": 0.004 * (1 - fall),
        "membrane": 0.012 * (1 - fall),
    }
    parts = {name: values * generator.normal(1, 0.06, len(steps)) for name, values in parts.items()}
    rows: Rows = []
    for i, step in enumerate(steps):
        values = {name: float(value[i]) for name, value in parts.items()}
        loss = sum(values.values())
        rows.append({"iteration": int(step), "seconds_per_iteration": 0.26, "loss": loss, **values})
        if replay:
            rows[-1]["replay_loss"] = loss * float(generator.normal(1.1, 0.05))
    write_rows(path, rows)


def score(metric: str, place: int, learnt: int | None, forgets: float, noise: float) -> float:
    """The score of one case of a task that stage ``learnt`` trains, after stage ``place``."""
    start, best, loss, spread = SCORES[metric]
    start = start if math.isfinite(start) else 0.0
    share = 0.3 if learnt is None else 1.0 if place >= learnt else 0.25
    lost = 0.0 if learnt is None else max(0, place - learnt) * loss * forgets
    value = start + share * (best - start) + lost + spread * noise
    return max(0.0, value) if metric == "folds_percent" else value


def case_rows(strategy: str, seed: int, stages: Sequence[str], tasks: Sequence[str], learnt: int, cases: int) -> Rows:
    """One row a case and stage; the last of several learnt tasks has no landmarks."""
    rows: Rows = []
    for j, task in enumerate(tasks):
        stage_of = None if j >= learnt else 0 if strategy == "joint" else j
        hard = np.random.default_rng(j).normal(0, 1, (cases, len(SCORES)))  # the same cases in every chain
        luck = np.random.default_rng([seed, j, *strategy.encode()])
        for i, stage in enumerate(stages):
            for case in range(cases):
                row: dict[str, object] = {"stage": stage, "task": task, "fixed": f"{task}_{case}_0000.nii.gz"}
                row["moving"] = f"{task}_{case}_0001.nii.gz"
                for place, (metric, (start, _, _, spread)) in enumerate(SCORES.items()):
                    if metric == "tre_mm" and j == learnt - 1 > 0:
                        continue
                    noise = float(hard[case, place] + luck.normal(0, 0.3))
                    row[metric] = score(metric, i, stage_of, FORGETS.get(strategy, 1.0), noise)
                    if math.isfinite(start):
                        row[f"{metric}_before"] = float(start + spread * hard[case, place])
                rows.append(row)
    return rows


def score_rows(cases: Rows, stages: Sequence[str], tasks: Sequence[str]) -> Rows:
    """R of every metric, as means of the cases."""
    rows: Rows = []
    for metric in SCORES:
        for after in [BEFORE, *stages]:
            column, stage = (f"{metric}_before", stages[-1]) if after == BEFORE else (metric, after)
            row: dict[str, object] = {"metric": metric, "after": after}
            for task in tasks:
                found = [
                    float(str(r[column])) for r in cases if (r["stage"], r["task"]) == (stage, task) and column in r
                ]
                row[task] = float(np.mean(found)) if found else math.nan
            rows.append(row)
    return rows


def summary_of(scores: Rows, strategy: str, tasks: Sequence[str], learnt: int) -> dict[str, dict[str, float | None]]:
    """The measures of every metric, null where there are none."""
    metrics = {}
    for metric, (_, larger) in METRICS.items():
        table = np.array([[row[task] for task in tasks] for row in scores if row["metric"] == metric], float)
        if strategy == "joint":
            found = summary(table[1:, :learnt], table[0, :learnt], None, larger, [None])
        elif strategy == "single":
            own = np.full((1, len(tasks)), math.nan)
            own[0, : len(table) - 1] = np.diagonal(table[1:])
            found = summary(own, table[0], None, larger, [None])
        else:
            found = summary(table[1:], table[0], None, larger, list(range(learnt)))
        metrics[metric] = {k: None if math.isnan(v) else round(v, 6) for k, v in found.items()}
    return metrics


def settings(strategy: str, seed: int, name: str, tasks: Sequence[str], unseen: Sequence[str]) -> dict[str, object]:
    """What chain.json says, but for the stages."""
    return {
        "name": name,
        "bundle": "samcl",
        "tasks": [{"task": task, "dataset_dir": "bundles/samcl/data", "options": {}} for task in tasks],
        "strategy": strategy,
        "unseen": [{"task": task, "dataset_dir": "bundles/samcl/data", "options": {}} for task in unseen],
        "options": {"iterations": 300},
        "configs": [],
        "split": "test",
        "seed": seed,
        "kind": KINDS.get(strategy, "continued"),
        "versions": {"python": "3.12.4", "torch": "2.13.0", "monai": "1.6.1", "numpy": "2.4.6", "commit": "166e428"},
        "command": f"python -m tools chain --plan {name} --strategy {strategy} --seed {seed}",
    }


def write_chain(
    folder: Path,
    *,
    strategy: str = "samcl",
    seed: int = 0,
    name: str = "samcl_embedded",
    tasks: Sequence[str] = TASKS,
    unseen: Sequence[str] = (),
    finished: int | None = None,
    cases: int = 8,
    pictures: Mapping[str, Path] | None = None,
    **changes: object,
) -> Path:
    """Write a chain folder and return it.

    Args:
        folder: to make.
        strategy: "joint" has a single stage, "single" a model a task.
        seed: of the scores.
        name: of the plan.
        tasks: to learn.
        unseen: scored only.
        finished: stages that are there; the next one has only begun. None: all.
        cases: of each task.
        pictures: task -> file to take in place of a drawn one.
        changes: keys of chain.json.
    """
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, *strategy.encode()])
    stages = ["01_joint"] if strategy == "joint" else [f"{i:02d}_{task}" for i, task in enumerate(tasks, 1)]
    done = stages[: len(stages) if finished is None else finished]
    content = {**settings(strategy, seed, name, tasks, unseen), "stages": stages, **changes}
    (folder / "chain.json").write_text(json.dumps(content, indent=2))
    for i, stage in enumerate(stages[: len(done) + 1]):
        write_curve(folder / stage / "run" / "metrics.csv", generator, strategy in REPLAYS and i > 0, 300)
        (folder / stage / "training.log").write_text("done\n")
    if not done:
        return folder
    columns = [*tasks, *unseen]
    rows = case_rows(strategy, seed, done, columns, len(tasks), cases)
    for i, stage in enumerate(done):
        for j, task in enumerate(columns):
            evaluation = folder / stage / "evaluation" / task
            own = [row for row in rows if (row["stage"], row["task"]) == (stage, task)]
            write_rows(evaluation / "evaluation_cases.csv", own)
            picture = evaluation / "evaluation_example.png"
            if pictures and task in pictures:
                picture.write_bytes(pictures[task].read_bytes())
            else:
                write_picture(picture, 10 * i + j)
        record = {
            "tasks": list(tasks) if strategy == "joint" else [tasks[i]],
            "passes": 2400,
            "seconds": 95.1 + i,
            "memory_bytes": 6_300_000 * (i + 1) * (strategy in REPLAYS),
            "peak_gpu_bytes": None,
            "peak_memory_bytes": 1_250_000_000 + i,
            "sharpness": dict.fromkeys(columns, 0.031 + 0.01 * i),
        }
        (folder / stage / "stage.json").write_text(json.dumps(record))
    scores = score_rows(rows, done, columns)
    write_rows(folder / "cases.csv", rows)
    write_rows(folder / "R.csv", scores)
    result = {
        "stages_finished": len(done),
        "stages": len(stages),
        "metrics": summary_of(scores, strategy, columns, len(tasks)),
        "passes": 2400 * len(done),
        "seconds": (96.5 + seed) * len(done),
        "peak_memory_bytes": 1_250_000_000,
        "memory_bytes": 6_300_000 * len(done) * (strategy in REPLAYS),
        "corrupted": {"noise": {"dice": 0.61, "tre_mm": 10.2}, "bias_field": {"dice": 0.64}} if done == stages else {},
        "sharpness": dict.fromkeys(columns, 0.034 + 0.002 * seed),
    }
    (folder / "summary.json").write_text(json.dumps(result, indent=2))
    return folder
