"""SAMCL with Reptile over tasks and SAM in some iterations."""

from __future__ import annotations

import pytest

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.strategies import MER, SAMCL, Strategy
from bundles.samcl.scripts.two_level import TwoLevelSAMCL
from tests.bundles.samcl.tiny import make_trainer
from tests.tiny import TinyPairs, same, weights


def two_tasks(folder, make) -> tuple[dict, dict]:
    """Return the weights after each of two tasks."""
    found = []
    for task in (0, 1):
        options = {"task": str(task), "init_from": folder / "0" if task else None}
        trainer = make_trainer(folder / str(task), make(), dataset=TinyPairs(seed=task), **options)
        trainer.run()
        found.append(weights(trainer))
    return found[0], found[1]


def two_level(**options) -> Strategy:
    return TwoLevelSAMCL(ReservoirMemory(3), **options)


def test_the_whole_way_with_sam_in_all_iterations_is_samcl(tmp_path):
    plain = two_tasks(tmp_path / "a", lambda: SAMCL(ReservoirMemory(3)))
    levelled = two_tasks(tmp_path / "b", lambda: two_level(gamma=1.0, every=1))
    assert all(same(a, b) for a, b in zip(plain, levelled, strict=True))


def test_sam_in_no_iteration_is_mer(tmp_path):
    plain = two_tasks(tmp_path / "a", lambda: MER(ReservoirMemory(3), beta=0.25))
    levelled = two_tasks(tmp_path / "b", lambda: two_level(gamma=1.0, every=1000))
    assert same(plain[1], levelled[1])


def test_a_later_task_ends_part_of_the_way_from_its_start(tmp_path):
    first, whole = two_tasks(tmp_path / "a", lambda: two_level(gamma=1.0))
    same_first, part = two_tasks(tmp_path / "b", lambda: two_level(gamma=0.25))
    assert same(first, same_first)
    assert not same(first, whole)
    for name, value in part.items():
        assert (value - (first[name] + 0.25 * (whole[name] - first[name]))).abs().max() < 1e-6, name


def test_gamma_zero_learns_one_task_only(tmp_path):
    first, second = two_tasks(tmp_path, lambda: two_level(gamma=0.0))
    assert same(first, second)


def test_a_task_after_another_strategys_starts_anew(tmp_path):
    """Weights that came without a record of tasks may be untrained: they are no place to go back to."""
    make_trainer(tmp_path / "0", MER(ReservoirMemory(3)), dataset=TinyPairs(seed=0), task="0").run()
    ends = []
    for gamma in (1.0, 0.25):
        options = {"dataset": TinyPairs(seed=1), "task": "1", "init_from": tmp_path / "0"}
        trainer = make_trainer(tmp_path / str(gamma), two_level(gamma=gamma), **options)
        trainer.run()
        ends.append(weights(trainer))
    assert same(*ends)


@pytest.mark.parametrize(
    ("options", "message"), [({"gamma": 1.5}, "gamma 1.5, expected 0 to 1"), ({"every": 0}, "every 0")]
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        two_level(**options)


def test_weights_of_another_strategy_are_not_gone_back_to_and_it_is_said(tmp_path, capsys):
    make_trainer(tmp_path / "0", SAMCL(ReservoirMemory(3))).run()
    options = {"dataset": TinyPairs(seed=1), "task": "1", "init_from": tmp_path / "0"}
    make_trainer(tmp_path / "1", TwoLevelSAMCL(ReservoirMemory(3)), **options).run()
    assert "a run of SAMCL: TwoLevelSAMCL does not go back towards these weights" in capsys.readouterr().out
