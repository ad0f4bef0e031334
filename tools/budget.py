"""The budget of a comparison: as many passes for every strategy, and what is said where they came out otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.errors import InputError

from .planned import Plan

__all__ = ["matched", "unequal_passes"]

# Share of the budget by which measured passes may miss it: iterations are whole numbers.
TOLERANCE = 0.02


def matched(plan: Plan, strategy: str, match: str) -> Plan:
    """Return the plan with another strategy and its iterations scaled to the same budget a task.

    What counts is the strategy's passes a sample and the batch size; what options make of the former is not known
    here, see :func:`unequal_passes`.

    Args:
        plan: its own strategy sets the budget.
        strategy: the other one, or a variant of the plan.
        match: "passes" for the same number of samples sent forward, "iterations" for the same iterations.

    Raises:
        InputError: an unknown ``match``, or iterations or batch sizes that are no plain numbers.
    """
    if match not in ("passes", "iterations"):
        raise InputError(f"found match '{match}', expected passes or iterations")
    changed = plan.variant(strategy)
    if match == "iterations":
        return changed

    def scale(own: Mapping[str, Any]) -> int:
        iterations = _whole(plan, "iterations", own.get("iterations", changed.scalar("iterations")))
        budget, cost = (_passes_an_iteration(p, own) for p in (plan, changed))
        return max(1, round(iterations * budget / cost))

    tasks = tuple(
        replace(t, options={**t.options, "iterations": scale(t.options)})
        if {"iterations", "batch_size"} & {*t.options}
        else t
        for t in plan.tasks
    )
    return replace(changed, tasks=tasks, options={**changed.options, "iterations": scale({})})


def _passes_an_iteration(plan: Plan, own: Mapping[str, Any]) -> float:
    """Return the passes of one iteration, of a task with options of its own."""
    batch = own.get("batch_size", plan.scalar("batch_size"))
    return float(plan.strategy_config()["passes_per_sample"]) * _whole(plan, "batch_size", batch)


def _whole(plan: Plan, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"the plan {plan.name}: found {name} {value!r}, expected a whole number from 1 on")
    return value


def unequal_passes(plan: Plan, measured: Mapping[str, Sequence[float]]) -> list[str]:
    """Return a sentence on each strategy whose measured passes miss the budget by more than 2 %.

    Options may change what a sample costs (a radius of 0 needs no second pass), and some strategies have a cheaper
    first task.

    Args:
        plan: its own strategy sets the budget: as measured where that is among the strategies, else as planned.
        measured: strategy or variant -> passes of each of its chains, over all tasks.
    """
    means = {name: sum(passes) / len(passes) for name, passes in measured.items()}
    options = [task.options for task in plan.tasks]
    planned = sum(own.get("iterations", plan.scalar("iterations")) * _passes_an_iteration(plan, own) for own in options)
    budget = means.get(plan.strategy, planned)
    return [
        f"Not the same budget: {name} made {passes:.0f} passes, {100 * (passes / budget - 1):+.1f} % against "
        f"{plan.strategy} with {budget:.0f}."
        for name, passes in means.items()
        if abs(passes - budget) > TOLERANCE * budget
    ]
