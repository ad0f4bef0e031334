"""What a chain that goes on takes over from before; the runs of the bundle are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.files import read_json, save_json, writable_dir, write_csv
from tools.chain import Chain
from tools.plan import load_plan

TASK = "synth_brain_mr"
STAGE = f"01_{TASK}"


class Runs:
    """Stands in for ``run_bundle``: writes what a run leaves, and notes which were made."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.dice = 0.5
        self.peak = 7.0

    def __call__(self, run_id: str, files: object, options: dict, *_: object) -> dict[str, float]:
        self.made.append(run_id)
        if run_id == "training":
            run = writable_dir(options["run_dir"])
            save_json(run / "done.json", {"passes": 8, "seconds": 1.0, "memory_bytes": 0, "peak_gpu_bytes": None})
            save_json(run / "validation_summary.json", {})
        else:
            for _, task in options["tasks"]:
                write_scores(Path(options["output_dir"]) / task, self.dice)
        return {"seconds": 1.0, "peak_memory_bytes": self.peak}


def write_scores(folder: Path, dice: float) -> None:
    writable_dir(folder)
    save_json(folder / "evaluation_summary.json", {})
    write_csv(folder / "evaluation_cases.csv", [{"task": TASK, "dice": dice, "dice_before": 0.3}])


@pytest.fixture
def runs(monkeypatch) -> Runs:
    found = Runs()
    monkeypatch.setattr("tools.chain.run_bundle", found)
    return found


def chain_of(folder: Path) -> Chain:
    return Chain(load_plan(tasks=[TASK], configs=["smoke"], iterations=2), folder)


def test_scores_of_earlier_weights_do_not_pass_for_those_of_new_ones(runs, tmp_path):
    write_scores(tmp_path / STAGE / "evaluation" / TASK, 0.99)
    assert chain_of(tmp_path).run()["metrics"]["dice"]["final_average"] == 0.5
    assert runs.made == ["training", "evaluating"]


def test_scores_are_looked_at_again_until_the_stage_is_finished(runs, tmp_path):
    chain_of(tmp_path).run()
    (tmp_path / STAGE / "stage.json").unlink()
    runs.dice = 0.7
    assert chain_of(tmp_path).run()["metrics"]["dice"]["final_average"] == 0.7
    assert runs.made == ["training", "evaluating", "evaluating"]
    chain_of(tmp_path).run()
    assert len(runs.made) == 3


def test_what_stands_on_a_new_training_is_made_again(monkeypatch, tmp_path):
    """The generator's run and its replay set are there, but not the segmenter's."""
    chain = Chain(load_plan("smdr_embedded", tasks=["site_prostate_1"]), tmp_path)
    place = tmp_path / "01_site_prostate_1"
    for folder in ("run", "generator"):
        save_json(writable_dir(place / folder) / "done.json", {})
    save_json(place / "privacy.json", {})
    ran: list[str] = []

    def run_phase(phase, *_):
        ran.append(phase.name)
        return 1.0

    monkeypatch.setattr(chain, "_run_phase", run_phase)
    monkeypatch.setattr(chain, "_record", lambda *_: {})
    monkeypatch.setattr(chain, "collect", lambda: {})
    chain._run_stage(0, chain.stages[0])
    assert ran == ["training", "evaluation", "diffusion", "replay"]
    save_json(place / "run" / "validation_summary.json", {})
    ran.clear()
    chain._run_stage(0, chain.stages[0])
    assert ran == ["evaluation"]


def test_a_stage_notes_every_version_that_it_ran_with_and_the_largest_peak(runs, tmp_path, monkeypatch):
    """Killed in its evaluation and after it; each time the same command goes on with other code and another memory."""
    real = runs.__call__

    def killed(run_id, *arguments):
        if run_id == "evaluating":
            raise KeyboardInterrupt
        return real(run_id, *arguments)

    monkeypatch.setattr("tools.chain._versions", lambda: {"commit": "aaa", "torch": "2"})
    monkeypatch.setattr("tools.chain.run_bundle", killed)
    with pytest.raises(KeyboardInterrupt):
        chain_of(tmp_path).run()
    runs.peak = 9.0
    monkeypatch.setattr("tools.chain.run_bundle", runs)
    monkeypatch.setattr("tools.chain._versions", lambda: {"commit": "bbb", "torch": "2"})
    assert chain_of(tmp_path).run()["peak_memory_bytes"] == 9.0
    (tmp_path / STAGE / "stage.json").unlink()
    runs.peak = 3.0
    monkeypatch.setattr("tools.chain._versions", lambda: {"commit": "ccc", "torch": "2"})
    assert chain_of(tmp_path).run()["peak_memory_bytes"] == 9.0
    found = read_json(tmp_path / STAGE / "stage.json")["versions"]
    # The evaluation that was killed counts: what it left may be in the scores.
    assert [version["commit"] for version in found] == ["aaa", "bbb", "ccc"]
    assert read_json(tmp_path / "chain.json")["versions"]["commit"] == "aaa"
