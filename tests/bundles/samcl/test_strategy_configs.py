"""The overlay of each strategy: what it holds, what it builds, and joint training as people run it."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ignite.engine import Events

from shared.errors import InputError
from tests.bundles.samcl.tiny import make_trainer
from tests.learn2reg_folder import write_folder
from tests.tiny import TinyPairs

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "bundles" / "samcl" / "configs"
OVERLAYS = sorted((CONFIGS / "strategies").glob("*.json"))
IDS = {
    "sequential",
    "joint",
    "single",
    "er",
    "mer",
    "sam",
    "ewc",
    "si",
    "lwf",
    "gpm",
    "agem",
    "samcl",
    "samcl_two_level",
}


# What the others take as plain training does.
RATES: dict[str, tuple[str, ...]] = {"samcl": (), "samcl_two_level": (), "mer": ("weight_decay",)}


@pytest.fixture
def scripts(monkeypatch):
    """Let configs find ``scripts``, and forget it afterwards: another bundle has modules of the same name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "bundles" / "samcl"))
    import scripts

    yield scripts
    for name in {n for n in sys.modules if n.split(".")[0] == "scripts"} - before:
        del sys.modules[name]


def parser(name: str, *more: str, before: str = "smoke", **overrides: object):
    """Return the configs of a strategy, with an overlay before it and some after it."""
    from monai.bundle import ConfigParser

    config = ConfigParser()
    config.read_config([CONFIGS / f"{n}.json" for n in ("train", before, f"strategies/{name}", *more)])
    config.update(overrides)
    return config


def test_every_strategy_has_an_overlay():
    assert {p.stem for p in OVERLAYS} == IDS


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.stem)
def test_overlay_names_its_source_and_every_option(path, scripts):
    content = json.loads(path.read_text())
    data = {"host#task", "train#dataset#_target_", "train#dataset#data", "validate#dataset#data"}
    own = {"joint": {"stages", "tasks", *data}, "single": {"stages"}}
    rates = {key: content.pop(key) for key in ("learning_rate", "weight_decay") if key in content}
    assert rates == {key: f"@plain_{key}" for key in RATES.get(path.stem, ("learning_rate", "weight_decay"))}
    assert set(content) == {"_desc_", "strategy", "passes_per_sample"} | own.get(path.stem, set())
    assert 20 < len(content["_desc_"]) <= 160
    target = getattr(scripts, content["strategy"]["_target_"].removeprefix("scripts."))
    options = inspect.signature(target).parameters if "__init__" in vars(target) else {}
    # An overlay shows the defaults of the class, or leaves to train.json what people turn there.
    shared_ids = {"memory", "rho", "adaptive", "beta"}
    expected = {n: f"@{n}" if n in shared_ids else p.default for n, p in options.items()}
    assert content["strategy"] == {"_target_": content["strategy"]["_target_"], **expected}


@pytest.mark.parametrize("name", sorted(IDS))
def test_overlay_builds_a_strategy_that_makes_the_passes_it_says(name, scripts, tmp_path):
    """On the second task, with a memory that is full enough: in an iteration, or on average over a period of them."""
    counts = []

    def count(engine):
        counts.append(engine.passes)

    for task in (0, 1):
        strategy = parser(name).get_parsed_content("strategy")
        assert type(strategy) is getattr(scripts, parser(name)["strategy"]["_target_"].removeprefix("scripts."))
        trainer = make_trainer(
            tmp_path / str(task),
            strategy,
            dataset=TinyPairs(seed=task),
            task=str(task),
            init_from=tmp_path / "0" if task else None,
            max_epochs=3,
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, count)
        trainer.run()
    period = getattr(strategy, "every", 1)
    passes = (counts[-1] - counts[-1 - period]) / period
    assert passes == trainer.batch_size * parser(name)["passes_per_sample"]


@pytest.mark.parametrize("before", ["smoke", "paper"])
@pytest.mark.parametrize("name", sorted(IDS))
def test_rates_follow_the_config_before_the_strategy(scripts, name, before):
    """In the order in which plans put them: train, paper, the strategy."""
    config = parser(name, before=before)
    plain = {"smoke": {"lr": 0.001, "weight_decay": 1e-5}, "paper": {"lr": 1e-4, "weight_decay": 0.0}}[before]
    own = {"smoke": {"lr": 0.002, "weight_decay": 1e-5}, "paper": {"lr": 1e-4, "weight_decay": 1e-5}}[before]
    kept = RATES.get(name, ("learning_rate", "weight_decay"))
    expected = {
        "lr": plain["lr"] if "learning_rate" in kept else own["lr"],
        "weight_decay": plain["weight_decay"] if "weight_decay" in kept else own["weight_decay"],
    }
    assert {key: config.get_parsed_content(f"optimizer#{key}") for key in expected} == expected


