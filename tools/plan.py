"""Plans: which tasks a chain learns, in which order, with which strategy; small JSON files, checked before work begins.

```json
{
    "bundle": "samcl",
    "strategy": "samcl",
    "seeds": [0, 1, 2],
    "tasks": ["synth_brain_mr", {"task": "OASIS", "dataset_dir": "/data", "options": {"iterations": 500}}],
    "unseen": ["synth_lung_ct"],
    "options": {"batch_size": 2},
    "configs": ["paper"],
    "split": "test",
    "phases": {"diffusion": {"iterations": 800}},
    "corruptions": ["noise", "blur"],
    "variants": {"samcl-rho1": {"strategy": "samcl", "options": {"rho": 1.0}}}
}
```

``tasks`` are learnt in this order; ``unseen`` ones are only scored. After the last task all are scored on spoilt images
too, see ``corruptions`` (``shared/data/corruption.py``). ``options`` are ids of the bundle's ``train.json``, a task's
own options win over the plan's; those that scoring reads (grid, network) are the plan's alone. ``configs`` are overlays
on ``train.json``. ``phases`` are options of what else a stage does, see ``phases.py``: ids of ``train_diffusion.json``
and ``generate.json``. ``variants`` are names that a comparison takes beside those of strategies. Only ``bundle`` and
``tasks`` must be given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.data.corruption import CORRUPTIONS
from shared.data.decathlon import known_sites, read_site
from shared.data.learn2reg import known_tasks, read_pairs
from shared.data.sites import SEGMENTATION_SITES
from shared.data.synthetic import REGISTRATION_TASKS
from shared.errors import InputError, did_you_mean
from shared.files import read_json

from .plan_scoring import check_scoring
from .planned import BUNDLES, PHASES, ROOT, Plan, Task, check_known, strategies

__all__ = ["BUNDLES", "PLANS", "ROOT", "Plan", "Task", "check_data", "load_plan", "strategies"]

PLANS = Path(__file__).resolve().parent / "plans"
SPLITS = ("train", "val", "test")
KEYS = (
    "bundle",
    "strategy",
    "seeds",
    "tasks",
    "unseen",
    "options",
    "configs",
    "split",
    "corruptions",
    "variants",
    "phases",
)
TASK_KEYS = ("task", "dataset_dir", "options")
VARIANT_KEYS = ("strategy", "options", "phases")
# What the chain itself hands to every stage.
RESERVED = (
    *("task", "tasks", "dataset_dir", "init_from", "run_dir", "output_dir", "seed", "strategy", "model", "split"),
    *("replay_sets", "generator", "generator_from", "private_dirs", "record"),
)


def _check_keys(where: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: found {type(content).__name__}, expected an object with {', '.join(known)}")
    for key in content:
        if not key.startswith("_"):
            check_known(where, "key", key, known)


def _config_ids(bundle: str, configs: Sequence[str]) -> list[str]:
    """Return the top-level ids that options may change."""
    contents = [read_json(BUNDLES / bundle / "configs" / f"{name}.json") for name in ("train", *configs)]
    ids = {key.split("#")[0] for content in contents for key in content if not key.startswith("_")}
    return sorted(ids)


def _check_options(where: str, options: Any, ids: Sequence[str]) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise InputError(f"{where}: found options {options!r}, expected an object of training options")
    for key in options:
        # A part of the strategy may change (strategy#rho); what the chain itself sets may not.
        check_known(where, "option", key.split("#")[0], [i for i in ids if i not in RESERVED or "#" in key])
    return dict(options)


def _folder(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: found dataset_dir {value!r}, expected a folder")
    return value


def _tasks(where: str, entries: Any, dataset_dir: str, ids: Sequence[str]) -> tuple[Task, ...]:
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise InputError(f"{where}: found tasks {entries!r}, expected a list of names or of objects with a 'task'")
    tasks = []
    for entry in entries:
        content = {"task": entry} if isinstance(entry, str) else entry
        _check_keys(f"{where}, tasks", content, TASK_KEYS)
        if not isinstance(content.get("task"), str):
            raise InputError(f"{where}: found a task without a name ({entry!r}), expected {{'task': NAME}}")
        options = _check_options(f"{where}, task {content['task']}", content.get("options", {}), ids)
        folder = _folder(f"{where}, task {content['task']}", content.get("dataset_dir", dataset_dir))
        tasks.append(Task(content["task"], folder, options))
    return tuple(tasks)


def _without(given: Collection[str], tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks without those options of their own that the caller gives for all."""
    return tuple(replace(t, options={k: v for k, v in t.options.items() if k not in given}) for t in tasks)


