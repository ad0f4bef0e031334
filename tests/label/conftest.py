"""Packages of all bundles, images of every kind, and a server that has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles import runs
from tests.label.server import Server, make_app

BUNDLES = ("samcl", "dccnn_lstm_reg", "smdr")


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """Every bundle, packed and unpacked."""
    from tools.package import pack
    from tools.package_check import unpack

    folder = tmp_path_factory.mktemp("bundles")
    return {name: unpack(pack(name, folder / "dist", allow_dirty=True), folder) for name in BUNDLES}


@pytest.fixture(scope="session")
def cases(tmp_path_factory) -> dict[str, Path]:
    """Images by name, each with ``<name>_label``: a brain, the same stored otherwise, the atlas, a prostate."""
    from shared.data.sites import write_sites
    from shared.data.synthetic import write_registration_tasks

    folder = tmp_path_factory.mktemp("cases")
    counts = {"training": 0, "validation": 1, "test": 0}
    brain = write_registration_tasks(folder / "data", ["synth_brain_mr"], size=40, seed=11, counts=counts)
    site = write_sites(folder / "data", ["site_prostate_1"])["site_prostate_1"]
    store = folder / "studies"
    store.mkdir()
    sources = {"brain": sorted((brain["synth_brain_mr"] / "imagesTr").iterdir())[0]}
    sources["prostate"] = sorted((site / "imagesTr").iterdir())[-1]
    sources["atlas"] = runs.ROOT / "bundles" / "samcl" / "atlas" / "synthetic.nii.gz"
    found = {}
    for name, source in sources.items():
        label = source.with_name("synthetic_label.nii.gz") if name == "atlas" else _label_of(source)
        found[name], found[f"{name}_label"] = store / f"{name}.nii.gz", folder / f"{name}_label.nii.gz"
        shutil.copy(source, found[name])
        shutil.copy(label, found[f"{name}_label"])
        found[f"{name}_turned"] = store / f"{name}_turned.nii.gz"
        nib.save(turned(nib.load(source)), found[f"{name}_turned"])
    return found


def _label_of(image: Path) -> Path:
    return image.parents[1] / image.parent.name.replace("images", "labels") / image.name


def turned(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Return the same image in the world, stored with other axes, two of them flipped."""
    ornt = np.array([[2, -1], [0, 1], [1, -1]])
    data = nib.orientations.apply_orientation(np.asarray(image.dataobj), ornt)
    affine = image.affine @ nib.orientations.inv_ornt_aff(ornt, image.shape)
    return nib.Nifti1Image(data, affine)


def turned_back(image: nib.Nifti1Image, like: nib.Nifti1Image) -> np.ndarray:
    """Return an image's voxels at the voxels of another that has the same lattice in the world."""
    matrix = np.linalg.inv(image.affine) @ like.affine
    index = np.stack(np.meshgrid(*map(np.arange, like.shape), indexing="ij"))
    place = np.einsum("ij,j...->i...", matrix[:3, :3], index) + matrix[:3, 3].reshape(3, 1, 1, 1)
    assert np.abs(place - place.round()).max() < 1e-2, "the lattices differ"
    return np.asarray(image.dataobj)[tuple(place.round().astype(int))]


@pytest.fixture(scope="session")
def server(bundles, cases, tmp_path_factory) -> Iterator[Server]:
    """All bundles in one server."""
    folder = tmp_path_factory.mktemp("server")
    app = make_app(folder, list(bundles.values()))
    with Server(app, BUNDLES, cases["brain"].parent, folder / "server.log") as running:
        yield running
