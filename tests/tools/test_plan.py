"""Plans: what a good one becomes, and what is said about a bad one."""

from __future__ import annotations

import json

import pytest

from shared.data.synthetic import REGISTRATION_TASKS
from shared.errors import InputError
from tests.decathlon_folder import write_site
from tests.learn2reg_folder import abdomen_ct_ct, write_folder
from tools.budget import matched, unequal_passes
from tools.plan import PLANS, check_data, load_plan, strategies
from tools.plan_scoring import scoring_ids
from tools.stages import stages_of


def write(path, **content):
    path.write_text(json.dumps({"bundle": "samcl", "tasks": ["synth_brain_mr"], **content}))
    return path


def test_the_default_plan_is_the_four_embedded_tasks():
    plan = load_plan()
    assert tuple(task.task for task in plan.tasks) == REGISTRATION_TASKS
    assert (plan.bundle, plan.strategy, plan.split, plan.seeds) == ("samcl", "samcl", "test", (0, 1, 2))


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.json")), ids=lambda p: p.stem)
def test_every_plan_of_the_collection_is_good(path):
    plan = load_plan(path.stem)
    assert json.loads(path.read_text())["_desc_"]
    for name in plan.variants:
        assert plan.variant(name).options == {**plan.options, **plan.variants[name]["options"]}


def test_command_line_wins_over_the_file(tmp_path):
    path = write(tmp_path / "p.json", options={"iterations": 5, "batch_size": 1}, strategy="samcl", seeds=[3])
    changes = {"iterations": 7, "strategy": "sequential", "tasks": ["synth_lung_ct"], "network_def#channels": 4}
    plan = load_plan(path, **changes)
    assert plan.options == {"iterations": 7, "batch_size": 1, "network_def#channels": 4}
    assert (plan.strategy, plan.tasks[0].task, plan.seeds, plan.name) == ("sequential", "synth_lung_ct", (3,), "p")


@pytest.mark.parametrize("changes", [{"iterations": 500}, {"options": {"iterations": 500}}])
def test_command_line_wins_over_the_options_of_single_tasks(tmp_path, changes):
    tasks = [{"task": "synth_brain_mr", "options": {"iterations": 2000, "rho": 0.1}}, "synth_lung_ct"]
    plan = load_plan(write(tmp_path / "p.json", tasks=tasks, options={"iterations": 700}), **changes)
    one, two = (stage.options for stage in stages_of(plan, tmp_path, "continued"))
    assert (one, two) == ({"iterations": 500, "rho": 0.1}, {"iterations": 500})
    assert matched(plan, "sequential", "passes").tasks[0].options == {"rho": 0.1}
    plain = load_plan(tmp_path / "p.json")
    assert [s.options["iterations"] for s in stages_of(plain, tmp_path, "continued")] == [2000, 700]


def test_joint_training_takes_the_command_lines_iterations_for_every_task(tmp_path):
    tasks = [{"task": "synth_brain_mr", "options": {"iterations": 2000}}, "synth_lung_ct"]
    plan = load_plan(write(tmp_path / "p.json", tasks=tasks), iterations=500)
    assert stages_of(plan, tmp_path, "pooled")[0].options["iterations"] == 1000


def test_a_part_of_the_strategy_is_an_option():
    assert load_plan(**{"strategy#rho": 0.5}).options == {"strategy#rho": 0.5}


def test_a_task_has_its_own_folder_and_options(tmp_path):
    entry = {"task": "synth_lung_ct", "dataset_dir": str(tmp_path), "options": {"iterations": 9}}
    plan = load_plan(write(tmp_path / "p.json", tasks=["synth_brain_mr", entry], dataset_dir="elsewhere"))
    assert plan.tasks[0].dataset_dir == "elsewhere"
    assert (plan.tasks[1].dataset_dir, plan.tasks[1].options) == (str(tmp_path), {"iterations": 9})


