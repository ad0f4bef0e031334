from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tools.chain_folder import TASKS, change, rows_of, write_chain, write_rows
from tests.tools.report_page import Page
from tools.report import write_report


def report(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text()


def test_unfinished_chain_says_so_and_shows_what_is_there(tmp_path):
    folder = write_chain(tmp_path / "chain", finished=2)
    found = Page(report(folder))
    assert "not finished: 2 of 4 stages are done" in found.text
    assert "Dice so far" in found.text
    assert len(found.heat("Dice")) == 1 + 1 + 2
    # The average runs over the two learnt tasks only.
    last = [row for row in rows_of(folder / "R.csv") if row["metric"] == "dice"][-1]
    assert f"to {np.mean([float(last[t]) for t in TASKS[:2]]):.3f}" in found.text


@pytest.mark.parametrize("finished", [0, 1])
def test_chain_at_its_very_start(tmp_path, finished):
    found = Page(report(write_chain(tmp_path / "chain", finished=finished)))
    assert f"not finished: {finished} of 4 stages" in found.text
    assert ("heat" in {kind for kind, _, _ in found.tables}) == bool(finished)
    assert "iterations 300" in found.text


def test_stage_killed_while_it_was_written_does_not_count(tmp_path):
    folder = write_chain(tmp_path / "chain")
    (folder / "04_synth_abdomen_mrct" / "stage.json").unlink()
    found = Page(report(folder))
    assert "3 of 4 stages are done" in found.text
    assert len(found.heat("Dice")) == 1 + 1 + 3


def test_task_that_is_never_learnt_is_scored_apart(tmp_path):
    folder = write_chain(tmp_path / "chain", unseen=["OASIS"])
    found = Page(report(folder))
    assert all("later" in row[5][0] for row in found.heat("Dice")[2:])
    value = json.loads((folder / "summary.json").read_text())["metrics"]["dice"]["unseen_average"]
    assert [cell[1] for cell in found.table("")[1]][-1] == f"{value:.3f}"
    assert "Of the tasks, synth_brain_mr" in found.text
    assert "synthetic brain MR" in found.text


def test_joint_training_has_one_row_and_nothing_to_forget(tmp_path):
    found = Page(report(write_chain(tmp_path / "chain", strategy="joint")))
    rows = found.heat("Dice")
    assert len(rows) == 3
    assert all("now" in kind for kind, _ in rows[2][1:])
    assert "4 tasks were learnt together" in found.text
    assert "Kept \N{EN DASH}" in found.text


def test_separate_models_are_judged_on_their_own_task(tmp_path):
    folder = write_chain(tmp_path / "chain", strategy="single")
    found = Page(report(folder))
    dice = [[float(row[t]) for t in TASKS] for row in rows_of(folder / "R.csv") if row["metric"] == "dice"]
    assert f"to {np.mean(np.diag(dice[1:])):.3f}" in found.text
    marks = [["now" in kind for kind, _ in row[1:]] for row in found.heat("Dice")[2:]]
    assert marks == np.eye(4, dtype=bool).tolist()


def test_data_without_labels_is_told_by_its_landmarks(tmp_path):
    folder = write_chain(tmp_path / "chain", tasks=["NLST"])
    kept = [row for row in rows_of(folder / "R.csv") if row["metric"] not in {"dice", "hd95_mm", "assd_mm"}]
    write_rows(folder / "R.csv", kept)
    summary = json.loads((folder / "summary.json").read_text())["metrics"]
    change(
        folder / "summary.json", metrics={m: v for m, v in summary.items() if m not in {"dice", "hd95_mm", "assd_mm"}}
    )
    found = Page(report(folder))
    assert "TRE (mm) fell from" in found.text
    assert f"TRE at the end {summary['tre_mm']['final_average']:.2f} mm" in found.text


def test_strategies_are_averaged_over_finished_seeds(strategies, comparison):
    rows = {row[0][1].split()[0]: row for row in comparison.table("strategy")[1:]}
    for strategy, seeds in (("er", 2), ("sequential", 3)):
        found = [json.loads((strategies / strategy / f"seed{k}/summary.json").read_text()) for k in range(seeds)]
        values = [f["metrics"]["dice"]["final_average"] for f in found]
        transfer = [f["metrics"]["dice"]["backward_transfer"] for f in found]
        assert rows[strategy][1][1] == str(seeds)
        assert rows[strategy][2][1] == f"{np.mean(values):.3f} ±\N{THIN SPACE}{np.std(values, ddof=1):.3f}"
        assert rows[strategy][3][1].startswith(f"\N{MINUS SIGN}{-np.mean(transfer):.3f}")
    assert "er, seed 2 is not finished: 2 of 4 stages" in comparison.text


def test_strategies_are_ranked_and_the_best_is_bold(comparison):
    rows = comparison.table("strategy")[1:]
    averages = [float(row[2][1].split()[0]) for row in rows]
    assert averages == sorted(averages, reverse=True)
    # Joint training and a model a task are bounds, not contenders.
    assert [row[0][1].split()[0] for row in rows if "best" in row[2][0]] == ["er"]
    assert {"joint", "single"} == {row[0][1].split()[0] for row in rows if row[3][1] == "\N{EN DASH}"}
    assert "Of 2 strategies that learn task after task, er ends with the highest average Dice" in comparison.text


def test_heat_maps_of_strategies_show_means_over_seeds(strategies, comparison):
    rows = comparison.heat("sequential")
    tables = [rows_of(strategies / "sequential" / f"seed{k}" / "R.csv") for k in range(3)]
    values = [float(next(r for r in t if r["after"].startswith("04"))[TASKS[0]]) for t in tables]
    shown = rows[5][1][1]
    assert shown == f"{np.mean(values):.3f}±\N{THIN SPACE}{np.std(values, ddof=1):.3f}"


def test_lead_within_the_scatter_is_no_ranking(tmp_path):
    for strategy in ("a", "b"):
        for seed in range(2):
            folder = write_chain(tmp_path / strategy / f"seed{seed}", strategy=strategy, seed=seed, tasks=TASKS[:2])
            summary = json.loads((folder / "summary.json").read_text())
            summary["metrics"]["dice"]["final_average"] = 0.6 + 0.02 * seed + 0.001 * (strategy == "b")
            (folder / "summary.json").write_text(json.dumps(summary))
    text = Page(report(tmp_path)).text
    assert "b ends with the highest average Dice: 0.611, before a with 0.610" in text
    assert "no larger than the scatter between seeds: not a ranking" in text


def test_single_seed_is_called_chance(tmp_path):
    folders = [write_chain(tmp_path / s, strategy=s, tasks=TASKS[:2]) for s in ("er", "ewc")]
    assert "With one seed a strategy, their order may be chance" in Page(report(*folders)).text


def test_same_strategy_with_other_options_is_another_group(tmp_path):
    a = write_chain(tmp_path / "a", seed=0, tasks=TASKS[:1])
    b = write_chain(tmp_path / "b", seed=1, tasks=TASKS[:1], options={"iterations": 600, "strategy#rho": 0.5})
    c = write_chain(tmp_path / "c", seed=2, tasks=TASKS[:1])
    labels = {row[0][1]: row[1][1] for row in Page(report(a, b, c)).table("strategy")[1:]}
    assert labels == {
        "samcl (iterations 300, strategy#rho as configured)": "2",
        "samcl (iterations 600, strategy#rho 0.5)": "1",
    }


@pytest.mark.parametrize(
    ("key", "value", "note"),
    [
        ("phases", {"diffusion": {"iterations": 300}}, "phases diffusion: iterations: 300"),
        ("corruptions", ["noise", "blur"], "corruptions noise, blur"),
    ],
)
def test_other_phases_or_corruptions_are_another_experiment_not_another_seed(tmp_path, key, value, note):
    a = write_chain(tmp_path / "a", seed=0, tasks=TASKS[:1], **{key: value})
    b = write_chain(tmp_path / "b", seed=1, tasks=TASKS[:1], **{key: [] if key == "corruptions" else {}})
    c = write_chain(tmp_path / "c", seed=2, tasks=TASKS[:1])  # of before there were any
    labels = {row[0][1]: row[1][1] for row in Page(report(a, b, c)).table("strategy")[1:]}
    assert labels == {f"samcl ({note})": "1", f"samcl (without {key})": "2"}


def test_the_settings_list_phases_corruptions_threads_and_every_version(tmp_path):
    more = {"phases": {"replay": {"count": 5}}, "corruptions": ["noise"], "threads": 3}
    folder = write_chain(tmp_path / "chain", tasks=TASKS[:2], **more)
    change(folder / "02_synth_abdomen_ct" / "stage.json", versions=[{"commit": "abc1234", "torch": "2.13.0"}])
    text = Page(report(folder)).text
    for fact in ("phases replay: count: 5", "corruptions noise", "threads 3", "version torch 2.13.0"):
        assert fact in text, fact
    assert "version commit 166e428, abc1234" in text
    assert "made with commit 166e428, abc1234" in text


@pytest.mark.parametrize("other", [{"split": "val"}, {"tasks": TASKS[:1]}])
def test_chains_of_another_split_or_other_tasks_are_not_ranked(tmp_path, other):
    worse = write_chain(tmp_path / "a", strategy="sequential", tasks=TASKS[:2])
    better = write_chain(tmp_path / "b", strategy="er", **{"tasks": TASKS[:2], **other})
    found = Page(report(worse, better))
    assert "ends with the highest average" not in found.text
    assert "not ranked" in found.text
    assert "Bold: the best" not in found.text
    rows = found.table("strategy")[1:]
    assert not any("best" in kind for row in rows for kind, _ in row)
    assert [row[0][1].split()[0] for row in rows] == ["sequential", "er"]
    assert "not ranked" not in Page(report(worse)).text


def test_the_same_tasks_in_another_order_are_ranked(tmp_path):
    worse = write_chain(tmp_path / "a", strategy="sequential", tasks=TASKS[:2])
    better = write_chain(tmp_path / "b", strategy="er", tasks=TASKS[1::-1])
    assert "er ends with the highest average Dice" in Page(report(worse, better)).text


def test_every_split_is_named(tmp_path):
    test = write_chain(tmp_path / "a", tasks=TASKS[:1])
    val = write_chain(tmp_path / "b", tasks=TASKS[:1], strategy="er", split="val")
    both, one = (Page(report(*folders)).text for folders in ((test, val), (val,)))
    assert "scored on the test or the val pairs" in both
    assert "Each dot is one pair of images of the test or val split;" in both
    assert "scored on the val pairs" in one
    assert "Each dot is one pair of images of the val split;" in one


def test_folder_given_twice_counts_once(tmp_path):
    folder = write_chain(tmp_path / "chain", tasks=TASKS[:1])
    assert "side by side" not in Page(report(folder, folder / ".." / "chain")).text


def test_only_the_last_stage_of_the_first_seed_is_pictured(comparison):
    assert sum(tag == "img" for tag, _ in comparison.tags) == 4 * 4
