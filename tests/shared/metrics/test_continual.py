"""Measures of the score matrix: cases worked by hand, symmetries, chains that are not finished."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.metrics import (
    backward_transfer,
    final_average,
    forgetting,
    forward_transfer,
    intransigence,
    summary,
    unseen_average,
)

NAN = math.nan
# Three tasks, learnt in order; Dice.
DICE = np.array([[0.80, 0.40, 0.30], [0.60, 0.70, 0.35], [0.65, 0.50, 0.90]])
BASELINE = [0.30, 0.35, 0.40]
ALONE = [0.82, 0.75, 0.88]


@pytest.fixture(autouse=True)
def _silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def same(first: dict[str, float], second: dict[str, float]) -> bool:
    return first.keys() == second.keys() and all(first[k] == pytest.approx(second[k], nan_ok=True) for k in first)


def test_worked_by_hand():
    assert final_average(DICE) == pytest.approx((0.65 + 0.50 + 0.90) / 3)
    assert backward_transfer(DICE) == pytest.approx(((0.65 - 0.80) + (0.50 - 0.70)) / 2)
    assert forgetting(DICE) == pytest.approx(((0.80 - 0.65) + (0.70 - 0.50)) / 2)
    assert forward_transfer(DICE, BASELINE) == pytest.approx(((0.40 - 0.35) + (0.35 - 0.40)) / 2)
    assert intransigence(DICE, ALONE) == pytest.approx((0.02 + 0.05 - 0.02) / 3)
    assert math.isnan(unseen_average(DICE))


def test_forgetting_starts_from_the_best_stage_since_the_task_was_learnt():
    scores = DICE.copy()
    scores[1, 0] = 0.85  # task 0 still gains in stage 1: forgetting and backward transfer part ways
    assert forgetting(scores) == pytest.approx((0.20 + 0.20) / 2)
    assert backward_transfer(scores) == pytest.approx((-0.15 - 0.20) / 2)
    scores[0, 1] = 0.99  # before task 1 was learnt
    assert forgetting(scores) == pytest.approx((0.20 + 0.20) / 2)
    scores[2] = [0.95, 0.80, 0.90]  # still improving
    assert forgetting(scores) == pytest.approx((-0.10 - 0.10) / 2)


def test_distances_in_mm_count_the_other_way():
    hd95_mm = np.array([[4.0, 9.0], [6.0, 5.0]])
    assert summary(hd95_mm, [10.0, 10.0], [4.0, 4.5], larger_is_better=False) == pytest.approx(
        {
            "final_average": 5.5,
            "unseen_average": NAN,
            "backward_transfer": -2.0,
            "forgetting": 2.0,
            "forward_transfer": 1.0,
            "intransigence": (0.0 + 0.5) / 2,
        },
        nan_ok=True,
    )


def test_a_chain_that_is_not_finished():
    unfinished = summary(DICE[:2], BASELINE, ALONE)
    assert unfinished == pytest.approx(
        {
            "final_average": (0.60 + 0.70 + 0.35) / 3,
            "unseen_average": NAN,
            "backward_transfer": -0.20,
            "forgetting": 0.20,
            "forward_transfer": ((0.40 - 0.35) + (0.35 - 0.40)) / 2,
            "intransigence": (0.02 + 0.05) / 2,
        },
        nan_ok=True,
    )
    assert final_average(DICE[:2], trained=[0, 1]) == pytest.approx(0.65)
    first = summary(DICE[:1], BASELINE, ALONE)
    assert math.isnan(first["backward_transfer"])
    assert math.isnan(first["forgetting"])
    assert first["forward_transfer"] == pytest.approx(0.05)
    assert first["intransigence"] == pytest.approx(0.02)
    assert all(math.isnan(v) for v in summary(DICE[:0], BASELINE, ALONE).values())


def test_a_joint_run_has_an_average_only():
    joint = summary([[0.8, 0.7, 0.6]], BASELINE, ALONE, trained=[None])
    assert joint.pop("final_average") == pytest.approx(0.7)
    assert all(math.isnan(v) for v in joint.values())
    assert final_average([[0.8, 0.7, 0.6]]) == pytest.approx(0.7)


def test_a_joint_stage_in_front_of_a_chain():
    # Trained on all three, then on task 2, then on task 0.
    trained = [None, 2, 0]
    assert backward_transfer(DICE, trained=trained) == pytest.approx(0.90 - 0.35)
    assert forward_transfer(DICE, BASELINE, trained=trained) == pytest.approx(((0.30 - 0.40) + (0.60 - 0.30)) / 2)
    assert final_average(DICE, trained=trained) == pytest.approx(DICE[-1].mean())


def test_unseen_tasks_are_a_figure_of_their_own():
    scores = np.column_stack([DICE, [0.1, 0.2, 0.3], [0.5, 0.4, 0.5]])
    trained = [0, 1, 2]
    found = summary(scores, [*BASELINE, 0.0, 0.0], [*ALONE, 1.0, 1.0], trained=trained)
    expected = summary(DICE, BASELINE, ALONE)
    assert found.pop("unseen_average") == pytest.approx(0.4)
    expected.pop("unseen_average")
    assert found == pytest.approx(expected)


def test_a_chain_in_another_order_and_with_stages_still_to_come():
    order = [2, 0, 1]
    shuffled = np.empty_like(DICE)
    shuffled[:, order] = DICE
    baseline, alone = np.empty(3), np.empty(3)
    baseline[order], alone[order] = BASELINE, ALONE
    assert same(summary(shuffled, baseline, alone, trained=order), summary(DICE, BASELINE, ALONE))
    assert same(summary(shuffled[:2], baseline, alone, trained=order), summary(DICE[:2], BASELINE, ALONE))


def test_entries_that_were_not_evaluated_are_left_out():
    scores = DICE.copy()
    scores[0, 1] = scores[2, 1] = NAN
    found = summary(scores, BASELINE, [0.82, NAN, 0.88])
    assert found["final_average"] == pytest.approx((0.65 + 0.90) / 2)
    assert found["backward_transfer"] == pytest.approx(-0.15)
    assert found["forgetting"] == pytest.approx(0.15)
    assert found["forward_transfer"] == pytest.approx(0.35 - 0.40)
    assert found["intransigence"] == pytest.approx((0.02 - 0.02) / 2)
    scores[0, 0] = NAN  # the best of what is there
    assert forgetting(scores) == pytest.approx(0.60 - 0.65)
    assert math.isnan(backward_transfer(scores))
    assert all(math.isnan(v) for v in summary(np.full((3, 3), NAN), BASELINE, ALONE).values())


@st.composite
def chains(draw, complete: bool = False):
    """A score matrix with holes, fewer rows than tasks, an order with joint stages, and both vectors."""
    tasks = draw(st.integers(1, 5))
    rows = tasks if complete else draw(st.integers(0, tasks))
    number = st.floats(-1e3, 1e3, width=32)
    entry = number if complete else number | st.just(NAN)
    scores = [draw(st.lists(entry, min_size=tasks, max_size=tasks)) for _ in range(rows)]
    order = draw(st.permutations(range(tasks)))
    if not complete:
        order = [None if draw(st.integers(0, 3)) == 0 else j for j in order[: draw(st.integers(rows, tasks))]]
    vectors = [draw(st.lists(entry, min_size=tasks, max_size=tasks)) for _ in range(2)]
    return np.array(scores).reshape(rows, tasks), *map(np.array, vectors), order


@settings(deadline=None)
@given(chains(), st.booleans())
def test_the_other_sign_with_the_other_flag_is_the_same_transfer(chain, larger):
    scores, baseline, alone, trained = chain
    plain = summary(scores, baseline, alone, larger, trained)
    turned = summary(-scores, -baseline, -alone, not larger, trained)
    for name in ("final_average", "unseen_average"):
        turned[name] *= -1
    assert same(plain, turned)


@settings(deadline=None)
@given(chains())
def test_a_constant_matrix_transfers_and_forgets_nothing(chain):
    scores, baseline, alone, trained = chain
    constant = [np.where(np.isnan(values), NAN, 0.7) for values in (scores, baseline, alone)]
    for name, value in summary(*constant, trained=trained).items():
        expected = 0.7 if name.endswith("average") else 0.0
        assert math.isnan(value) or value == pytest.approx(expected)


@settings(deadline=None)
@given(chains(), st.floats(-100, 100), st.floats(0.5, 2))
def test_measures_follow_offset_and_scale(chain, offset, scale):
    scores, baseline, alone, trained = chain
    plain = summary(scores, baseline, alone, trained=trained)
    moved = summary(*(scale * v + offset for v in (scores, baseline, alone)), trained=trained)
    for name, value in plain.items():
        expected = scale * value + (offset if name.endswith("average") else 0.0)
        assert moved[name] == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


@settings(deadline=None)
@given(chains(complete=True))
def test_complete_chains_agree_with_the_published_formulas(chain):
    scores, baseline, alone, order = chain
    found = summary(scores, baseline, alone, trained=order)
    ordered, first, reference = scores[:, order], baseline[order], alone[order]
    n = len(order)
    assert found["final_average"] == pytest.approx(ordered[-1].mean(), abs=1e-9)
    assert found["intransigence"] == pytest.approx((reference - ordered.diagonal()).mean(), abs=1e-9)
    if n > 1:
        assert found["backward_transfer"] == pytest.approx((ordered[-1] - ordered.diagonal())[:-1].mean(), abs=1e-9)
        ahead = [ordered[j - 1, j] - first[j] for j in range(1, n)]
        assert found["forward_transfer"] == pytest.approx(np.mean(ahead), abs=1e-9)
        lost = [max(ordered[i, j] for i in range(j, n - 1)) - ordered[-1, j] for j in range(n - 1)]
        assert found["forgetting"] == pytest.approx(np.mean(lost), abs=1e-9)
        assert found["forgetting"] >= -found["backward_transfer"] - 1e-9


@settings(deadline=None)
@given(chains(complete=True))
def test_without_an_order_stage_i_trains_task_i(chain):
    scores, baseline, alone, _ = chain
    assert same(summary(scores, baseline, alone), summary(scores, baseline, alone, trained=range(len(scores))))


def test_what_is_not_given_is_nan():
    found = summary(DICE)
    assert [k for k, v in found.items() if math.isnan(v)] == ["unseen_average", "forward_transfer", "intransigence"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: final_average([0.5, 0.6]), r"scores must be \(stages, tasks\), got shape \(2,\)"),
        (lambda: forgetting([[0.5, math.inf]]), "scores must be finite, or NaN"),
        (lambda: forward_transfer(DICE, BASELINE[:2]), r"baseline must hold one score for each of 3 tasks.*\(2,\)"),
        (lambda: intransigence(DICE, 0.8), r"reference must hold one score for each of 3 tasks, got shape \(\)"),
        (lambda: intransigence(DICE, [0.8, 0.7, -math.inf]), "reference must be finite"),
        (lambda: backward_transfer(DICE, trained=[0, 1]), r"trained must name .* 3 stages .* 3 tasks.* got \[0, 1\]"),
        (lambda: summary(DICE, trained=[0, 1, 1]), r"another of 3 tasks.* got \[0, 1, 1\]"),
        (lambda: unseen_average(DICE, trained=[0, 1, 3]), r"got \[0, 1, 3\]"),
        (lambda: unseen_average(DICE, trained=[0, 1, -1]), r"got \[0, 1, -1\]"),
        (lambda: final_average(DICE[:, :2]), "3 stages for 2 tasks: trained must say which task each stage trains"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
