"""The reservoir: statistics, storage and resuming."""

from __future__ import annotations

import threading

import pytest
import torch

from bundles.samcl.scripts import memory as memory_module
from bundles.samcl.scripts.memory import ReservoirMemory
from shared.errors import InputError


def sample(number: int, labelled: bool = True) -> dict:
    content = {
        "fixed_image": torch.full((1, 4, 4, 4), number / 1000),
        "moving_image": torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(number)),
        "fixed_mask": torch.ones(1, 4, 4, 4, dtype=torch.uint8),
        "moving_mask": torch.ones(1, 4, 4, 4, dtype=torch.uint8),
        "task": "task",
        "pair": {"not": "kept"},
    }
    if labelled:
        label = torch.full((1, 4, 4, 4), 300, dtype=torch.int16)
        content.update(fixed_label=label, moving_label=label.clamp(max=200), labels=[200, 300])
        content.update(fixed_points=torch.rand(3, 3), moving_points=torch.rand(3, 3))
    return content


def numbers(memory: ReservoirMemory) -> list[int]:
    return [n for n, _ in memory._slots]


def test_every_sample_is_kept_with_probability_capacity_over_seen():
    capacity, seen, trials = 10, 40, 2000
    kept = torch.zeros(seen)
    generator = torch.Generator().manual_seed(0)
    pair = {k: v for k, v in sample(0, labelled=False).items() if k == "task"}
    for _ in range(trials):
        memory = ReservoirMemory(capacity)
        for _ in range(seen):
            memory.offer(pair, generator)
        kept[numbers(memory)] += 1
    share = kept / trials
    deviation = (0.25 * 0.75 / trials) ** 0.5
    # 40 binomial proportions: five standard deviations leave one false alarm in 40,000 runs; the seed is fixed anyway.
    assert (share - capacity / seen).abs().max() < 5 * deviation
    assert share[-1] > 0  # the rule that overwrote the last slot on every rejection failed exactly here


def test_holds_at_most_its_capacity_and_counts_what_it_saw():
    memory, generator = ReservoirMemory(3), torch.Generator().manual_seed(0)
    taken = [memory.offer(sample(i), generator) for i in range(20)]
    assert len(memory) == 3
    assert memory.seen == 20
    assert taken[:3] == [True] * 3
    assert not all(taken)


def test_types_are_small_and_come_back_for_training():
    memory, generator = ReservoirMemory(2), torch.Generator().manual_seed(0)
    memory.offer(sample(5), generator)
    (_, stored) = memory._slots[0]
    assert stored["fixed_image"].dtype == torch.float16
    assert stored["fixed_label"].dtype == torch.int16
    assert stored["moving_label"].dtype == torch.uint8
    assert "pair" not in stored
    assert memory.nbytes == 64 * (2 + 2 + 1 + 1 + 2 + 1) + 2 * 9 * 4
    (drawn,) = memory.draw(4, generator)
    assert drawn["fixed_image"].dtype == torch.float32
    torch.testing.assert_close(drawn["moving_image"], sample(5)["moving_image"], rtol=1e-3, atol=1e-3)


def test_draws_without_replacement():
    memory, generator = ReservoirMemory(5), torch.Generator().manual_seed(0)
    for i in range(5):
        memory.offer(sample(i, labelled=False), generator)
    drawn = memory.draw(5, generator)
    assert len({float(s["fixed_image"].mean()) for s in drawn}) == 5
    assert len(memory.draw(9, generator)) == 5


@pytest.mark.parametrize("on_disk", [False, True])
def test_save_and_load_are_exact(tmp_path, on_disk):
    memory, generator = ReservoirMemory(3, on_disk), torch.Generator().manual_seed(0)
    memory.save(tmp_path)
    for i in range(9):
        memory.offer(sample(i, labelled=i % 2 == 0), generator)
    index = memory.save(tmp_path)
    again = ReservoirMemory(3, on_disk)
    again.load(tmp_path, index)
    assert again.seen == 9
    one, two = (m.draw(3, torch.Generator().manual_seed(1)) for m in (memory, again))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_state_dict_is_read_with_weights_only(tmp_path):
    memory, generator = ReservoirMemory(3), torch.Generator().manual_seed(0)
    for i in range(9):
        memory.offer(sample(i), generator)
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    again = ReservoirMemory(3)
    again.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert (again.seen, numbers(again)) == (9, numbers(memory))
    one, two = (m.draw(3, torch.Generator().manual_seed(1)) for m in (memory, again))
    assert all(torch.equal(a["moving_image"], b["moving_image"]) for a, b in zip(one, two, strict=True))


