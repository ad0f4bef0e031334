"""Pairs of a plain list are made one by one: the same as a list of them, in the memory of the images."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from shared.data.item_pairs import ItemPairs, images_of
from shared.data.pairs import PairDataset, form_pairs
from shared.data.pooled import pooled_pairs
from tests.learn2reg_folder import affine, blobs, save

SIZE = (6, 6, 6)


def listed(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return all ordered pairs as dicts, at once."""
    pairs = []
    for sides in itertools.permutations(items, 2):
        files = {
            f"{s}_{role}": file
            for s, item in zip(("fixed", "moving"), sides, strict=True)
            for role, file in item.items()
        }
        pairs.append({**files, "fixed_modality": "auto", "moving_modality": "auto", "task": "images"})
    return pairs


def named(count: int) -> list[dict[str, str]]:
    return [{"image": f"{n}.nii.gz", **({"label": f"{n}_label.nii.gz"} if n % 2 else {})} for n in range(count)]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_all_ordered_pairs_in_their_order(count):
    items = named(count)
    pairs, expected = ItemPairs(items), listed(items)
    assert len(pairs) == count * (count - 1)
    assert list(pairs) == expected
    assert json.dumps(pairs[0]) == json.dumps(expected[0])
    assert pairs[-1] == expected[-1]
    assert pairs[1:3] == expected[1:3]
    assert list(pickle.loads(pickle.dumps(pairs))) == expected
    assert images_of(pairs) == images_of(expected) == {item["image"] for item in items}
    for outside in (len(pairs), -len(pairs) - 1):
        with pytest.raises(IndexError, match=f"expected one of {len(pairs)} pairs"):
            pairs[outside]


@pytest.mark.parametrize("d", [2, 3])
def test_pairs_whose_boxes_meet(d):
    rng = np.random.default_rng(d)
    items, low = named(12), rng.uniform(0, 10, (12, d))
    low[4] += 100  # meets none
    high = low + rng.uniform(2, 8, (12, d))

    def meet(a: int, b: int) -> bool:
        common = np.minimum(high[a], high[b]) - np.maximum(low[a], low[b])
        return bool((common >= 0.25 * np.minimum(high[a] - low[a], high[b] - low[b])).all())

    every = ItemPairs(items)
    kept = every.meeting(low, high, 0.25)
    sides = [(a, b) for a, b in itertools.permutations(range(12), 2) if meet(a, b)]
    assert 0 < len(kept) == len(sides) < len(every)
    assert [kept.sides(k) for k in range(len(kept))] == sides
    expected = [
        pair for pair, (a, b) in zip(listed(items), itertools.permutations(range(12), 2), strict=True) if meet(a, b)
    ]
    assert list(kept) == expected
    assert images_of(kept) == images_of(expected)
    assert items[4]["image"] not in images_of(kept)
    assert every.meeting(np.zeros((12, d)), np.ones((12, d)), 0.25) is every


def test_ten_thousand_images_take_the_memory_of_ten_thousand():
    items = named(10_000)
    tracemalloc.start()
    pairs = ItemPairs(items)
    boxes = np.random.default_rng(0).uniform(0, 1, (10_000, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pairs) == 99_990_000
    assert pairs[50_000_000]["fixed_image"] == "5000.nii.gz"
    assert pairs.meeting(boxes, boxes + 2, 0.25) is pairs
    assert peak < 10_000 * 1024
    assert len(pickle.dumps(pairs)) < 10_000 * 128


@pytest.fixture
def files(tmp_path):
    """Six images, two on one grid, one far away; with a label map, a mask, both or none."""
    origins = (0, 0, 2, 4, 900, 3)
    roles = (("label",), ("mask",), ("label", "mask"), (), ("label",), ("mask",))
    items = []
    for number, (x, more) in enumerate(zip(origins, roles, strict=True)):
        matrix = affine(origin_mm=(x, 0, 0))
        item = {"image": str(save(tmp_path / f"{number}.nii.gz", blobs(seed=number), matrix))}
        for role in more:
            voxels = (blobs(seed=number) > 30 + 20 * (role == "label")).astype(np.uint8)
            item[role] = str(save(tmp_path / f"{number}_{role}.nii.gz", voxels, matrix))
        items.append(item)
    return items


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return one.key == other.key if hasattr(one, "key") else one == other


@pytest.mark.parametrize("mask_as_label", [True, False])
@pytest.mark.parametrize("far", [True, False])
def test_samples_are_those_of_listed_pairs_bit_for_bit(files, mask_as_label, far):
    items = files if far else files[:4] + files[5:]
    with pytest.warns(UserWarning, match="left out") if far else nullcontext():
        lazy = PairDataset(items, SIZE, mask_as_label=mask_as_label)
    eager = PairDataset(list(lazy.pairs), SIZE, mask_as_label=mask_as_label)
    assert isinstance(lazy.pairs, ItemPairs)
    assert len(lazy) == len(eager) == 20
    assert all(same(lazy[index], eager[index]) for index in range(len(lazy)))
    assert (lazy.kept, lazy.unread) == (eager.kept, eager.unread)
    assert lazy.images == eager.images
    assert any("fixed_label" in lazy[index] for index in range(len(lazy)))


def test_the_list_decides_the_settings(files):
    one, same_one, other = (PairDataset(items, SIZE).settings() for items in (files[:3], files[:3], files[1:4]))
    assert one == same_one
    assert one["files"] != other["files"]


def test_a_pool_of_one_list_is_made_one_by_one(files):
    assert isinstance(pooled_pairs(form_pairs(files[:3]), SIZE).pairs, ItemPairs)
