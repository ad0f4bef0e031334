from pathlib import Path

import torch

from shared.free_memory import free_bytes


def test_the_host_says_what_it_has():
    assert 1e6 < free_bytes() < 1e15
    assert 1e6 < free_bytes(torch.device("cpu")) < 1e15


def test_a_host_that_does_not_say_counts_as_free(monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert free_bytes() > 1e6