def check_data(plan: Plan) -> None:
    """Look for every task's data, in each split that the chain will read; embedded tasks need none.

    Raises:
        InputError: a folder, a task or a split that is not there, or a file that its JSON names; the near miss is
            named.
    """
    embedded = SEGMENTATION_SITES if plan.segments else REGISTRATION_TASKS
    there = known_sites if plan.segments else known_tasks
    for task in plan.scored:
        known = list(dict.fromkeys([*there(task.dataset_dir), *embedded]))
        if task.task not in embedded and not Path(task.dataset_dir).is_dir():
            raise InputError(
                f"{task.dataset_dir}: no such folder; expected the data of task '{task.task}'"
                f"{did_you_mean(task.task, embedded)} (dataset_dir)"
            )
        check_known(task.dataset_dir, "no task", task.task, known)
        if task.task not in embedded:
            _check_splits(plan, task)


def _check_splits(plan: Plan, task: Task) -> None:
    """Read a task's lists as its runs will, hours before the last of them does."""
    # Training validates what it learns, and the sharpness of a registration is measured on the validation pairs.
    needed = [plan.split, "val"] if task in plan.tasks or not plan.segments else [plan.split]
    errors = [error for split in needed if (error := _unreadable(plan, task, split)) is not None]
    if errors:
        there = [split for split in ("val", "test") if _unreadable(plan, task, split) is None]
        advice = ", or --split val to score on what is there" if there == ["val"] else ""
        raise InputError(
            f"{errors[0]}; task {task.task} is scored on its {plan.split} split: found "
            f"{' and '.join(there) or 'neither val nor test'}, expected {' and '.join(dict.fromkeys(needed))}{advice}"
        )


def _unreadable(plan: Plan, task: Task, split: str) -> InputError | None:
    """Return what keeps a split of a task from being read."""
    try:
        (read_site if plan.segments else read_pairs)(task.dataset_dir, task.task, split)
    except InputError as error:
        return error
    return None


def _read(source: str | Path) -> tuple[str, Any]:
    """Return name and content of a plan file: a path, or the name of one in ``tools/plans``."""
    path = Path(source)
    if not path.is_file() and not path.suffix and len(path.parts) == 1:
        known = sorted(p.stem for p in PLANS.glob("*.json"))
        check_known(str(PLANS), "plan", path.name, known)
        path = PLANS / f"{path.name}.json"
    return path.stem, read_json(path)


