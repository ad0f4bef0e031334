"""The endless stream of indices: complete, shuffled, resumable, shared among ranks."""

from __future__ import annotations

import itertools

import pytest

from shared.data.sampler import ResumableSampler


def take(sampler: ResumableSampler, count: int) -> list[int]:
    return list(itertools.islice(iter(sampler), count))


def test_sampler_visits_every_pair_once_a_pass_in_another_order():
    first, second = take(ResumableSampler(7), 7), take(ResumableSampler(7), 14)[7:]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


@pytest.mark.parametrize("position", [0, 3, 7, 12])
def test_sampler_goes_on_from_any_position(position):
    sampler = ResumableSampler(7, seed=5)
    sampler.position = position
    assert take(sampler, 6) == take(ResumableSampler(7, seed=5), position + 6)[position:]


def test_ranks_share_one_stream():
    stream = take(ResumableSampler(5), 10)
    ranks = [take(ResumableSampler(5, rank=r, world=2), 5) for r in (0, 1)]
    assert ranks == [stream[0::2], stream[1::2]]