def test_overlays_come_between_train_and_strategy(tmp_path):
    plan = load_plan(write(tmp_path / "p.json", configs=["smoke"]))
    assert [f.rsplit("/configs/")[1] for f in plan.config_files()] == [
        "train.json",
        "smoke.json",
        "strategies/samcl.json",
    ]
    assert plan.scalar("iterations") == 4
    assert load_plan().scalar("iterations") == 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tasks": ["synth_brain_rm"]}, r"'synth_brain_rm' \(did you mean 'synth_brain_mr'\?\)"),
        ({"strategy": "samlc"}, r"strategy 'samlc' \(did you mean 'samcl'\?\)"),
        ({"bundle": "samlc"}, r"bundle 'samlc' \(did you mean 'samcl'\?\)"),
        ({"taks": []}, r"key 'taks' \(did you mean 'tasks'\?\)"),
        ({"options": {"iteration": 3}}, r"option 'iteration' \(did you mean 'iterations'\?\)"),
        ({"tasks": [{"task": "synth_lung_ct", "option": {}}]}, r"key 'option' \(did you mean 'options'\?\)"),
        ({"configs": ["smok"]}, r"config 'smok' \(did you mean 'smoke'\?\)"),
        ({"split": "tests"}, r"split 'tests' \(did you mean 'test'\?\)"),
        ({"tasks": []}, "expected at least one"),
        ({"tasks": ["synth_brain_mr", "synth_brain_mr"]}, "each once"),
        ({"unseen": ["synth_brain_mr"]}, "each once"),
        ({"tasks": "synth_brain_mr"}, "expected a list"),
        ({"tasks": [{"dataset_dir": "x"}]}, "without a name"),
        ({"variants": {"v": {"options": {"roh": 1}}}}, r"variant v: found option 'roh' \(did you mean 'rho'\?\)"),
        ({"variants": {"v": {"strategy": "smcl"}}}, r"variant v: found strategy 'smcl'"),
        (
            {"tasks": [{"task": "synth_lung_ct", "options": {"ct_window": [-1000, 0]}}]},
            "found options ct_window of its own",
        ),
        (
            {"tasks": [{"task": "synth_lung_ct", "options": {"network_def#channels": 4}}]},
            "task synth_lung_ct: found options network_def#channels of its own, expected these among the plan's",
        ),
        (
            {"unseen": [{"task": "synth_lung_ct", "options": {"iterations": 4}}]},
            "unseen task synth_lung_ct: found options iterations of its own, expected none",
        ),
        ({"seeds": ["a"]}, "expected different whole numbers"),
        ({"dataset_dir": None}, "found dataset_dir None, expected a folder"),
        ({"tasks": [{"task": "OASIS", "dataset_dir": 3}]}, "task OASIS: found dataset_dir 3, expected a folder"),
        ({"seeds": True}, "found seeds True, expected different whole numbers"),
        ({"seeds": [1, 1]}, r"found seeds \[1, 1\], expected different whole numbers"),
        ({"seeds": [-1]}, "from 0 on"),
        ({"seeds": 0}, "found seeds 0"),
        ({"options": ["a"]}, r"found options \['a'\], expected an object"),
        ({"options": None}, "found options None, expected an object"),
        ({"corruptions": None}, "found corruptions None, expected a name or a list of names"),
        ({"corruptions": 3}, "found corruptions 3"),
        ({"configs": None}, "found configs None"),
        ({"configs": [3]}, r"found configs \[3\]"),
        ({"options": {"iterations": "$1+1"}}, r"found iterations '\$1\+1', expected a whole number"),
        ({"options": {"iterations": 5.0}}, r"found iterations 5.0, expected a whole number"),
        ({"options": {"iterations": True}}, "found iterations True"),
        (
            {"tasks": [{"task": "synth_lung_ct", "options": {"iterations": 0}}]},
            "task synth_lung_ct: found iterations 0",
        ),
        ({"variants": {"v": {"options": {"iterations": "@x"}}}}, "variant v: found iterations '@x'"),
        ({"variants": {"er": {"strategy": "samcl"}}}, "a variant named 'er', expected the name of a folder"),
        ({"variants": {"a/b": {}}}, "a variant named 'a/b'"),
        ({"phases": {"replay": {}}}, "found phases replay, expected none: the bundle samcl has none"),
        ({"options": {"run_dir": "x"}}, "option 'run_dir'"),
        ({"tasks": [{"task": "OASIS", "dataset_dir": "/no/such/folder"}]}, "/no/such/folder: no such folder"),
    ],
)
def test_a_bad_plan_is_told_what_is_wrong_and_the_near_miss(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        load_plan(write(tmp_path / "p.json", **content))


def test_an_unknown_plan_name_gets_the_near_miss():
    with pytest.raises(InputError, match=r"did you mean 'samcl_embedded'"):
        load_plan("samcl_embeded")


def test_a_plan_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "p.json").write_text("[1]")
    with pytest.raises(InputError, match="expected an object"):
        load_plan(tmp_path / "p.json")


