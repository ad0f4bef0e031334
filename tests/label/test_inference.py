"""Every bundle's package behind a real MONAI Label server: what it says of itself, and what it answers."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import BUNDLES, turned, turned_back
from tests.label.server import PYTHON, Server, dice, environment, make_app

pytestmark = [
    pytest.mark.label,
    pytest.mark.skipif(not PYTHON, reason="LABEL_PYTHON names no Python of tests/label/make_environment.sh"),
]
REGISTERING = BUNDLES[:2]
CASE = {"samcl": "brain", "dccnn_lstm_reg": "brain", "smdr": "prostate"}


def voxels(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj)


def test_the_server_names_models_labels_and_options(server):
    models = json.loads(server.get("/info/").content)["models"]
    assert set(models) == set(BUNDLES)
    for name in BUNDLES:
        assert models[name]["type"] == "segmentation"
        assert models[name]["description"]
    assert models["smdr"]["labels"] == {"prostate": 1}
    for name in REGISTERING:
        assert models[name]["dimension"] == 3
        assert models[name]["labels"]["cortex"] == 1
        assert len(models[name]["labels"]) == 7
        config = models[name]["config"]
        assert config["atlases"] == ["all", "synthetic"]
        assert config["fusion"] == ["similarity", "majority"]
        assert config["optimise"] == 20
        assert "auto" in config["init"]


@pytest.mark.parametrize(("model", "least"), [("samcl", 0.8), ("dccnn_lstm_reg", 0.8), ("smdr", 0.6)])
def test_an_image_of_the_store_gets_its_labels(server, cases, tmp_path, model, least):
    case = CASE[model]
    answer = server.infer(model, image=case).image(tmp_path)
    image, truth = nib.load(cases[case]), voxels(nib.load(cases[f"{case}_label"]))
    assert answer.shape == image.shape
    assert answer.get_data_dtype().kind in "iu"
    np.testing.assert_allclose(answer.affine, image.affine, atol=1e-3)
    assert dice(voxels(answer), truth) > least


@pytest.mark.parametrize("model", REGISTERING)
def test_the_network_alone_brings_labels_closer(server, cases, tmp_path, model):
    truth = voxels(nib.load(cases["brain_label"]))
    found = [
        dice(voxels(server.infer(model, image="brain", optimise=steps).image(tmp_path)), truth) for steps in (0, 20)
    ]
    # The atlas' labels as they lie, at the voxels of the image: both have one centre and one field of view.
    atlas = voxels(nib.load(cases["atlas_label"]))
    index = np.clip(((np.arange(40) + 0.5) * 48 / 40 - 0.5).round().astype(int), 0, 47)
    before = dice(atlas[np.ix_(index, index, index)], truth)
    assert before + 0.05 < found[0] < found[1]


@pytest.mark.parametrize("model", BUNDLES)
def test_the_answer_lies_where_the_image_lies_in_the_world(server, cases, tmp_path, model):
    case = CASE[model]
    straight = server.infer(model, image=case).image(tmp_path)
    other = server.infer(model, file=cases[f"{case}_turned"]).image(tmp_path)
    assert other.shape == nib.load(cases[f"{case}_turned"]).shape
    assert np.abs(other.affine - straight.affine).max() > 1
    np.testing.assert_allclose(other.affine, nib.load(cases[f"{case}_turned"]).affine, atol=1e-3)
    assert dice(turned_back(other, straight), voxels(straight)) > 0.99


@pytest.mark.parametrize("model", REGISTERING)
def test_the_atlas_itself_gets_its_own_labels(server, cases, tmp_path, model):
    answer = server.infer(model, image="atlas", optimise=0).image(tmp_path)
    assert dice(voxels(answer), voxels(nib.load(cases["atlas_label"]))) > 0.97


@pytest.mark.parametrize("model", REGISTERING)
@pytest.mark.parametrize("fusion", ["similarity", "majority"])
def test_atlases_of_the_user_take_the_place_of_the_sample(server, cases, tmp_path, model, fusion):
    """The image's own label map among the atlases: weighted by similarity it wins, whatever the others say."""
    names = ["brain", "atlas", "brain_turned"]
    turned_label = tmp_path / "turned_label.nii.gz"
    nib.save(turned(nib.load(cases["brain_label"])), turned_label)
    labels = [cases["brain_label"], cases["atlas_label"], turned_label]
    params = {"atlas_image": [str(cases[n]) for n in names], "atlas_label": [str(f) for f in labels]}
    answer = server.infer(model, image="brain", fusion=fusion, optimise=0, **params).image(tmp_path)
    assert dice(voxels(answer), voxels(nib.load(cases["brain_label"]))) > 0.97


