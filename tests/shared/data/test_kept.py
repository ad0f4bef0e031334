"""What stays in memory: as much as fits, the same as from files, and with ranks and pools together no more."""

from __future__ import annotations

import pytest
import torch

from shared.data import kept
from shared.data.kept import AT_ONCE, BESIDE_VOXELS, KeptItems
from shared.errors import InputError


class Reader:
    """Reads items, and counts how often each was read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __call__(self, entry):
        self.read.append(entry["number"])
        if entry["number"] == 7:
            raise InputError("image7.nii.gz: found nothing")
        return {"image": torch.full((2,), float(entry["number"]))}


def entries(count: int, start: int = 10) -> list[dict]:
    return [{"number": start + i} for i in range(count)]


def test_items_that_fit_are_read_once():
    reader = Reader()
    items = KeptItems(entries(5), reader, 8, cache_num=3)
    assert reader.read == [10, 11, 12]
    for _ in range(2):
        assert [float(items[i]["image"][0]) for i in range(5)] == [10, 11, 12, 13, 14]
    assert reader.read == [10, 11, 12, 13, 14, 13, 14]
    assert (items.kept, items.unread, len(items)) == (3, 2, 5)


def test_a_long_list_is_not_read_before_it_is_used():
    reader = Reader()
    items = KeptItems(entries(AT_ONCE + 2), reader, 8)
    assert len(reader.read) == AT_ONCE
    assert (items.kept, items.unread) == (AT_ONCE + 2, 2)
    for _ in range(2):
        items[AT_ONCE + 1]
    assert len(reader.read) == AT_ONCE + 1


def test_memory_decides_how_many_are_kept(monkeypatch):
    monkeypatch.setattr(kept, "free_bytes", lambda: 4 * 10 * (1000 + BESIDE_VOXELS))
    assert KeptItems(entries(50), Reader(), 1000).kept == 10
    assert KeptItems(entries(50), Reader(), 1000, share=0.125).kept == 5
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert KeptItems(entries(50), Reader(), 1000).kept == 5
    assert KeptItems(entries(50), Reader(), 1000, cache_num=20).kept == 20


def test_an_unusable_file_is_named_at_once_or_when_it_is_read():
    with pytest.raises(InputError, match=r"image7\.nii\.gz"):
        KeptItems(entries(3, start=5), Reader(), 8)
    items = KeptItems(entries(3, start=5), Reader(), 8, cache_num=0)
    with pytest.raises(InputError, match=r"image7\.nii\.gz"):
        items[2]