def test_a_variant_is_a_strategy_with_options_of_its_own(tmp_path):
    variants = {"rho1": {"strategy": "samcl", "options": {"rho": 1.0}}}
    plan = load_plan(write(tmp_path / "p.json", variants=variants, options={"iterations": 8, "rho": 0.1}))
    changed = matched(plan, "rho1", "passes")
    assert (changed.strategy, changed.options) == ("samcl", {"iterations": 8, "rho": 1.0})
    with pytest.raises(InputError, match=r"strategy 'rho2' \(did you mean 'rho1'\?\)"):
        plan.variant("rho2")


def test_every_strategy_tells_its_passes():
    plan = load_plan()
    for name in strategies("samcl"):
        assert plan.strategy_config(name)["passes_per_sample"] in (1, 2, 2.5, 4), name


def test_matched_passes_scale_the_iterations_and_matched_iterations_do_not(tmp_path):
    entry = {"task": "synth_lung_ct", "options": {"iterations": 10}}
    plan = load_plan(write(tmp_path / "p.json", tasks=["synth_brain_mr", entry], options={"iterations": 30}))
    passes = matched(plan, "sequential", "passes")
    assert passes.options["iterations"] == 120
    assert passes.tasks[1].options["iterations"] == 40
    assert matched(plan, "sequential", "iterations").options["iterations"] == 30
    with pytest.raises(InputError, match="passes or iterations"):
        matched(plan, "sequential", "time")


def test_a_split_that_a_later_task_lacks_is_told_before_anything_is_trained(tmp_path):
    folder = write_folder(tmp_path, abdomen_ct_ct())
    entry = {"task": "AbdomenCTCT", "dataset_dir": str(tmp_path)}
    path = write(tmp_path / "p.json", tasks=["synth_brain_mr", entry])
    message = r"AbdomenCTCT_dataset.json: found no test pairs.*found val, expected test and val, or --split val"
    with pytest.raises(InputError, match=message):
        load_plan(path)
    plan = load_plan(path, split="val")
    file = folder / "AbdomenCTCT_dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "registration_val": []}))
    with pytest.raises(InputError, match=r"found no val pairs.*found neither val nor test, expected val"):
        check_data(plan)


def test_the_sharpness_of_an_unseen_task_wants_validation_pairs(tmp_path):
    content = abdomen_ct_ct()
    content["registration_test"] = content.pop("registration_val")
    write_folder(tmp_path, content)
    unseen = [{"task": "AbdomenCTCT", "dataset_dir": str(tmp_path)}]
    with pytest.raises(InputError, match=r"found no val pairs.*found test, expected test and val"):
        load_plan(write(tmp_path / "p.json", unseen=unseen))