def load_plan(source: str | Path = "samcl_embedded", **changes: Any) -> Plan:
    """Read and check a plan.

    Args:
        source: JSON file, or the name of one of ``tools/plans``.
        changes: win over the file: a key of the plan, or an option of the training config, which wins over the options
            of single tasks too.

    Raises:
        InputError: an unknown key, bundle, strategy, option, overlay or task, each with the near miss.
    """
    name, content = _read(source)
    where = str(source)
    _check_keys(where, content, (*KEYS, "dataset_dir"))
    content = {k: v for k, v in content.items() if not k.startswith("_")}
    keys = {k: changes.pop(k) for k in (*KEYS, "dataset_dir") if k in changes}
    content.update({k: v for k, v in keys.items() if v is not None})
    bundles = sorted(p.parent.parent.name for p in BUNDLES.glob("*/configs/train.json"))
    if not bundles:
        raise InputError(
            f"{BUNDLES}: found no bundles; expected `python -m tools` to run from a clone of the collection"
        )
    bundle = str(content.get("bundle", "samcl"))
    check_known(where, "bundle", bundle, bundles)
    configs = _names(where, "configs", content.get("configs", ()))
    overlays = sorted(p.stem for p in (BUNDLES / bundle / "configs").glob("*.json"))
    for overlay in configs:
        check_known(where, "config", overlay, overlays)
    strategy = str(content.get("strategy", bundle))
    check_known(where, "strategy", strategy, strategies(bundle))
    ids = _config_ids(bundle, configs)
    options = {**_check_options(where, content.get("options", {}), ids), **_check_options(where, changes, ids)}
    dataset_dir = _folder(where, content.get("dataset_dir", str(BUNDLES / bundle / "data")))
    given = {**(keys.get("options") or {}), **changes}
    tasks = _without(given, _tasks(where, content.get("tasks", []), dataset_dir, ids))
    unseen = _tasks(where, content.get("unseen", []), dataset_dir, ids)
    names = [task.task for task in tasks + unseen]
    if not tasks or len(set(names)) < len(names):
        raise InputError(f"{where}: found tasks {names}, expected at least one, each once")
    split = str(content.get("split", "test"))
    check_known(where, "split", split, SPLITS)
    corruptions = _names(where, "corruptions", content.get("corruptions", ()))
    for corruption in corruptions:
        check_known(where, "corruption", corruption, list(CORRUPTIONS))
    variants = _variants(where, content.get("variants", {}), bundle, configs)
    plan = Plan(
        name,
        bundle,
        tasks,
        strategy,
        unseen,
        _seeds(where, content),
        options,
        configs,
        split,
        corruptions,
        variants,
        _phases(where, content.get("phases", {}), bundle, configs),
    )
    if plan.corruptions and plan.segments:
        raise InputError(
            f"{where}: found corruptions {', '.join(plan.corruptions)} with the bundle {bundle}, expected none: "
            "spoilt images are made for pairs of a registration alone"
        )
    _check_iterations(where, plan)
    check_scoring(where, plan)
    check_data(plan)
    return plan


def _check_iterations(where: str, plan: Plan) -> None:
    """Budgets are matched and progress is told by them: they must be numbers before anything runs."""
    found = [("", plan.scalar("iterations"))]
    found += [(f", task {t.task}", t.options["iterations"]) for t in plan.tasks if "iterations" in t.options]
    found += [(f", variant {name}", plan.variant(name).scalar("iterations")) for name in plan.variants]
    for place, value in found:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{where}{place}: found iterations {value!r}, expected a whole number from 1 on")


def _names(where: str, key: str, value: Any) -> tuple[str, ...]:
    """Return a list of names; a single one may stand for itself."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: found {key} {value!r}, expected a name or a list of names")
    return tuple(names)


def _variants(where: str, entries: Any, bundle: str, configs: Sequence[str]) -> dict[str, dict[str, Any]]:
    ids = _config_ids(bundle, configs)
    if not isinstance(entries, Mapping):
        raise InputError(f"{where}: found variants {entries!r}, expected an object of names")
    for name, content in entries.items():
        if name in strategies(bundle) or Path(name).name != name:
            raise InputError(
                f"{where}: found a variant named {name!r}, expected the name of a folder that no strategy has"
            )
        _check_keys(f"{where}, variant {name}", content, VARIANT_KEYS)
        check_known(f"{where}, variant {name}", "strategy", content.get("strategy", bundle), strategies(bundle))
        _check_options(f"{where}, variant {name}", content.get("options", {}), ids)
        _phases(f"{where}, variant {name}", content.get("phases", {}), bundle, configs)
    return {name: dict(content) for name, content in entries.items()}


def _phases(where: str, entries: Any, bundle: str, configs: Sequence[str]) -> dict[str, dict[str, Any]]:
    _check_keys(f"{where}, phases", entries, list(PHASES))
    found = {}
    for phase, options in entries.items():
        name, is_overlay = PHASES[phase]
        if not (BUNDLES / bundle / "configs" / f"{name}.json").is_file():
            raise InputError(f"{where}: found phases {', '.join(entries)}, expected none: the bundle {bundle} has none")
        ids = _config_ids(bundle, [*(configs if is_overlay else ()), name])
        found[phase] = _check_options(f"{where}, phase {phase}", options, ids)
    return found


def _seeds(where: str, content: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the seeds; a plain number n stands for 0 to n - 1."""
    given = content.get("seeds", [0])
    seeds = list(range(given)) if isinstance(given, int) and not isinstance(given, bool) else given
    whole = isinstance(seeds, list | tuple) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not whole or not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise InputError(f"{where}: found seeds {given!r}, expected different whole numbers from 0 on, or how many")
    return tuple(seeds)
