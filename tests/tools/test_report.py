from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.errors import InputError
from shared.metrics import METRICS as SCORED
from tests.tools.chain_folder import BEFORE, TASKS, write_chain, write_rows
from tests.tools.report_page import Page, browse, browser, measured
from tools.report import read_chain, write_report
from tools.report_figures import embedded
from tools.report_words import METRICS, amount, bytes_text, count_text, seconds_text, spread

NASTY = '<script>alert("x")</script> & $x^2$'
needs_browser = pytest.mark.skipif(browser() is None, reason="needs Chromium or Chrome")


def report(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text()


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    return write_chain(tmp_path_factory.mktemp("chain") / "samcl")


@pytest.fixture(scope="module")
def written(chain) -> Path:
    return write_report([chain], chain.parent / "one.html")


@pytest.fixture(scope="module")
def html(written) -> str:
    return written.read_text()


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def strategies(tmp_path_factory) -> Path:
    """Three seeds of two strategies, one of the two bounds; one seed is not finished."""
    folder = tmp_path_factory.mktemp("compare")
    for strategy in ("er", "sequential"):
        for seed in range(3):
            finished = 2 if (strategy, seed) == ("er", 2) else None
            write_chain(folder / strategy / f"seed{seed}", strategy=strategy, seed=seed, finished=finished)
    for strategy in ("joint", "single"):
        write_chain(folder / strategy / "seed0", strategy=strategy)
    return folder


@pytest.fixture(scope="module")
def compared(strategies) -> Path:
    return write_report([strategies], strategies / "report.html")


@pytest.fixture(scope="module")
def comparison(compared) -> Page:
    return Page(compared.read_text())


# ---- one chain


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_score_is_in_its_cell(chain, page, metric):
    written = [row for row in rows_of(chain / "R.csv") if row["metric"] == metric.key]
    written = [row for row in written if any(row[task] != "nan" for task in TASKS)]
    _, *rows = page.heat(metric.heading)
    assert len(rows) == len(written) >= 4
    for row, cells in zip(written, rows, strict=True):
        shown = [re.sub(r" \(.*\)", "", text) for _, text in cells[1:]]
        assert shown == [amount(float(row[task]), metric.digits) for task in TASKS]


def test_score_that_was_not_measured_is_a_dash(page):
    assert [row[4][1].split()[0] for row in page.heat("TRE (mm)")[1:]] == ["\N{EN DASH}"] * 5


def test_learnt_and_unlearnt_tasks_are_marked(page):
    rows = page.heat("Dice")[2:]
    marks = [["now" if "now" in kind else "later" if "later" in kind else "" for kind, _ in row[1:]] for row in rows]
    assert marks == [["" if j < i else "now" if j == i else "later" for j in range(4)] for i in range(4)]
    assert "(just learnt)" in rows[0][1][1]
    assert "(not learnt)" in rows[0][2][1]


def test_colour_says_whether_a_score_is_better_than_before(tmp_path):
    found = Page(report(write_chain(tmp_path / "chain", strategy="sequential")))
    for metric in (METRICS["dice"], METRICS["tre_mm"]):
        before, *rows = [row[1:4] for row in found.heat(metric.heading)[1:]]
        seen = set()
        for row in rows:
            for (_, start), (kind, text) in zip(before, row, strict=True):
                gain = float(text.split()[0]) - float(start)
                if abs(gain) > 0.01:
                    better = (gain > 0) == metric.larger_is_better
                    assert ("good" in kind, "bad" in kind) == (better, not better)
                    seen.add(better)
        assert seen == {True, False}


def test_summary_is_in_words_and_numbers(chain, page):
    summary = json.loads((chain / "summary.json").read_text())
    dice, tre = (summary["metrics"][m] for m in ("dice", "tre_mm"))
    start = np.mean([float(rows_of(chain / "R.csv")[0][task]) for task in TASKS])
    lost = f"{-dice['backward_transfer']:.3f}"
    assert f"Dice rose from {start:.3f} before registration to {dice['final_average']:.3f}" in page.text
    assert f"earlier tasks lost {lost} on average" in page.text
    assert f"Kept \N{MINUS SIGN}{lost} " in page.text
    assert f"Landmark error (TRE) {tre['final_average']:.2f} mm" in page.text
    assert "Training time 6 min 26 s 9 600 passes" in page.text
    assert "Replay memory 25.2 MB" in page.text
    assert "All data is synthetic" in page.text


def test_gain_of_learning_is_the_mean_of_the_diagonal_over_the_start(chain, page):
    dice = np.array([[float(row[t]) for t in TASKS] for row in rows_of(chain / "R.csv") if row["metric"] == "dice"])
    assert f"Learnt +{(np.diag(dice[1:]) - dice[0]).mean():.3f} " in page.text


def test_every_metric_has_its_measures(chain, page):
    summary = json.loads((chain / "summary.json").read_text())["metrics"]
    head, *rows = page.table("")
    names = ["final_average", "backward_transfer", "forgetting", "forward_transfer"]
    assert [text for _, text in head] == ["", BEFORE, "final average", "BWT", "forgetting", "FWT"]
    for metric, row in zip(METRICS.values(), rows, strict=True):
        expected = [summary[metric.key][name] for name in names]
        signed = [False, True, False, True]
        shown = [amount(math.nan if v is None else v, metric.digits, s) for v, s in zip(expected, signed, strict=True)]
        assert [text for _, text in row[2:]] == shown


def test_spoilt_images_stand_beside_the_others(page):
    rows = next(rows for _, heading, rows in page.tables if heading == "Spoilt images")
    assert [[text for _, text in row] for row in rows[2:]] == [
        ["noise", "0.610", "10.20"],
        ["bias_field", "0.640", "\N{EN DASH}"],
    ]


def test_settings_versions_and_command(page):
    for text in ("iterations 300", "torch 2.13.0", "166e428", "--plan samcl_embedded --strategy samcl --seed 0"):
        assert text in page.text, text


def test_cost_of_every_stage(page):
    rows = page.table("stage")
    assert [text for _, text in rows[1]] == [
        "01_synth_brain_mr",
        "1 min 35 s",
        count_text(2400),
        "6.3 MB",
        "1.25 GB",
        "0.031",
    ]
    assert len(rows) == 5


def test_every_case_is_a_dot_of_its_violin(html):
    figure = re.search(r'<svg[^>]*aria-label="Dice of single cases, brain MR".*?</svg>', html, re.DOTALL)
    assert figure
    # Cases before, after learning and at the end; markers of one look share a style.
    dots = [group.count("<use") for group in re.findall(r"<g style=.*?</g>", figure[0], re.DOTALL)]
    assert dots == [8, 8, 8]


def test_curves_have_every_part_of_the_loss_and_the_ends_of_the_stages(html):
    figures = re.findall(r'<svg[^>]*aria-label="([^"]*) over iterations"(.*?)</svg>', html, re.DOTALL)
    names = ["loss", "similarity", "overlap", "landmarks", "bending", "membrane", "replay loss"]
    assert [name for name, _ in figures] == names
    assert [content.count("stroke-dasharray: 1.6") for _, content in figures] == [3] * 7


# ---- the file


def test_page_needs_nothing_else(html):
    links = [(k, v) for _, attributes in Page(html).tags for k, v in attributes.items() if k in {"src", "href"}]
    assert links
    assert not [v for _, v in links if not v.startswith(("data:image/", "#"))]
    assert not re.findall(r"https?:|@import|url\((?!#)", html)
    assert "default-src 'none'" in next(a["content"] for _, a in Page(html).tags if "http-equiv" in a)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in Page(html).tags}