def test_the_answer_tells_what_was_done(server):
    told = json.loads(server.infer("samcl", image="brain", output="json", init="auto").content)
    (atlas,) = told["atlases"]
    assert atlas["atlas"] == "synthetic"
    assert any(line.startswith("start: ") for line in atlas["messages"])
    assert any(line.startswith("network: normalised mutual information") for line in atlas["messages"])


def test_atlases_dropped_into_the_folder_are_found(server, bundles, cases, tmp_path):
    folder = bundles["dccnn_lstm_reg"] / "atlas"
    try:
        for end in ("", "_label"):
            (folder / f"own{end}.nii.gz").write_bytes(cases[f"brain{end}"].read_bytes())
        told = json.loads(server.infer("dccnn_lstm_reg", image="brain", output="json").content)
        assert [row["atlas"] for row in told["atlases"]] == ["own"]
        told = json.loads(
            server.infer("dccnn_lstm_reg", image="brain", output="json", atlases="own, synthetic").content
        )
        assert [row["atlas"] for row in told["atlases"]] == ["own", "synthetic"]
        (folder / "own_label.nii.gz").unlink()
        answer = server.infer("dccnn_lstm_reg", image="brain")
        assert answer.status == 400
        assert "found no label map to this atlas, expected own_label.nii.gz beside it" in answer.detail
    finally:
        for end in ("", "_label"):
            (folder / f"own{end}.nii.gz").unlink(missing_ok=True)


CLIENT = """
import json, sys
from monailabel.client import MONAILabelClient
url, folder, image = sys.argv[1:]
client = MONAILabelClient(url, tmpdir=folder)
rows = {"models": sorted(client.info()["models"])}
rows["by_name"] = client.infer("samcl", "brain", {})[0]
rows["by_file"] = client.infer("samcl", "", {"result_extension": ".nii.gz"}, file=image)[0]
print(json.dumps(rows))
"""


def test_monailabels_own_client(server, cases, tmp_path):
    command = [PYTHON, "-c", CLIENT, server.url, str(tmp_path), str(cases["brain"])]
    result = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])
    assert rows["models"] == sorted(BUNDLES)
    found = [voxels(nib.load(tmp_path / rows[key])) for key in ("by_name", "by_file")]
    assert np.array_equal(*found)
    assert dice(found[0], voxels(nib.load(cases["brain_label"]))) > 0.8


def test_bundles_answer_together_as_each_alone(server, bundles, cases, tmp_path):
    """Three servers with one bundle each; then all in one, in the other order, asked in turn."""
    alone = {}
    for name in BUNDLES:
        (tmp_path / name).mkdir()
        app = make_app(tmp_path / name, [bundles[name]])
        with Server(app, [name], cases["brain"].parent, tmp_path / name / "server.log") as single:
            alone[name] = voxels(single.infer(name, image=CASE[name]).image(tmp_path))
    (tmp_path / "reversed").mkdir()
    app = make_app(tmp_path / "reversed", list(bundles.values()))
    with Server(app, BUNDLES[::-1], cases["brain"].parent, tmp_path / "reversed" / "server.log") as reversed_one:
        for running, order in ((server, [0, 1, 2, 0, 2, 1]), (reversed_one, [2, 0, 1, 0, 2])):
            for name in (BUNDLES[number] for number in order):
                together = voxels(running.infer(name, image=CASE[name]).image(tmp_path))
                assert np.array_equal(together, alone[name]), (name, order)


def test_the_command_line_of_smdr_gives_the_same_answer(server, bundles, cases, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
    options = ["--image", str(cases["prostate"]), "--output_dir", str(tmp_path)]
    result = subprocess.run(
        [*command, *options], cwd=bundles["smdr"], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answer = server.infer("smdr", image="prostate").image(tmp_path)
    assert dice(voxels(answer), voxels(nib.load(tmp_path / "prostate_label.nii.gz"))) > 0.99
