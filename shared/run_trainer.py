"""MONAI's supervised trainer with run folders, checkpoints and exact resuming, whatever it is that learns."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events, RemovableEventHandle
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils import ensure_tuple
from torch import Tensor, nn

from .checkpoint import restore_handlers
from .data.embedded import task_name
from .data.loader import SampleLoader
from .data.sampler import ResumableSampler
from .errors import InputError
from .frozen import FrozenPhase
from .run_directory import RunDirectory
from .schedules import check_scheduler, schedule_settings
from .settings import digest
from .trainer_checkpoint import costs, restore, save_checkpoint, start_settings
from .trainer_hooks import TrainerHooks
from .weights import load_weights, network_settings, unwrap

__all__ = ["RunTrainer"]


class RunTrainer(TrainerHooks, SupervisedTrainer):
    """Train a network in a run folder; all MONAI and ignite handlers work on it.

    A run goes on where it was stopped, at the last epoch's end, and ends with the weights of an unbroken run (same
    machine, CPU, same seed: bit for bit). ``init_from`` carries weights and moments of another run on. A subclass says
    what an iteration is, :meth:`learn`, and overrides of :class:`~shared.trainer_hooks.TrainerHooks` what happens
    around the run and at its checkpoints.

    Args:
        device: where to train.
        network: may be wrapped in ``DistributedDataParallel``.
        optimizer: over the network's parameters.
        loss_function: for :meth:`learn`; its ``extra_repr`` goes into the run's record.
        dataset: of training samples, with ``settings()``: what decides them.
        run_dir: folder of the run.
        init_from: run_dir of an earlier run, or a weights file; None starts afresh.
        task: name, or names, for the record.
        batch_size: samples an iteration and process.
        max_epochs: number of checkpoints.
        epoch_length: iterations from one checkpoint to the next.
        seed: of the order of samples and of ``generator``.
        autocast: None, or "bfloat16" for the network's forward pass.
        max_norm: longest gradient (over all weights) that the optimizer is given; a longer one is scaled down.
        frozen: names of parameters, or of modules that hold them, that stay unchanged at first.
        frozen_iterations: for so many iterations; see :class:`FrozenPhase`.
        num_workers: threads that read samples ahead; None: see :class:`~shared.data.loader.SampleLoader`.
        scheduler: any torch learning rate scheduler that needs no metric, stepped once an iteration; its state is in
            the checkpoint, and so are those of schedulers attached as handlers.
        inferer: kept for handlers and hosts that ask for it.
        train_handlers: MONAI and ignite handlers.

    Raises:
        InputError: run_dir holds a run with other settings, ``init_from`` does not fit, a ``frozen`` name fits no
            parameter, an unknown ``autocast``, a ``max_norm`` that is not above zero, or a scheduler that is none.
        ValueError: MONAI's ``amp``.
    """

    def __init__(
        self,
        device: torch.device,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Any,
        dataset: torch.utils.data.Dataset,
        run_dir: str | Path,
        init_from: str | Path | None = None,
        task: str | Sequence[str] = "images",
        batch_size: int = 1,
        max_epochs: int = 1,
        epoch_length: int = 1,
        seed: int = 0,
        autocast: str | None = None,
        max_norm: float | None = None,
        frozen: str | Sequence[str] = (),
        frozen_iterations: int = 0,
        num_workers: int | None = None,
        scheduler: Any = None,
        inferer: Inferer | None = None,
        train_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if autocast not in (None, "bfloat16"):
            raise InputError(f"found autocast {autocast!r}, expected None or bfloat16")
        if kwargs.get("amp"):
            raise ValueError("found amp, expected autocast: bfloat16 needs no loss scaling")
        if max_norm is not None and (isinstance(max_norm, str) or not max_norm > 0):
            raise InputError(f"found max_norm {max_norm!r}, expected None or a number above 0")
        check_scheduler(scheduler)
        self.rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.task, self.seed, self.batch_size = task_name(task), seed, batch_size
        self.frozen, self.max_norm = FrozenPhase(network, frozen, frozen_iterations), max_norm
        self.run_directory = RunDirectory(run_dir, self.rank)
        self.init_from = Path(init_from).resolve() if init_from else None
        self.autocast, self.scheduler = autocast, scheduler
        self._schedule = schedule_settings(scheduler)  # as constructed: its state moves on while it is stepped
        self.generator = torch.Generator()
        self.passes = 0
        self.seconds, self._clock = 0.0, 0.0
        self.task_ended = False
        self.log_rows: list[dict[str, float]] = []
        self.handlers: list[Any] = list(ensure_tuple(train_handlers or ()))
        self.sampler = ResumableSampler(len(dataset), seed, self.rank, self.world)  # type: ignore[arg-type]
        loader = SampleLoader(dataset, self.sampler, batch_size, num_workers)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            epoch_length=epoch_length,
            inferer=inferer,
            train_handlers=train_handlers,
            decollate=False,
            **kwargs,
        )
        self._resumed: dict[str, Any] | None = None
        self._saves = False
        # After the handlers' own: a checkpoint loader that a host adds must not overwrite a resumed state.
        self.add_event_handler(Events.STARTED, lambda engine: engine._keep_resumed_state())

    def add_event_handler(self, event_name: Any, handler: Callable, *args: Any, **kwargs: Any) -> RemovableEventHandle:
        """Register a handler, as in ignite; a state that it keeps goes into the checkpoint."""
        self.handlers.append(handler)
        return super().add_event_handler(event_name, handler, *args, **kwargs)

    # -- one iteration -------------------------------------------------------------------------------------------------

    def learn(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Do one iteration on raw samples and return the loss parts by name, ``loss`` among them: a hook.

        It steps the optimizer and adds to ``passes`` the samples that went forward and back.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what an iteration is; expected a method learn")

    def prepare(self, sample: Any) -> Any:
        """Return a sample of the dataset as an iteration takes it, on the device: a hook; here, as it is."""
        return sample

    def draw_samples(self, count: int) -> Iterator[Any]:
        """Yield up to ``count`` different training samples, prepared; in :meth:`end` the same ones on every rank."""
        dataset = self.data_loader.dataset
        for index in torch.randperm(len(dataset), generator=self.generator)[:count].tolist():
            yield self.prepare(dataset[index])

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of what is inside as waiting for samples."""
        start = time.perf_counter()
        yield
        self.data_loader.waited += time.perf_counter() - start

    def precision(self) -> torch.autocast:
        """Return the context in which the network is called: bfloat16 where ``autocast`` asks for it."""
        device = torch.device(self.state.device)
        return torch.autocast(device.type, torch.bfloat16, enabled=self.autocast == "bfloat16")

    def _iteration(self, engine: Engine, batchdata: list[Any]) -> dict[str, Tensor]:
        self.network.train()
        self.frozen.enter(self.state.iteration)
        self._reseed(f"{self.state.iteration} {self.rank}")
        parts = self.learn(batchdata)
        if self.scheduler is not None:
            self.scheduler.step()
        engine.state.output = parts
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return parts

    def _before_step(self, *_: Any) -> None:
        """Run before every step of the optimizer, whoever asks for it."""
        self.frozen.drop_gradients()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)

    def _reseed(self, moment: str) -> None:
        self.generator.manual_seed(zlib.crc32(f"{self.seed} {self.task} {moment}".encode()))

    # -- the run -------------------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """Return everything that decides the result, in plain words."""
        return {
            "task": self.task,
            "data": self.data_loader.dataset.settings(),
            "network": network_settings(self.network),
            "objective": self.loss_function.extra_repr(),
            "optimizer": {k: str(v) for k, v in self.optimizer.param_groups[0].items() if k != "params"},
            **self.extra_settings(),
            "iterations": self.state.max_epochs * self.state.epoch_length,
            "batch_size": self.batch_size,
            "world": self.world,
            "seed": self.seed,
            "autocast": self.autocast,
            "scheduler": self._schedule,
            **start_settings(self),
            **self.frozen.settings(),
            **({} if self.max_norm is None else {"max_norm": self.max_norm}),
        }

    def final_weights(self) -> dict[str, Tensor]:
        """Return what ``model.pt`` of the complete run holds: a hook; here, the trained weights."""
        return unwrap(self.network).state_dict()

    def run(self) -> None:
        """Train, or go on training; a complete run only loads its model.

        Raises:
            InputError: see the class.
        """
        hook = self.optimizer.register_step_pre_hook(self._before_step)
        try:
            with self.run_directory.lock():
                self._run()
        finally:
            hook.remove()
            self.frozen.release()

    def _run(self) -> None:
        settings = self.settings()
        self.run_directory.check_settings(settings)
        if self.run_directory.is_done():
            load_weights(self.network, self.run_directory.model)
            self.say("this run is complete; nothing to train")
            return
        self._resumed = restore(self)
        self.say(self.data_loader.describe())
        self._clock = time.perf_counter()
        self.begin()
        if self.state.iteration < self.state.max_epochs * self.state.epoch_length:
            super().run()
        if not self.task_ended:
            self.frozen.release()
            self._reseed("end")  # killed in end, a run does it again: with the same draws, alike on all ranks
            self.end()
            self.task_ended = True
            self.save()
        record = {"settings": digest(settings), "passes": self.passes, **costs(self)}
        self.run_directory.finish(self.final_weights(), record)
        self.say(f"trained for {self.seconds:.0f} s, {record['wait_share']:.1%} of them waiting for samples")
        self.barrier()

    def say(self, text: str) -> None:
        """Print a line about the run, once."""
        if text and self.rank == 0:
            print(f"{self.run_directory.path}: {text}", flush=True)

    def _keep_resumed_state(self) -> None:
        if not self._saves:
            # After the handlers' own, those that a host adds late too: the checkpoint holds what a scheduler did.
            self.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.save())
            self._saves = True
        if self._resumed is not None:
            unwrap(self.network).load_state_dict(self._resumed["network"])
            restore_handlers(self.handlers, self._resumed["handlers"])

    def save(self) -> None:
        """Write a checkpoint: what a killed run goes on from.

        Raises:
            FloatingPointError: the weights are not finite; the last good checkpoint stays.
        """
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        save_checkpoint(self)

    def barrier(self) -> None:
        """Wait for the other ranks."""
        if self.world > 1:
            dist.barrier()
