"""What a checked plan holds, and which config files its runs take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.data.sites import SEGMENTATION_SITES
from shared.errors import InputError, did_you_mean
from shared.files import read_json

__all__ = ["BUNDLES", "PHASES", "ROOT", "Plan", "Task", "check_known", "strategies"]

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = ROOT / "bundles"
# Phase of a stage -> its config, and whether that is an overlay on train.json.
PHASES = {"diffusion": ("train_diffusion", False), "replay": ("generate", True)}


@dataclass(frozen=True)
class Task:
    """One task of a plan.

    Attributes:
        task: name.
        dataset_dir: folder that holds it.
        options: of its training alone.
    """

    task: str
    dataset_dir: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A checked plan; see the module for its fields."""

    name: str
    bundle: str
    tasks: tuple[Task, ...]
    strategy: str
    unseen: tuple[Task, ...] = ()
    seeds: tuple[int, ...] = (0,)
    options: dict[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    split: str = "test"
    corruptions: tuple[str, ...] = ()
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def segments(self) -> bool:
        """Whether the tasks are sites of segmentation; else they are tasks of registration."""
        return read_json(BUNDLES / self.bundle / "configs" / "train.json").get("task") in SEGMENTATION_SITES

    @property
    def scored(self) -> tuple[Task, ...]:
        """All tasks that every stage is scored on: the learnt ones, then the unseen ones."""
        return self.tasks + self.unseen

    def config_files(self, *overlays: str) -> list[str]:
        """Return ``train.json``, the plan's overlays, the strategy's and ``overlays``, in this order."""
        names = ["train", *self.configs, f"strategies/{self.strategy}", *overlays]
        return [str(BUNDLES / self.bundle / "configs" / f"{name}.json") for name in names]

    def phase_files(self, phase: str) -> list[str]:
        """Return the config files of a phase; of an overlay NAME its part for the phase, ``NAME_<phase>.json``."""
        name, is_overlay = PHASES[phase]
        if is_overlay:
            return self.config_files(name)
        folder = BUNDLES / self.bundle / "configs"
        parts = [folder / f"{overlay}_{phase}.json" for overlay in self.configs]
        return [str(folder / f"{name}.json"), *(str(path) for path in parts if path.is_file())]

    def strategy_config(self, name: str | None = None) -> dict[str, Any]:
        """Return the overlay of a strategy, by default of the plan's own."""
        return read_json(BUNDLES / self.bundle / "configs" / "strategies" / f"{name or self.strategy}.json")

    def scalar(self, name: str) -> Any:
        """Return the value that training gets for a plain id: from the options, else from the last config with it."""
        if name in self.options:
            return self.options[name]
        contents = [read_json(path) for path in self.config_files()]
        return next(content[name] for content in reversed(contents) if name in content)

    def literals(self, names: Sequence[str]) -> dict[str, Any]:
        """Return those ids of the training config that hold plain values: no reference, no expression."""
        content = {key: value for path in self.config_files() for key, value in read_json(path).items()}
        found = {name: content[name] for name in names if name in content}
        return {k: v for k, v in found.items() if not (isinstance(v, str) and v[:1] in ("@", "$", "%"))}

    def to_json(self) -> dict[str, Any]:
        """Return the plan in plain containers."""
        return asdict(self)

    def variant(self, name: str) -> Plan:
        """Return the plan with another strategy: one of the bundle's, or a variant with options of its own.

        Raises:
            InputError: neither.
        """
        check_known(f"the plan {self.name}", "strategy", name, [*strategies(self.bundle), *self.variants])
        content = self.variants.get(name, {"strategy": name})
        options = {**self.options, **content.get("options", {})}
        more = content.get("phases", {})
        phases = {phase: {**self.phases.get(phase, {}), **more.get(phase, {})} for phase in {**self.phases, **more}}
        return replace(self, strategy=content.get("strategy", self.strategy), options=options, phases=phases)


def strategies(bundle: str) -> list[str]:
    """Return the names of a bundle's strategies."""
    return sorted(path.stem for path in (BUNDLES / bundle / "configs" / "strategies").glob("*.json"))


def check_known(where: str, what: str, found: str, known: Sequence[str]) -> None:
    """Raise InputError unless ``found`` is known; the near miss is named."""
    if found not in known:
        raise InputError(f"{where}: found {what} '{found}'{did_you_mean(found, known)}; known: {', '.join(known)}")
