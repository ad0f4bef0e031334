"""Every config of the segmenter as people run it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles.smdr.scripts.privacy import foreign_files
from shared.files import load_tensors, save_tensors
from tests.bundles import runs
from tests.bundles.smdr.tiny_segmenter import make_network, write_set
from tests.decathlon_folder import write_site

BUNDLE = "smdr"
CONFIGS = runs.ROOT / "bundles" / BUNDLE / "configs"
SMOKE = ("train", "smoke")
run = partial(runs.run, BUNDLE)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two small sites; embedded ones are written by the test of the defaults."""
    root = tmp_path_factory.mktemp("data")
    for site in ("one", "two"):
        write_site(root / site)
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory, data) -> tuple[Path, subprocess.CompletedProcess]:
    """Return a complete smoke run of the first site."""
    run_dir = tmp_path_factory.mktemp("runs") / "first"
    return run_dir, run("training", SMOKE, dataset_dir=data, task="one", run_dir=run_dir)


@pytest.fixture(scope="module")
def replay(tmp_path_factory) -> Path:
    """Return a replay set of the first site, of the size of the smoke network's slices."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(6):
        label = torch.zeros(1, 32, 32, dtype=torch.int16)
        label[:, 10:20, 8:18] = 1
        samples.append({"image": (label + torch.rand(3, 32, 32, generator=generator)) / 2, "label": label})
    return write_set(tmp_path_factory.mktemp("replay") / "one", "one", samples)


def test_training_writes_everything_and_nothing_of_a_patient(first):
    run_dir, result = first
    names = {p.name for p in run_dir.iterdir()}
    assert {"model.pt", "state.pt", "done.json", "metrics.csv", "tensorboard"} <= names
    assert {"validation_cases.csv", "validation_summary.json"} <= names
    assert foreign_files(run_dir) == []
    for text in ("one, validation images (never trained on)", "Dice", "HD95 mm", "ASSD mm"):
        assert text in result.stdout
    rows = list(csv.DictReader((run_dir / "metrics.csv").open()))
    assert [int(r["iteration"]) for r in rows] == [2, 4]
    assert {"loss", "first_loss", "second_loss"} <= set(rows[0])


def test_the_second_site_replays_the_first_and_all_are_scored(first, data, replay, tmp_path):
    run_dir, _ = first
    second = tmp_path / "second"
    options = {"dataset_dir": data, "task": "two", "init_from": run_dir, "run_dir": second}
    run("training", SMOKE, **options, replay_sets=f"['{replay}']")
    rows = list(csv.DictReader((second / "metrics.csv").open()))
    assert {"loss", "replay_loss", "first_loss", "second_loss"} <= set(rows[0])
    assert load_tensors(second / "state.pt")["strategy"]["learnt"] == ["one", "two"]
    assert foreign_files(second) == []
    out = tmp_path / "scores"
    tasks = f"[['{data}','one'],['{data}','two']]"
    run(
        "evaluating",
        (*SMOKE, "evaluate_tasks"),
        model=second / "model.pt",
        tasks=tasks,
        output_dir=out,
        dataset_dir=data,
    )
    for site in ("one", "two"):
        assert {"evaluation_cases.csv", "evaluation_summary.json", "evaluation_example.png"} <= {
            p.name for p in (out / site).iterdir()
        }
    result = run(
        "evaluating",
        (*SMOKE, "evaluate"),
        dataset_dir=data,
        task="one",
        model=second / "model.pt",
        output_dir=tmp_path / "one",
        split="test",
    )
    assert "one, test images" in result.stdout
    single = json.loads((tmp_path / "one" / "evaluation_summary.json").read_text())
    assert single["metrics"] == json.loads((out / "one" / "evaluation_summary.json").read_text())["metrics"]


def test_inference_answers_on_the_images_own_grid(first, data, tmp_path):
    run_dir, _ = first
    images = sorted((data / "one" / "imagesTr").glob("*.nii.gz"))[:2]
    network = {"network_def#widths": "[4,8,16]", "spatial_size": "[32,32]"}
    files = f"['{images[0]}','{images[1]}']"
    run("inference", ("inference",), model=run_dir / "model.pt", image=files, output_dir=tmp_path, **network)
    for image in images:
        found = nib.load(tmp_path / image.name.replace(".nii.gz", "_label.nii.gz"))
        assert found.shape == nib.load(image).shape
        np.testing.assert_allclose(found.affine, nib.load(image).affine, atol=1e-5)
        assert found.get_data_dtype() == np.uint8


def test_the_defaults_change_no_tracked_file(tmp_path):
    """Write where nobody asked for another place, embedded data too: into the bundle's own ignored folders."""
    shutil.rmtree(CONFIGS.parent / "runs" / "smoke_site_prostate_1", ignore_errors=True)
    before = runs.git_status()
    run("training", SMOKE)
    save_tensors(tmp_path / "model.pt", make_network(slices=3, widths=(16, 32, 64, 128), residual_units=2).state_dict())
    run("inference", ("inference",), model=tmp_path / "model.pt")
    assert runs.git_status() == before


