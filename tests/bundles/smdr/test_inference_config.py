"""``inference.json`` as MONAI Label uses it: its parts one by one, in its own order."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from tests.bundles import runs
from tests.decathlon_folder import write_site

CONFIGS = runs.ROOT / "bundles" / "smdr" / "configs"


def test_the_parts_that_a_server_runs_give_the_answer_of_the_command_line(scripts, tmp_path):
    write_site(tmp_path / "one")
    image = tmp_path / "one" / "imagesTr" / "case_000.nii.gz"
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    parser.update({"bundle_root": str(CONFIGS.parent), "device": "cpu"})
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    assert network.state_dict().keys() == _trained(scripts, tmp_path).state_dict().keys()
    data = {"image": str(image), "image_path": str(image), "model": "smdr"}  # what a request leaves besides
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    file = nib.load(image)
    # The server resizes an answer of another shape, and writes it with this affine.
    assert data["pred"].shape == (1, *file.shape)
    assert tuple(data["image"].meta["spatial_shape"]) == file.shape
    np.testing.assert_allclose(data["image"].meta["original_affine"], file.affine, atol=1e-6)
    parts = {name: parser.get_parsed_content(name) for name in ("inferer", "preprocessing", "postprocessing")}
    (written,) = scripts.segment_files(
        network, device=torch.device("cpu"), output_dir=tmp_path / "out", image=image, **parts
    )
    assert np.array_equal(np.asarray(nib.load(written).dataobj), data["pred"][0].numpy())


def _trained(scripts, folder):
    """Return the network that training builds: its weights must fit without a word."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser.update({"dataset_dir": str(folder), "task": "one"})
    return parser.get_parsed_content("network_def")


def test_the_metadata_say_what_the_generator_returns():
    trained = json.loads((CONFIGS / "train_diffusion.json").read_text())["network_def"]
    form = json.loads((CONFIGS / "metadata.json").read_text())["generator_data_format"]
    returned = {"sample": "magnitude", "epsilon": "noise"}
    assert form["outputs"]["pred"]["format"] == returned[trained["prediction"]]
    assert form["outputs"]["pred"]["num_channels"] == form["inputs"]["image"]["num_channels"] == 3


def test_ids_that_hosts_ask_for():
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    assert {"bundle_root", "device", "network_def", "inferer", "output_dir", "preprocessing", "postprocessing"} <= set(
        inference
    )
    assert {"bundle_root", "device", "dataset_dir", "network", "run"} <= set(train)
    assert isinstance(train["train"]["handlers"], list)
    assert {"dataset", "inferer", "handlers"} <= set(train["train"])
    assert "max_epochs" in train["train"]["trainer"]
    assert "data" in train["train"]["dataset"]
    assert {"evaluator", "handlers", "dataset"} <= set(train["validate"])
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    form = metadata["network_data_format"]
    assert next(iter(form["inputs"])) == "image"
    assert next(iter(form["outputs"])) == "pred"
    assert form["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "prostate"}
