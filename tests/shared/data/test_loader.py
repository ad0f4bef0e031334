"""Reading ahead: the same batches in the same order, errors that arrive, runs that can be killed."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from shared.data.loader import AHEAD, SampleLoader
from shared.data.sampler import ResumableSampler
from shared.errors import InputError
from shared.files import read_json
from tests.tiny import TinyPairs, kill_at, make_trainer, same, weights


class SlowPairs(TinyPairs):
    """Pairs that take their time, each another one, and count who is asked for."""

    unread, kept = 6, 2

    def __init__(self, pause: float = 0.002) -> None:
        super().__init__()
        self.pause, self.asked = pause, 0
        self.threads: set[str] = set()

    def __getitem__(self, index):
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        time.sleep(self.pause * (6 - index))
        return super().__getitem__(index)


class Numbers:
    """Samples that are their own numbers."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def __getitem__(self, index):
        time.sleep(self.pause)
        return index


def first(loader: SampleLoader, count: int) -> list:
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_threads_keep_the_order(batch_size):
    samplers = [ResumableSampler(50, seed=3) for _ in range(2)]
    plain = SampleLoader(Numbers(), samplers[0], batch_size, threads=0)
    ahead = SampleLoader(Numbers(), samplers[1], batch_size, threads=4)
    assert first(plain, 40) == first(ahead, 40)


def test_what_is_read_ahead_is_bounded():
    pairs = SlowPairs(0)
    loader = iter(SampleLoader(pairs, ResumableSampler(6), batch_size=2, threads=2))
    for count in range(1, 6):
        next(loader)
        time.sleep(0.05)
        assert pairs.asked <= 2 * (count + AHEAD)
    loader.close()
    assert all(name.startswith("read-ahead") for name in pairs.threads)
    assert not any(t.name.startswith("read-ahead") for t in threading.enumerate())


def test_threads_are_taken_where_images_are_left_to_read():
    sampler = ResumableSampler(6)
    assert SampleLoader(TinyPairs(), sampler).threads == 0
    assert SampleLoader(SlowPairs(), sampler).threads >= 1
    assert SampleLoader(SlowPairs(), sampler, threads=0).threads == 0
    assert SampleLoader(TinyPairs(), sampler).describe() == ""
    text = SampleLoader(SlowPairs(), sampler, threads=3).describe()
    assert text == "6 samples, 6 images not read yet: 2 of its images can be kept in memory, 3 threads read ahead"
    assert SampleLoader(SlowPairs(), sampler, threads=0).describe().endswith("they are read when they are asked for")


def test_the_wait_is_what_reading_costs_beyond_the_step():
    waited = {}
    for threads in (0, 1):
        loader = SampleLoader(Numbers(0.01), ResumableSampler(50), threads=threads)
        for _ in zip(range(20), loader, strict=False):
            time.sleep(0.03)
        waited[threads] = loader.waited
    assert waited[0] >= 0.2
    assert waited[1] < waited[0] / 2


def test_training_is_the_same_with_and_without_threads(tmp_path, capsys):
    found = []
    for threads in (0, 3):
        trainer = make_trainer(tmp_path / str(threads), dataset=SlowPairs(), num_workers=threads, max_epochs=3)
        trainer.run()
        found.append(weights(trainer))
    assert same(*found)
    said = capsys.readouterr().out
    assert "3 threads read ahead" in said
    assert "of them waiting for samples" in said
    assert 0 < read_json(tmp_path / "0" / "done.json")["wait_share"] < 1


def test_a_killed_run_that_reads_ahead_goes_on(tmp_path):
    options = {"num_workers": 2, "max_epochs": 3}
    whole = make_trainer(tmp_path / "whole", dataset=SlowPairs(), **options)
    whole.run()
    part = make_trainer(tmp_path / "part", dataset=SlowPairs(), **options)
    kill_at(part, 3)
    before = part.data_loader.waited
    again = make_trainer(tmp_path / "part", dataset=SlowPairs(), **options)
    again.run()
    assert same(weights(whole), weights(again))
    assert before > 0


def test_what_a_thread_cannot_read_stops_the_training(tmp_path):
    class Broken(SlowPairs):
        def __getitem__(self, index):
            if index == 4:
                raise InputError("image4.nii.gz: found nothing, expected voxels")
            return super().__getitem__(index)

    with pytest.raises(InputError, match=r"image4\.nii\.gz"):
        make_trainer(tmp_path, dataset=Broken(), num_workers=2, max_epochs=3).run()
    assert not any(t.name.startswith("read-ahead") for t in threading.enumerate())
