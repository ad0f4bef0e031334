"""Putting chains together that differ only in their seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .report_chains import Chain
from .report_words import ABSENT, table_value

__all__ = ["Group", "are_comparable", "group_chains", "splits_of"]


@dataclass(frozen=True)
class Group:
    """Chains that differ in nothing but their seed.

    Attributes:
        label: what distinguishes it from the other groups of the page.
        chains: by seed.
    """

    label: str
    chains: list[Chain]

    @property
    def scored(self) -> list[Chain]:
        """The finished chains, else those with a stage, else all: whole chains are not averaged with parts."""
        whole = [c for c in self.chains if c.is_finished]
        return whole or [c for c in self.chains if c.done] or self.chains

    @property
    def is_finished(self) -> bool:
        """Whether any chain is."""
        return any(c.is_finished for c in self.chains)

    @property
    def competes(self) -> bool:
        """Whether it can be the best: it has a whole chain, and learns task after task with one model."""
        return self.is_finished and self.chains[0].kind == "continued"

    def values(self, measure: Callable[[Chain], float]) -> list[float]:
        """Return a number of each chain that counts."""
        return [measure(chain) for chain in self.scored]


def splits_of(chains: Iterable[Chain]) -> list[str]:
    """Return the splits that chains are scored on, each once; those of chains that do not say are left out."""
    return list(dict.fromkeys(str(chain.settings["split"]) for chain in chains if chain.settings.get("split")))


def are_comparable(groups: Sequence[Group]) -> bool:
    """Whether all are scored on one split of the same tasks, in whatever order; only then may they be ranked."""
    chains = [chain for group in groups for chain in group.chains]
    return len({(chain.settings.get("split"), frozenset(chain.tasks)) for chain in chains}) < 2


def _traits(chain: Chain) -> dict[str, str]:
    """Return what makes a chain another experiment, whatever its seed."""
    traits = {
        "strategy": chain.settings["strategy"],
        "plan": re.sub(r"[-_ ]*seed[-_ ]*\d+$", "", chain.settings["name"]),
        "bundle": chain.settings["bundle"],
        "split": table_value(chain.settings.get("split")),
        **{key: table_value(chain.settings.get(key)) for key in ("configs", "phases", "corruptions")},
        "order": " \N{RIGHTWARDS ARROW} ".join(chain.tasks),
        "unseen": table_value(chain.columns[len(chain.tasks) :]),
        "contents of the configs": table_value(chain.settings.get("config_files")),
        "data": ", ".join(dict.fromkeys(table_value(t.get("dataset_dir")) for t in chain.settings["tasks"])),
        "task options": table_value([t.get("options") or None for t in chain.settings["tasks"]]),
    }
    options = chain.settings.get("options") or {}
    return traits | {str(k): table_value(v) for k, v in dict(options).items() if k != "seed"}


def _note(key: str, value: str) -> str:
    return f"without {key}" if value == ABSENT else f"{key} {value}" if value else f"{key} as configured"


def group_chains(chains: Sequence[Chain]) -> list[Group]:
    """Put chains together that differ only in their seed; label each group by its strategy and what else differs."""
    traits = [_traits(chain) for chain in chains]
    keys = list(dict.fromkeys(key for t in traits for key in t))
    groups: dict[tuple[str, ...], list[Chain]] = {}
    for chain, trait in zip(chains, traits, strict=True):
        groups.setdefault(tuple(trait.get(key, "") for key in keys), []).append(chain)
    found = []
    for values, members in groups.items():
        rivals = [v for v in groups if v[0] == values[0]]
        differs = [i for i in range(1, len(keys)) if len({v[i] for v in rivals}) > 1]
        notes = [_note(keys[i], values[i]) for i in differs]
        label = f"{values[0]} ({', '.join(notes)})" if notes else values[0]
        found.append(Group(label, sorted(members, key=lambda c: c.settings["seed"])))
    return found
