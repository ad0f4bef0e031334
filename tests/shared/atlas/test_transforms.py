"""Propagation step by step as hosts run it, on a pair whose true map is known; grids that share nothing."""

from __future__ import annotations

import sys
import types

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.atlas import AtlasInferer, LoadAtlasPairsd, PropagateLabelsd
from shared.errors import InputError
from shared.metrics import dice_per_label
from tests.shared.register.pairs import known_pair

SIZE = (16, 16, 16)


class Still(torch.nn.Module):
    """A network whose field is zero; remembers what it was shown."""

    def forward(self, pair):
        self.seen = pair
        return torch.zeros(1, pair.ndim - 2, *pair.shape[2:])


def propagate(image, folder, network=None, size=SIZE, **request):
    network = network or Still()
    data = LoadAtlasPairsd(folder, size)({"image": str(image), "device": "cpu", "other": 1, **request})
    inferer = AtlasInferer(lambda pair, net: {"ddf": net(pair)})
    data["pred"] = inferer(data["image"][None], network)[0]
    return PropagateLabelsd()(data)


@pytest.fixture(params=[2, 3])
def pair(request, tmp_path):
    """Folder with fixed files beside ``atlas/``, which holds the moving ones."""
    known_pair(tmp_path, request.param)
    (tmp_path / "atlas").mkdir()
    (tmp_path / "moving.nii.gz").rename(tmp_path / "atlas" / "known.nii.gz")
    (tmp_path / "moving_label.nii.gz").rename(tmp_path / "atlas" / "known_label.nii.gz")
    return tmp_path, request.param


def test_labels_reach_the_image_on_its_own_grid(pair):
    folder, d = pair
    image = nib.load(folder / "fixed.nii.gz")
    truth = torch.from_numpy(np.asarray(nib.load(folder / "fixed_label.nii.gz").dataobj).astype(np.int64)).squeeze()
    found = {}
    for steps in (0, 40):
        data = propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[:d], init="auto", optimise=steps)
        pred = data["pred"]
        assert pred.shape == (1, *truth.shape)
        np.testing.assert_allclose(pred.affine[:d, :d], image.affine[:d, :d], atol=1e-5)
        assert tuple(data["image"].meta["spatial_shape"]) == tuple(truth.shape)
        assert data["image"].shape == (2, *SIZE[:d])
        assert data["other"] == 1
        found[steps] = float(dice_per_label(pred[0].long(), truth, [1, 2, 3]).mean())
    assert found[40] > max(found[0], 0.8)
    assert data["result"]["atlases"][0]["atlas"] == "known"


def test_every_atlas_is_a_pair_of_channels_for_the_network(pair):
    folder, d = pair
    atlas = folder / "atlas"
    for end in ("", "_label"):
        (atlas / f"second{end}.nii.gz").write_bytes((atlas / f"known{end}.nii.gz").read_bytes())
    network = Still()
    once = propagate(folder / "fixed.nii.gz", atlas, network, SIZE[:d], atlases="known")
    shown = network.seen
    for fusion in ("similarity", "majority"):
        both = propagate(folder / "fixed.nii.gz", atlas, network, SIZE[:d], fusion=fusion)
        assert both["image"].shape == (4, *SIZE[:d])
        assert torch.equal(network.seen, shown)
        assert torch.equal(both["pred"].as_tensor(), once["pred"].as_tensor())


def test_the_network_moves_the_labels(pair):
    """A field of two network voxels, against the label map pulled by hand."""
    folder, d = pair
    # The image's own labels as the atlas: no other map is between the two.
    files = {"atlas_image": str(folder / "fixed.nii.gz"), "atlas_label": str(folder / "fixed_label.nii.gz")}
    still = propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[:d], **files)
    label = np.asarray(nib.load(folder / "fixed_label.nii.gz").dataobj).squeeze()
    assert np.array_equal(still["pred"][0].numpy(), label)


@pytest.mark.parametrize("hosted", [False, True])
def test_errors_name_what_is_wrong_and_reach_the_host(pair, monkeypatch, hosted):
    folder, d = pair
    image = nib.load(folder / "fixed.nii.gz")
    affine = image.affine.copy()
    affine[:2, 3] += 1000
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "far.nii.gz")
    expected = InputError
    if hosted:

        class HttpError(Exception):
            def __init__(self, status_code, detail):
                super().__init__(f"{status_code}: {detail}")

        expected = HttpError
        monkeypatch.setitem(sys.modules, "monailabel", types.ModuleType("monailabel"))
        fastapi = types.ModuleType("fastapi")
        fastapi.HTTPException = HttpError
        monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    with pytest.raises(expected, match=r"does not overlap with the atlas known\.nii\.gz"):
        propagate(folder / "far.nii.gz", folder / "atlas", size=SIZE[:d])


def test_an_image_of_other_dimensions_than_the_network_is_refused(pair):
    folder, d = pair
    with pytest.raises(InputError, match=f"expected {5 - d}D"):
        propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[: 5 - d])


def test_a_pair_that_is_too_large_is_registered_coarser_and_answered_in_full(pair, monkeypatch):
    folder, d = pair
    whole = propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[:d], init="auto", optimise=20)
    monkeypatch.setattr("shared.atlas.transforms.check_memory", lambda pair: (2, "coarser"))
    coarse = propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[:d], init="auto", optimise=20)
    assert coarse["pred"].shape == whole["pred"].shape
    assert "coarser" in coarse["result"]["atlases"][0]["messages"]
    least = {2: 0.4, 3: 0.6}[d]  # half of a picture of 20 pixels shows little
    assert float(dice_per_label(coarse["pred"][0].long(), whole["pred"][0].long(), [1, 2, 3]).mean()) > least


@pytest.mark.parametrize(("kind", "top", "expected"), [("float32", 7, "uint8"), ("uint16", 300, "int16")])
def test_the_answer_is_of_whole_numbers_whatever_the_atlas_is_of(pair, kind, top, expected):
    folder, d = pair
    label = nib.load(folder / "fixed_label.nii.gz")
    voxels = np.asarray(label.dataobj).astype(kind)
    values = np.where(voxels == voxels.max(), np.array(top, kind), voxels)
    nib.save(nib.Nifti1Image(values, label.affine), folder / "other.nii.gz")
    files = {"atlas_image": str(folder / "fixed.nii.gz"), "atlas_label": str(folder / "other.nii.gz")}
    found = propagate(folder / "fixed.nii.gz", folder / "atlas", size=SIZE[:d], **files)["pred"]
    assert found.numpy().dtype == expected
    assert np.array_equal(found[0].numpy(), values.squeeze())
