"""Training as MONAI Label starts it: its overrides on ``train.json``, the bundle's folder as root."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from bundles.smdr.scripts.privacy import foreign_files
from tests.bundles import runs
from tests.learn2reg_folder import affine, blobs, save

# What the host's trainer does, in the process that it starts for it.
HOST = """
import os, sys, json
bundle, request = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, bundle)
import monai.bundle
parser = monai.bundle.ConfigParser()
parser.read_config(bundle + "/configs/train.json")
handlers, model = parser.get("train#handlers", []), bundle + "/models/model.pt"
if os.path.exists(model):
    loader = {"load_path": model, "load_dict": {"model": "$@network"}, "strict": False}
    handlers.insert(0, {"_target_": "CheckpointLoader", **loader})
overrides = {"bundle_root": bundle, "train#trainer#max_epochs": request["max_epochs"], "device": "cpu"}
overrides |= {"train#dataset#data": request["train"], "train#handlers": handlers}
if request["validate"] is not None:
    overrides["validate#dataset#data"] = request["validate"]
files = {"meta_file": bundle + "/configs/metadata.json", "config_file": bundle + "/configs/train.json"}
monai.bundle.run(run_id="run", init_id=None, final_id=None, **files, **overrides)
"""
# Of a generator after two steps, everything is kept.
ANY_SAMPLE = {"min_confidence": 0.0, "area_slack": 1e6}
PLACES = [
    ((10, 11, 12), {}),
    ((14, 9, 8), {"spacing_mm": (1.5, 2.5, 3.0), "order": (1, 0, 2), "flip": (-1, 1, 1), "origin_mm": (0, 19, 0)}),
    ((12, 12, 6), {"spacing_mm": (2.0, 2.0, 4.0), "degrees": 10, "origin_mm": (1, -2, 3)}),
    ((11, 10, 12), {"origin_mm": (2, 0, 1)}),
]


@pytest.fixture
def bundle(request, tmp_path):
    """A copy of a bundle whose epochs are short: training renews its weights."""
    folder = tmp_path / request.param
    ignored = shutil.ignore_patterns("data", "runs", "output", "__pycache__", "model_previous.pt")
    shutil.copytree(runs.ROOT / "bundles" / request.param, folder, ignore=ignored)
    path = folder / "configs" / "train.json"
    config = {**json.loads(path.read_text()), "iterations": 3, "batch_size": 2}
    if "past" in config:
        config["past"]["images"] = 2
    if "rehearsal" in config:
        config["rehearsal"]["generator_options"] = {"iterations": 2, "batch_size": 2}
        config["rehearsal"]["replay_options"] = {"count": 2, "steps": 2, "sampling_batch_size": 2, **ANY_SAMPLE}
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def cases(tmp_path):
    """Labelled images of different sizes, spacings and orientations."""
    found = []
    for seed, (shape, place) in enumerate(PLACES):
        image, matrix = blobs(shape, seed=seed), affine(**place)
        label = save(tmp_path / "studies" / "labels" / f"case{seed}.nii.gz", (image > 50).astype(np.uint8), matrix)
        files = {"image": save(tmp_path / "studies" / f"case{seed}.nii.gz", image, matrix), "label": label}
        found.append({role: str(path) for role, path in files.items()})
    return found


def train(bundle, cases, validation=(), epochs=1):
    request = {"train": cases, "validate": validation if validation is None else list(validation), "max_epochs": epochs}
    environment = {**runs.ENVIRONMENT, "PYTHONPATH": str(runs.ROOT)}
    command = [sys.executable, "-c", HOST, str(bundle), json.dumps(request)]
    return subprocess.run(command, cwd=bundle.parent, env=environment, capture_output=True, text=True, check=False)


def weights(path):
    return torch.load(path, weights_only=True)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bundle", runs.BUNDLES, indirect=True)
def test_two_requests_renew_the_bundles_model_twice(bundle, cases):
    model, previous = bundle / "models" / "model.pt", bundle / "models" / "model_previous.pt"
    first = weights(model) if model.is_file() else None
    result = train(bundle, cases[:2], cases[2:3], epochs=2)
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((bundle / "runs" / "labelled_0001" / "settings.json").read_text())["iterations"] == 6
    second = weights(model)
    assert all(torch.isfinite(value).all() for value in second.values())
    if bundle.name == "samcl":
        assert "pairs of what weights that ship have learnt" in result.stdout
    if bundle.name == "dccnn_lstm_reg":
        assert re.search(r"every second pair is one of \d+ of what the weights have learnt", result.stdout)
    if first is not None:
        assert same(weights(previous), first)
        assert not same(first, second)
        # From the bundle's weights, not afresh: a few steps change little.
        distance = sum((first[name] - second[name]).abs().mean() for name in first)
        assert distance < 0.1 * sum(value.abs().mean() for value in first.values())
    result = train(bundle, cases[2:], [])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "validation: nothing to score: no image was held back" in result.stdout
    assert same(weights(previous), second)
    assert not same(weights(model), second)
    if bundle.name == "samcl":
        assert "labelled_0001: the training starts from this run and rehearses from its memory" in result.stdout
        index = next((bundle / "runs" / "labelled_0002" / "memory" / "rank0").glob("index_*.json"))
        assert json.loads(index.read_text())["seen"] == 2400 + 12 + 6
    if bundle.name == "smdr":
        sites = ", ".join(f"site_prostate_{number}" for number in range(1, 7))
        assert f"rehearsed from the bundle's generator: labelled_0001, {sites}" in result.stdout
        assert "labelled_0002: generated slices of these cases, for later trainings" in result.stdout
        # Nothing of a patient: weights, statistics and generated samples, and no image anywhere else in the bundle.
        assert [line for name in ("runs", "models") for line in foreign_files(bundle / name)] == []
        images = [path for path in bundle.rglob("*") if path.suffix in {".nii", ".gz", ".png", ".npz", ".npy", ".nrrd"}]
        assert {path.parent.parent for path in images} == {bundle / "models" / "replay"}


@pytest.mark.parametrize("bundle", ["samcl"], indirect=True)
def test_too_few_cases_end_in_a_sentence_and_leave_the_model(bundle, cases):
    before = (bundle / "models" / "model.pt").read_bytes()
    result = train(bundle, cases[:1])
    assert result.returncode != 0
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: found 1 labelled images to train on")
    assert "Traceback" not in result.stderr
    assert (bundle / "models" / "model.pt").read_bytes() == before


@pytest.mark.parametrize("bundle", ["smdr"], indirect=True)
def test_label_values_that_the_network_does_not_know_are_named(bundle, cases, tmp_path):
    image = blobs()
    label = save(tmp_path / "seven.nii.gz", np.where(image > 50, 7, 0).astype(np.uint8))
    item = {"image": str(save(tmp_path / "image.nii.gz", image)), "label": str(label)}
    result = train(bundle, [*cases[:1], item])
    assert result.returncode != 0
    assert "seven.nii.gz: found the label values 7, unknown to the network; expected 0..1" in result.stderr
    assert "Traceback" not in result.stderr