def test_a_site_with_a_missing_file_is_told_before_anything_is_trained(tmp_path):
    write_site(tmp_path / "ours")
    changes = {"tasks": ["ours"], "unseen": [], "dataset_dir": str(tmp_path)}
    plan = load_plan("smdr_embedded", **changes)
    for file in (tmp_path / "ours" / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no such file; .*dataset.json names it as label"):
        check_data(plan)


def test_a_segmentation_has_no_spoilt_images():
    with pytest.raises(InputError, match=r"found corruptions noise with the bundle smdr, expected none"):
        load_plan("smdr_embedded", corruptions=["noise"])


def test_the_evaluation_config_decides_which_options_all_tasks_share(tmp_path):
    grid = {"spatial_size", "spacing_mm", "ct_window", "integration_steps", "network_def", "inferer"}
    ids = set(scoring_ids(load_plan(write(tmp_path / "p.json"))))
    assert ids >= grid
    assert not ids & {"iterations", "loss", "rho", "device", "seed", "task", "run_dir", "buffer_size"}
    cascade = set(scoring_ids(load_plan(write(tmp_path / "p.json", configs=["cascade"]))))
    assert cascade >= grid
    sites = set(scoring_ids(load_plan("smdr_embedded")))
    assert sites >= {"spatial_size", "spacing_mm", "slices", "channels", "classes", "label_map", "channel_wise"}
    assert not sites & {"margin", "iterations", "augmentation", "strategy"}


def test_a_task_may_be_trained_with_options_of_its_own(tmp_path):
    options = {"iterations": 9, "learning_rate": 0.1, "loss#landmarks": 0.0, "strategy#rho": 0.1}
    plan = load_plan(write(tmp_path / "p.json", tasks=[{"task": "synth_lung_ct", "options": options}]))
    assert plan.tasks[0].options == options


def test_one_name_is_a_list_of_one(tmp_path):
    plan = load_plan(write(tmp_path / "p.json", corruptions="noise", configs="smoke"))
    assert (plan.corruptions, plan.configs) == (("noise",), ("smoke",))


def test_matched_passes_take_the_batch_size_into_account(tmp_path):
    own = [
        {"task": "synth_lung_ct", "options": {"iterations": 10}},
        {"task": "synth_abdomen_ct", "options": {"batch_size": 1}},
    ]
    variants = {"batch4": {"strategy": "samcl", "options": {"batch_size": 4}}}
    plan = load_plan(
        write(tmp_path / "p.json", tasks=["synth_brain_mr", *own], options={"iterations": 30}, variants=variants)
    )
    changed = matched(plan, "batch4", "passes")
    assert changed.options == {"iterations": 15, "batch_size": 4}
    assert [task.options for task in changed.tasks] == [{}, {"iterations": 5}, {"iterations": 30, "batch_size": 1}]
    assert matched(plan, "samcl", "passes").options["iterations"] == 30
    with pytest.raises(InputError, match=r"found batch_size '\$1\+1', expected a whole number"):
        matched(load_plan(tmp_path / "p.json", batch_size="$1+1"), "er", "passes")


def test_passes_that_miss_the_budget_are_told(tmp_path):
    path = write(tmp_path / "p.json", tasks=["synth_brain_mr", "synth_lung_ct"], options={"iterations": 30})
    plan = load_plan(path)
    planned = 2 * 30 * 2 * 4  # tasks, iterations, pairs, passes of samcl
    assert unequal_passes(plan, {"er": [planned * 1.019, planned * 0.99]}) == []
    assert unequal_passes(plan, {"samcl": [planned], "er": [planned], "agem": [planned * 3 // 4]}) == [
        f"Not the same budget: agem made {planned * 3 // 4} passes, -25.0 % against samcl with {planned}."
    ]
    # What was measured counts, where there is something.
    assert unequal_passes(plan, {"samcl": [planned / 2], "er": [planned / 2]}) == []
    assert len(unequal_passes(plan, {"rho0": [planned / 2], "er": [planned / 2]})) == 2
