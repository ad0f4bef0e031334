"""One model scored on several tasks."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.continual import loss_rise
from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset, stack_pairs
from shared.errors import InputError
from shared.files import read_json, save_json
from shared.scoring import evaluate_tasks, sharpness
from tests.learn2reg_folder import write_folder
from tests.tiny import SIZE, TinyObjective, make_network

CPU = torch.device("cpu")


def inferer(image, network):
    return {"ddf": network(image)}


@pytest.fixture
def tasks(tmp_path) -> list[list[str]]:
    """Write two tasks of three training images, one of them with a validation and a test pair of its own."""
    for name in ("A", "B"):
        images = [f"./imagesTr/{name}_{i:04d}_0000.nii.gz" for i in range(3)]
        training = [{"image": image, "label": image.replace("images", "labels")} for image in images]
        pairs = [{"fixed": images[0], "moving": images[1]}, {"fixed": images[1], "moving": images[0]}]
        sections = {"registration_val": pairs, "registration_test": pairs[:1]}
        write_folder(tmp_path, {"name": name, "modality": {"0": "MR"}, "training": training, **sections})
    return [[str(tmp_path), name] for name in ("A", "B")]


def evaluate(folder: Path, tasks, network=None, **options) -> dict:
    arguments = {"split": "test", "output_dir": folder, "spatial_size": (SIZE,) * 3, **options}
    return evaluate_tasks(network or make_network(), inferer, CPU, tasks, **arguments)


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


FILES = ("summary.json", "settings.json", "cases.csv", "example.png")
RESULTS = {f"{task}/evaluation_{rest}" for task in "AB" for rest in FILES}


def test_every_task_gets_a_folder_and_comes_back(tasks, tmp_path):
    scores = evaluate(tmp_path / "out", tasks)
    assert names(tmp_path / "out") == RESULTS  # without an objective there is no sharpness
    assert set(scores) == {"A", "B"}
    for task, summary in scores.items():
        assert summary == read_json(tmp_path / "out" / task / "evaluation_summary.json")
        assert summary["pairs"] == 1
        assert 0 < summary["metrics"]["dice"]["mean"] < 1


def test_with_an_objective_the_sharpness_of_validation_pairs_is_written(tasks, tmp_path):
    evaluate(tmp_path / "out", tasks[:1], objective=TinyObjective())
    held_out = PairDataset(read_pairs(*tasks[0], "val"), (SIZE,) * 3)
    network, samples = make_network(), [held_out[0], held_out[1]]
    weights = list(network.parameters())
    expected = loss_rise(weights, lambda: TinyObjective()(network(stack_pairs(samples)), samples)[0], 0.5)
    assert expected > 0
    found = read_json(tmp_path / "out" / "A" / "sharpness.json")
    assert found == {"loss_rise": pytest.approx(expected), "rho": 0.5}
    assert sharpness(make_network(), TinyObjective(), held_out, CPU) == pytest.approx(expected)


def test_what_is_scored_is_not_scored_again(tasks, tmp_path):
    evaluate(tmp_path / "out", tasks[:1])
    save_json(tmp_path / "out" / "A" / "evaluation_summary.json", {"kept": True})
    scores = evaluate(tmp_path / "out", tasks)
    assert scores["A"] == {"kept": True}
    assert scores["B"]["pairs"] == 1


def test_scores_of_other_weights_or_settings_are_made_again_and_it_is_said(tasks, tmp_path, capsys):
    first = evaluate(tmp_path / "out", tasks)
    other = make_network()
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)
    capsys.readouterr()
    second = evaluate(tmp_path / "out", tasks, other)
    told = capsys.readouterr().out
    assert "scores there are of other settings (weights: found " in told
    assert all(first[task]["metrics"]["dice"] != second[task]["metrics"]["dice"] for task in "AB")
    third = evaluate(tmp_path / "out", tasks)
    assert all(first[task]["metrics"] == third[task]["metrics"] for task in "AB")
    capsys.readouterr()
    assert evaluate(tmp_path / "out", tasks, split="val")["A"]["pairs"] == 2
    assert "split: found test, asked for val" in capsys.readouterr().out


class Shifted:
    """An inferer with an option."""

    def __init__(self, voxels: float) -> None:
        self.voxels = voxels

    def __call__(self, image, network):
        return {"ddf": network(image) + self.voxels}


def test_scores_of_another_option_of_the_inferer_are_made_again(tasks, tmp_path, capsys):
    options = {"split": "test", "output_dir": tmp_path / "out", "spatial_size": (SIZE,) * 3}
    first, second = (evaluate_tasks(make_network(), Shifted(n), CPU, tasks[:1], **options)["A"] for n in (0.0, 3.0))
    assert "inferer.voxels: found 0.0, asked for 3.0" in capsys.readouterr().out
    assert first["metrics"]["dice"] != second["metrics"]["dice"]


def test_a_killed_evaluation_leaves_no_scores_that_pass_for_others(tasks, tmp_path, monkeypatch):
    evaluate(tmp_path / "out", tasks[:1])
    record = tmp_path / "out" / "A" / "evaluation_settings.json"
    monkeypatch.setattr("shared.scoring.record_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "out", tasks[:1], split="val")
    assert not record.exists()
    monkeypatch.undo()
    assert evaluate(tmp_path / "out", tasks[:1])["A"]["pairs"] == 1
    assert record.exists()


def test_spoilt_images_are_scored_apart(tasks, tmp_path):
    evaluate(tmp_path / "out", tasks[:1], corruptions=["noise"])
    clean, noisy = (
        read_json(tmp_path / "out" / place / "A" / "evaluation_summary.json")["metrics"]
        for place in (".", "corrupted/noise")
    )
    assert clean["dice"] != noisy["dice"]
    assert clean["dice_before"] == noisy["dice_before"]


def masked_task(folder: Path) -> list[list[str]]:
    """Write a task whose images have masks that leave out half of them."""
    images = [f"./imagesTr/M_{i:04d}_0000.nii.gz" for i in range(2)]
    training = [
        {"image": image, "label": image.replace("images", "labels"), "mask": image.replace("images", "masks")}
        for image in images
    ]
    pairs = {"registration_val": [dict(zip(("fixed", "moving"), images, strict=True))]}
    write_folder(folder, {"name": "M", "modality": {"0": "MR"}, "training": training, **pairs})
    for path in (folder / "M" / "masksTr").glob("*.nii.gz"):
        image = nib.load(path)
        mask = np.zeros(image.shape, np.uint8)
        mask[: len(mask) // 2] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), path)
    return [[str(folder), "M"]]


def test_masked_images_are_scored_as_the_network_was_trained(tmp_path, capsys):
    task, seen = masked_task(tmp_path), []

    def looking(image, network):
        seen.append(image)
        return inferer(image, network)

    for mask_images in (False, True):
        options = {"split": "val", "spatial_size": (SIZE,) * 3, "mask_images": mask_images}
        evaluate_tasks(
            make_network(), looking, CPU, task, output_dir=tmp_path / "out", objective=TinyObjective(), **options
        )
        settings = read_json(tmp_path / "out" / "M" / "evaluation_settings.json")
        assert settings["mask_images"] is mask_images
    assert "mask_images: found False, asked for True" in capsys.readouterr().out
    plain, masked = seen
    assert bool((plain[..., SIZE // 2 + 1 :, :, :] > 0).any())
    assert not bool((masked[..., SIZE // 2 + 1 :, :, :] > 0).any())


def test_two_tasks_of_one_name_are_refused(tasks, tmp_path):
    with pytest.raises(InputError, match=r"found tasks \['A', 'A'\], expected each name once"):
        evaluate(tmp_path / "out", [tasks[0], tasks[0]])
    assert not (tmp_path / "out").exists()
