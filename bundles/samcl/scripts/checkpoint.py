"""The trainer's checkpoint: written so that a kill spoils nothing, read by a resumed run and by the next task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.checkpoint import handler_states, plain
from shared.errors import InputError
from shared.files import load_tensors
from shared.run_directory import RunDirectory

from .weights import load_weights, unwrap

if TYPE_CHECKING:
    from .trainer import ContinualTrainer

__all__ = ["costs", "restore", "save_checkpoint"]


def save_checkpoint(trainer: ContinualTrainer) -> None:
    """Write each rank's memory, then, on rank 0, the state that makes it count.

    Raises:
        FloatingPointError: the weights are not finite; the last good checkpoint stays.
    """
    iteration, memory, run = trainer.state.iteration, trainer.strategy.memory, trainer.run_directory
    if not all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters()):
        raise FloatingPointError(
            f"iteration {iteration}: weights are not finite; lower the learning rate or rho, or look at the data"
        )
    if memory is not None:
        run.save_memory_index(iteration, memory.save(run.memory))
    trainer.barrier()
    state = {
        "iteration": iteration,
        "world": trainer.world,
        "task_ended": trainer.task_ended,
        "network": unwrap(trainer.network).state_dict(),
        "optimizer": plain(trainer.optimizer.state_dict()),
        "strategy": trainer.strategy.state_dict(),
        "strategy_name": type(trainer.strategy).__name__,
        "scheduler": None if trainer.scheduler is None else plain(trainer.scheduler.state_dict()),
        "handlers": handler_states(trainer.handlers),
        "rng": torch.get_rng_state(),
        "passes": trainer.passes,
        "seconds": trainer.seconds,
        "log": trainer.log_rows,
    }
    run.save_state(state)
    trainer.barrier()
    if memory is not None:
        run.prune_memory_indices(iteration)
        memory.prune()


def restore(trainer: ContinualTrainer) -> dict[str, Any] | None:
    """Go on from the checkpoint of a killed run and return it; without one start from the previous task, if any.

    Raises:
        InputError: ``init_from`` is no complete run, or one of another number of processes or architecture.
    """
    memory, run = trainer.strategy.memory, trainer.run_directory
    state = run.load_state()
    if state is None:
        if trainer.init_from is not None:
            _start_from(trainer, trainer.init_from)
        if memory is not None:
            memory.save(run.memory)  # from now on it writes here
        return None
    _check_world(trainer, run, state)
    unwrap(trainer.network).load_state_dict(state["network"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.strategy.load_state_dict(state["strategy"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(state["scheduler"])
    if memory is not None:
        memory.load(run.memory, run.memory_index(state["iteration"]))
    torch.set_rng_state(state["rng"])
    trainer.seconds, trainer.passes = float(state["seconds"]), state["passes"]
    trainer.log_rows, trainer.task_ended = list(state["log"]), state["task_ended"]
    trainer.state.iteration = state["iteration"]
    trainer.state.epoch = state["iteration"] // trainer.state.epoch_length
    trainer.sampler.position = state["iteration"] * trainer.batch_size
    return state


def _start_from(trainer: ContinualTrainer, source: Path) -> None:
    """Take weights, moments, strategy state and memory from the previous task's run; from a file, weights alone."""
    if source.is_file():
        load_weights(trainer.network, source)
        return
    previous = RunDirectory(source, trainer.rank, read_only=True) if source.is_dir() else None
    if previous is None or not previous.is_done():
        raise InputError(f"{source}: found no complete run (model.pt with done.json); expected a run_dir or weights")
    load_weights(trainer.network, previous.model)
    state = load_tensors(previous.state)
    _check_world(trainer, previous, state)
    options = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group, new in zip(trainer.optimizer.param_groups, options, strict=True):
        group.update(new)  # moments go on, rates are this task's
    strategy = trainer.strategy
    if state["strategy_name"] == type(strategy).__name__:
        strategy.load_state_dict(state["strategy"])
    if strategy.memory is not None and previous.memory.is_dir():
        strategy.memory.load(previous.memory, previous.memory_index(state["iteration"]), keep_folder=False)


def _check_world(trainer: ContinualTrainer, run: RunDirectory, state: dict[str, Any]) -> None:
    if trainer.strategy.memory is not None and state["world"] != trainer.world:
        raise InputError(
            f"{run.path}: found a run of {state['world']} processes, each with a memory of its own; expected as "
            f"many as now, {trainer.world}"
        )


def costs(trainer: ContinualTrainer) -> dict[str, Any]:
    """Return what the run took: seconds of training, bytes that the strategy keeps, most GPU bytes in use."""
    device = torch.device(trainer.state.device)
    memory = trainer.strategy.memory
    kept = _tensor_bytes(trainer.strategy.state_dict()) + (0 if memory is None else memory.nbytes)
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"seconds": round(trainer.seconds, 2), "memory_bytes": kept, "peak_gpu_bytes": gpu}


def _tensor_bytes(content: Any) -> int:
    """Return the bytes of all tensors in nested plain containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    if isinstance(content, dict):
        return sum(_tensor_bytes(v) for v in content.values())
    return sum(_tensor_bytes(v) for v in content) if isinstance(content, (list, tuple)) else 0
