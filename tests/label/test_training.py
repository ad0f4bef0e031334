"""Training on a real MONAI Label server, with its own client: labels submitted, trained, asked again."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.data.sites import write_sites
from shared.data.synthetic import write_registration_tasks
from tests.label.conftest import turned
from tests.label.server import PYTHON, Server, dice, environment, make_app

pytestmark = [
    pytest.mark.label,
    pytest.mark.skipif(not PYTHON, reason="LABEL_PYTHON names no Python of tests/label/make_environment.sh"),
]

# Of a generator after two steps, everything is kept.
ANY_SAMPLE = {"min_confidence": 0.0, "area_slack": 1e6}
# Submits the labels, asks, trains, asks again.
CLIENT = """
import json, sys, time
from monailabel.client import MONAILabelClient
url, tmpdir, model, labels, options, image = *sys.argv[1:4], *map(json.loads, sys.argv[4:])
client = MONAILabelClient(url, tmpdir=tmpdir)  # not the server's: it deletes its files of the same names
def ask():
    return [client.infer(model, image, {"result_dtype": "uint8"})[0]] if image else []
for name, path in labels.items():
    client.save_label(name, path)
answers = ask()
client.train_start(model, options)
end = time.monotonic() + 400
while (status := client.train_status())["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
    time.sleep(0.5)
answers += ask()
print(json.dumps({"status": status["status"], "details": list(status["details"]), "answers": answers}))
"""


def train(server: Server, model: str, labels: dict[str, Path], image: str = "", **options) -> dict:
    """Return how a training of two epochs ended, and the label maps of an image before and after it."""
    words = json.dumps({name: str(path) for name, path in labels.items()})
    request = json.dumps({"max_epochs": 2, "val_split": 0.0, **options})
    command = [PYTHON, "-c", CLIENT, server.url, str(server.log.parent), model, words, request, json.dumps(image)]
    result = subprocess.run(
        command, env=environment(server.log.parent), capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr + server.tail()
    return json.loads(result.stdout.splitlines()[-1])


def serve(folder: Path, bundles: list[Path], studies: Path, checked: bool = False) -> Server:
    """Return a server of copies whose epochs are short: training renews a bundle's weights."""
    copies = []
    for bundle in bundles:
        copies.append(shutil.copytree(bundle, folder / "copies" / bundle.name))
        path = copies[-1] / "configs" / "train.json"
        config = {**json.loads(path.read_text()), "iterations": 4}
        if "past" in config:
            config["past"]["images"] = 2
        if "rehearsal" in config:
            config["rehearsal"]["generator_options"] = {"iterations": 2, "batch_size": 2}
            config["rehearsal"]["replay_options"] = {"count": 2, "steps": 2, "sampling_batch_size": 2, **ANY_SAMPLE}
        path.write_text(json.dumps(config))
    return Server(make_app(folder, copies, checked), [b.name for b in bundles], studies, folder / "server.log")


def store(folder: Path, images: list[Path]) -> dict[str, Path]:
    """Copy images, the last one stored otherwise, into a server's store; return label maps by name of the image."""
    (folder / "studies").mkdir()
    labels = {}
    for number, source in enumerate(images):
        label = source.parents[1] / source.parent.name.replace("images", "labels") / source.name
        labels[f"case{number}"] = folder / f"label{number}.nii.gz"
        for file, target in ((source, folder / "studies" / f"case{number}.nii.gz"), (label, labels[f"case{number}"])):
            image = nib.load(file)
            nib.save(turned(image) if number == len(images) - 1 else image, target)
    return labels


@pytest.fixture(scope="module")
def brains(tmp_path_factory, bundles) -> Iterator[tuple[Server, dict[str, Path]]]:
    folder = tmp_path_factory.mktemp("brains")
    counts = {"training": 3, "validation": 0, "test": 0}
    task = write_registration_tasks(folder / "data", ["synth_brain_mr"], size=32, seed=5, counts=counts)
    labels = store(folder, sorted((task["synth_brain_mr"] / "imagesTr").iterdir()))
    with serve(folder, [bundles["samcl"], bundles["dccnn_lstm_reg"]], folder / "studies") as server:
        yield server, labels


@pytest.fixture(scope="module")
def prostates(tmp_path_factory, bundles) -> Iterator[tuple[Server, dict[str, Path]]]:
    """With the app that refuses empty labels; the other servers have the host's own."""
    folder = tmp_path_factory.mktemp("prostates")
    site = write_sites(folder / "data", ["site_prostate_2"], patients=4)["site_prostate_2"]
    labels = store(folder, sorted((site / "imagesTr").iterdir())[:2])
    with serve(folder, [bundles["smdr"]], folder / "studies", checked=True) as server:
        yield server, labels


def check_answers(found: dict, image: Path, label: Path, least: float) -> None:
    """Look at the label maps before and after the training."""
    truth = nib.load(label)
    maps = [nib.load(path) for path in found["answers"]]
    for answer in maps:
        assert answer.shape == nib.load(image).shape
        np.testing.assert_allclose(answer.affine, nib.load(image).affine, atol=1e-3)
        assert dice(np.asarray(answer.dataobj), np.asarray(truth.dataobj)) > least


@pytest.mark.parametrize("model", ["samcl", "dccnn_lstm_reg"])
def test_registration_learns_from_submitted_labels(brains, model):
    server, labels = brains
    bundle = server.log.parent / "copies" / model
    before = (bundle / "models" / "model.pt").read_bytes()
    found = train(server, model, labels, "case2")
    assert found["status"] == "DONE", found["details"]
    check_answers(found, server.log.parent / "studies" / "case2.nii.gz", labels["case2"], 0.6)
    assert (bundle / "models" / "model_previous.pt").read_bytes() == before
    assert (bundle / "models" / "model.pt").read_bytes() == (bundle / "runs/labelled_0001/model.pt").read_bytes()
    if model == "samcl":
        # Again, and with a single image held back: a run of its own that rehearses the first.
        again = train(server, model, {}, "case2", val_split=0.34)
        assert again["status"] == "DONE", again["details"]
        assert (bundle / "runs" / "labelled_0002" / "done.json").is_file()
        index = next((bundle / "runs" / "labelled_0002" / "memory" / "rank0").glob("index_*.json"))
        assert json.loads(index.read_text())["seen"] > 16


def test_segmentation_learns_from_submitted_labels(prostates):
    server, labels = prostates
    found = train(server, "smdr", labels, "case1")
    assert found["status"] == "DONE", found["details"]
    check_answers(found, server.log.parent / "studies" / "case1.nii.gz", labels["case1"], 0.3)
    bundle = server.log.parent / "copies" / "smdr"
    assert (bundle / "models" / "model_previous.pt").is_file()
    assert (bundle / "models" / "replay" / "labelled_0001" / "cases.json").is_file(), found["details"]
    sets = {path.parent.name for path in (bundle / "models" / "replay").glob("*/index.json")}
    assert sets == {"labelled_0001", *(f"site_prostate_{n}" for n in range(1, 7))}


@pytest.fixture
def empty(prostates, tmp_path) -> Path:
    label = nib.load(prostates[1]["case0"])
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), tmp_path / "empty.nii.gz")
    return tmp_path / "empty.nii.gz"