@pytest.mark.parametrize("kind", ["one", "several"])
def test_page_is_well_formed(kind, page, comparison):
    found = page if kind == "one" else comparison
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    used = [v[1:] for _, attributes in found.tags for v in attributes.values() if v.startswith("#")]
    used += [attributes["for"] for _, attributes in found.tags if "for" in attributes]
    used += re.findall(r"url\(#(.*?)\)", " ".join(v for _, a in found.tags for v in a.values()))
    assert found.wrong == []
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)
    assert not [a for tag, a in found.tags if tag == "img" and not a.get("alt")]


def test_same_folder_gives_the_same_page(chain, html):
    assert report(chain) == html


def test_names_are_text_not_markup(tmp_path):
    folder = write_chain(
        tmp_path / "chain",
        name=NASTY,
        tasks=["a<b>&$c$", "plain"],
        strategy=NASTY,
        command=NASTY,
        options={NASTY: NASTY},
        versions={"commit": NASTY},
    )
    curve = folder / "01_a<b>&$c$" / "run" / "metrics.csv"
    write_rows(curve, [{**row, NASTY: 1.0} for row in rows_of(curve)])
    found = Page(report(folder))
    assert found.wrong == []
    assert "script" not in {tag for tag, _ in found.tags}
    assert "b" not in {a.get("class") for _, a in found.tags}
    # Title, heading, lead, strategy, plan, option, command, commit, curve: all as they were written.
    assert found.text.count(NASTY) >= 8
    assert found.text.count("a<b>&$c$") >= 5
    assert "synthetic" not in found.text


