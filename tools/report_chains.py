"""Reading the folders of chains, finished or not."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import InputError
from shared.files import read_json

from .report_words import METRICS, is_synthetic, task_text

__all__ = ["BEFORE", "Chain", "find_chains", "mean", "number", "read_chain"]

BEFORE = "before registration"
KINDS = ("continued", "pooled", "separate")
# Key of chain.json -> type and what a message calls it.
FIELDS: dict[str, tuple[type, str]] = {
    "name": (str, "a text"),
    "bundle": (str, "a text"),
    "strategy": (str, "a text"),
    "seed": (int, "a whole number"),
    "tasks": (list, "a list of objects with a 'task'"),
    "stages": (list, "a list of folder names"),
}


@dataclass(frozen=True)
class Chain:
    """What one chain folder holds.

    Attributes:
        folder: where it lies.
        settings: chain.json.
        stages: names of all stages, also those to come.
        records: stage.json of each finished stage, in order.
        scores: metric -> row ("before registration" or a stage) -> task -> R.
        cases: rows of cases.csv, scores as numbers.
        summary: summary.json.
        curves: metrics.csv of each stage that began, in order.
    """

    folder: Path
    settings: dict[str, Any]
    stages: list[str]
    records: list[dict[str, Any]]
    scores: dict[str, dict[str, dict[str, float]]]
    cases: list[dict[str, Any]]
    summary: dict[str, Any]
    curves: list[dict[str, np.ndarray]] = field(repr=False)

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks to learn, in order."""
        return [entry["task"] for entry in self.settings["tasks"]]

    @property
    def columns(self) -> list[str]:
        """Names of the scored tasks: those to learn, then those that are never learnt."""
        scored = [task for rows in self.scores.values() for row in rows.values() for task in row]
        return list(dict.fromkeys([*self.tasks, *scored]))

    @property
    def versions(self) -> dict[str, list[str]]:
        """Name of a program -> its versions: those that the chain began with, then others that it went on with."""
        begun = self.settings.get("versions") or {}
        found: dict[str, list[str]] = {}
        for versions in [begun, *(v for record in self.records for v in record.get("versions") or [])]:
            for name, value in versions.items():
                found.setdefault(name, []).append("" if value is None else str(value))
        return {name: list(dict.fromkeys(values)) for name, values in found.items()}

    @property
    def kind(self) -> str:
        """``continued`` from task to task, ``pooled`` (one stage for all tasks) or ``separate`` (a model a task)."""
        return self.settings.get("kind") or ("continued" if len(self.stages) == len(self.tasks) else "pooled")

    @property
    def registers(self) -> bool:
        """Whether pairs of images are registered; else single images are segmented."""
        return self.settings.get("subject", "registration") == "registration"

    @property
    def is_finished(self) -> bool:
        """Whether every stage is."""
        return len(self.records) == len(self.stages)

    @property
    def done(self) -> list[str]:
        """Names of the finished stages."""
        return self.stages[: len(self.records)]

    def label(self, task: str) -> str:
        """Return the name of a task for people; where all are synthetic, the page says so once."""
        return task_text(task, mark_synthetic=not all(is_synthetic(t) for t in self.columns))

    def learns(self, stage: str) -> list[str]:
        """Return the tasks that a stage trains."""
        return self.tasks if self.kind == "pooled" else [self.tasks[self.stages.index(stage)]]

    def stage_of(self, task: str) -> int | None:
        """Return the position of the stage that trains a task; None for one that is never learnt."""
        return next((i for i, stage in enumerate(self.stages) if task in self.learns(stage)), None)

    def end_of(self, task: str) -> str:
        """Return the stage whose model serves a task at the end: the last one, or the task's own."""
        stage = self.stage_of(task) if self.kind == "separate" else None
        return self.done[-1] if stage is None or stage >= len(self.done) else self.stages[stage]

    def score(self, metric: str, row: str, task: str) -> float:
        """Return an entry of R, NaN where there is none."""
        return self.scores.get(metric, {}).get(row, {}).get(task, math.nan)

    def average(self, metric: str, before: bool = False) -> float:
        """Return the mean score of the tasks learnt so far, at the end or before registration."""
        learnt = [task for stage in self.done for task in self.learns(stage)]
        return mean(self.score(metric, BEFORE if before else self.end_of(task), task) for task in learnt)

    def measure(self, metric: str, name: str) -> float:
        """Return a number of summary.json's ``metrics``, NaN where there is none."""
        return number(self.summary.get("metrics", {}).get(metric, {}).get(name))

    def case_scores(self, metric: str, stage: str, task: str) -> list[float]:
        """Return one finite score a case; ``stage`` may be "before registration"."""
        if stage == BEFORE:
            if not self.done:
                return []
            # Every stage repeats the unregistered scores of the same cases.
            metric, stage = f"{metric}_before", self.done[-1]
        values = [row.get(metric, math.nan) for row in self.cases if (row["stage"], row["task"]) == (stage, task)]
        return [v for v in values if math.isfinite(v)]

    def picture(self, stage: str, task: str) -> Path | None:
        """Return the example picture of a task after a stage."""
        path = self.folder / stage / "evaluation" / task / "evaluation_example.png"
        return path if path.is_file() else None


