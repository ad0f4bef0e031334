"""The overlay of each strategy: what it holds, and what it builds."""

from __future__ import annotations

import inspect
import json

import pytest
from ignite.engine import Events

from tests.bundles import runs
from tests.bundles.smdr.tiny_segmenter import BRIGHT, DARK, make_trainer, write_set

CONFIGS = runs.ROOT / "bundles" / "smdr" / "configs"
OVERLAYS = sorted((CONFIGS / "strategies").glob("*.json"))
ABLATIONS = {
    "smdr_no_orientational": {"orientational": 0.0},
    "smdr_no_arbitrary": {"arbitrary": 0.0},
    "smdr_first_order": {"second_order": False},
}
IDS = {"sequential", "joint", "single", "ewc", "lwf", "real_replay", "replay", "aligned_real", "smdr", *ABLATIONS}
# What train.json calls the options of the classes: people turn them there.
SHARED_IDS = {"step": "inner_step", "orientational": "", "arbitrary": "", "second_order": ""}


def parser(name: str, **overrides: object):
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config([CONFIGS / "train.json", CONFIGS / "smoke.json", CONFIGS / "strategies" / f"{name}.json"])
    config.update(overrides)
    return config


def test_every_strategy_has_an_overlay():
    assert {p.stem for p in OVERLAYS} == IDS


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.stem)
def test_overlay_names_its_source_and_every_option(path, scripts):
    content = json.loads(path.read_text())
    own = {"joint": {"stages", "tasks", "train#dataset#_target_", "train#dataset#data"}, "single": {"stages"}}
    replays = {"past"} if "past" in content["strategy"] else set()
    expected = {"_desc_", "strategy", "passes_per_sample"} | own.get(path.stem, set()) | replays
    assert set(content) == expected | set(ABLATIONS.get(path.stem, {}))
    assert {k: content[k] for k in ABLATIONS.get(path.stem, {})} == ABLATIONS.get(path.stem, {})
    assert 20 < len(content["_desc_"]) <= 160
    target = getattr(scripts, content["strategy"]["_target_"].removeprefix("scripts."))
    options = inspect.signature(target).parameters if "__init__" in vars(target) else {}
    expected = {n: f"@{SHARED_IDS[n] or n}" if n in SHARED_IDS else p.default for n, p in options.items()}
    if replays:
        # Tools read ``past``: whether replay sets must be made before a site.
        expected["past"] = {"slices": "@memory", "replay_sets": "@replay"}[content["past"]]
    assert content["strategy"] == {"_target_": content["strategy"]["_target_"], **expected}


@pytest.mark.parametrize("name", ["smdr", "real_replay"])
def test_the_defaults_of_train_json_are_those_of_the_classes(name, scripts):
    content = json.loads((CONFIGS / "train.json").read_text())
    for option, parameter in inspect.signature(scripts.SMDR).parameters.items():
        if option in SHARED_IDS:
            assert content[SHARED_IDS[option] or option] == parameter.default
    assert content["buffer_size"] == inspect.signature(scripts.ExemplarMemory).parameters["capacity"].default


@pytest.mark.parametrize("name", sorted(IDS))
def test_overlay_builds_a_strategy_that_makes_the_passes_it_says(name, scripts, tmp_path):
    """At the second site; a batch counts with its replayed half."""
    counts = []
    sets = [str(write_set(tmp_path / "set", "site0"))]
    for number in (0, 1):
        config = parser(name, replay_sets=sets if number else [])
        strategy = config.get_parsed_content("strategy")
        trainer = make_trainer(
            tmp_path / str(number),
            strategy,
            dataset=(BRIGHT, DARK)[number],
            task=f"site{number}",
            init_from=tmp_path / "0" if number else None,
            batch_size=4,
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: counts.append(engine.passes))
        trainer.run()
    assert counts[-1] - counts[-2] == 4 * parser(name)["passes_per_sample"]


def test_joint_pools_the_sites(scripts, tmp_path):
    from tests.decathlon_folder import write_site

    for site, count in (("one", 5), ("two", 8)):
        write_site(tmp_path / site, count)
    tasks = [[str(tmp_path), "one"], [str(tmp_path), "two"]]
    dataset = parser("joint", tasks=tasks, margin=None).get_parsed_content("train#dataset")
    assert [dataset[i]["site"] for i in range(4)] == ["one", "two"] * 2
    assert [len(d.items) for d in dataset.datasets] == [3, 5]
    assert dataset[0]["image"].shape == (3, 32, 32)
