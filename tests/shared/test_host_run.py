import json

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.files import save_tensors
from shared.host_run import HostRun, is_handed_over
from tests.learn2reg_folder import blobs, save

FOLDER = [{"fixed_image": "a", "moving_image": "b", "task": "brain"}]


def cases(folder, count=2, empty=()):
    """Labelled images as a host hands them over."""
    found = []
    for number in range(count):
        label = np.zeros((10, 11, 12), np.uint8) if number in empty else (blobs(seed=number) > 50).astype(np.uint8)
        image = save(folder / f"image{number}.nii.gz", blobs(seed=number))
        found.append({"image": str(image), "label": str(save(folder / f"label{number}.nii.gz", label))})
    return found


def complete_run(folder, weights):
    folder.mkdir(parents=True)
    save_tensors(folder / "model.pt", weights)
    (folder / "done.json").write_text(json.dumps({}))
    return folder


def weights(value):
    return {"weight": torch.full((3,), float(value))}


def test_pairs_and_sites_of_folders_are_not_a_hosts_cases(tmp_path):
    assert not is_handed_over(FOLDER)
    assert not is_handed_over([{"image": "a", "label": "b", "site": "s"}])
    assert is_handed_over(cases(tmp_path))
    assert is_handed_over([])


def test_data_of_folders_change_nothing(tmp_path, capsys):
    run = HostRun(FOLDER, tmp_path, ["brain", "lung"], "earlier", rehearses=True, fewest=5)
    assert (run.run_dir, run.task, run.init_from) == (str(tmp_path / "runs" / "brain+lung"), "brain+lung", "earlier")
    run.check()
    run.publish(complete_run(tmp_path / "runs" / "brain", weights(1)))
    assert not (tmp_path / "models").exists()
    assert capsys.readouterr().out == ""


def test_every_request_gets_a_folder_of_its_own(tmp_path):
    data = cases(tmp_path)
    first = HostRun(data, tmp_path, "brain")
    assert first.run_dir == first.run_dir == str(tmp_path / "runs" / "labelled_0001")
    assert first.task == "labelled_0001"
    (tmp_path / "runs" / "labelled_0007").mkdir()
    assert HostRun(data, tmp_path, "brain").task == "labelled_0008"


def test_without_weights_training_starts_afresh(tmp_path, capsys):
    assert HostRun(cases(tmp_path), tmp_path, "brain", rehearses=True).init_from is None
    assert "starts afresh" in capsys.readouterr().out


def test_the_run_that_made_the_weights_is_gone_on_from(tmp_path, capsys):
    (tmp_path / "models").mkdir()
    save_tensors(tmp_path / "models" / "model.pt", weights(1))
    data = cases(tmp_path)
    assert HostRun(data, tmp_path, "brain", rehearses=True).init_from == tmp_path / "models" / "model.pt"
    assert "no memory of what they learnt before" in capsys.readouterr().out
    complete_run(tmp_path / "runs" / "other", weights(2))
    unfinished = complete_run(tmp_path / "runs" / "unfinished", weights(1))
    (unfinished / "done.json").unlink()
    made = complete_run(tmp_path / "runs" / "made", weights(1))
    assert HostRun(data, tmp_path, "brain", rehearses=True).init_from == made
    assert "rehearses from its memory" in capsys.readouterr().out
    assert HostRun(data, tmp_path, "brain").init_from == tmp_path / "models" / "model.pt"
    (made / "settings.json").write_text(json.dumps({"world": 2}))
    assert HostRun(data, tmp_path, "brain", rehearses=True).init_from == tmp_path / "models" / "model.pt"
    assert "found a run of 2 processes, each with a memory of its own" in capsys.readouterr().out


def test_the_model_is_renewed_and_the_former_one_kept(tmp_path):
    run = HostRun(cases(tmp_path), tmp_path, "brain")
    model, previous = tmp_path / "models" / "model.pt", tmp_path / "models" / "model_previous.pt"
    for number in (1, 2):
        run.publish(complete_run(tmp_path / "runs" / f"run{number}", weights(number)))
        assert torch.load(model, weights_only=True)["weight"][0] == number
        assert previous.exists() == (number == 2)
    assert torch.load(previous, weights_only=True)["weight"][0] == 1
    assert sorted(path.name for path in model.parent.iterdir()) == ["model.pt", "model_previous.pt"]


def test_a_run_that_is_not_complete_leaves_the_model(tmp_path):
    run = HostRun(cases(tmp_path), tmp_path, "brain")
    run.publish(complete_run(tmp_path / "runs" / "run", weights(1)))
    with pytest.raises(InputError, match="cannot be written"):
        run.publish(tmp_path / "runs" / "nothing")
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True)["weight"][0] == 1


def test_cases_that_cannot_be_learnt_from_end_in_a_sentence(tmp_path):
    def check(data, fewest=1):
        HostRun(data, tmp_path, "brain", fewest=fewest).check()

    data = cases(tmp_path, 3, empty=(2,))
    check(data[:2], fewest=2)
    with pytest.raises(
        InputError, match=r"found 1 labelled images to train on \(.*image0.nii.gz\), expected at least 2"
    ):
        check(data[:1], fewest=2)
    with pytest.raises(InputError, match=r"found 0 labelled images to train on \(none\)"):
        check([])
    with pytest.raises(InputError, match=r"image0.nii.gz: found no label"):
        check([{"image": data[0]["image"], "label": ""}])
    with pytest.raises(InputError, match=r"label2.nii.gz: found an empty label map, expected labelled voxels"):
        check(data)
    with pytest.raises(InputError, match=r"gone.nii.gz: no such label file"):
        check([{"image": data[0]["image"], "label": str(tmp_path / "gone.nii.gz")}])
