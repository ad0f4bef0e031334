"""The command line of ``python -m tools apply``: flags, words, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.errors import InputError
from shared.transform_io import Transform, write_nifti, write_transform
from tests.world_pair import world_pair
from tools.__main__ import main
from tools.apply import apply_transforms, described, file_flags, listed_transforms

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pair(tmp_path):
    pair = world_pair()
    pair.write(tmp_path)
    write_nifti(tmp_path / "labels.nii.gz", np.digitize(pair.image, [30, 60]).astype(np.uint8), pair.moving)
    write_transform(tmp_path / "1Warp.nii.gz", Transform((pair.field,)), pair.fixed)
    write_transform(tmp_path / "0Affine.mat", Transform((pair.affine,)))
    return pair


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call the command in this process: starting Python anew for each case takes longer than the work."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["tools", "apply", *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_repeated_flags_and_a_list_are_one_thing(pair, tmp_path, run):
    ends = ("--reference", "fixed.nii.gz", "--input", "moving.nii.gz")
    code = "import sys, runpy; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('tools', run_name='__main__')"
    repeated = ["--transform", "1Warp.nii.gz", "--transform=0Affine.mat", *ends, "--out", "a.nii.gz"]
    command = [sys.executable, "-c", code, str(ROOT), "apply", *repeated]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == "written: a.nii.gz"
    assert "of the reference's voxels come from the input" in first.stdout
    assert run("--transform", "[1Warp.nii.gz,0Affine.mat]", *ends, "--out", "b.nii.gz")[0] == 0
    a, b = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in "ab")
    np.testing.assert_array_equal(a, b)
    assert np.ptp(a) > 10


def test_warnings_and_errors_are_plain_lines(pair, tmp_path, run):
    ends = ("-r", "fixed.nii.gz", "--input", "labels.nii.gz", "--out", "a.nii.gz")
    code, out, err = run("-t", "0Affine.mat", *ends, "--inverse")
    assert code == 0
    assert any(line.startswith("warning: labels.nii.gz: looks like a label map") for line in err.splitlines())
    assert "inverse: off by at most 0 mm" in out
    code, _, err = run("--transform", "none.h5", "--reference", "fixed.nii.gz", "--out", "b.nii.gz")
    assert code == 1
    assert err.strip().startswith("error: none.h5: no such transform file; expected one of .h5")
    assert not (tmp_path / "b.nii.gz").exists()
    code, _, err = run("--transform")
    assert (code, err.strip()) == (1, "error: found --transform without a value, expected a file after it")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--interp", "label"], "found the option --interp (did you mean 'interpolation'?), expected some of --transf"),
        (["-x", "3"], "found the option -x, expected some of --transform"),
        (["2Warp.nii.gz"], "found the word '2Warp.nii.gz' that belongs to no option, expected --option value"),
        (["--inverse", "2Warp.nii.gz"], "found the word '2Warp.nii.gz' that belongs to no option"),
        (["--frame", "x"], "found --frame x, expected a whole number from 0"),
        (["--frame", "-1"], "found --frame -1, expected a whole number from 0"),
        (["--interpolation", "3"], "found the interpolation '3', expected one of linear"),
        (["--format", "3"], "found the transform format '3', expected one of itk"),
    ],
)
def test_what_is_no_option_is_refused_before_any_work(pair, tmp_path, run, more, message):
    needed = ["-t", "0Affine.mat", "-r", "fixed.nii.gz", "--out", "a.nii.gz"]
    given = [*needed, *([] if "--format" in more else ["--input", "moving.nii.gz"])]
    code, out, err = run(*given, *more)
    assert (code, out) == (1, "")
    assert err.strip().startswith(f"error: {message}")
    assert not (tmp_path / "a.nii.gz").exists()
    code, _, err = run(*needed[:2])
    assert (code, err.strip()[:43]) == (1, "error: found no --reference, expected --tra")


def test_a_command_that_does_not_exist_ends_with_1(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools", "regster"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1


@pytest.mark.parametrize(("command", "words"), [("apply", "starts anew"), ("chain", "goes on from here")])
def test_what_is_interrupted_says_whether_it_goes_on(monkeypatch, capsys, command, words):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    given = ["-t", "a", "-r", "b", "--out", "c"] if command == "apply" else []
    monkeypatch.setattr(sys, "argv", ["tools", command, *given])
    monkeypatch.setattr("fire.Fire", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == f"\nstopped; the same command {words}\n"


def test_help_says_which_way_points_go(run):
    code, out, err = run("--help")
    text = " ".join((out + err).split())
    assert code == 0
    assert "a moving landmark reaches the fixed image with --inverse" in text
    assert "FIRE_METADATA" not in text


def test_points_are_counted(pair, tmp_path):
    (tmp_path / "p.csv").write_text("x,y,z\n500,0,0\n500,0,1\n")
    result = apply_transforms(
        [(str(tmp_path / "0Affine.mat"), False)], tmp_path / "fixed.nii.gz", tmp_path / "q.csv", tmp_path / "p.csv"
    )
    words = described(result).splitlines()
    assert words[0] == "2 points carried, 2 of them outside the reference image (kept)"
    assert words[1] == f"written: {tmp_path / 'q.csv'}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--transform", "a", "--transform", "b"], ["--transform=['a', 'b']"]),
        (["--transform=a", "-t", "b", "--inverse"], ["--inverse", "--transform=['a', 'b']"]),
        (["--transform", "[a,b]", "-r", "r#1.nii"], ["--transform=['[a,b]']", "--reference='r#1.nii'"]),
        (["--out", "007", "--frame", "3", "--input=it's.nii"], ["--frame", "3", "--out='007'", '--input="it\'s.nii"']),
        (["--help"], ["--help"]),
    ],
)
def test_file_flags_become_literals(given, expected):
    assert file_flags(["apply", *given]) == ["apply", *expected]


@pytest.mark.parametrize("given", [["--transform"], ["--input", "--out", "x"], ["-r"]])
def test_a_flag_without_its_file(given):
    with pytest.raises(InputError, match=r"found --\w+ without a value, expected a file after it"):
        file_flags(given)


def test_only_transforms_may_be_repeated():
    with pytest.raises(InputError, match="found --input 2 times, expected it once"):
        file_flags(["--input", "a", "--input", "b"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.h5", [("a.h5", False)]),
        (["a.h5", "b.mat"], [("a.h5", False), ("b.mat", False)]),
        ("[a.h5, b.mat]", [("a.h5", False), ("b.mat", False)]),
        ("[\"a,1.h5\",'b.mat']", [("a,1.h5", False), ("b.mat", False)]),
        ("[a.mat,1]", [("a.mat", True)]),
        ("[a.mat,0]", [("a.mat", False)]),
        (
            ["[a.mat,1]", "w.nii.gz", "[c.h5,d.h5]"],
            [("a.mat", True), ("w.nii.gz", False), ("c.h5", False), ("d.h5", False)],
        ),
        ("odd, name.h5", [("odd, name.h5", False)]),
    ],
)
def test_every_way_to_list_transforms(given, expected):
    assert listed_transforms(given) == expected
