"""The phases of a stage: which runs of the bundle it takes, in which order, and when each is done.

Every stage trains and scores. Where the strategy's overlay says that it learns from generated images of the past
(``"past": "replay_sets"``), a generator learns the stage's task after that, and draws a replay set of it, labelled by
the model of this stage, for the stages to come. A set is made once: its samples are files, whatever the generator
learns later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.files import read_json

from .planned import PHASES, Plan
from .results import read_rows
from .stages import Stage

__all__ = ["Phase", "Phases"]

# Share of a stage's time, for the progress line.
WEIGHTS = {"training": 0.85, "evaluation": 0.15, "diffusion": 0.85, "replay": 0.3}
# Ids that a generator must share with the model: what they see, and how it is labelled.
SHARED = (
    "spatial_size",
    "spacing_mm",
    "slices",
    "margin",
    "channels",
    "classes",
    "label_map",
    "channel_wise",
    "labels",
)


@dataclass(frozen=True)
class Phase:
    """One run of the bundle.

    Attributes:
        name: of its arguments and its log.
        run_id: list of the config to run.
        files: config and overlays.
        options: ids that win over the files.
        results: files that are all there when it is done.
        progress: returns the share done (0 to 1) and a text.
        checks_itself: the run tells results of these weights and settings from others and skips them, which their mere
            presence cannot: until the stage is finished, it is called even where they are there.
    """

    name: str
    run_id: str
    files: list[str]
    options: dict[str, Any]
    results: list[Path]
    progress: Callable[[], tuple[float, str]]
    checks_itself: bool = False

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do in a stage that is not finished."""
        return not self.checks_itself and all(path.is_file() for path in self.results)

    @property
    def weight(self) -> float:
        """Share of a stage's time, with that of the other phases to be summed up to one."""
        return WEIGHTS[self.name]


