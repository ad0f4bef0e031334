"""The stages of a chain: what each learns, and from which it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError

from .plan import Plan, Task

__all__ = ["Stage", "stages_of"]


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


def stages_of(plan: Plan, folder: Path, kind: str) -> list[Stage]:
    """Return the stages of a plan.

    Args:
        plan: checked plan.
        folder: of the chain.
        kind: "continued", "separate" (a model a task) or "pooled" (all tasks at once).

    Raises:
        InputError: tasks that cannot be pooled.
    """
    return _pooled(plan) if kind == "pooled" else _one_by_one(plan, folder, kind)


def _one_by_one(plan: Plan, folder: Path, kind: str) -> list[Stage]:
    stages: list[Stage] = []
    for number, task in enumerate(plan.tasks, 1):
        before = folder / stages[-1].name / "run" if stages and kind == "continued" else None
        stages.append(Stage(f"{number:02d}_{task.task}", (task,), {**plan.options, **task.options}, before))
    return stages


def _pooled(plan: Plan) -> list[Stage]:
    """Return the one stage that trains all tasks at once, as long as the others train one after another."""
    tasks = plan.tasks
    own = [{k: v for k, v in task.options.items() if k != "iterations"} for task in tasks]
    if any(options != own[0] for options in own):
        raise InputError(
            f"the plan {plan.name}: found tasks with options of their own ({own}); joint training takes one "
            "set of options for all, but for iterations"
        )
    iterations = sum(int(task.options.get("iterations", plan.scalar("iterations"))) for task in tasks)
    options = {**plan.options, **own[0], "iterations": iterations}
    return [Stage("01_joint", tasks, options, None)]
