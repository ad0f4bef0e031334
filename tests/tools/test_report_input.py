from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import InputError
from tests.tools.chain_folder import change, write_chain
from tools.report import write_report


def report(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text()


def unlink(folder: Path) -> None:
    (folder / "chain.json").unlink()


def rewrite(name: str, old: str, new: str):
    def spoil(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return spoil


def settings(**changes: object):
    return lambda folder: change(folder / "chain.json", **changes)


PICTURE = "01_synth_brain_mr/evaluation/synth_lung_ct/evaluation_example.png"
BAD = {
    "no chain.json": (unlink, r"chain\.json: found no chain\.json; expected the folder of a chain"),
    "no JSON": (rewrite("chain.json", "{", ""), r"chain\.json: malformed JSON"),
    "a list": (lambda f: (f / "chain.json").write_text("[]"), r"chain\.json: found list, expected a JSON object"),
    "no seed": (settings(seed=None), r"chain\.json: found seed None, expected a whole number"),
    "seed true": (settings(seed=True), r"chain\.json: found seed True, expected a whole number"),
    "task names": (settings(tasks=["a"]), r"chain\.json: found tasks \['a'\], expected a list of objects"),
    "stages": (settings(stages=["a", "b"]), r"found stages \['a', 'b'\] for 4 tasks, expected one folder name a task"),
    "kind": (settings(kind="other"), r"found kind 'other', expected one of continued, pooled, separate"),
    "options": (settings(options=[1]), r"found options \[1\], expected an object"),
    "summary": (rewrite("summary.json", "{", "["), r"summary\.json: malformed JSON"),
    "metrics": (lambda f: change(f / "summary.json", metrics=[1]), r"summary\.json: found metrics \[1\], expected"),
    "no metric": (rewrite("R.csv", "metric,", "measure,"), r"R\.csv: found columns .* expected also \['metric'\]"),
    "no number": (rewrite("R.csv", "registration,", "registration,x"), r"line 2, column synth_brain_mr: found 'x"),
    "short row": (rewrite("R.csv", "\ndice,", "\n"), r"R\.csv, line 2: found 5 cells, expected 6"),
    "case": (rewrite("cases.csv", ".nii.gz,0.", ".nii.gz,O."), r"cases\.csv, line 2, column dice: found 'O\."),
    "binary": (lambda f: (f / "cases.csv").write_bytes(b"\xff\xfe\x00"), r"cases\.csv: cannot be read"),
    "curve": (rewrite("01_synth_brain_mr/run/metrics.csv", "iteration", "step"), r"metrics\.csv: found columns"),
    "stage": (lambda f: (f / "01_synth_brain_mr" / "stage.json").write_text("3"), r"stage\.json: found int, expected"),
    "versions": (lambda f: change(f / "01_synth_brain_mr" / "stage.json", versions={}), "found versions {}, expected"),
    "picture": (lambda f: (f / PICTURE).write_bytes(b"\x89PNG"), r"example\.png: cannot be read as a picture"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_bad_folder_is_named(tmp_path, spoil, message):
    folder = write_chain(tmp_path / "chain")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        report(folder)
    assert not (tmp_path / "report.html").exists()


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/chain\.json: found no such folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report.html")


def test_page_that_cannot_be_written(chain, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write_report([chain], tmp_path / "missing" / "report.html")
