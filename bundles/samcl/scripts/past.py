"""Rehearsal of what the weights that ship have learnt: pairs of the embedded tasks, offered to the memory."""

from __future__ import annotations

from typing import Any

import torch

from shared.data.pairs import PairDataset
from shared.host_past import EmbeddedPairs

from .memory import ReservoirMemory

__all__ = ["EmbeddedPast"]


class EmbeddedPast(EmbeddedPairs):
    """Fills the memory of a host's training that starts from weights without one.

    Args:
        memory: of the strategy, empty.
        seen: pairs that such weights have met; new ones take their places as slowly as after so many.
        options: of :class:`~shared.host_past.EmbeddedPairs`; its seed is the memory's too.
    """

    def __init__(self, memory: ReservoirMemory, seen: int = 2400, **options: Any) -> None:
        super().__init__(**options)
        self.memory, self.seen = memory, seen

    def fill(self) -> None:
        """Offer pairs of the tasks; a run on folders, from a run with a memory, or of 2D images is left alone."""
        if not self.are_wanted():
            return
        generator = torch.Generator().manual_seed(self.seed)
        dataset = PairDataset(self.pairs(), progress=True, **self.options)
        for index in range(len(dataset)):
            self.memory.offer(dataset[index], generator)
        self.memory.seen = max(self.memory.seen, self.seen)
        self.host.say(f"rehearsed are {len(self.memory)} pairs of what weights that ship have learnt: {self.tasks}")
