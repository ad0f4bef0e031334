"""Several tasks as one dataset."""

from __future__ import annotations

from collections import Counter

import pytest

from shared.data.kept import BESIDE_VOXELS
from shared.data.pairs import PairDataset
from shared.data.pooled import PooledPairs, pooled_pairs
from shared.errors import InputError
from tests.learn2reg_folder import blobs, save, write_pair


class Task:
    """Stands in for ``PairDataset``: a sample is its name and number."""

    def __init__(self, name: str, size: int) -> None:
        self.pairs = [{"task": name, "number": i} for i in range(size)]
        self.checked = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int):
        return self.pairs[index]

    def settings(self):
        return {"pairs": len(self.pairs)}

    def check(self) -> None:
        self.checked += 1


def test_tasks_take_turns_with_the_same_share_whatever_their_sizes():
    pooled = PooledPairs([Task("a", 2), Task("b", 5), Task("c", 1)])
    assert len(pooled) == 15
    seen = [(pooled[i]["task"], pooled[i]["number"]) for i in range(15)]
    assert seen[:6] == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 0)]
    assert Counter(task for task, _ in seen) == {"a": 5, "b": 5, "c": 5}
    assert {number for task, number in seen if task == "b"} == set(range(5))


def test_iteration_ends():
    assert len(list(PooledPairs([Task("a", 2), Task("b", 3)]))) == 6
    with pytest.raises(IndexError, match="found index 6, expected 0 to 5"):
        PooledPairs([Task("a", 2), Task("b", 3)])[6]


def test_pairs_settings_and_check_are_those_of_all_tasks():
    tasks = [Task("a", 2), Task("b", 3)]
    pooled = PooledPairs(tasks)
    assert pooled.pairs == tasks[0].pairs + tasks[1].pairs
    assert pooled.settings() == {"0": {"pairs": 2}, "1": {"pairs": 3}}
    pooled.check()
    assert [t.checked for t in tasks] == [1, 1]


def test_no_task_is_refused():
    with pytest.raises(InputError, match="no task to pool"):
        PooledPairs([])


def test_pairs_are_pooled_by_their_task(tmp_path):
    pair = write_pair(tmp_path)
    data = [{**pair, "task": task} for task in ("a", "b", "a", "a", "b")]
    pooled = pooled_pairs(data, (8, 8, 8), mask_images=True)
    assert isinstance(pooled, PooledPairs)
    assert [len(d) for d in pooled.datasets] == [3, 2]
    assert [pooled[i]["task"] for i in range(len(pooled))] == ["a", "b"] * 3
    assert all(d.size == (8, 8, 8) and d.mask_images for d in pooled.datasets)


def test_tasks_divide_the_memory(tmp_path, monkeypatch):
    pair = write_pair(tmp_path)
    monkeypatch.setattr("shared.data.kept.free_bytes", lambda: 4 * 3.0 * (8**3 * 7 + BESIDE_VOXELS))
    assert PairDataset([pair], (8, 8, 8)).kept == 2  # of three that would fit
    pooled = pooled_pairs([{**pair, "task": task} for task in "abc"], (8, 8, 8))
    assert [d.kept for d in pooled.datasets] == [1, 1, 1]
    assert (pooled.kept, pooled.unread) == (3, 3)


def test_one_task_needs_no_pooling(tmp_path):
    pair = write_pair(tmp_path)
    for data in ([pair], [{**pair, "task": "a"}] * 2):
        single = pooled_pairs(data, (8, 8, 8))
        assert type(single) is PairDataset
        assert single.settings() == PairDataset(data, (8, 8, 8)).settings()


def test_a_plain_list_of_images_is_one_task(tmp_path):
    data = [{"image": str(save(tmp_path / f"{i}.nii.gz", blobs(seed=i)))} for i in range(3)]
    dataset = pooled_pairs(data, (8, 8, 8))
    assert type(dataset) is PairDataset
    assert len(dataset) == 6
    assert dataset[0]["task"] == "images"


def test_a_list_of_other_things_is_refused():
    with pytest.raises(InputError, match="found a data list without pairs or images"):
        pooled_pairs([{"file": "a"}], (8, 8, 8))