def test_pictures_are_embedded_once_for_every_task_and_stage(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 16
    for picture in pictures:
        content = base64.b64decode(picture["src"].removeprefix("data:image/webp;base64,"))
        with Image.open(io.BytesIO(content)) as image:
            assert image.size == (84, 40) == (int(picture["width"]), int(picture["height"]))


def test_many_pictures_are_made_smaller(tmp_path):
    tasks = [f"task{i}" for i in range(6)]
    Image.new("RGB", (1400, 70), "teal").save(tmp_path / "large.png")
    folder = write_chain(tmp_path / "chain", tasks=tasks, pictures=dict.fromkeys(tasks, tmp_path / "large.png"))
    widths = {a["width"] for tag, a in Page(report(folder)).tags if tag == "img"}
    assert widths == {str(round(1320 * (24 / 36) ** 0.5))}


def test_picture_is_never_enlarged(tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "a.png")
    assert 'width="300" height="100"' in embedded(tmp_path / "a.png", "a")
    assert 'width="150" height="50"' in embedded(tmp_path / "a.png", "a", width=150)


# ---- chains that are not whole, or of another kind


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


# ---- several chains


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


def test_folder_given_twice_counts_once(tmp_path):
    folder = write_chain(tmp_path / "chain", tasks=TASKS[:1])
    assert "side by side" not in Page(report(folder, folder / ".." / "chain")).text


def test_only_the_last_stage_of_the_first_seed_is_pictured(comparison):
    assert sum(tag == "img" for tag, _ in comparison.tags) == 4 * 4


# ---- bad input


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


# ---- words


def test_metrics_are_those_of_the_scores():
    assert {key: metric.larger_is_better for key, metric in METRICS.items()} == {k: v for k, (_, v) in SCORED.items()}


@pytest.mark.parametrize(
    ("value", "digits", "sign", "text"),
    [
        (0.69049, 3, False, "0.690"),
        (0.0, 2, False, "0.00"),
        (0.001, 2, False, "<0.01"),
        (0.001, 2, True, "0.00"),
        (-0.5, 1, False, "\N{MINUS SIGN}0.5"),
        (0.5, 1, True, "+0.5"),
        (math.nan, 3, False, "\N{EN DASH}"),
        (math.inf, 3, True, "\N{EN DASH}"),
    ],
)
def test_amount(value, digits, sign, text):
    assert amount(value, digits, sign) == text


def test_spread():
    assert spread([1.0, 3.0, math.nan], 2) == ("2.00", f"{math.sqrt(2):.2f}")
    assert spread([1.0], 1) == ("1.0", "")
    assert spread([1.0, 1.0], 1) == ("1.0", "")
    assert spread([math.nan], 1) == ("\N{EN DASH}", "")


def test_times_sizes_and_counts():
    assert [seconds_text(v) for v in (3.14159, 59.7, 380, 7260)] == ["3.14 s", "59.7 s", "6 min 20 s", "2 h 1 min"]
    assert [bytes_text(v) for v in (0, 999, 6.3e6, 1.25e9)] == ["0 B", "999 B", "6.3 MB", "1.25 GB"]
    assert count_text(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"


def test_read_chain_keeps_the_numbers(chain):
    found = read_chain(chain)
    first = next(row for row in rows_of(chain / "R.csv") if row["after"].startswith("02"))
    assert found.score("dice", "02_synth_abdomen_ct", TASKS[0]) == float(first[TASKS[0]])
    assert math.isnan(found.score("dice", "02_synth_abdomen_ct", "elsewhere"))
    assert len(found.case_scores("dice", BEFORE, TASKS[1])) == 8


# ---- a real browser


@needs_browser
def test_console_messages_are_seen(tmp_path):
    """Without this, a page without errors would prove nothing."""
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><body><script>undefined_name()</script></body>")
    _, console = browse(tmp_path / "bad.html", 800, 600, "--dump-dom")
    assert "undefined_name" in "".join(console)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["written", "compared"])
def test_page_in_a_browser(request, tmp_path, which, scheme, width):
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    picture = tmp_path / "page.png"
    _, console = browse(request.getfixturevalue(which), width, 2400, f"--screenshot={picture}", *dark)
    assert console == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2400, width, 3)
    # The corner is the page's own colour; enough of the page is something else, in many colours.
    assert (pixels[0, 0].mean() > 200) == (scheme == "light")
    assert (pixels != pixels[0, 0]).any(-1).mean() > 0.2
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("which", ["written", "compared"])
def test_nothing_sticks_out_sideways(request, which, width):
    path = request.getfixturevalue(which)
    assert measured(path, width, "[innerWidth, document.documentElement.scrollWidth]") == f"{width},{width}"


@needs_browser
@pytest.mark.slow
def test_tabs_change_the_panel_without_a_script_of_the_page(written):
    shown = "[...document.querySelectorAll('#cases .panel')].map(p => p.offsetHeight > 0 ? 1 : 0)"
    click = "document.querySelectorAll('#cases .tabs > label')[2].click()"
    assert measured(written, 1280, shown) == "1,0,0,0,0,0"
    assert measured(written, 1280, shown, click) == "0,0,1,0,0,0"
