"""A chain: bundles run task by task, each from the one before, each followed by a look at all tasks.

```
CHAIN/
  chain.json             what the chain was begun with
  01_<task>/
    training.json .log   arguments and output of ``python -m monai.bundle run``
    run/                 the bundle's run_dir: model.pt, memory, metrics.csv ...
    evaluation/<task>/   scores and pictures on every task
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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.files import read_json, save_json, sole_owner, writable_dir
from shared.settings import differences

from .plan import ROOT, Plan, Task, check_data
from .process import run_bundle
from .results import collect, read_rows

__all__ = ["Chain"]

# Share of a stage's time that training takes, for the progress line.
TRAINING_SHARE = 0.85
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
    "config_files",
)


@dataclass(frozen=True)
class Stage:
    """One training of a chain.

    Attributes:
        name: of its folder.
        tasks: what it learns: one task, or all for joint training.
        options: of its training.
        init_from: run_dir of the stage before; None starts afresh.
    """

    name: str
    tasks: tuple[Task, ...]
    options: dict[str, Any]
    init_from: Path | None


def _commit() -> str:
    """Return the commit of the collection, with ``-dirty`` when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "monai", "numpy", "itk")}
    return {"python": platform.python_version(), **packages, "commit": _commit()}


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
        self.stages = self._pooled() if self.kind == "pooled" else self._one_by_one()

    def _one_by_one(self) -> list[Stage]:
        stages: list[Stage] = []
        for number, task in enumerate(self.plan.tasks, 1):
            before = self.folder / stages[-1].name / "run" if stages and self.kind == "continued" else None
            options = {**self.plan.options, **task.options}
            stages.append(Stage(f"{number:02d}_{task.task}", (task,), options, before))
        return stages

    def _pooled(self) -> list[Stage]:
        """Return the one stage that trains all tasks at once, as long as the others train one after another."""
        tasks = self.plan.tasks
        own = [{k: v for k, v in task.options.items() if k != "iterations"} for task in tasks]
        if any(options != own[0] for options in own):
            raise InputError(
                f"the plan {self.plan.name}: found tasks with options of their own ({own}); joint training takes one "
                "set of options for all, but for iterations"
            )
        iterations = sum(int(task.options.get("iterations", self.plan.scalar("iterations"))) for task in tasks)
        options = {**self.plan.options, **own[0], "iterations": iterations}
        return [Stage("01_joint", tasks, options, None)]

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
        contents = "".join(Path(f).read_text() for f in self.plan.config_files("evaluate_tasks"))
        return {
            "name": plan.pop("name"),
            **{k: v for k, v in plan.items() if k not in ("seeds", "variants")},
            "seed": self.seed,
            "kind": self.kind,
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
        changed = differences({k: found.get(k) for k in SETTINGS}, {k: record[k] for k in SETTINGS})
        if changed:
            raise InputError(
                f"{self.folder}: holds another chain ({changed}); expected the same settings to go on with it, or "
                "another --out"
            )

    def _run_stage(self, number: int, stage: Stage) -> None:
        folder = writable_dir(self.folder / stage.name)
        training = self._train(number, stage, folder)
        scoring = self._evaluate(number, stage, folder)
        done = read_json(folder / "run" / "done.json")
        record = {
            "tasks": [task.task for task in stage.tasks],
            "passes": done["passes"],
            "seconds": done["seconds"],
            "memory_bytes": done["memory_bytes"],
            "peak_gpu_bytes": done["peak_gpu_bytes"],
            "peak_memory_bytes": max(training, scoring),
            "sharpness": self._sharpness(folder),
        }
        save_json(folder / "stage.json", record)
        self.collect()

    def _train(self, number: int, stage: Stage, folder: Path) -> float:
        """Train unless that is done; return the most memory that it took, 0 when it was done before."""
        run_dir = folder / "run"
        if (run_dir / "done.json").is_file() and (run_dir / "validation_summary.json").is_file():
            return 0
        options = {
            **stage.options,
            "task": stage.tasks[0].task,
            "dataset_dir": stage.tasks[0].dataset_dir,
            "run_dir": str(run_dir),
            "seed": self.seed,
        }
        if len(self.stages) == 1 and self.kind == "pooled":
            options["tasks"] = [[task.dataset_dir, task.task] for task in stage.tasks]
        if stage.init_from is not None:
            options["init_from"] = str(stage.init_from)
        iterations = int(stage.options.get("iterations", self.plan.scalar("iterations")))

        def watch() -> None:
            log = run_dir / "metrics.csv"
            done = int(read_rows(log)[-1]["iteration"]) if log.is_file() else 0
            self._tell(number + TRAINING_SHARE * done / iterations, stage, f"iteration {done}/{iterations}")

        used = run_bundle("training", self.plan.config_files(), options, folder / "training.log", self.threads, watch)
        return used["peak_memory_bytes"]

    def _evaluate(self, number: int, stage: Stage, folder: Path) -> float:
        """Score all tasks unless that is done; return the most memory that it took."""
        results = folder / "evaluation"
        corruptions = self.corruptions if number == len(self.stages) - 1 else ()
        places = [results, *(results / "corrupted" / name for name in corruptions)]
        wanted = [place / task.task / "evaluation_summary.json" for task in self.plan.scored for place in places]

        def scored() -> int:
            return sum(path.is_file() for path in wanted)

        def watch() -> None:
            share = TRAINING_SHARE + (1 - TRAINING_SHARE) * scored() / len(wanted)
            self._tell(number + share, stage, f"scored {scored()}/{len(wanted)}")

        if scored() == len(wanted):
            return 0
        options = {
            **stage.options,
            "tasks": [[task.dataset_dir, task.task] for task in self.plan.scored],
            "model": str(folder / "run" / "model.pt"),
            "output_dir": str(results),
            "split": self.plan.split,
            "corruptions": list(corruptions),
        }
        files = self.plan.config_files("evaluate_tasks")
        used = run_bundle("evaluating", files, options, folder / "evaluation.log", self.threads, watch)
        return used["peak_memory_bytes"]

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
