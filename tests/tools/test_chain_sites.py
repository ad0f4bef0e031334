"""Chains of segmentation sites with a generator: real subprocesses on tiny data."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from shared.data.sites import write_sites
from shared.files import load_tensors
from tests.tools.report_page import Page, browser, measured
from tools.results import read_rows

ROOT = Path(__file__).resolve().parents[2]
SITES = ["site_prostate_1", "site_prostate_2"]
UNSEEN = "site_prostate_4"
STAGES = [f"0{number}_{site}" for number, site in enumerate(SITES, 1)]
PHASES = "{diffusion: {iterations: 2}, replay: {count: 24, steps: 4, min_confidence: 0.0, area_slack: 10000}}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sites")
    write_sites(folder, [*SITES, UNSEEN], size=48, patients=4)
    return folder


def command(data: Path, out: Path, *flags: str) -> list[str]:
    options = ["--plan", "smdr_embedded", "--configs", "smoke", "--tasks", f"[{','.join(SITES)}]"]
    options += ["--unseen", f"[{UNSEEN}]", "--dataset_dir", str(data), "--iterations", "2", "--phases", PHASES]
    return [sys.executable, "-m", "tools", "chain", *options, "--threads", "1", "--out", str(out), *flags]


def call(data: Path, out: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(data, out, *flags), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """Return an unbroken chain of two sites."""
    out = tmp_path_factory.mktemp("chains") / "whole"
    result = call(data, out)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Dice: final average" in result.stdout
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != ".lock"}


def same_results(first: Path, second: Path) -> None:
    for name in ("R.csv", "cases.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for stage in STAGES:
        for run in ("run", "generator"):
            one, two = (load_tensors(folder / stage / run / "model.pt") for folder in (first, second))
            assert all(torch.equal(one[k], two[k]) for k in one), (stage, run)
        assert files_of(first / stage / "replay") == files_of(second / stage / "replay")


def test_every_stage_leaves_model_generator_and_replay_set(whole):
    for number, stage in enumerate(STAGES):
        folder = whole / stage
        index = json.loads((folder / "replay" / "index.json").read_text())
        assert (index["complete"], index["settings"]["site"], len(index["samples"])) == (True, SITES[number], 24)
        assert json.loads((folder / "replay" / "assessment.json").read_text())["leakage"]["samples"] == 24
        assert (folder / "replay_sheet.png").read_bytes()[:4] == b"\x89PNG"
        record = json.loads((folder / "stage.json").read_text())
        assert record["memory_bytes"] > sum(p.stat().st_size for p in (folder / "replay").glob("*.npz"))
        assert record["seconds"] > 0
    training = json.loads((whole / STAGES[1] / "training.json").read_text())
    assert training["replay_sets"] == [str(whole / STAGES[0] / "replay")]


def test_nothing_of_a_patient_was_found(whole):
    for stage in STAGES:
        record = json.loads((whole / stage / "privacy.json").read_text())
        assert record["foreign_files"] == []
        assert all(count > 3 for count in record["files_looked_at"].values())
        assert len(record["files_looked_at"]) == 3


def test_all_sites_are_scored_with_the_measures_of_a_segmentation(whole):
    rows = read_rows(whole / "R.csv")
    assert {row["metric"] for row in rows} == {"dice", "hd95_mm", "assd_mm"}
    assert [row["after"] for row in rows if row["metric"] == "dice"] == STAGES
    assert all(0 <= float(row[site]) <= 1 for row in rows if row["metric"] == "dice" for site in (*SITES, UNSEEN))
    dice = json.loads((whole / "summary.json").read_text())["metrics"]["dice"]
    assert dice["unseen_average"] is not None
    assert dice["backward_transfer"] is not None
    assert dice["forward_transfer"] is None


def test_the_report_speaks_of_segmentation(whole):
    html = (whole / "report.html").read_text()
    text = Page(html).text
    assert "Continual segmentation report" in text
    assert "scored on the test images" in text
    assert "Averaged over the tasks, Dice is 0." in text
    assert "synthetic" in text
    for word in ("before registration", "TRE", "Folds", "pair of images"):
        assert word not in text, word


def test_the_report_states_quality_and_leak_test_of_every_replay_set(whole):
    page = Page((whole / "report.html").read_text())
    assert "Generated images" in page.text
    assert "distance ratio, median" in page.text
    found = json.loads((whole / STAGES[1] / "replay" / "assessment.json").read_text())
    assert f"{found['leakage']['median_ratio']:.2f}" in page.text


def test_a_patients_image_in_a_run_folder_stops_the_chain(data, whole, tmp_path):
    import shutil

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / STAGES[1] / "stage.json").unlink()
    (out / STAGES[1] / "privacy.json").unlink()
    shutil.copy(next((data / SITES[1] / "imagesTr").iterdir()), out / STAGES[1] / "run" / "case.nii.gz")
    result = call(data, out)
    assert result.returncode == 1
    assert "case.nii.gz: neither sample, weights nor statistics" in result.stderr


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(data, whole, tmp_path):
    chooser, out = random.Random(4), tmp_path / "out"
    for _ in range(8):
        process = subprocess.Popen(command(data, out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chooser.uniform(2, 15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = call(data, out)
    assert result.returncode == 0, result.stderr[-3000:]
    same_results(whole, out)


@pytest.mark.skipif(browser() is None, reason="needs Chromium or Chrome")
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_the_sheets_of_generated_images_fit_the_page(whole, width):
    sizes = "[innerWidth, document.documentElement.scrollWidth, document.querySelectorAll('.film img').length > 2]"
    assert measured(whole / "report.html", width, sizes) == f"{width},{width},true"
