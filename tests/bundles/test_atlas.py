"""The sample atlas that ships with the registration bundles."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pytest

from shared.data.synthetic import write_registration_tasks
from tests.bundles import runs

BUNDLES = ("samcl", "dccnn_lstm_reg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the command in the atlas' README writes."""
    readme = (runs.ROOT / "bundles" / "samcl" / "atlas" / "README.md").read_text()
    (call,) = re.findall(r"w\('build/atlas', (\[.*?\]), size=(\d+), seed=(\d+), counts=({.*?})\)", readme)
    tasks, counts = (json.loads(text.replace("'", '"')) for text in (call[0], call[3]))
    root = tmp_path_factory.mktemp("atlas")
    return write_registration_tasks(root, tasks, size=int(call[1]), seed=int(call[2]), counts=counts)[tasks[0]]


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(("kind", "end"), [("imagesTr", ""), ("labelsTr", "_label")])
def test_the_sample_is_what_its_recorded_command_makes(made, bundle, kind, end):
    path = runs.ROOT / "bundles" / bundle / "atlas" / f"synthetic{end}.nii.gz"
    assert path.stat().st_size < 300_000
    found, expected = nib.load(path), nib.load(next((made / kind).iterdir()))
    assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert np.array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_and_readme_name_its_labels(made, bundle):
    dataset = json.loads((made / "synth_brain_mr_dataset.json").read_text())
    metadata = json.loads((runs.ROOT / "bundles" / bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == dataset["labels"]["0"]
    readme = " ".join((runs.ROOT / "bundles" / bundle / "atlas" / "README.md").read_text().split())
    assert all(f"{n} {name}" in readme for n, name in dataset["labels"]["0"].items() if n != "0")
