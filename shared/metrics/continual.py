"""What a chain of tasks learnt, kept and forgot, from its score matrix. No gradients, plain numpy.

``R[i, j]`` is the score on task j after stage i. Rows may be fewer than tasks (a chain that is not finished, a joint
run of one row), and NaN stands for "not evaluated": every mean runs over the entries that are there, and is NaN where
there are none. Columns of tasks that no stage trains are unseen tasks.

All measures take:

- ``scores``: R, (stages, tasks).
- ``trained``: the task of each stage, for at least as many stages as R has rows; None for a stage that trains all
  tasks at once (a joint run is ``[None]``). Without it stage i trains task i, and every task is part of the chain.
- ``larger_is_better``: False for distances and errors. Differences then change sign, so that a positive transfer is
  always good, and positive forgetting and intransigence are always bad.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "backward_transfer",
    "final_average",
    "forgetting",
    "forward_transfer",
    "intransigence",
    "summary",
    "unseen_average",
]

Stages = Sequence[int | None]


def final_average(scores: ArrayLike, trained: Stages | None = None) -> float:
    """Return the mean of the last row over the tasks of the chain, in the scores' own unit.

    ``1/T sum_j R[T-1, j]`` (Lopez-Paz & Ranzato, "Gradient episodic memory", NeurIPS 2017: ACC). Tasks of the chain
    that are still to come count where they were evaluated; ``trained`` cut to the stages so far leaves them out.

    Raises:
        ValueError: ``scores`` is no matrix, or ``trained`` does not fit it.
    """
    matrix = _matrix(scores)
    chain = _chain(matrix, trained)
    return _mean(matrix[-1, j] for j in chain) if len(matrix) else math.nan


def unseen_average(scores: ArrayLike, trained: Stages | None = None) -> float:
    """Return the mean of the last row over the tasks that no stage trains; NaN when there are none.

    Raises:
        ValueError: as `final_average`.
    """
    matrix = _matrix(scores)
    chain = _chain(matrix, trained)
    return _mean(matrix[-1, j] for j in range(matrix.shape[1]) if j not in chain) if len(matrix) else math.nan


def backward_transfer(scores: ArrayLike, *, larger_is_better: bool = True, trained: Stages | None = None) -> float:
    """Return how much the earlier tasks gained, or lost (negative), since they were learnt.

    Mean over the tasks learnt before the last stage of ``R[T-1, j] - R[j, j]`` (Lopez-Paz & Ranzato, NeurIPS 2017:
    BWT).

    Raises:
        ValueError: as `final_average`.
    """
    matrix = _matrix(scores, larger_is_better)
    return _mean(matrix[-1, j] - matrix[i, j] for j, i in _learnt_earlier(matrix, trained))


def forgetting(scores: ArrayLike, *, larger_is_better: bool = True, trained: Stages | None = None) -> float:
    """Return how far the earlier tasks have fallen below their best; negative where they are still improving.

    Mean over the tasks learnt before the last stage of ``max_i R[i, j] - R[T-1, j]``, i running over the stages from
    the one that learnt j to the last but one (Chaudhry et al., "Riemannian walk for incremental learning", ECCV 2018;
    their maximum also takes in the stages before j was learnt, which had nothing to forget yet).

    Raises:
        ValueError: as `final_average`.
    """
    matrix = _matrix(scores, larger_is_better)
    # fmax passes over NaN, and gives NaN without a warning where nothing else is left.
    return _mean(np.fmax.reduce(matrix[i:-1, j]) - matrix[-1, j] for j, i in _learnt_earlier(matrix, trained))


def forward_transfer(
    scores: ArrayLike, baseline: ArrayLike, *, larger_is_better: bool = True, trained: Stages | None = None
) -> float:
    """Return how much the chain helps on a task that it is about to learn.

    Mean over all tasks but the first of ``R[j-1, j] - baseline[j]`` (Lopez-Paz & Ranzato, NeurIPS 2017: FWT).

    Args:
        scores: see the module.
        baseline: (tasks,) scores of the untrained network: in registration, those of the unregistered pairs.
        larger_is_better: see the module.
        trained: see the module; unseen tasks do not count.

    Raises:
        ValueError: as `final_average`, or ``baseline`` has another length.
    """
    matrix = _matrix(scores, larger_is_better)
    start = _vector(baseline, "baseline", matrix, larger_is_better)
    stages = _stages(matrix, trained)
    return _mean(matrix[i - 1, j] - start[j] for j, i in stages.items() if 1 <= i <= len(matrix))


def intransigence(
    scores: ArrayLike, reference: ArrayLike, *, larger_is_better: bool = True, trained: Stages | None = None
) -> float:
    """Return how far a task falls behind, right after it was learnt, because others came before it.

    Mean over the learnt tasks of ``reference[j] - R[j, j]`` (Chaudhry et al., ECCV 2018, who take as reference the
    joint model of the tasks so far; models of one task each ask the same question and need one run a task).

    Args:
        scores: see the module.
        reference: (tasks,) score of a model trained on that task alone.
        larger_is_better: see the module.
        trained: see the module.

    Raises:
        ValueError: as `final_average`, or ``reference`` has another length.
    """
    matrix = _matrix(scores, larger_is_better)
    best = _vector(reference, "reference", matrix, larger_is_better)
    return _mean(best[j] - matrix[i, j] for j, i in _stages(matrix, trained).items() if i < len(matrix))


def summary(
    scores: ArrayLike,
    baseline: ArrayLike | None = None,
    reference: ArrayLike | None = None,
    larger_is_better: bool = True,
    trained: Stages | None = None,
) -> dict[str, float]:
    """Return every measure of this module by its name; NaN where it is undefined.

    Args:
        scores: see the module.
        baseline: see `forward_transfer`, which is NaN without it.
        reference: see `intransigence`, which is NaN without it.
        larger_is_better: see the module.
        trained: see the module.

    Raises:
        ValueError: something does not fit.
    """
    nothing = np.full(_matrix(scores).shape[1], math.nan)
    first, alone = (nothing if v is None else v for v in (baseline, reference))
    better = larger_is_better
    return {
        "final_average": final_average(scores, trained),
        "unseen_average": unseen_average(scores, trained),
        "backward_transfer": backward_transfer(scores, larger_is_better=better, trained=trained),
        "forgetting": forgetting(scores, larger_is_better=better, trained=trained),
        "forward_transfer": forward_transfer(scores, first, larger_is_better=better, trained=trained),
        "intransigence": intransigence(scores, alone, larger_is_better=better, trained=trained),
    }


def _matrix(scores: ArrayLike, larger_is_better: bool = True) -> np.ndarray:
    """Check R and turn it so that larger is better."""
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"scores must be (stages, tasks), got shape {matrix.shape}")
    if np.isinf(matrix).any():
        raise ValueError("scores must be finite, or NaN where a task was not evaluated; got an infinite one")
    return matrix if larger_is_better else -matrix


def _vector(values: ArrayLike, name: str, matrix: np.ndarray, larger_is_better: bool) -> np.ndarray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.shape != matrix.shape[1:]:
        raise ValueError(f"{name} must hold one score for each of {matrix.shape[1]} tasks, got shape {vector.shape}")
    if np.isinf(vector).any():
        raise ValueError(f"{name} must be finite, or NaN where it is not known; got an infinite one")
    return vector if larger_is_better else -vector


def _tasks(matrix: np.ndarray, trained: Stages | None) -> Stages:
    rows, tasks = matrix.shape
    if trained is None:
        if rows > tasks:
            raise ValueError(f"{rows} stages for {tasks} tasks: trained must say which task each stage trains")
        return range(tasks)
    named = [j for j in trained if j is not None]
    if len(trained) < rows or len(set(named)) < len(named) or not all(0 <= j < tasks for j in named):
        raise ValueError(
            f"trained must name for each of {rows} stages another of {tasks} tasks, from 0, or None; got {[*trained]}"
        )
    return trained


def _chain(matrix: np.ndarray, trained: Stages | None) -> set[int]:
    """Return the tasks that some stage trains."""
    stages = _tasks(matrix, trained)
    return set(range(matrix.shape[1])) if None in stages else {j for j in stages if j is not None}


def _stages(matrix: np.ndarray, trained: Stages | None) -> dict[int, int]:
    """Return task -> stage that trains it and nothing else."""
    return {j: i for i, j in enumerate(_tasks(matrix, trained)) if j is not None}


def _learnt_earlier(matrix: np.ndarray, trained: Stages | None) -> list[tuple[int, int]]:
    """Return (task, stage) of the tasks learnt before the last row."""
    return [(j, i) for j, i in _stages(matrix, trained).items() if i < len(matrix) - 1]


def _mean(values: Iterable[float]) -> float:
    found = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(found) / len(found) if found else math.nan
