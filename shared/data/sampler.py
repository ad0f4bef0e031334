"""An order of samples that a killed run can take up again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

__all__ = ["ResumableSampler"]


class ResumableSampler(Sampler[int]):
    """An endless shuffled stream of indices that can start anywhere: position and seed decide each index.

    Args:
        length: size of the dataset.
        seed: of the permutations, one a pass over the dataset.
        rank: of this process; each rank sees every ``world``-th index.
        world: number of processes.
    """

    def __init__(self, length: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.position = 0  # indices that this rank has already used

    def __iter__(self) -> Iterator[int]:
        position = self.position * self.world + self.rank
        epoch, order = -1, torch.empty(0)
        while True:
            if position // self.length != epoch:
                epoch = position // self.length
                order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + 104729 * epoch))
            yield int(order[position % self.length])
            position += self.world
