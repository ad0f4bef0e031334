"""The generator's configs as people run them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from bundles.smdr.scripts.network import SliceUNet
from bundles.smdr.scripts.replay import ReplayDataset
from shared.files import load_tensors
from tests.bundles import runs
from tests.decathlon_folder import write_site

SMOKE = ("train_diffusion", "smoke_diffusion")
run = partial(runs.run, "smdr")
CONFIGS = runs.ROOT / "bundles" / "smdr" / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for site in ("one", "two"):
        write_site(root / site)
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory, data) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    run("training", SMOKE, dataset_dir=data, task="one", run_dir=run_dir)
    return run_dir


def test_a_second_site_starts_from_the_first(first, data, tmp_path):
    options = {"dataset_dir": data, "task": "two", "generator_from": first, "run_dir": tmp_path}
    run("training", SMOKE, **options)
    weights = load_tensors(tmp_path / "model.pt")
    assert {"prompts.0", "prompts.1"} <= set(weights)
    again = run("training", SMOKE, **options)
    assert "this run is complete; nothing to train" in again.stdout
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["network"]["sites"] == ["one", "two"]


def test_with_prompts_alone_nothing_else_changes(first, data, tmp_path):
    options = {"dataset_dir": data, "later_sites": "prompt"}
    run("training", SMOKE, task="one", run_dir=tmp_path / "one", **options)
    run("training", SMOKE, task="two", run_dir=tmp_path / "two", generator_from=tmp_path / "one", **options)
    one, two = (load_tensors(tmp_path / site / "model.pt") for site in ("one", "two"))
    assert one["pretended"].shape[0] == 24
    assert all(torch.equal(one[name], two[name]) for name in one if name != "_extra_state")


@pytest.mark.parametrize("conditioning", ["film", "prompt"])
def test_several_processes_train_as_one(data, tmp_path, conditioning):
    options = {"dataset_dir": data, "task": "one", "run_dir": tmp_path, "conditioning": conditioning}
    runs.run_ranks("smdr", "training", (*SMOKE, "multi_gpu_train_diffusion"), **options)
    assert json.loads((tmp_path / "done.json").read_text())["passes"] > 0
    assert all(bool(torch.isfinite(v).all()) for v in load_tensors(tmp_path / "model.pt").values())


def generate(data: Path, generator: Path, folder: Path, spatial_dims: int = 2, **options: object):
    smoke = json.loads((CONFIGS / "smoke.json").read_text())
    network = SliceUNet(spatial_dims, widths=tuple(smoke["network_def#widths"]))
    torch.save(network.state_dict(), folder / "segmenter.pt")
    places = {"dataset_dir": data, "generator": generator, "model": folder / "segmenter.pt"}
    places |= {"output_dir": folder / "set", "task": "one"}
    filters = {"count": 6, "steps": 4, "min_confidence": 0.0, "area_slack": 10000.0}
    return run("generating", ("train", "smoke", "generate"), **{**places, **filters, **options})


def test_a_replay_set_with_its_picture_and_figures(first, data, tmp_path):
    result = generate(data, first, tmp_path)
    assert "replay of one" in result.stderr
    assert json.loads((tmp_path / "set" / "index.json").read_text())["complete"]
    assert json.loads((tmp_path / "set" / "assessment.json").read_text())["leakage"]["samples"] == 6
    assert (tmp_path / "set_sheet.png").is_file()
    assert json.loads((tmp_path / "set_privacy.json").read_text())["foreign_files"] == []


def test_samples_are_compared_with_the_sites_images_while_they_are_drawn(first, data, tmp_path):
    generate(data, first, tmp_path)
    assert json.loads((tmp_path / "set" / "index.json").read_text())["settings"]["leak_threshold"] == 0.5
    (tmp_path / "more").mkdir()
    # A threshold that any sample falls short of: nothing is fit.
    with pytest.raises(AssertionError, match=r"found 0 fit samples of 'one' .*too near to a training image\)"):
        generate(data, first, tmp_path / "more", leak_threshold=1e6)
    (tmp_path / "none").mkdir()
    off = {"leak_threshold": "$None", "generating": "['@replay_set']", "task": "one", "dataset_dir": tmp_path / "gone"}
    generate(data, first, tmp_path / "none", **off)
    assert json.loads((tmp_path / "none" / "set" / "index.json").read_text())["settings"]["leak_threshold"] is None


def test_labels_may_be_drawn_along(data, tmp_path):
    run("training", SMOKE, dataset_dir=data, task="one", run_dir=tmp_path / "joint", labels="joint", iterations=60)
    generate(data, tmp_path / "joint", tmp_path, labels="joint", model="none.pt")
    assert json.loads((tmp_path / "set" / "index.json").read_text())["settings"]["labels"] == "joint"


def test_patches_of_volumes_are_learnt_and_drawn(data, tmp_path):
    size = {"spatial_size": "[16,16,8]"}
    run("training", SMOKE, dataset_dir=data, task="one", run_dir=tmp_path / "generator", **size)
    generate(data, tmp_path / "generator", tmp_path, spatial_dims=3, **size)
    assert ReplayDataset(tmp_path / "set")[0]["image"].shape == (1, 16, 16, 8)


def test_a_generator_of_another_image_size_is_refused(first, data, tmp_path):
    with pytest.raises(AssertionError, match=r"images \(3, 32, 32\), expected \(3, 48, 48\)"):
        generate(data, first, tmp_path, spatial_size="[48,48]")
