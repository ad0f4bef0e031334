"""States of handlers and optimizers as files with plain content."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch

from shared.checkpoint import handler_states, plain, restore_handlers, tensor_bytes
from shared.files import load_tensors, save_tensors


class Stateful:
    def __init__(self, value) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


class Wrapper:
    """Like MONAI's LrScheduleHandler."""

    def __init__(self, value) -> None:
        self.lr_scheduler = Stateful(value)


def test_plain_content_can_be_read_back(tmp_path):
    content = OrderedDict(
        rate=np.float64(0.5),
        groups=[{"lr": np.float32(0.25), "betas": (0.9, np.float64(0.5))}],
        milestones=Counter({3: 2}),
        hook=print,
        moments=torch.ones(2),
        name=None,
    )
    save_tensors(tmp_path / "state.pt", plain(content))
    found = load_tensors(tmp_path / "state.pt")
    assert torch.equal(found.pop("moments"), torch.ones(2))
    assert found == {
        "rate": 0.5,
        "groups": [{"lr": 0.25, "betas": (0.9, 0.5)}],
        "milestones": Counter({3: 2}),
        "name": None,
    }
    assert [type(v) for v in found.values()] == [float, list, Counter, type(None)]
    assert content["hook"] is print  # the original is left alone


def test_states_go_to_their_kind_and_place():
    handlers = [Stateful(1), print, Wrapper(2), Stateful(3), lambda engine: None]
    states = handler_states(handlers)
    assert states == {"Stateful 0": {"value": 1}, "Wrapper 0": {"value": 2}, "Stateful 1": {"value": 3}}
    fresh = [Wrapper(0), Stateful(0), Stateful(0), Stateful(7)]
    restore_handlers(fresh, states)
    assert fresh[0].lr_scheduler.value == 2
    assert [h.value for h in fresh[1:]] == [1, 3, 7]


def test_a_handler_registered_twice_counts_once():
    handler = Stateful(1)
    assert handler_states([handler, handler, Stateful(2)]) == {"Stateful 0": {"value": 1}, "Stateful 1": {"value": 2}}


def test_a_state_that_a_checkpoint_cannot_hold_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="Stateful 0: its state holds more than tensors"):
        states = handler_states([Stateful(object()), Stateful(2)])
    assert states == {"Stateful 1": {"value": 2}}


def test_bytes_of_nested_tensors_are_counted():
    content = {
        "a": torch.zeros(3),
        "b": [torch.zeros(2, dtype=torch.int16), ({"c": torch.zeros(1)},)],
        "d": 5,
        "e": "x",
    }
    assert tensor_bytes(content) == 12 + 4 + 4
