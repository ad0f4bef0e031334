"""A run folder holds generated samples, weights and statistics, and whatever else lies there is reported."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles.smdr.scripts.labelling import PseudoLabels, SampleFilter
from bundles.smdr.scripts.privacy import check_private, foreign_files
from bundles.smdr.scripts.replay import make_replay
from shared.diffusion import prepare_generator
from shared.errors import InputError
from shared.files import read_json, save_json, save_tensors, write_csv
from shared.handlers import TrainingLog
from tests.bundles.smdr.test_replay import OPTIONS, Bright
from tests.bundles.smdr.tiny_generator import make_generator, make_trainer

PATIENT = torch.rand(1, 64, 64)


@pytest.fixture
def run_dir(tmp_path):
    """Return the folder of a real run of a site: generator trained, replay set made."""
    folder = tmp_path / "run"
    generator = prepare_generator(make_generator(None), "first")
    trainer = make_trainer(folder, generator, train_handlers=[TrainingLog(folder, interval=1)])
    trainer.run()
    options = {**OPTIONS, "keep": SampleFilter(0.0, slack=1e6)}
    make_replay(trainer.site_generator, "first", folder / "replay" / "first", PseudoLabels(Bright()), **options)
    return folder


def test_a_run_holds_nothing_of_a_patient(run_dir):
    assert len([p for p in run_dir.rglob("*") if p.is_file()]) > 10
    assert foreign_files(run_dir) == []


def as_nifti(folder):
    nib.save(nib.Nifti1Image(PATIENT.numpy(), np.eye(4)), folder / "case.nii.gz")


def as_npz_beside_the_samples(folder):
    np.savez(folder / "replay" / "first" / "sample_0000099.npz", image=PATIENT.numpy())


def in_the_place_of_a_sample(folder):
    np.savez(folder / "replay" / "first" / "sample_0000000.npz", image=PATIENT.numpy())


def as_link(folder):
    (folder / "data.npz").symlink_to(folder.parent / "patient.npz")


def as_picture(folder):
    (folder / "worst.png").write_bytes(b"\x89PNG")


def as_pickle(folder):
    (folder / "cache.pkl").write_bytes(b"")


def in_the_checkpoint(folder):
    state = torch.load(folder / "state.pt", weights_only=True)
    save_tensors(folder / "state.pt", {**state, "last_batch": PATIENT})


def among_the_weights(folder):
    weights = torch.load(folder / "model.pt", weights_only=True)
    save_tensors(folder / "model.pt", {**weights, "patient_0001": PATIENT})


def in_the_place_of_a_weight(folder):
    weights = torch.load(folder / "model.pt", weights_only=True)
    save_tensors(folder / "model.pt", {**weights, "prompts.0": PATIENT})


def as_table(folder):
    np.savetxt(folder / "image.csv", PATIENT[0].numpy(), delimiter=",")


def as_table_between_spaces(folder):
    np.savetxt(folder / "image.csv", PATIENT[0].numpy())


def in_json(folder):
    save_json(folder / "statistics.json", {"mean_image": PATIENT.tolist()})


def in_tensorboard(folder):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_image("batch", PATIENT)


@pytest.mark.parametrize(
    ("leave", "message"),
    [
        (as_nifti, "case.nii.gz: neither sample, weights nor statistics"),
        (as_npz_beside_the_samples, "replay/first/sample_0000099.npz: arrays that no replay index lists"),
        (in_the_place_of_a_sample, "replay/first/sample_0000000.npz: not the sample that its replay index lists"),
        (as_link, "data.npz: a link"),
        (as_picture, "worst.png: neither"),
        (as_pickle, "cache.pkl: neither"),
        (in_the_checkpoint, "state.pt: holds last_batch, expected weights"),
        (among_the_weights, "model.pt: holds patient_0001, expected the names and shapes of the network in state.pt"),
        (in_the_place_of_a_weight, "model.pt: holds prompts.0, expected the names and shapes"),
        (as_table, "image.csv: a row of 64 numbers"),
        (as_table_between_spaces, "image.csv: a row of 64 numbers"),
        (in_json, "statistics.json: a list of 4096 numbers"),
        (in_tensorboard, "tensorboard/events.out.tfevents"),
    ],
)
def test_a_patients_image_is_found(run_dir, leave, message):
    leave(run_dir)
    found = foreign_files(run_dir)
    assert len(found) == 1
    assert found[0].startswith(message)


def test_records_may_hold_lists_of_numbers(run_dir):
    save_json(run_dir / "scores.json", {"dice": [0.5] * 1000, "R": [[0.1, 0.2], [0.3, 0.4]]})
    rows = [{"image": f"case {n}.nii.gz", **{f"dice_{i}": 0.5 for i in range(20)}} for n in range(5000)]
    write_csv(run_dir / "validation_cases.csv", rows)
    assert foreign_files(run_dir) == []


def test_weights_alone_have_nothing_to_be_compared_with(tmp_path):
    save_tensors(tmp_path / "model.pt", {"weight": torch.zeros(3)})
    assert foreign_files(tmp_path) == []


def test_an_index_cannot_vouch_for_files_elsewhere(run_dir, tmp_path):
    index = run_dir / "replay" / "first" / "index.json"
    np.savez(run_dir / "patient.npz", image=PATIENT.numpy())
    content = read_json(index)
    entry = {**content["samples"][0], "file": "../../patient.npz"}
    save_json(index, {**content, "samples": [*content["samples"], entry]})
    assert [f.split(":")[0] for f in foreign_files(run_dir)] == ["patient.npz"]


def test_the_check_leaves_a_record_or_names_what_it_found(run_dir, tmp_path):
    check_private([run_dir], tmp_path / "record.json")
    record = read_json(tmp_path / "record.json")
    assert record["foreign_files"] == []
    assert record["files_looked_at"][str(run_dir)] > 10
    (tmp_path / "record.json").unlink()
    for number in range(4):
        (run_dir / f"case{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"case0.png: neither.*case1.png.*case2.png.* and 1 more: expected generated"):
        check_private([run_dir], tmp_path / "record.json")
    assert not (tmp_path / "record.json").exists()


def test_a_missing_folder_is_refused():
    with pytest.raises(InputError, match="no such folder"):
        foreign_files(Path("/nowhere"))
