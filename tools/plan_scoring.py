"""Which options decide how a model is scored: all tasks of a chain must share them, or their scores mean nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.errors import InputError
from shared.files import read_json

from .planned import Plan, Task

__all__ = ["check_scoring", "scoring_ids"]

# What the evaluation refers to without its scores depending on it: where it computes, the chain's own ids, and the
# loss, whose sharpness is asked of the training that minimised it.
APART = ("device", "objective", "tasks", "split", "output_dir", "model", "corruptions")
_REFERENCE = re.compile(r"@(\w+)")


def scoring_ids(plan: Plan) -> list[str]:
    """Return the ids of the config that the bundle's evaluation reads, directly or through others, sorted."""
    content = _merged([read_json(path) for path in plan.config_files("evaluate_tasks")])
    arguments = content["evaluation"][-1]
    waiting = [value for key, value in arguments.items() if key not in APART]
    found: set[str] = set()
    while waiting:
        referred = set(_REFERENCE.findall(json.dumps(waiting.pop()))) - found - {*APART}
        found |= referred
        waiting += [value for name in referred for value in content.get(name, [])]
    return sorted(found)


def _merged(contents: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return id -> what the files say of it, later files winning; changes of parts (``id#part``) come along."""
    merged: dict[str, list[Any]] = {}
    for content in contents:
        for key, value in content.items():
            name, _, part = key.removeprefix("+").partition("#")
            is_whole = not part and not key.startswith("+")
            merged[name] = [value] if is_whole else [*merged.get(name, []), value]
    return merged


def check_scoring(where: str, plan: Plan) -> None:
    """Raise InputError where a task's own options would change how all tasks are scored, or would reach no run."""
    ids = scoring_ids(plan)
    for task in plan.tasks:
        if changed := _of(task, ids):
            raise InputError(
                f"{where}, task {task.task}: found options {', '.join(changed)} of its own, expected these among the "
                "plan's options: after each stage all tasks are scored with them"
            )
    for task in plan.unseen:
        if task.options:
            raise InputError(
                f"{where}, unseen task {task.task}: found options {', '.join(task.options)} of its own, expected "
                "none: it is scored alone, with the plan's options"
            )


def _of(task: Task, ids: Sequence[str]) -> list[str]:
    return [option for option in task.options if option.split("#")[0] in ids]
