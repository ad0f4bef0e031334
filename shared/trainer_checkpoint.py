"""The trainer's checkpoint: written so that a kill spoils nothing, read by a resumed run and by the next one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .checkpoint import handler_states, plain
from .errors import InputError
from .files import load_tensors, read_json
from .hashes import hash_of_file
from .run_directory import RunDirectory
from .weights import load_weights, unwrap

if TYPE_CHECKING:
    from .run_trainer import RunTrainer

__all__ = ["costs", "restore", "save_checkpoint", "start_settings"]


def start_settings(trainer: RunTrainer) -> dict[str, Any]:
    """Return where a run starts, for its record: the path of ``init_from``, and the hash of the weights found there.

    A run that has begun needs its start no more, so one that is gone since stands as it was noted down.
    """
    source, run = trainer.init_from, trainer.run_directory
    if source is None:
        return {"init_from": "None"}
    model = source if source.is_file() else RunDirectory(source, read_only=True).model
    settings: dict[str, Any] = {"init_from": str(source)}
    if model.is_file():
        settings["weights_of_init_from"] = f"sha256 {hash_of_file(model)}"
    elif run.has_begun():
        settings["weights_of_init_from"] = read_json(run.settings).get("weights_of_init_from")
    return settings


def save_checkpoint(trainer: RunTrainer) -> None:
    """Write each rank's extra files, then, on rank 0, the state that makes them count.

    Raises:
        FloatingPointError: the weights are not finite; the last good checkpoint stays.
    """
    iteration = trainer.state.iteration
    if not all(bool(torch.isfinite(p).all()) for p in trainer.network.parameters()):
        raise FloatingPointError(
            f"iteration {iteration}: weights are not finite; lower the learning rate (or SAM's rho), or look at the "
            "data"
        )
    trainer.write_extra_files()
    trainer.barrier()
    state = {
        "iteration": iteration,
        "world": trainer.world,
        "task_ended": trainer.task_ended,
        "network": unwrap(trainer.network).state_dict(),
        "optimizer": plain(trainer.optimizer.state_dict()),
        **trainer.extra_state(),
        "scheduler": None if trainer.scheduler is None else plain(trainer.scheduler.state_dict()),
        "handlers": handler_states(trainer.handlers),
        "rng": torch.get_rng_state(),
        "passes": trainer.passes,
        "seconds": trainer.seconds,
        "waited": trainer.data_loader.waited,
        "log": trainer.log_rows,
    }
    trainer.run_directory.save_state(state)
    trainer.barrier()
    trainer.prune_extra_files()


def restore(trainer: RunTrainer) -> dict[str, Any] | None:
    """Go on from the checkpoint of a killed run and return it; without one start from ``init_from``, if given.

    Raises:
        InputError: ``init_from`` is no complete run, or one of another architecture.
    """
    run = trainer.run_directory
    state = run.load_state()
    if state is None:
        if trainer.init_from is not None:
            _start_from(trainer, trainer.init_from)
        return None
    trainer.load_extra_state(state, run)
    unwrap(trainer.network).load_state_dict(state["network"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    trainer.seconds, trainer.passes = float(state["seconds"]), state["passes"]
    trainer.data_loader.waited = float(state.get("waited", 0.0))
    trainer.log_rows, trainer.task_ended = list(state["log"]), state["task_ended"]
    trainer.state.iteration = state["iteration"]
    trainer.state.epoch = state["iteration"] // trainer.state.epoch_length
    trainer.sampler.position = state["iteration"] * trainer.batch_size
    return state


def _start_from(trainer: RunTrainer, source: Path) -> None:
    """Take weights, moments and what else is handed on from an earlier run; from a file, weights alone."""
    if source.is_file():
        load_weights(trainer.network, source)
        trainer.inherit_weights()
        return
    previous = RunDirectory(source, trainer.rank, read_only=True) if source.is_dir() else None
    if previous is None or not previous.is_done():
        raise InputError(f"{source}: found no complete run (model.pt with done.json); expected a run_dir or weights")
    load_weights(trainer.network, previous.model)
    state = load_tensors(previous.state)
    options = [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group, new in zip(trainer.optimizer.param_groups, options, strict=True):
        group.update(new)  # moments go on, rates are this task's
    trainer.inherit(state, previous)


def costs(trainer: RunTrainer) -> dict[str, Any]:
    """Return what the run took on this rank.

    Seconds of training, the share of them in which it waited for samples (new and replayed ones), bytes that it hands
    on, most GPU bytes in use.
    """
    device = torch.device(trainer.state.device)
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "seconds": round(trainer.seconds, 2),
        "wait_share": round(trainer.data_loader.waited / max(trainer.seconds, 1e-9), 4),
        "memory_bytes": trainer.kept_bytes(),
        "peak_gpu_bytes": gpu,
    }