def test_an_older_index_stays_readable_until_prune(tmp_path):
    memory, generator = ReservoirMemory(2), torch.Generator().manual_seed(0)
    for i in range(2):
        memory.offer(sample(i), generator)
    old = memory.save(tmp_path)
    for i in range(2, 60):
        memory.offer(sample(i), generator)
    memory.save(tmp_path)
    killed = ReservoirMemory(2)
    killed.load(tmp_path, old)
    assert numbers(killed) == [0, 1]
    memory.prune()
    assert len(list(tmp_path.glob("*.npz"))) == 2
    with pytest.raises(InputError, match=r"pair_0000000\.npz"):
        ReservoirMemory(2).load(tmp_path, old)


def test_a_smaller_memory_takes_a_part(tmp_path):
    memory, generator = ReservoirMemory(8), torch.Generator().manual_seed(0)
    for i in range(8):
        memory.offer(sample(i, labelled=False), generator)
    small = ReservoirMemory(3)
    small.load(tmp_path, memory.save(tmp_path), keep_folder=False)
    assert len(set(numbers(small))) == 3


def test_another_task_leaves_the_earlier_folder_alone(tmp_path):
    memory, generator = ReservoirMemory(2), torch.Generator().manual_seed(0)
    memory.offer(sample(0), generator)
    index = memory.save(tmp_path / "first")
    later = ReservoirMemory(2)
    later.load(tmp_path / "first", index, keep_folder=False)
    later.save(tmp_path / "second")
    for i in range(1, 30):
        later.offer(sample(i), generator)
    later.save(tmp_path / "second")
    later.prune()
    assert [p.name for p in (tmp_path / "first").iterdir()] == ["pair_0000000.npz"]


def test_capacity_below_one_is_refused():
    with pytest.raises(ValueError, match="capacity 0"):
        ReservoirMemory(0)


def test_an_on_disk_that_is_text_is_refused():
    with pytest.raises(InputError, match="on_disk: found 'false', expected True or False"):
        ReservoirMemory(4, on_disk="false")


def test_pairs_on_disk_are_read_while_the_caller_goes_on(tmp_path, monkeypatch):
    memory, generator = ReservoirMemory(5, on_disk=True), torch.Generator().manual_seed(0)
    memory.save(tmp_path)
    for i in range(5):
        memory.offer(sample(i), generator)
    expected = memory.draw(3, torch.Generator().manual_seed(1))
    reading, wanted = threading.Event(), threading.Event()
    read = memory_module.read_pair

    def slowly(path):
        reading.set()
        assert wanted.wait(30)
        return read(path)

    monkeypatch.setattr(memory_module, "read_pair", slowly)
    coming = memory.draw_ahead(3, torch.Generator().manual_seed(1))
    assert reading.wait(30)  # and nobody has asked for the pairs yet
    wanted.set()
    for a, b in zip(coming(), expected, strict=True):
        assert torch.equal(a["moving_image"], b["moving_image"])


def test_a_memory_on_disk_stays_there_when_it_is_handed_on(tmp_path):
    first, generator = ReservoirMemory(4, on_disk=True), torch.Generator().manual_seed(0)
    first.save(tmp_path / "first")
    for i in range(4):
        first.offer(sample(i), generator)
    later = ReservoirMemory(4, on_disk=True)
    later.load(tmp_path / "first", first.save(tmp_path / "first"), keep_folder=False)
    assert all(pair is None for _, pair in later._slots)
    assert len(later.draw(4, generator)) == 4
    assert later.nbytes == first.nbytes > 0
    later.save(tmp_path / "second")
    for name in ("first", "second"):
        assert len(list((tmp_path / name).glob("*.npz"))) == 4
    for path in (tmp_path / "first").glob("*.npz"):
        path.unlink()
    assert len(later.draw(4, generator)) == 4
