"""A chain: bundles run task by task, each from the one before, each followed by a look at all tasks.

```
CHAIN/
  chain.json             what the chain was begun with
  01_<task>/
    training.json .log   arguments and output of ``python -m monai.bundle run``
    training_usage.json  its peak memory and the versions that it ran with, over all its starts
    run/                 the bundle's run_dir: model.pt, memory, metrics.csv ...
    evaluation/<task>/   scores and pictures on every task
    generator/ replay/   of strategies that replay generated images: see ``phases.py``
    stage.json           written last: the stage is finished
  cases.csv R.csv summary.json report.html
```
"""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.files import read_json, save_json, sole_owner, writable_dir
from shared.settings import differences

from .phases import Phase, Phases
from .plan import ROOT, Plan, check_data
from .process import run_bundle
from .results import collect
from .stages import Stage, stages_of

__all__ = ["Chain"]

SETTINGS = (
    "bundle",
    "strategy",
    "seed",
    "tasks",
    "unseen",
    "options",
    "configs",
    "split",
    "corruptions",
    "phases",
    "config_files",
)


def _commit() -> str:
    """Return the commit of the collection, with ``-dirty`` when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "monai", "numpy", "itk")}
    return {"python": platform.python_version(), **packages, "commit": _commit()}


def _usage_file(folder: Path, phase: str) -> Path:
    return folder / f"{phase}_usage.json"


def _usage(folder: Path, phase: str) -> dict[str, Any]:
    """Return what a phase took so far; nothing is known of one from before this was noted."""
    path = _usage_file(folder, phase)
    return read_json(path) if path.is_file() else {"peak_memory_bytes": 0.0, "versions": []}


class Chain:
    """Run a plan with one seed in one folder; a call after a kill goes on where it stopped.

    Args:
        plan: checked plan.
        folder: of the chain.
        seed: of weights, order and memory; None takes the plan's first.
        threads: CPU threads a process; None leaves it to torch.
        progress: called with the share done (0 to 1) and a text.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | Path,
        seed: int | None = None,
        threads: int | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        self.plan, self.folder = plan, Path(folder).resolve()
        self.seed = plan.seeds[0] if seed is None else seed
        self.threads, self.progress = threads, progress
        self.kind = plan.strategy_config().get("stages", "continued")
        # Models of one task each have no last one that speaks for all tasks.
        self.corruptions = () if self.kind == "separate" else plan.corruptions
        self.stages = stages_of(plan, self.folder, self.kind)
        pooled = self.kind == "pooled"
        self.phases = Phases(plan, self.folder, self.stages, self.seed, pooled, self.corruptions)

    def run(self) -> dict[str, Any]:
        """Train and score every stage that is not finished; return the summary.

        Raises:
            InputError: the folder holds another chain, is in use, or a stage failed.
        """
        writable_dir(self.folder)
        with sole_owner(self.folder, "chain"):
            self._check_settings()
            for number, stage in enumerate(self.stages):
                if not (self.folder / stage.name / "stage.json").is_file():
                    check_data(self.plan)
                    self._run_stage(number, stage)
                self._tell(number + 1.0, stage, "finished")
            return self.collect()

    def collect(self) -> dict[str, Any]:
        """Write the results of the finished stages."""
        tasks = [task.task for task in self.plan.scored]
        stages = [stage.name for stage in self.stages]
        return collect(self.folder, tasks, len(self.plan.tasks), stages, self.kind, self.corruptions)

    def record(self) -> dict[str, Any]:
        """Return what ``chain.json`` says."""
        plan = self.plan.to_json()
        files = self.plan.config_files("evaluate_tasks") + [
            f for name in self.phases.more for f in self.plan.phase_files(name)
        ]
        contents = "".join(Path(f).read_text() for f in files)
        return {
            "name": plan.pop("name"),
            **{k: v for k, v in plan.items() if k not in ("seeds", "variants")},
            "seed": self.seed,
            "kind": self.kind,
            "subject": "segmentation" if self.plan.segments else "registration",
            "config_files": hashlib.sha256(contents.encode()).hexdigest()[:16],
            "stages": [stage.name for stage in self.stages],
            "versions": _versions(),
            "command": shlex.join(["python", "-m", "tools", *sys.argv[1:]]),
            "threads": self.threads,
        }

    def _check_settings(self) -> None:
        """Compare with the chain that the folder holds, or note this one down."""
        path, record = self.folder / "chain.json", self.record()
        if not path.exists():
            save_json(path, record)
            return
        found = read_json(path)
        found.setdefault("phases", {})
        changed = differences({k: found.get(k) for k in SETTINGS}, {k: record[k] for k in SETTINGS})
        if changed:
            raise InputError(
                f"{self.folder}: holds another chain ({changed}); expected the same settings to go on with it, or "
                "another --out"
            )

    def _run_stage(self, number: int, stage: Stage) -> None:
        folder = writable_dir(self.folder / stage.name)
        phases = self.phases(number)
        total, begun = sum(phase.weight for phase in phases), 0.0
        renewed = False
        for phase in phases:
            # What is there already may come from the weights before those of a training that ran just now.
            if renewed or not phase.is_done:
                before, weight = number + begun / total, phase.weight / total
                self._run_phase(phase, stage, folder, before, weight)
                renewed = renewed or not phase.checks_itself
            begun += phase.weight
        save_json(folder / "stage.json", self._record(number, stage, folder))
        self.collect()

    def _run_phase(self, phase: Phase, stage: Stage, folder: Path, before: float, weight: float) -> None:
        """Run a phase; note down what it took, and with which versions, also where it was begun earlier."""

        def watch() -> None:
            share, text = phase.progress()
            self._tell(before + weight * share, stage, text)

        path, usage = _usage_file(folder, phase.name), _usage(folder, phase.name)
        versions = [*usage["versions"], *(v for v in (_versions(),) if v not in usage["versions"])]
        save_json(path, {**usage, "versions": versions})
        log = folder / f"{phase.name}.log"
        used = run_bundle(phase.run_id, phase.files, phase.options, log, self.threads, watch)
        peak = max(usage["peak_memory_bytes"], used["peak_memory_bytes"])
        save_json(path, {"peak_memory_bytes": peak, "versions": versions})

    def _record(self, number: int, stage: Stage, folder: Path) -> dict[str, Any]:
        """Return what ``stage.json`` says; times and memory are those of training, model and generator together."""
        runs = [read_json(folder / name / "done.json") for name in ("run", *self.phases.generators)]
        kept = sum(path.stat().st_size for path in self.phases.kept(number))
        usages = [_usage(folder, phase.name) for phase in self.phases(number)]
        versions = [version for usage in usages for version in usage["versions"]]
        return {
            "tasks": [task.task for task in stage.tasks],
            "passes": runs[0]["passes"],
            "seconds": sum(run["seconds"] for run in runs),
            "memory_bytes": runs[0]["memory_bytes"] + kept,
            "peak_gpu_bytes": max((run["peak_gpu_bytes"] for run in runs if run["peak_gpu_bytes"]), default=None),
            "peak_memory_bytes": max(usage["peak_memory_bytes"] for usage in usages),
            "sharpness": self._sharpness(folder),
            "versions": [v for i, v in enumerate(versions) if v not in versions[:i]],
        }

    def _sharpness(self, folder: Path) -> dict[str, float]:
        found = {}
        for task in self.plan.scored:
            path = folder / "evaluation" / task.task / "sharpness.json"
            if path.is_file():
                found[task.task] = read_json(path)["loss_rise"]
        return found

    def _tell(self, done: float, stage: Stage, text: str) -> None:
        if self.progress is not None:
            self.progress(done / len(self.stages), f"{self.plan.strategy} {stage.name}: {text}")
