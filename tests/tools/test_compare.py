"""Comparisons: tables from chains, and one real run of two strategies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InputError
from shared.files import save_json, sole_owner, writable_dir, write_csv
from tools.__main__ import _outcome
from tools.compare import Run, budget_notes, caption, compare, write_tables
from tools.plan import load_plan
from tools.results import BEFORE, collect, read_rows, score_matrices

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def comparison(tiny_data, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("compare")
    options = ["--configs", "smoke", "--tasks", "[synth_brain_mr,synth_lung_ct]", "--unseen", "[synth_abdomen_ct]"]
    options += ["--dataset_dir", str(tiny_data), "--iterations", "2", "--seeds", "2", "--jobs", "2"]
    options += ["--corruptions", "noise"]
    variants = {"rho0": {"strategy": "samcl", "options": {"rho": 0.0}}}
    save_json(out / "p.json", {"bundle": "samcl", "variants": variants})
    command = [sys.executable, "-m", "tools", "compare", str(out / "p.json")]
    command += ["--strategies", "[joint,single,samcl,rho0]", *options]
    result = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return out, result


def test_a_comparison_gives_one_table_and_one_report(comparison):
    out, result = comparison
    rows = {r["strategy"]: r for r in read_rows(out / "table.csv")}
    assert set(rows) == {"joint", "single", "samcl", "rho0"}
    assert all(r["seeds"] == "2" and 0 < float(r["dice"]) < 1 and float(r["dice_sd"]) > 0 for r in rows.values())
    assert all(0 < float(rows[s]["unseen"]) < 1 for s in ("joint", "samcl"))
    assert all(0 < float(rows[s]["corrupted"]) < 1 for s in ("joint", "samcl"))
    assert rows["joint"]["forgetting"] == rows["single"]["forgetting"] == ""
    assert rows["samcl"]["forgetting"] != ""
    assert rows["samcl"]["intransigence"] != ""
    table = (out / "table.md").read_text()
    assert table.strip() in result.stdout
    assert table.count("\n|") == 2 + 4
    assert "samcl" in (out / "report.html").read_text()


def test_matched_passes_are_equal_passes(comparison):
    out, _ = comparison
    passes = {r["strategy"]: float(r["passes"]) for r in read_rows(out / "table.csv")}
    assert passes["joint"] == passes["single"] == passes["samcl"] == 2 * 4
    assert passes["rho0"] == 2 * 2


def test_a_variant_that_costs_less_is_told_below_the_table(comparison):
    out, result = comparison
    note = "Not the same budget: rho0 made 8 passes, -50.0 % against samcl with 16."
    assert (out / "table.md").read_text().endswith(f"|\n\n{note}\n")
    assert note in result.stdout


def test_single_starts_each_task_afresh_and_joint_learns_all_at_once(comparison):
    out, _ = comparison
    stages = {
        name: sorted(p.parent.name for p in (out / name / "seed0").glob("*/stage.json")) for name in ("joint", "single")
    }
    assert stages == {"joint": ["01_joint"], "single": ["01_synth_brain_mr", "02_synth_lung_ct"]}
    assert "init_from" not in (out / "single" / "seed0" / "02_synth_lung_ct" / "training.json").read_text()
    assert "init_from" in (out / "samcl" / "seed0" / "02_synth_lung_ct" / "training.json").read_text()


@pytest.mark.parametrize("names", [["er", "samcl"], ["samcl", "er"]])
def test_a_chain_that_fails_stops_the_ones_beside_it(tiny_data, tmp_path, names):
    """The chain of er finds its folder held by somebody else for 5 s; long before its own end samcl's stops too."""
    plan = load_plan(configs=["smoke"], tasks=["synth_brain_mr"], dataset_dir=str(tiny_data), iterations=100000)
    with sole_owner(writable_dir(tmp_path / "er" / "seed0"), "test"), pytest.raises(InputError, match="another chain"):
        compare(plan, names, [0], tmp_path, jobs=2)
    assert not (tmp_path / "samcl" / "seed0" / "01_synth_brain_mr" / "stage.json").exists()


