"""The command line of ``python -m tools register``: flags, exit codes, bad input in words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.transform_io import write_nifti
from tests.shared.register.pairs import known_pair, plain_grid, structured
from tools.__main__ import main
from tools.flags import check_flags
from tools.networks import load_network, registering_bundles

FILES = ("--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz", "--out", "out", "--device", "cpu")
QUICK = ("--init", "none", "--optimise", "0")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in this process, in a folder with a small 2D pair."""
    known_pair(tmp_path, 2)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tools", "register", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def refused(run, *arguments: str) -> str:
    """Return the message of a call that must end with exit code 1 and nothing but that."""
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    return next(line for line in err.splitlines() if line.startswith("error: "))


def test_a_pair_from_the_command_line(run, tmp_path):
    code, out, err = run(*FILES, "--fixed_label", "fixed_label.nii.gz", "--moving_label=moving_label.nii.gz")
    assert code == 0, err
    assert "Dice 0." in out
    assert "verdict: " in out
    assert out.splitlines()[-1] == "written to out"
    assert "alignment: " in err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]["dice"] > 0.5


def test_a_time_limit_still_makes_a_result(run, tmp_path):
    code, _, err = run(*FILES, "--init", "none", "--time_limit", "0")
    assert code == 0, err
    assert "stopped by the time limit" in err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["scores"]["displacement_max_mm"] < 1e-6


def test_the_command_starts_without_what_trains_draws_or_reads_dicom():
    heavy = ("monai", "ignite", "matplotlib", "itk", "scipy.stats")
    code = f"import sys, tools.__main__; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_tells_every_option(run):
    code, out, err = run("--help")
    text = " ".join((out + err).split())
    assert code == 0
    for flag in ("fixed_label", "moving_points", "time_limit", "strict", "guide", "frame"):
        assert f"--{flag}" in text
    assert "transform.nii.gz (ITK, ANTs, 3D Slicer; the affine included)" in text


def test_failed_ends_with_another_exit_code_only_when_asked(run, tmp_path):
    grid = plain_grid((24, 20))
    grid.affine[0, 2] = 500.0
    write_nifti(tmp_path / "far.nii.gz", structured((24, 20)), grid)
    far = ("--fixed", "fixed.nii.gz", "--moving", "far.nii.gz", "--out", "out", "--device", "cpu", *QUICK)
    code, out, _ = run(*far)
    assert code == 0
    assert "verdict: failed" in out
    assert "the larger share of one image that lies on the other" in out
    code, out, _ = run(*far, "--strict")
    assert code == 2
    assert (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fixd", "a"), "found the option --fixd (did you mean 'fixed'?), expected some of --fixed, --moving"),
        (("--fixed", "fixed.nii.gz", "--out", "o"), "found no --moving, expected --fixed, --moving, --out"),
        (
            (*FILES, "--init", "rigd"),
            "rigd: found neither a start of this name (did you mean 'rigid'?) nor such a file",
        ),
        ((*FILES, "--motion", "inside"), "found motion 'inside', expected one of ['auto', 'within', 'between']"),
        (
            (*FILES, "--modality", "xray"),
            "found modality 'xray', expected ct, mr or auto, or two of them: fixed,moving",
        ),
        ((*FILES, "--guide", "label"), "found guide 'label' (did you mean 'labels'?), expected one of none, labels"),
        ((*FILES, "--guide", "labels"), "found guide 'labels' without both labels, expected --fixed_label and"),
        ((*FILES, "--optimise", "-3"), "found --optimise -3, expected a whole number of 0 or more"),
        ((*FILES, "--optimise", "many"), "found --optimise many, expected a whole number of 0 or more"),
        ((*FILES, "--time_limit", "-1"), "found --time_limit -1, expected a number of 0 or more"),
        ((*FILES[:-2], "--device", "gpu"), "found the device 'gpu', expected auto, cpu or a device"),
        ((*FILES, "--bundle", "smacl"), "found the bundle 'smacl' (did you mean 'samcl'?), expected none or one of"),
        ((*FILES, "--model", "m.pt"), "found --model m.pt without a bundle, expected --bundle samcl or"),
        ((*FILES, "--bundle", "samcl", "--model", "m.pt"), "m.pt: no such weights for samcl; train it, name a file"),
        ((*FILES, "other.nii.gz"), "found the word 'other.nii.gz' that belongs to no option, expected --option value"),
        ((*FILES, "--strict", "yes"), "found the word 'yes' that belongs to no option, expected --option value"),
        ((*FILES, "--fixed", "other.nii.gz"), "found --fixed 2 times, expected it once"),
        ((*FILES, "--frame", "x"), "found frame x, expected a number from 0, or two of them: fixed,moving"),
    ],
)
def test_options_that_cannot_be(run, arguments, message):
    assert refused(run, *arguments).startswith(f"error: {message}")


