"""Flags of chain, compare, report and package: what they are taken for, and what is refused before anything is done."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

import tools.__main__ as command_line
from tests.tools.chain_folder import write_chain
from tools.chain import Chain


def call(monkeypatch, capsys, *arguments: str) -> str:
    """Run a command that fails; return what it says."""
    monkeypatch.setattr(sys, "argv", ["tools", *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 1
    return capsys.readouterr().err.strip().removeprefix("error: ")


class StartedError(Exception):
    """A chain would run now."""


@pytest.fixture
def started(monkeypatch):
    """Return a call of ``chain`` that ends with the chain instead of running it."""
    found = []

    def run(self):
        found.append(self)
        raise StartedError

    monkeypatch.setattr(Chain, "run", run)

    def start(*arguments: str) -> Chain:
        monkeypatch.setattr(sys, "argv", ["tools", "chain", *arguments])
        with pytest.raises(StartedError):
            command_line.main()
        return found[-1]

    return start


@pytest.mark.parametrize("name", ["x#1", "5", "1e3", "a,b", "True", "it's"])
def test_names_of_files_stay_what_they_are(started, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert started("--out", name).folder == tmp_path / name
    assert started(f"--out={name}", "--tasks", "[synth_brain_mr]", "--iterations", "5").plan.options == {
        "iterations": 5
    }
    (tmp_path / name).write_text('{"bundle": "samcl", "tasks": ["synth_lung_ct"]}')
    chain = started(name, "--dataset_dir", name, "--seed", "3", "--strategy#rho", "0.5")
    assert (chain.seed, chain.plan.options) == (3, {"strategy#rho": 0.5})
    assert [(t.task, t.dataset_dir) for t in chain.plan.tasks] == [("synth_lung_ct", name)]
    assert started("--plan", name).plan.tasks[0].task == "synth_lung_ct"


def test_a_report_of_a_folder_with_a_number_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_chain(Path("5"), cases=2)
    monkeypatch.setattr(sys, "argv", ["tools", "report", "5", "--out", "x#1"])
    command_line.main()
    assert "samcl" in Path("x#1").read_text()


def test_an_unknown_flag_is_told_before_a_report_is_overwritten(tmp_path, monkeypatch, capsys):
    folder = write_chain(tmp_path / "chain", cases=2)
    (folder / "report.html").write_text("kept")
    said = call(monkeypatch, capsys, "report", str(folder), "--output", "q.html")
    assert said.startswith("found the option --output (did you mean 'out'?)")
    assert (folder / "report.html").read_text() == "kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chain", "--seeds", "3"), "found --seeds, an option of compare alone; chain takes --plan, --out, --seed"),
        (("compare", "--threads", "2"), "found --threads, an option of chain alone; compare takes --plan"),
        (("chain", "--seed", "abc"), "found --seed 'abc', expected a whole number from 0 on"),
        (("chain", "--seed", "1.5"), "found --seed 1.5, expected a whole number"),
        (("chain", "--threads", "-2"), "found --threads -2, expected a whole number from 1 on"),
        (("compare", "--jobs", "0"), "found --jobs 0, expected a whole number from 1 on"),
        (("compare", "--seeds", "[1,1]"), "found seeds [1, 1], expected different whole numbers"),
        (("compare", "--strategies", "[]"), "found no strategies to compare"),
        (("compare", "--strategies", "5"), "found strategy '5'"),
        (("package", "samlc", "--push", "github", "--repo", "a/b"), "found bundle 'samlc' (did you mean 'samcl'?)"),
        (("package", "samcl", "--vresion", "1"), "found the option --vresion (did you mean 'version'?)"),
        (("package", "all", "--push", "hf", "--repo", "a/b"), "found --push hf for all bundles, expected one of them"),
    ],
)
def test_bad_flags_end_with_a_message(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in call(monkeypatch, capsys, *arguments)
    assert not list(tmp_path.iterdir())


def parts_of(command) -> list[str]:
    """Return the texts of a command's docstring: what it does, then each argument."""
    head, _, arguments = inspect.getdoc(command).partition("\n\nArgs:\n")
    parts = head.split("\n\n")
    names = "|".join(inspect.signature(command).parameters)
    found = re.split(rf"^    (?:{names}): ", arguments, flags=re.MULTILINE)
    assert len(found) == 1 + len(inspect.signature(command).parameters)
    return [" ".join(part.split()) for part in parts + found if part]


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_help_tells_every_word_of_a_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tools", name, "--help"])
    monkeypatch.setenv("PAGER", "cat")
    with pytest.raises(SystemExit):
        command_line.main()
    output = capsys.readouterr()
    told = " ".join((output.out + output.err).split())
    missing = [part for part in parts_of(command_line.COMMANDS[name]) if part not in told]
    assert not missing
