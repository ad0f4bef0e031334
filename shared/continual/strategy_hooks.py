"""A strategy in the place of the single optimizer step, in a run folder with its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..checkpoint import tensor_bytes
from ..errors import InputError
from ..run_directory import RunDirectory
from ..trainer_hooks import TrainerHooks
from ..weights import unwrap
from .strategy import Strategy

__all__ = ["StrategyHooks"]


class StrategyHooks(TrainerHooks):
    """Makes a trainer continual: ``class ContinualTrainer(StrategyHooks, RegistrationTrainer)``.

    ``init_from`` carries weights, moments, what the strategy knows and its memory of the previous task on; from a
    weights file or another strategy's run, :meth:`Strategy.start_from` makes what it can of the weights.

    Args:
        strategy: what an iteration does.
        options: of the trainer.

    Raises:
        InputError: as the trainer; or a run with a memory that another number of processes made.
        ValueError: as the trainer.
    """

    network: nn.Module
    run_directory: RunDirectory
    world: int
    state: Any
    say: Callable[[str], None]

    def __init__(self, *, strategy: Strategy, **options: Any) -> None:
        self.strategy = strategy
        super().__init__(**options)

    def learn(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Let the strategy do one iteration."""
        return self.strategy.step(self, samples)

    def begin(self) -> None:
        """Let the strategy begin the task; from now on its memory writes into this run."""
        memory = self.strategy.memory
        if memory is not None and memory.folder != self.run_directory.memory:
            memory.save(self.run_directory.memory)
        self.strategy.begin_task(self)

    def end(self) -> None:
        """Let the strategy end the task."""
        self.strategy.end_task(self)

    def extra_settings(self) -> dict[str, Any]:
        """Return the strategy's."""
        return {"strategy": self.strategy.settings()}

    def extra_state(self) -> dict[str, Any]:
        """Return what the strategy knows."""
        return {"strategy": self.strategy.state_dict(), "strategy_name": type(self.strategy).__name__}

    def load_extra_state(self, state: dict[str, Any], run: RunDirectory) -> None:
        """Take up what the strategy knows and its memory."""
        self._check_world(state, run)
        self.strategy.load_state_dict(state["strategy"])
        if self.strategy.memory is not None:
            self.strategy.memory.load(run.memory, run.memory_index(state["iteration"]))

    def inherit(self, state: dict[str, Any], previous: RunDirectory) -> None:
        """Take over the memory of the previous task, and what the strategy knew if it was the same.

        Another strategy's run gives its weights alone to what this one knows.
        """
        strategy = self.strategy
        if state["strategy_name"] == type(strategy).__name__:
            strategy.load_state_dict(state["strategy"])
        else:
            self._start_strategy(f"a run of {state['strategy_name']}")
        # Looked for by the first process's: a run of fewer processes has no folder for the others.
        if strategy.memory is not None and (previous.path / "memory" / "rank0").is_dir():
            self._check_world(state, previous)
            index = previous.memory_index(state["iteration"])
            strategy.memory.load(previous.memory, index, keep_folder=False)

    def inherit_weights(self) -> None:
        """Let the strategy start from the weights."""
        self._start_strategy("weights alone")

    def _start_strategy(self, source: str) -> None:
        lacking = self.strategy.start_from(unwrap(self.network).state_dict())
        self.say(f"{source}: {lacking}" if lacking else "")

    def write_extra_files(self) -> None:
        """Write this rank's memory."""
        memory, run = self.strategy.memory, self.run_directory
        if memory is not None:
            run.save_memory_index(self.state.iteration, memory.save(run.memory))

    def prune_extra_files(self) -> None:
        """Delete the samples that are no longer in the memory."""
        if self.strategy.memory is not None:
            self.run_directory.prune_memory_indices(self.state.iteration)
            self.strategy.memory.prune()

    def kept_bytes(self) -> int:
        """Return the bytes of the memory and of what the strategy knows."""
        memory = self.strategy.memory
        return tensor_bytes(self.strategy.state_dict()) + (0 if memory is None else memory.nbytes)

    def _check_world(self, state: dict[str, Any], run: RunDirectory) -> None:
        if self.strategy.memory is not None and state["world"] != self.world:
            raise InputError(
                f"{run.path}: found a run of {state['world']} processes, each with a memory of its own; expected as "
                f"many as now, {self.world}"
            )
