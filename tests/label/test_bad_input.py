"""What cannot be answered gets a sentence; the server stays up and answers the next request."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tests.label.conftest import BUNDLES
from tests.label.server import PYTHON, dice

pytestmark = [
    pytest.mark.label,
    pytest.mark.skipif(not PYTHON, reason="LABEL_PYTHON names no Python of tests/label/make_environment.sh"),
]


@pytest.fixture(params=BUNDLES[:2])
def model(request) -> str:
    return request.param


@pytest.fixture
def refused(server, tmp_path):
    """Send a bad request; check the sentence, and that a good request is answered afterwards."""

    def check(model: str, words: str, **request) -> None:
        answer = server.infer(model, **request)
        assert answer.status == 400, answer.content
        assert words in answer.detail
        case = "prostate" if model == "smdr" else "brain"
        steps = {} if model == "smdr" else {"optimise": 0}
        assert server.infer(model, image=case, **steps).image(tmp_path).shape

    return check


def test_an_image_that_no_atlas_overlaps(refused, cases, tmp_path, model):
    image = nib.load(cases["brain"])
    affine = image.affine.copy()
    affine[:3, 3] += 5000
    nib.save(nib.Nifti1Image(image.dataobj, affine), tmp_path / "far.nii.gz")
    refused(model, "does not overlap with the atlas", file=tmp_path / "far.nii.gz")


def test_an_alignment_brings_such_an_image_back(server, cases, tmp_path):
    image = nib.load(cases["brain"])
    affine = image.affine.copy()
    affine[:3, 3] += 5000
    nib.save(nib.Nifti1Image(image.dataobj, affine), tmp_path / "far.nii.gz")
    answer = server.infer("samcl", file=tmp_path / "far.nii.gz", init="auto").image(tmp_path)
    near = server.infer("samcl", image="brain").image(tmp_path)
    assert dice(np.asarray(answer.dataobj), np.asarray(near.dataobj)) > 0.9


def test_an_atlas_without_a_label_map(refused, cases, model):
    words = "found 1 atlas images and 0 label maps"
    refused(model, words, image="brain", atlas_image=str(cases["atlas"]))


def test_an_atlas_that_is_not_there(refused, cases, model):
    params = {"atlas_image": "/nowhere/atlas.nii.gz", "atlas_label": str(cases["atlas_label"])}
    refused(model, "/nowhere/atlas.nii.gz: no such moving image", image="brain", **params)


def test_an_atlas_whose_label_map_is_of_another_size(refused, cases, model):
    params = {"atlas_image": str(cases["atlas"]), "atlas_label": str(cases["brain_label"])}
    refused(model, "expected its image's size", image="brain", **params)


def test_an_unknown_atlas_or_option(refused, model):
    refused(model, "found no atlas 'synthetik' (did you mean 'synthetic'?)", image="brain", atlases="synthetik")
    refused(model, "found fusion 'most'", image="brain", fusion="most")
    refused(model, "found optimise 'many'", image="brain", optimise="many")
    refused(model, "found init 'best'", image="brain", init="best")


def test_a_2d_image_for_a_3d_model(refused, server, tmp_path, model):
    picture = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.int16)
    nib.save(nib.Nifti1Image(picture, np.eye(4)), tmp_path / "flat.nii.gz")
    refused(model, "2D image", file=tmp_path / "flat.nii.gz")
    assert server.infer("smdr", file=tmp_path / "flat.nii.gz").image(tmp_path).shape[:2] == (40, 50)


def test_an_option_is_text_and_never_an_expression(refused, tmp_path, model):
    code = f"$__import__('pathlib').Path('{tmp_path}/made').touch()"
    refused(model, f"found no atlas {code!r}", image="brain", atlases=code)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", BUNDLES)
def test_a_file_that_is_no_image(refused, tmp_path, name):
    (tmp_path / "text.nii.gz").write_text("no image")
    refused(name, "not readable as an image", file=tmp_path / "text.nii.gz")