def test_two_ranks_train_one_model(data, replay, tmp_path):
    """Gradients are averaged, also those of the alignment, so that both ranks hold the same weights."""
    configs = (*SMOKE, "multi_gpu_train")
    options = {"dataset_dir": data, "task": "two", "replay_sets": f"['{replay}']"}
    result = runs.run_ranks(BUNDLE, "training", configs, run_dir=tmp_path / "two", **options)
    assert result.stdout.count("validation images (never trained on)") == 1  # one writer
    run("training", SMOKE, run_dir=tmp_path / "one", **options)
    two, one = (load_tensors(tmp_path / name / "model.pt") for name in ("two", "one"))
    assert two.keys() == one.keys()  # no prefix from a wrapper
    assert any(not torch.equal(two[k], one[k]) for k in one)


def test_paper_config_builds_a_network_below_the_size_limit():
    from monai.bundle import ConfigParser

    from bundles.smdr.scripts.network import SliceUNet

    limits = {"paper": 30e6, "train": 25e6}
    for name, limit in limits.items():
        parser = ConfigParser()
        parser.read_config([CONFIGS / "train.json", CONFIGS / f"{name}.json"])
        network = SliceUNet(2, widths=parser["network_def"]["widths"])
        assert 4 * sum(p.numel() for p in network.parameters()) < limit
    assert parser["spatial_size"] == [64, 64]


# -- bad input on the command line -------------------------------------------------------------------------------------


def bare_site(folder):
    write_site(folder / "bare")
    content = json.loads((folder / "bare" / "dataset.json").read_text())
    content["training"] = [{"image": entry["image"]} for entry in content["training"]]
    (folder / "bare" / "dataset.json").write_text(json.dumps(content))
    return "bare", "found no label for 5 of 5 'training' images"


def colour_site(folder):
    write_site(folder / "colour", channels=3)
    return "colour", "found 3 channels, expected 1"


def zonal_site(folder):
    write_site(folder / "zonal", labels=("background", "central", "peripheral"))
    return "zonal", "found the label values 2 (peripheral), unknown to the network; expected 0..1"


def misspelt_site(folder):
    write_site(folder / "clinic")
    return "clinik", "found no site 'clinik' (did you mean 'clinic'?)"


@pytest.mark.parametrize("make", [bare_site, colour_site, zonal_site, misspelt_site])
def test_a_site_that_cannot_be_learnt_ends_with_a_message(tmp_path, make):
    site, message = make(tmp_path)
    line = runs.command(BUNDLE, "training", SMOKE, dataset_dir=tmp_path, task=site, run_dir=tmp_path / "run")
    result = runs.start(line)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in result.stderr