def test_an_empty_label_is_refused_and_the_earlier_one_stays(prostates, empty, tmp_path):
    server, labels = prostates
    assert server.submit("case0", labels["case0"]).status == 200
    told = server.get("/datastore/?output=all").content
    answer = server.submit("case0", empty)
    assert answer.status == 400, answer.content
    assert "label of image 'case0': found an empty label map (.nii.gz, " in answer.detail
    (tmp_path / "text.nrrd").write_text("no image")
    answer = server.submit("case1", tmp_path / "text.nrrd")
    assert answer.status == 400, answer.content
    assert "label of image 'case1': found a .nrrd file that cannot be read as an image" in answer.detail
    assert server.get("/datastore/label?label=case0&tag=final").content == labels["case0"].read_bytes()
    assert server.get("/datastore/?output=all").content == told
    assert server.infer("smdr", image="case1").image(tmp_path).shape == nib.load(labels["case1"]).shape
    assert server.submit("case1", labels["case1"]).status == 200


def test_an_empty_label_in_the_store_ends_in_a_sentence_and_the_server_goes_on(prostates, empty):
    """As from a server without that app: it got into the store by another way."""
    server, labels = prostates
    for name, label in labels.items():
        assert server.submit(name, label).status == 200
    stored = server.log.parent / "studies" / "labels" / "final" / "case0.nii.gz"
    assert stored.is_file()
    shutil.copy(empty, stored)
    found = train(server, "smdr", {})
    assert found["status"] == "ERROR"
    assert found["details"][-1].startswith("error: ")
    assert "found an empty label map, expected labelled voxels to train on" in found["details"][-1]
    after = train(server, "smdr", labels, "case1")
    assert after["status"] == "DONE", after["details"]
