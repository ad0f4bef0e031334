"""What a failed run is said to have failed from."""

import pytest

from shared.errors import InputError
from tools.process import run_bundle


def write_config(folder, expression: str):
    path = folder / "train.json"
    path.write_text('{"imports": ["$import torch"], "work": "$' + expression + '", "training": ["$@work"]}')
    return str(path)


def failure(folder, expression: str) -> str:
    with pytest.raises(InputError) as caught:
        run_bundle("training", [write_config(folder, expression)], {}, folder / "run.log", threads=1)
    return str(caught.value)


def test_the_first_cause_is_told_not_what_was_made_of_it(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("error: of an earlier call\n")
    message = failure(tmp_path, "torch.zeros(2).reshape(3)")
    assert message.startswith("RuntimeError: shape '[3]' is invalid for input of size 2 (exit code 1; log: ")
    assert log.read_text().startswith("error: of an earlier call\n")