def test_score_matrices_by_hand():
    cases = [
        {"stage": "1", "task": "a", "dice": "0.5", "dice_before": "0.3", "tre_mm": ""},
        {"stage": "1", "task": "a", "dice": "0.7", "dice_before": "0.5", "tre_mm": "2.0"},
        {"stage": "1", "task": "b", "dice": "nan", "dice_before": "0.1"},
        {"stage": "2", "task": "a", "dice": "0.4", "dice_before": "0.3"},
    ]
    dice = score_matrices(cases, ["1", "2"], ["a", "b"])["dice"]
    assert dice[BEFORE][0] == pytest.approx(0.4)
    assert dice["1"][0] == pytest.approx(0.6)
    assert str(dice["1"][1]) == str(dice["2"][1]) == "nan"
    assert dice["2"][0] == pytest.approx(0.4)
    assert score_matrices(cases, ["1", "2"], ["a", "b"])["tre_mm"]["1"][0] == pytest.approx(2.0)


def test_metrics_without_a_column_are_left_out_and_a_segmentation_has_nothing_before():
    cases = [{"stage": "1", "task": "a", "image": "x", "dice": "0.5", "hd95_mm": ""}]
    matrices = score_matrices(cases, ["1"], ["a", "b"])
    assert set(matrices) == {"dice", "hd95_mm"}
    assert list(matrices["dice"]) == ["1"]
    assert matrices["dice"]["1"][0] == 0.5
    assert all(np.isnan(v) for v in (matrices["dice"]["1"][1], *matrices["hd95_mm"]["1"]))


LABELS, LANDMARKS = {"dice": 0.5, "dice_before": 0.3}, {"tre_mm": 2.0, "tre_mm_before": 9.0}


def collected(folder: Path, scores: dict[str, dict[str, float]], kind: str = "continued") -> dict:
    """Return the summary of a chain whose tasks have other scores each."""
    stages = [f"{number:02d}_{task}" for number, task in enumerate(scores, 1)]
    for stage in stages:
        record = {"tasks": [stage[3:]], "passes": 8, "seconds": 1.0, "memory_bytes": 0, "peak_memory_bytes": 1}
        save_json(writable_dir(folder / stage) / "stage.json", {**record, "sharpness": {}})
        for task, row in scores.items():
            place = writable_dir(folder / stage / "evaluation" / task)
            write_csv(place / "evaluation_cases.csv", [{"task": task, **row, "folds_percent": 0.1}])
    return collect(folder, list(scores), len(scores), stages, kind)


@pytest.mark.parametrize("first", [LABELS, LANDMARKS, {**LABELS, **LANDMARKS}])
def test_a_metric_that_one_task_lacks_is_measured_on_the_others(tmp_path, first):
    scores = {"A": first, "B": LABELS, "C": LANDMARKS}
    metrics = collected(tmp_path, scores)["metrics"]
    assert list(metrics) == ["dice", "tre_mm", "folds_percent"]
    assert metrics["dice"]["final_average"] == 0.5
    assert metrics["tre_mm"]["final_average"] == 2.0
    rows = {(r["metric"], r["after"]): r for r in read_rows(tmp_path / "R.csv")}
    assert float(rows["dice", "02_B"]["B"]) == 0.5
    assert float(rows["tre_mm", "03_C"]["C"]) == 2.0
    assert rows["tre_mm", "03_C"]["B"] == rows["dice", "02_B"]["C"] == "nan"


def test_a_chain_without_labels_ends_with_the_metric_it_has(tmp_path):
    runs = []
    for name in ("samcl", "single"):
        summary = collected(tmp_path / name, {"synth_brain_mr": LANDMARKS, "synth_lung_ct": LANDMARKS})
        assert "dice" not in summary["metrics"]
        assert _outcome(summary["metrics"]).startswith("TRE mm: final average 2.000, backward transfer 0.000")
        plan = load_plan(strategy=name, tasks=["synth_brain_mr", "synth_lung_ct"])
        runs.append(Run(name, plan, 0, tmp_path / name))
    table = write_tables(runs, tmp_path, "caption")
    assert "| strategy | seeds | TRE mm | folds % |" in table


def test_the_passes_of_a_generator_are_told_apart(tmp_path):
    plan = load_plan("smdr_embedded")
    for name in ("smdr", "sequential"):
        save_json(writable_dir(tmp_path / name) / "summary.json", {"passes": 2 * 6 * 600 * 8})
    runs = [Run(name, plan.variant(name), 0, tmp_path / name) for name in ("smdr", "sequential")]
    assert budget_notes(plan, runs, "passes") == ["The passes of the image generator of smdr come on top."]
    assert budget_notes(plan, runs, "iterations") == []


def test_a_table_says_what_was_scored():
    assert caption(load_plan(), "passes") == "samcl_embedded: test pairs of 4 tasks, matched passes, mean ± sd"
    assert caption(load_plan("smdr_embedded", split="val"), "passes").startswith("smdr_embedded: val images of 6 tasks")
