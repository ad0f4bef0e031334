"""Weights behind a wrapper and from a file."""

from __future__ import annotations

import pytest
import torch

from shared.errors import InputError
from shared.files import save_tensors
from shared.weights import load_weights, trainable
from tests.tiny import make_network, same


def test_weights_come_back_from_a_file(tmp_path):
    saved, network = make_network(), make_network()
    torch.nn.init.ones_(saved.fine.weight)
    save_tensors(tmp_path / "model.pt", saved.state_dict())
    load_weights(network, tmp_path / "model.pt")
    assert same(network.state_dict(), saved.state_dict())


@pytest.mark.parametrize("content", [{"state": {"a": 1}}, [1, 2], {"weight": "text"}])
def test_weights_of_another_kind(tmp_path, content):
    save_tensors(tmp_path / "model.pt", content)
    with pytest.raises(InputError, match=r"model\.pt: holds "):
        load_weights(make_network(), tmp_path / "model.pt")


def test_weights_of_another_architecture(tmp_path):
    save_tensors(tmp_path / "model.pt", make_network(channels=4).state_dict())
    message = r"another architecture \(4 tensors differ; coarse\.weight: found \(3, 4, .*expected \(3, 2, "
    with pytest.raises(InputError, match=message):
        load_weights(make_network(), tmp_path / "model.pt")


def test_a_file_that_holds_no_weights(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"PK not a torch file")
    with pytest.raises(InputError, match="not readable as weights"):
        load_weights(make_network(), tmp_path / "broken.pt")


def test_trainable_are_those_that_training_changes():
    network = make_network()
    network.coarse.requires_grad_(False)
    assert set(trainable(network)) == {k for k, _ in network.named_parameters() if not k.startswith("coarse")}


class Remembering(torch.nn.Linear):
    """Keeps words beside its weights."""

    def __init__(self, words: str) -> None:
        super().__init__(2, 2)
        self.words = words

    def get_extra_state(self):
        return torch.frombuffer(bytearray(self.words.encode()), dtype=torch.uint8)

    def set_extra_state(self, state):
        self.words = bytes(state.tolist()).decode()


def test_a_modules_extra_state_may_differ_in_size(tmp_path):
    network = Remembering("many words")
    save_tensors(tmp_path / "model.pt", network.state_dict())
    other = Remembering("few")
    load_weights(other, tmp_path / "model.pt")
    assert other.words == "many words"
    assert torch.equal(other.weight, network.weight)