def test_a_label_map_given_as_image(run):
    message = refused(run, *FILES[2:], "--fixed", "fixed_label.nii.gz")
    assert message == (
        "error: fixed_label.nii.gz: looks like a label map (4 whole values), expected an image of intensities; "
        "a label map goes with --fixed_label"
    )


def test_an_image_given_as_label_map(run):
    assert "found fractional values in" in refused(run, *FILES, "--fixed_label", "fixed.nii.gz")


def test_masks_that_leave_nothing(run, tmp_path):
    image = nib.load(tmp_path / "fixed.nii.gz")
    empty = np.zeros(image.shape, np.uint8)
    nib.save(nib.Nifti1Image(empty, image.affine), tmp_path / "mask.nii.gz")
    message = refused(run, *FILES, "--fixed_mask", "mask.nii.gz")
    assert message == ("error: mask.nii.gz: found an empty mask, expected voxels above zero where the image counts")
    moving = nib.load(tmp_path / "moving.nii.gz")
    corners = np.zeros(moving.shape, np.uint8), empty.copy()
    corners[0].reshape(moving.shape[:2])[:2, :2] = 1
    corners[1].reshape(image.shape[:2])[9:12, 8:10] = 1
    for name, mask, like in (("m", corners[0], moving), ("f", corners[1], image)):
        nib.save(nib.Nifti1Image(mask, like.affine), tmp_path / f"{name}.nii.gz")
    message = refused(run, *FILES, *QUICK, "--fixed_mask", "f.nii.gz", "--moving_mask", "m.nii.gz")
    assert "the masks leave nothing in common" in message


def test_colour_images(run, tmp_path):
    rgb = np.zeros((8, 9, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii.gz")
    message = refused(run, *FILES[2:], "--fixed", "rgb.nii.gz")
    assert "found several values a voxel (colour or vectors), expected one real channel" in message


def test_time_series_ask_for_a_frame(run, tmp_path):
    shape = (10, 9, 8)
    frames = np.stack([structured(shape, seed) for seed in (3, 4)], -1)
    nib.save(nib.Nifti1Image(frames, np.diag([2.0, 2, 2, 1])), tmp_path / "series.nii.gz")
    same = ("--fixed", "series.nii.gz", "--moving", "series.nii.gz", "--out", "out", "--device", "cpu", *QUICK)
    message = refused(run, *same)
    assert "pick one time frame or channel (frame: 0..1)" in message
    code, _, err = run(*same, "--frame", "0,1")
    assert code == 0, err
    warped = np.asarray(nib.load(tmp_path / "out" / "warped.nii.gz").dataobj)
    np.testing.assert_allclose(warped, frames[..., 1], atol=1e-3)


def test_points_that_do_not_match(run, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3,4\n")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    message = refused(run, *FILES, "--fixed_points", "a.csv", "--moving_points", "b.csv")
    assert message.startswith("error: a.csv, b.csv: found 2 and 1 points, expected as many in both files")


def test_a_pair_that_is_too_large(run, tmp_path):
    # Far less than these small images take, and then less than they take to be read.
    code, _, err = run(*FILES, "--memory_gb", "0.0004")
    assert code == 0, err
    assert "the fields are found and kept on voxels 2 times as long as those of the images" in err
    assert nib.load(tmp_path / "out" / "warped.nii.gz").shape[:2] == (22, 18)
    assert nib.load(tmp_path / "out" / "transform.nii.gz").shape[:2] == (11, 9)
    message = refused(run, *FILES, "--memory_gb", "0.0001")
    assert "this pair takes about" in message
    assert "expected smaller images or more memory" in message


def test_images_of_other_dimensions(run, tmp_path):
    write_nifti(tmp_path / "volume.nii.gz", structured((8, 9, 10)), plain_grid((8, 9, 10)))
    assert "found a 3D image of shape" in refused(run, *FILES[:2], "--moving", "volume.nii.gz", "--out", "out")


def test_the_bundles_that_register():
    assert {"samcl", "dccnn_lstm_reg"} <= set(registering_bundles())


@pytest.mark.parametrize("bundle", ["samcl", "dccnn_lstm_reg"])
def test_a_bundles_network_predicts_a_field(bundle):
    import torch

    before = {name for name in sys.modules if name.split(".")[0] == "scripts"}
    network = load_network(bundle, None, "cpu")
    assert {name for name in sys.modules if name.split(".")[0] == "scripts"} == before
    with torch.no_grad():
        ddf = network.predict(torch.rand(1, 2, *network.spatial_size, generator=torch.Generator().manual_seed(0)))
    assert ddf.shape == (1, len(network.spatial_size), *network.spatial_size)
    assert bool(torch.isfinite(ddf).all())
    assert float(ddf.abs().max()) > 0


def test_flags_of_any_command():
    def command(*, one: str, two: int = 2) -> None: ...

    check_flags(["--one", "x", "--two=3"], command)
    with pytest.raises(ValueError, match=r"found the option --tow \(did you mean 'two'\?\), expected some of --one"):
        check_flags(["--one", "x", "--tow", "3"], command)