def mean(values: Iterable[float]) -> float:
    """Return the mean of the finite values, NaN where there are none."""
    found = [v for v in values if math.isfinite(v)]
    return math.fsum(found) / len(found) if found else math.nan


def number(value: Any) -> float:
    """Return a JSON value as a number; NaN for null, text and the like. A table of numbers counts with its mean."""
    if isinstance(value, Mapping):
        return mean(number(v) for v in value.values())
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def find_chains(folders: Sequence[str | Path]) -> list[Path]:
    """Return the chain folders among and up to two levels below ``folders`` (``COMPARE/strategy/seed``), each once.

    Raises:
        InputError: a folder that neither is a chain nor holds one.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [p.parent for pattern in ("*", "*/*") for p in sorted(folder.glob(f"{pattern}/chain.json"))]
        chains = [folder] if (folder / "chain.json").is_file() else inside
        if not chains:
            what = "no chain.json" if folder.is_dir() else "no such folder"
            raise InputError(
                f"{folder / 'chain.json'}: found {what}; expected the folder of a chain as `python -m tools chain` "
                "writes it, or a folder of such"
            )
        found += chains
    return list({path.resolve(): path for path in found}.values())


def read_chain(folder: str | Path) -> Chain:
    """Read what a chain has written so far.

    Raises:
        InputError: a file that is missing where it must be, or malformed; says what was found and what is expected.
    """
    folder = Path(folder)
    settings = _object(folder / "chain.json")
    for key, (kind, words) in FIELDS.items():
        value = settings.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{folder / 'chain.json'}: found {key} {value!r}, expected {words}")
    if not settings["tasks"] or not all(
        isinstance(t, Mapping) and isinstance(t.get("task"), str) for t in settings["tasks"]
    ):
        raise InputError(f"{folder / 'chain.json'}: found tasks {settings['tasks']!r}, expected {FIELDS['tasks'][1]}")
    stages = settings["stages"]
    for key in ("options", "versions"):
        if not isinstance(settings.get(key, {}), dict):
            raise InputError(f"{folder / 'chain.json'}: found {key} {settings[key]!r}, expected an object")
    if settings.get("kind", "continued") not in KINDS:
        raise InputError(
            f"{folder / 'chain.json'}: found kind {settings['kind']!r}, expected one of {', '.join(KINDS)}"
        )
    if not all(isinstance(stage, str) for stage in stages) or len(stages) not in {1, len(settings["tasks"])}:
        raise InputError(
            f"{folder / 'chain.json'}: found stages {stages!r} for {len(settings['tasks'])} tasks, expected one folder "
            "name a task, or one for all"
        )
    records = []
    for stage in stages:
        if not (folder / stage / "stage.json").is_file():
            break
        records.append(_object(folder / stage / "stage.json"))
        versions = records[-1].get("versions", [])
        if not isinstance(versions, list) or not all(isinstance(entry, Mapping) for entry in versions):
            raise InputError(
                f"{folder / stage / 'stage.json'}: found versions {versions!r}, expected a list of objects"
            )
    summary = _object(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    for key in ("metrics", "corrupted"):
        tables = summary.get(key) or {}
        if not isinstance(tables, Mapping) or not all(isinstance(row, Mapping) for row in tables.values()):
            raise InputError(f"{folder / 'summary.json'}: found {key} {tables!r}, expected an object of objects")
    done = set(stages[: len(records)])
    cases = [row for row in _cases(folder / "cases.csv") if row["stage"] in done]
    curves = [_numbers(path) for stage in stages if (path := folder / stage / "run" / "metrics.csv").is_file()]
    return Chain(folder, settings, stages, records, _scores(folder / "R.csv", done), cases, summary, curves)


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {type(content).__name__}, expected a JSON object")
    return content


def _table(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Read a CSV file; a missing one has no rows: the chain has not come so far."""
    if not path.is_file():
        return []
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a CSV file") from error
    header = rows[0] if rows else []
    if missing := [name for name in needed if name not in header]:
        raise InputError(f"{path}: found columns {header}, expected also {missing}")
    for line, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: found {len(row)} cells, expected {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _float(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text) if text.strip() else math.nan
    except ValueError as error:
        raise InputError(f"{path}, line {line}, column {column}: found {text!r}, expected a number") from error


def _scores(path: Path, done: set[str]) -> dict[str, dict[str, dict[str, float]]]:
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for line, row in enumerate(_table(path, ("metric", "after")), 2):
        if (after := row.pop("after")) in done | {BEFORE}:
            values = {k: _float(path, line, k, v) for k, v in row.items() if k != "metric"}
            scores.setdefault(row["metric"], {})[after] = values
    return scores


def _cases(path: Path) -> list[dict[str, Any]]:
    columns = {f"{key}{suffix}" for key in METRICS for suffix in ("", "_before")}
    return [
        {k: _float(path, line, k, v) if k in columns else v for k, v in row.items()}
        for line, row in enumerate(_table(path, ("stage", "task")), 2)
    ]


def _numbers(path: Path) -> dict[str, np.ndarray]:
    rows = _table(path, ("iteration",))
    return {
        k: np.array([_float(path, i, k, row[k]) for i, row in enumerate(rows, 2)]) for k in (rows[0] if rows else ())
    }
