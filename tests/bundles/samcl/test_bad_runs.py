"""Training and the command line end on bad input with a message, and harm nothing that was written before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import Sequential
from bundles.samcl.scripts.trainer import ContinualTrainer
from shared.data.pairs import PairDataset
from shared.errors import InputError
from shared.files import save_tensors
from tests.bad_files import truncated
from tests.learn2reg_folder import blobs, oasis, save, write_folder, write_pair

ROOT = Path(__file__).resolve().parents[3]
NETWORK_SIZE = (8, 8, 8)


@pytest.fixture
def pair(tmp_path) -> dict[str, str]:
    return write_pair(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def network(channels: int = 2) -> LKUNet:
    return LKUNet(spatial_dims=3, channels=channels, depth=1)


# -- training ----------------------------------------------------------------------------------------------------------


def trainer(run_dir: Path, pair: dict[str, str], init_from: Path | None = None, channels: int = 2) -> ContinualTrainer:
    model = network(channels)
    return ContinualTrainer(
        device=torch.device("cpu"),
        network=model,
        optimizer=torch.optim.Adam(model.parameters()),
        loss_function=RegistrationObjective(),
        dataset=PairDataset([pair], NETWORK_SIZE),
        strategy=Sequential(),
        run_dir=run_dir,
        init_from=init_from,
    )


@pytest.mark.parametrize("content", ["nothing", "an empty folder", "a folder without model.pt"])
def test_init_from_without_a_model(tmp_path, pair, content):
    previous = tmp_path / "previous"
    if content != "nothing":
        previous.mkdir()
    if content == "a folder without model.pt":
        (previous / "done.json").write_text("{}")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"previous: found no complete run \(model\.pt with done\.json\); expected"):
        trainer(tmp_path / "run", pair, previous).run()
    after = contents(tmp_path)
    assert {k: after[k] for k in before} == before
    assert "run/model.pt" not in after


def test_init_from_a_model_of_another_architecture(tmp_path, pair):
    trainer(tmp_path / "first", pair).run()
    before = contents(tmp_path / "first")
    message = r"first/model\.pt: holds a model of another architecture \(\d+ tensors differ; .*found \(.*expected \("
    with pytest.raises(InputError, match=message):
        trainer(tmp_path / "second", pair, tmp_path / "first", channels=4).run()
    assert contents(tmp_path / "first") == before
    assert not (tmp_path / "second" / "model.pt").exists()


def test_a_full_disk_while_training_keeps_the_checkpoint(tmp_path, pair):
    run = trainer(tmp_path / "run", pair)
    (tmp_path / "run" / f".tmp-{os.getpid()}-state.pt").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"state\.pt: cannot be written \(No space left on device\)"):
        run.run()
    assert not (tmp_path / "run" / "model.pt").exists()
    trainer(tmp_path / "run", pair).run()
    assert (tmp_path / "run" / "model.pt").exists()


# -- command line ------------------------------------------------------------------------------------------------------


def command(config: str, **overrides) -> subprocess.CompletedProcess:
    """Run a config of the bundle from the repository's root, as a user does."""
    files = [str(ROOT / "bundles/samcl/configs" / f"{name}.json") for name in config.split("+")]
    arguments = [f"--{key}={value}" for key, value in overrides.items()]
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def tiny(folder: Path) -> dict[str, object]:
    """Overrides for a run of seconds on an OASIS folder."""
    write_folder(folder / "data", oasis())
    return {"dataset_dir": folder / "data", "task": "OASIS", "run_dir": folder / "run"}


def in_training_unknown_task(folder: Path):
    return "train+smoke", {**tiny(folder), "task": "OASSIS"}, "no task 'OASSIS' (did you mean 'OASIS'?)"


def in_training_a_run_dir_below_a_file(folder: Path):
    (folder / "plain").touch()
    overrides = {**tiny(folder), "run_dir": folder / "plain" / "run"}
    return "train+smoke", overrides, f"{folder}/plain/run: cannot be written (Not a directory)"


def in_training_init_from_nothing(folder: Path):
    return "train+smoke", {**tiny(folder), "init_from": folder / "gone"}, f"{folder}/gone: found no complete run"


def in_training_false_as_json_spells_it(folder: Path):
    return "train+smoke", {**tiny(folder), "adaptive": "false"}, "adaptive: found 'false', expected True or False"


def in_training_null_as_json_spells_it(folder: Path):
    overrides = {**tiny(folder), "scheduler": "null"}
    return "train+smoke", overrides, "scheduler: found 'null', expected None or a torch learning rate scheduler"


def in_inference_a_truncated_image(folder: Path):
    truncated(folder / "bad.nii.gz")
    save(folder / "fixed.nii.gz", blobs())
    save_tensors(folder / "model.pt", LKUNet(3, 2, 1, half_resolution=True).state_dict())
    overrides = {
        "fixed_image": folder / "fixed.nii.gz",
        "moving_image": folder / "bad.nii.gz",
        "model": folder / "model.pt",
        "output_dir": folder / "output",
        "network_def#channels": 2,
        "network_def#depth": 1,
    }
    return "inference", overrides, f"{folder}/bad.nii.gz: its voxels cannot be read"


@pytest.mark.parametrize(
    "case",
    [
        in_training_unknown_task,
        in_training_a_run_dir_below_a_file,
        in_training_init_from_nothing,
        in_training_false_as_json_spells_it,
        in_training_null_as_json_spells_it,
        in_inference_a_truncated_image,
    ],
)
def test_the_command_line_ends_with_the_message_and_exit_code_1(tmp_path, case):
    config, overrides, message = case(tmp_path)
    done = command(config, **overrides)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