class Phases:
    """Make the phases of a chain's stages.

    Args:
        plan: checked plan.
        folder: of the chain.
        stages: of the chain, in order.
        seed: of the chain.
        pooled: whether the one stage learns all tasks.
        corruptions: spoilt images that the last stage is scored on.
    """

    def __init__(
        self, plan: Plan, folder: Path, stages: Sequence[Stage], seed: int, pooled: bool, corruptions: Sequence[str]
    ) -> None:
        self.plan, self.folder, self.stages = plan, folder, stages
        self.seed, self.pooled, self.corruptions = seed, pooled, corruptions
        self.more = tuple(PHASES) if plan.strategy_config().get("past") == "replay_sets" else ()

    def __call__(self, number: int) -> list[Phase]:
        """Return the phases of a stage, by its number from 0."""
        makers = {"diffusion": self._diffusion, "replay": self._replay}
        return [self._training(number), self._evaluation(number), *(makers[name](number) for name in self.more)]

    @property
    def generators(self) -> list[str]:
        """Folders of the runs of a stage that train something else than the model."""
        return ["generator"] if self.more else []

    def kept(self, number: int) -> list[Path]:
        """Return the files that stand for the tasks up to a stage: the generator's weights and all replay sets."""
        sets = [p for i in range(number + 1) for p in sorted((self._place(i) / "replay").glob("sample_*.npz"))]
        model = self._place(number) / "generator" / "model.pt"
        return [*sets, *([model] if model.is_file() else [])]

    def _place(self, number: int) -> Path:
        return self.folder / self.stages[number].name

    def _data(self, number: int) -> dict[str, Any]:
        task = self.stages[number].tasks[0]
        return {"task": task.task, "dataset_dir": task.dataset_dir, "seed": self.seed}

    def _training(self, number: int) -> Phase:
        stage, run_dir = self.stages[number], self._place(number) / "run"
        options = {**stage.options, **self._data(number), "run_dir": str(run_dir)}
        results = [run_dir / "done.json", run_dir / "validation_summary.json"]
        if self.pooled:
            options["tasks"] = [[task.dataset_dir, task.task] for task in stage.tasks]
        if stage.init_from is not None:
            options["init_from"] = str(stage.init_from)
        if self.more:
            options["replay_sets"] = [str(self._place(i) / "replay") for i in range(number)]
        iterations = int(stage.options.get("iterations", self.plan.scalar("iterations")))

        def progress() -> tuple[float, str]:
            share, text = _logged(run_dir, iterations)
            # A memory of generated pairs has its generator learn the task once the model has.
            generator = run_dir / "memory" / "rank0" / "generator"
            return share, _of_generator(generator)[1] if (generator / "settings.json").is_file() else text

        return Phase("training", "training", self.plan.config_files(), options, results, progress)

    def _evaluation(self, number: int) -> Phase:
        folder = self._place(number)
        results = folder / "evaluation"
        corruptions = list(self.corruptions) if number == len(self.stages) - 1 else []
        places = [results, *(results / "corrupted" / name for name in corruptions)]
        wanted = [place / task.task / "evaluation_summary.json" for task in self.plan.scored for place in places]
        options = {
            **self.stages[number].options,
            "tasks": [[task.dataset_dir, task.task] for task in self.plan.scored],
            "model": str(folder / "run" / "model.pt"),
            "output_dir": str(results),
            "split": self.plan.split,
            "corruptions": corruptions,
        }

        def progress() -> tuple[float, str]:
            scored = sum(path.is_file() for path in wanted)
            return scored / len(wanted), f"scored {scored}/{len(wanted)}"

        files = self.plan.config_files("evaluate_tasks")
        return Phase("evaluation", "evaluating", files, options, wanted, progress, checks_itself=True)

    def _diffusion(self, number: int) -> Phase:
        run_dir = self._place(number) / "generator"
        options = {**self._shared(number), **self.plan.phases.get("diffusion", {}), **self._data(number)}
        options["run_dir"] = str(run_dir)
        if number:
            options["generator_from"] = str(self._place(number - 1) / "generator")

        files = self.plan.phase_files("diffusion")
        return Phase("diffusion", "training", files, options, [run_dir / "done.json"], partial(_of_generator, run_dir))

    def _replay(self, number: int) -> Phase:
        folder = self._place(number)
        place = folder / "replay"
        private = [folder / name for name in ("run", "generator", "replay")]
        options = {
            **self.stages[number].options,
            **self._shared(number),
            **self.plan.phases.get("replay", {}),
            **self._data(number),
            "generator": str(folder / "generator"),
            "model": str(folder / "run" / "model.pt"),
            "output_dir": str(place),
            "private_dirs": [str(path) for path in private],
            "record": str(folder / "privacy.json"),
        }

        def progress() -> tuple[float, str]:
            index = place / "index.json"
            content: dict[str, Any] = {"samples": [], "settings": {"count": 1}}
            content = read_json(index) if index.is_file() else content
            made, count = len(content["samples"]), content["settings"]["count"]
            return made / count, f"replay set, image {made}/{count}"

        # What the run writes last.
        results = [folder / "privacy.json"]
        return Phase("replay", "generating", self.plan.phase_files("replay"), options, results, progress)

    def _shared(self, number: int) -> dict[str, Any]:
        """Return what the generator takes over from the model's training."""
        known = {**self.plan.literals(SHARED), **self.stages[number].options}
        return {name: known[name] for name in SHARED if name in known}


def _of_generator(run_dir: Path) -> tuple[float, str]:
    settings = run_dir / "settings.json"
    share, text = _logged(run_dir, read_json(settings)["iterations"] if settings.is_file() else 0)
    return share, f"generator, {text}"


def _logged(run_dir: Path, iterations: int) -> tuple[float, str]:
    log = run_dir / "metrics.csv"
    done = int(read_rows(log)[-1]["iteration"]) if log.is_file() else 0
    return done / max(1, iterations), f"iteration {done}/{iterations}"
