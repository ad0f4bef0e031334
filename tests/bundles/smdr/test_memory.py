"""The memory of real slices: its shares, and its files."""

from __future__ import annotations

import pytest
import torch

from bundles.smdr.scripts.memory import ExemplarMemory
from shared.errors import InputError
from tests.bundles.smdr.tiny_segmenter import BRIGHT, DARK


def filled(capacity: int = 6, sites: int = 2) -> ExemplarMemory:
    memory = ExemplarMemory(capacity)
    generator = torch.Generator().manual_seed(0)
    for number in range(sites):
        memory.add(f"site{number}", (BRIGHT, DARK)[number % 2], generator)
    return memory


def images(memory: ExemplarMemory) -> list[torch.Tensor]:
    return [memory[i]["image"] for i in range(len(memory))]


def test_sites_share_the_capacity_and_the_first_ones_stay():
    one, two = filled(6, 1), filled(6, 2)
    assert one.sites == {"site0": range(6)}
    assert two.sites == {"site0": range(3), "site1": range(3, 6)}
    assert all(torch.equal(a, b) for a, b in zip(images(one)[:3], images(two)[:3], strict=True))
    assert [two[i]["site"] for i in range(6)] == ["site0"] * 3 + ["site1"] * 3
    assert len(filled(7, 3)) == 6


def test_a_slice_comes_back_as_training_needs_it():
    sample = filled()[4]
    assert sample["image"].dtype == torch.float32
    assert sample["label"].dtype == torch.int16
    origin = [s for s in DARK.samples if torch.equal(s["label"], sample["label"])]
    assert any(torch.allclose(s["image"], sample["image"], atol=1e-3) for s in origin)
    with pytest.raises(IndexError, match="found slice 6"):
        filled()[6]


def test_files_hold_what_memory_holds_and_no_more(tmp_path):
    memory = filled(6, 1)
    first = memory.save(tmp_path)
    memory.add("site1", DARK, torch.Generator().manual_seed(1))
    index = memory.save(tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 9
    old = ExemplarMemory(6)
    old.load(tmp_path, first)  # the checkpoint before still counts
    assert old.sites == {"site0": range(6)}
    memory.prune()
    assert len(list(tmp_path.glob("*.npz"))) == 6
    again = ExemplarMemory(6)
    again.load(tmp_path, index)
    assert again.sites == memory.sites
    assert again.nbytes == memory.nbytes == 6 * 8 * 8 * (2 + 1)
    assert all(torch.equal(a, b) for a, b in zip(images(memory), images(again), strict=True))


def test_a_smaller_memory_takes_the_first_of_each_site(tmp_path):
    large = filled(6)
    small = ExemplarMemory(4)
    small.load(tmp_path, large.save(tmp_path), keep_folder=False)
    assert small.sites == {"site0": range(2), "site1": range(2, 4)}
    small.prune()
    assert len(list(tmp_path.glob("*.npz"))) == 6  # another run's folder


def test_bad_memories_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found capacity 0"):
        ExemplarMemory(0)
    with pytest.raises(InputError, match="found site 'site0' in the memory already"):
        filled().add("site0", BRIGHT, torch.Generator())
    with pytest.raises(InputError, match="found 2 sites and a memory of 1 slices, expected at least as many"):
        filled(1, 2)
    with pytest.raises(InputError, match="found the memory of another strategy"):
        ExemplarMemory().load(tmp_path, {"seen": 3, "numbers": []})
    index = filled().save(tmp_path)
    (tmp_path / "slice_0000001.npz").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"slice_0000001\.npz: not readable as a slice"):
        ExemplarMemory(6).load(tmp_path, index)
