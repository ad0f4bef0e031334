"""What a subclass of the trainer keeps beside weights and moments."""

from __future__ import annotations

import pytest
import torch

from shared.files import load_tensors, read_json
from shared.trainer import RegistrationTrainer
from tests.tiny import kill_at, make_trainer


class Keeping(RegistrationTrainer):
    """Keeps the sum of all losses, and the iterations in a file of their own; notes the order of its hooks."""

    def __init__(self, **options) -> None:
        self.total, self.calls = torch.zeros(()), []
        super().__init__(**options)

    def learn(self, samples):
        parts = super().learn(samples)
        self.total = self.total + parts["loss"]
        return parts

    def extra_settings(self):
        return {"keeping": "sum"}

    def begin(self):
        self.calls.append("begin")

    def end(self):
        self.calls.append("end")

    def extra_state(self):
        return {"total": self.total}

    def load_extra_state(self, state, run):
        self.calls.append("load")
        self.total = state["total"]
        assert (run.path / f"extra_{state['iteration']}").exists()

    def inherit(self, state, previous):
        self.calls.append("inherit")
        self.total = state["total"]

    def write_extra_files(self):
        (self.run_directory.path / f"extra_{self.state.iteration}").touch()

    def prune_extra_files(self):
        for path in self.run_directory.path.glob("extra_*"):
            if path.name != f"extra_{self.state.iteration}":
                path.unlink()

    def kept_bytes(self):
        return 4


def test_what_a_subclass_keeps_is_carried_through_kills_and_from_run_to_run(tmp_path):
    whole = make_trainer(tmp_path / "whole", Keeping)
    whole.run()
    assert whole.calls == ["begin", "end"]
    kill_at(make_trainer(tmp_path / "part", Keeping), 3)
    again = make_trainer(tmp_path / "part", Keeping)
    again.run()
    assert again.calls == ["load", "begin", "end"]
    assert torch.equal(again.total, whole.total)
    assert sorted(p.name for p in (tmp_path / "part").glob("extra_*")) == ["extra_4"]
    assert read_json(tmp_path / "part" / "done.json")["memory_bytes"] == 4
    assert read_json(tmp_path / "part" / "settings.json")["keeping"] == "sum"
    assert load_tensors(tmp_path / "part" / "state.pt")["total"] == whole.total
    following = make_trainer(tmp_path / "next", Keeping, init_from=tmp_path / "part")
    following.run()
    assert following.calls == ["inherit", "begin", "end"]
    assert following.total > whole.total


def test_a_run_ends_once_even_if_killed_right_after(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, Keeping)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.run_directory, "finish", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    again = make_trainer(tmp_path, Keeping)
    again.run()
    assert again.calls == ["load", "begin"]
    assert (tmp_path / "done.json").exists()
