"""Real pairs of different sizes, spacings and orientations through `register_files`, checked by ITK in world space."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import VelocityInferer
from shared.inference import register_files
from tests.itk_peer import itk_resampled

IMAGES = Path(__file__).resolve().parents[4] / "shared" / "data"
PAIRS = {
    "brain MR": ("brain_mr_oasis/subject_a_t1", "brain_mr_oasis/subject_b_t1"),
    "slab to brain MR": ("brain_mr_ptbp_slab/child_1_t1", "brain_mr_ptbp_slab/child_3_t1"),
    "abdomen MR-CT": ("abdomen_mr_ct/mr", "abdomen_mr_ct/ct"),
    "limb CT-MR": ("limb_mr_ct/sts008_ct", "limb_mr_ct/sts008_mr"),
}


def lively_network() -> LKUNet:
    """Return a network that was not trained, but whose field is not zero."""
    torch.manual_seed(0)
    network = LKUNet(3, channels=4, depth=2, velocity_scale=4.0)
    torch.nn.init.normal_(network.head.conv.weight, std=0.03)
    return network


@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"no real images at {IMAGES}")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_warped_image_is_what_itk_makes_of_the_displacement(tmp_path, name, turned):
    fixed, moving = (IMAGES / f"{stem}.nii.gz" for stem in PAIRS[name])
    if turned:  # the same image in world space, stored with flipped and permuted axes
        image = nib.load(moving)
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine)
        orientation = nib.orientations.axcodes2ornt(("S", "R", "A"))
        moving = tmp_path / "turned.nii.gz"
        start = nib.orientations.io_orientation(image.affine)
        nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, orientation)), moving)
    out = tmp_path / "out"
    register_files(lively_network(), VelocityInferer(), torch.device("cpu"), out, (24, 24, 24), fixed, moving)
    ours, reference = nib.load(out / "warped.nii.gz"), nib.load(fixed)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours.affine, reference.affine, atol=1e-4)
    theirs = itk_resampled(moving, fixed, out / "displacement.nii.gz", 3)
    warped = np.asarray(ours.dataobj)
    displacement = np.asarray(nib.load(out / "displacement.nii.gz").dataobj)
    assert np.abs(displacement).max() > 1  # mm: there is something to agree on
    # At the moving image's edge ITK repeats or drops half a voxel; inside, both interpolate linearly.
    inside = _inside(out / "displacement.nii.gz", moving)
    assert inside.sum() > 10_000
    spread = float(warped[inside].max() - warped[inside].min())
    assert np.abs(warped - theirs)[inside].max() < 1e-3 * spread
    assert json.loads((out / "metrics.json").read_text())["scores"]["sdlogj"] > 0


def _inside(field_file: Path, moving_file: Path) -> np.ndarray:
    """Whether a fixed voxel looks into the moving image, at least one voxel from its edge."""
    field, moving = nib.load(field_file), nib.load(moving_file)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in field.shape[:3]], indexing="ij"), -1)
    ras = np.asarray(field.dataobj)[..., 0, :] * [-1, -1, 1]
    world = index @ field.affine[:3, :3].T + field.affine[:3, 3] + ras
    inverse = np.linalg.inv(moving.affine)
    voxel = world @ inverse[:3, :3].T + inverse[:3, 3]
    return np.all((voxel > 1) & (voxel < np.array(moving.shape[:3]) - 2), axis=-1)