@pytest.mark.parametrize("name", ["samcl", "joint"])
@pytest.mark.parametrize("before", ["smoke", "paper"])
def test_the_papers_pairs_of_an_image_with_itself_are_pooled_too(scripts, tmp_path, name, before):
    (folder, task), *_ = pooled_folders(tmp_path, (3,))
    config = parser(name, before=before, dataset_dir=folder, task=task)
    assert len(config.get_parsed_content("train#dataset#data")) == (9 if before == "paper" else 6)


@pytest.mark.parametrize("masked", [False, True])
def test_one_option_masks_images_wherever_pairs_are_read(scripts, masked):
    config = parser("samcl", "evaluate_tasks", mask_images=masked)
    places = ("train#dataset", "validate#dataset", "evaluation", "past#options")
    assert [config.get_parsed_content(f"{place}#mask_images") for place in places] == [masked] * 4


def pooled_folders(root: Path, images: tuple[int, ...], validated: bool = False) -> list[list[str]]:
    """Write tasks of so many training images; with ``validated`` the first two are a pair for validation."""
    for number, count in enumerate(images):
        training = [{"image": f"./imagesTr/T{number}_{i:04d}_0000.nii.gz"} for i in range(count)]
        pair = {"fixed": training[0]["image"], "moving": training[1]["image"]}
        more = {"registration_val": [pair]} if validated else {}
        write_folder(root, {"name": f"T{number}", "modality": {"0": "MR"}, "training": training, **more})
    return [[str(root), f"T{number}"] for number in range(len(images))]


def test_joint_pools_the_tasks_with_the_options_of_the_other_configs(scripts, tmp_path):
    tasks = pooled_folders(tmp_path, (2, 3))
    config = parser("joint", tasks=tasks, **{"train#dataset#mask_images": True, "train#dataset#progress": False})
    dataset = config.get_parsed_content("train#dataset")
    assert [len(d) for d in dataset.datasets] == [2, 6]  # ordered pairs
    assert [dataset[i]["task"] for i in range(len(dataset))] == ["T0", "T1"] * 6
    assert all(d.size == (16, 16, 16) and d.mask_images for d in dataset.datasets)
    assert dataset[0]["fixed_image"].shape == (1, 16, 16, 16)


def test_the_pairs_of_an_image_with_itself_may_take_part(scripts, tmp_path):
    tasks = pooled_folders(tmp_path, (2, 3))
    counts = [len(scripts.load_tasks(tasks, "train", with_self)) for with_self in (False, True)]
    assert counts == [2 + 6, 4 + 9]


def test_a_joint_run_is_named_after_its_tasks_and_validated_on_them(scripts, tmp_path):
    tasks = pooled_folders(tmp_path, (4, 5), validated=True)
    config = parser("joint", before="paper", tasks=tasks, bundle_root=str(tmp_path))
    assert config.get_parsed_content("run_dir") == str(tmp_path / "runs" / "joint_T0_T1")
    assert config.get_parsed_content("host").task == "joint_T0_T1"
    pairs = config.get_parsed_content("validate#dataset#data")
    assert [pair["task"] for pair in pairs] == ["T0", "T1"]


@pytest.mark.parametrize("tasks", ["synth_brain_mr", ["synth_brain_mr"], [["data", "a", "b"]]], ids=str)
def test_tasks_of_another_form_are_refused(scripts, tasks):
    with pytest.raises(InputError, match=r"expected a list of \[dataset_dir, task\]"):
        scripts.load_tasks(tasks, "train")


def test_a_task_of_two_folders_is_refused(scripts):
    """Their pairs could not be told apart, and would share the share of one task."""
    with pytest.raises(InputError, match=r"found tasks \['OASIS', 'OASIS'\], expected one name or several different"):
        scripts.load_tasks([["one", "OASIS"], ["two", "OASIS"]], "train")


def test_joint_training_runs(tmp_path):
    names = [f"'bundles/samcl/configs/{n}.json'" for n in ("train", "smoke", "strategies/joint")]
    options = {
        "config_file": f"[{','.join(names)}]",
        "dataset_dir": tmp_path / "data",
        "tasks": f"[['{tmp_path}/data','synth_lung_ct'],['{tmp_path}/data','synth_abdomen_ct']]",
        "run_dir": tmp_path / "run",
    }
    flags = [item for key, value in options.items() for item in (f"--{key}", str(value))]
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "training", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "synth_lung_ct+synth_abdomen_ct, validation pairs (never trained on)" in result.stdout
    assert not (tmp_path / "data" / "synth_brain_mr").exists()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["task"] == "joint_synth_lung_ct_synth_abdomen_ct"
    assert settings["strategy"]["name"] == "Sequential"
    assert [settings["data"][n]["pairs"] > 50 for n in ("0", "1")] == [True, True]
    assert settings["data"]["0"]["files"] != settings["data"]["1"]["files"]
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(r["iteration"]) for r in rows] == [2, 4]
