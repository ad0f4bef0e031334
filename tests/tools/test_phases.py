"""Which runs of a bundle a stage takes, and what each is told; nothing is run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.errors import InputError
from tests.decathlon_folder import write_site
from tools.chain import Chain
from tools.phases import Phases
from tools.plan import load_plan
from tools.stages import stages_of

SITES = ["site_prostate_1", "site_prostate_2", "site_prostate_3"]


def plan_of(**changes):
    return load_plan("smdr_embedded", **{"tasks": SITES[:2], "unseen": SITES[2:], **changes})


def phases_of(folder: Path, number: int, **changes):
    plan = plan_of(**changes)
    stages = stages_of(plan, folder, "continued")
    return {phase.name: phase for phase in Phases(plan, folder, stages, 5, False, ())(number)}


def names_of(phase) -> list[str]:
    return [Path(file).stem for file in phase.files]


def test_a_strategy_without_replay_sets_trains_and_is_scored(tmp_path):
    for strategy in ("sequential", "real_replay"):
        phases = phases_of(tmp_path, 1, strategy=strategy)
        assert list(phases) == ["training", "evaluation"]
        assert "replay_sets" not in phases["training"].options


def test_with_replay_sets_a_generator_learns_and_draws(tmp_path):
    phases = phases_of(tmp_path, 1)
    assert list(phases) == ["training", "evaluation", "diffusion", "replay"]
    first, second = tmp_path / "01_site_prostate_1", tmp_path / "02_site_prostate_2"
    options = phases["training"].options
    assert options["replay_sets"] == [str(first / "replay")]
    assert options["init_from"] == str(first / "run")
    options = phases["diffusion"].options
    assert options["generator_from"] == str(first / "generator")
    assert options["run_dir"] == str(second / "generator")
    options = phases["replay"].options
    assert options["generator"] == str(second / "generator")
    assert options["model"] == str(second / "run" / "model.pt")
    assert options["private_dirs"] == [str(second / name) for name in ("run", "generator", "replay")]
    assert all(p.options["task"] == SITES[1] for p in phases.values() if p.name != "evaluation")
    assert all(p.options["seed"] == 5 for p in phases.values() if p.name != "evaluation")
    assert names_of(phases["replay"]) == ["train", "smdr", "generate"]


def test_the_first_site_has_no_past(tmp_path):
    phases = phases_of(tmp_path, 0)
    assert phases["training"].options["replay_sets"] == []
    assert "init_from" not in phases["training"].options
    assert "generator_from" not in phases["diffusion"].options


def test_the_generator_sees_what_the_segmenter_sees(tmp_path):
    phases = phases_of(tmp_path, 0, configs=["smoke"], spacing_mm=[2.0, 2.0])
    smoke = json.loads(Path(phases["training"].files[1]).read_text())
    for name in ("diffusion", "replay"):
        assert phases[name].options["spatial_size"] == smoke["spatial_size"]
        assert phases[name].options["spacing_mm"] == [2.0, 2.0]
        assert phases[name].options["slices"] == 3
    assert names_of(phases["diffusion"]) == ["train_diffusion", "smoke_diffusion"]


def test_options_of_phases_reach_their_phase_alone(tmp_path):
    phases = phases_of(tmp_path, 0, iterations=7, phases={"diffusion": {"iterations": 9}, "replay": {"count": 3}})
    assert phases["training"].options["iterations"] == 7
    assert phases["diffusion"].options["iterations"] == 9
    assert phases["replay"].options["count"] == 3
    assert "count" not in phases["diffusion"].options


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({"difusion": {}}, r"'difusion' \(did you mean 'diffusion'\?\)"),
        ({"diffusion": {"iteration": 1}}, r"phase diffusion: found option 'iteration' \(did you mean 'iterations'\?\)"),
        ({"replay": {"cuont": 1}}, r"phase replay: found option 'cuont' \(did you mean 'count'\?\)"),
        ({"replay": {"generator": "x"}}, "found option 'generator'"),
        ([], "expected an object"),
    ],
)
def test_unknown_phases_and_options_are_refused(phases, message):
    with pytest.raises(InputError, match=message):
        plan_of(phases=phases)


def test_a_variant_may_change_the_options_of_phases():
    variants = {"few": {"phases": {"replay": {"count": 5}}}}
    plan = plan_of(variants=variants, phases={"replay": {"steps": 10}}).variant("few")
    assert plan.phases == {"replay": {"steps": 10, "count": 5}}
    with pytest.raises(InputError, match="variant few, phase replay: found option 'cuont'"):
        plan_of(variants={"few": {"phases": {"replay": {"cuont": 5}}}})


def test_sites_of_the_users_own_are_found_and_near_misses_named(tmp_path):
    write_site(tmp_path / "ours")
    assert plan_of(tasks=["ours"], unseen=[], dataset_dir=str(tmp_path)).segments
    with pytest.raises(InputError, match=r"no task 'ous' \(did you mean 'ours'\?\)"):
        plan_of(tasks=["ous"], unseen=[], dataset_dir=str(tmp_path))
    with pytest.raises(InputError, match="synth_brain_mr"):
        plan_of(tasks=["synth_brain_mr"], unseen=[], dataset_dir=str(tmp_path))
    with pytest.raises(InputError, match="site_prostate_1"):
        load_plan(tasks=["site_prostate_1"], dataset_dir=str(tmp_path))


def test_another_option_of_a_phase_is_another_chain(tmp_path):
    Chain(plan_of(), tmp_path)._check_settings()
    with pytest.raises(InputError, match=r"phases.*count.*asked for 3"):
        Chain(plan_of(phases={"replay": {"count": 3}}), tmp_path)._check_settings()


def test_a_chain_begun_before_there_were_phases_goes_on(tmp_path):
    chain = Chain(plan_of(strategy="sequential"), tmp_path)
    chain._check_settings()
    record = json.loads((tmp_path / "chain.json").read_text())
    record.pop("phases")
    (tmp_path / "chain.json").write_text(json.dumps(record))
    chain._check_settings()


def test_progress_is_read_from_what_the_runs_write(tmp_path):
    phases = phases_of(tmp_path, 0, phases={"diffusion": {"iterations": 8}})
    assert all(phase.progress()[0] == 0 for phase in phases.values())
    generator = tmp_path / "01_site_prostate_1" / "generator"
    generator.mkdir(parents=True)
    (generator / "settings.json").write_text('{"iterations": 8}')
    (generator / "metrics.csv").write_text("iteration,loss\n4,0.1\n6,0.1\n")
    assert phases["diffusion"].progress() == (0.75, "generator, iteration 6/8")
    replay = tmp_path / "01_site_prostate_1" / "replay"
    replay.mkdir()
    (replay / "index.json").write_text('{"samples": [{}, {}], "settings": {"count": 8}}')
    assert phases["replay"].progress() == (0.25, "replay set, image 2/8")
    assert not phases["replay"].is_done
    (replay.parent / "privacy.json").write_text("{}")
    assert phases["replay"].is_done


def test_the_generator_of_a_memory_shows_its_progress(tmp_path):
    phase = phases_of(tmp_path, 0)["training"]
    run = tmp_path / "01_site_prostate_1" / "run"
    generator = run / "memory" / "rank0" / "generator"
    generator.mkdir(parents=True)
    (run / "metrics.csv").write_text("iteration,loss\n1,0.1\n")
    assert phase.progress()[1].startswith("iteration 1/")
    (generator / "settings.json").write_text('{"iterations": 8}')
    (generator / "metrics.csv").write_text("iteration,loss\n6,0.1\n")
    assert phase.progress()[1] == "generator, iteration 6/8"
