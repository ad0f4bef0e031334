from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.chain_folder import BEFORE, TASKS, rows_of, write_chain, write_rows
from tests.tools.report_page import Page
from tools.report import read_chain, write_report
from tools.report_figures import embedded
from tools.report_words import METRICS, amount, count_text

NASTY = '<script>alert("x")</script> & $x^2$'


def report(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "report.html").read_text()


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


def test_dollars_in_a_figure_are_no_formula(tmp_path):
    folders = [write_chain(tmp_path / str(i), strategy=s, tasks=["a"]) for i, s in enumerate(("$x^2$", "b"))]
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", report(*folders))
    assert {"$x^2$", "b"} <= set(labels)


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


def test_read_chain_keeps_the_numbers(chain):
    found = read_chain(chain)
    first = next(row for row in rows_of(chain / "R.csv") if row["after"].startswith("02"))
    assert found.score("dice", "02_synth_abdomen_ct", TASKS[0]) == float(first[TASKS[0]])
    assert math.isnan(found.score("dice", "02_synth_abdomen_ct", "elsewhere"))
    assert len(found.case_scores("dice", BEFORE, TASKS[1])) == 8
