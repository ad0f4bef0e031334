"""The generator of pairs: it learns a task's pairs after the task, and draws pairs for the tasks to come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from shared.data.pairs import Sample
from shared.diffusion import (
    LATER_SITES,
    DenoisingLoss,
    DiffusionTrainer,
    SiteDiffusion,
    draw_samples,
    load_generator,
    parameter_groups,
    prepare_generator,
    sample_seed,
)
from shared.errors import InputError
from shared.handlers import TrainingLog
from shared.run_directory import checkpoint_count

from .pair_code import PairCode, labels_of

__all__ = ["PairGenerator"]


class _CodedPairs(Dataset):
    """Pairs of a dataset as channels (C, *S) in [-1, 1]."""

    def __init__(self, dataset: Any, code: PairCode) -> None:
        self.dataset, self.code = dataset, code

    def settings(self) -> dict[str, Any]:
        return {**self.dataset.settings(), "labels": str(self.code.labels)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        return self.code.encode(self.dataset[index])


class _PairTrainer(DiffusionTrainer):
    """The generator's training on the pairs of one task."""

    def clean(self, samples: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.stack(list(samples)).to(self.state.device), self.numbers(samples)

    def statistics(self) -> dict[str, Any]:
        return {"labels": self.data_loader.dataset.code.labels, "pairs": len(self.data_loader.dataset)}


class PairGenerator:
    """How a diffusion model of pairs is trained and sampled; it holds options alone, the model lies in a folder.

    The model is ``SiteDiffusion``, of the segmentation bundle's replay (Xu et al., arXiv 2406.18037, 2024), with pairs
    in the place of images; its use for registration is this project's own.

    Args:
        iterations: of training, each task.
        batch_size: pairs an iteration.
        learning_rate: of the denoiser.
        prompt_learning_rate: of a task's prompt and modulation.
        average_decay: of the weights that draw, see ``MovingAverage``.
        later_tasks: what learns at a later task: "full", denoiser and prompt; "film" or "prompt" alone leave the
            denoiser as the first task formed it.
        label_bits: channels of a label map, see :class:`~.pair_code.PairCode`.
        steps: of sampling (DDIM).
        sampling_batch_size: pairs drawn at a time; part of what decides their bits.
        patience: give up when so many times the wanted pairs have been drawn.
        network: options of ``SiteDiffusion``; the pairs decide its sizes and channels.

    Raises:
        InputError: an unknown ``later_tasks``.
    """

    def __init__(
        self,
        iterations: int = 1500,
        batch_size: int = 8,
        learning_rate: float = 0.002,
        prompt_learning_rate: float = 0.01,
        average_decay: float = 0.995,
        later_tasks: str = "full",
        label_bits: int = 4,
        steps: int = 25,
        sampling_batch_size: int = 8,
        patience: int = 20,
        network: Mapping[str, Any] | None = None,
    ) -> None:
        if later_tasks not in LATER_SITES:
            raise InputError(f"found later_tasks {later_tasks!r}, expected one of: {', '.join(LATER_SITES)}")
        self.iterations, self.batch_size = iterations, batch_size
        self.learning_rate, self.prompt_learning_rate = learning_rate, prompt_learning_rate
        self.average_decay, self.later_tasks, self.label_bits = average_decay, later_tasks, label_bits
        self.steps, self.sampling_batch_size, self.patience = steps, sampling_batch_size, patience
        self.network = dict(network or {})

    def __repr__(self) -> str:
        return f"PairGenerator({', '.join(f'{k}={v}' for k, v in vars(self).items())})"

    def code(self, dataset: Any, task: str) -> PairCode:
        """Return how the pairs of a task become channels, and check that a generator can learn them.

        Raises:
            InputError: labels, image sizes or options that it cannot take.
        """
        code = PairCode(labels_of(dataset, task), self.label_bits)
        with _own_randomness(torch.device("cpu"), 0):
            model = self._model(dataset)
        if model.architecture["timesteps"] % self.steps:
            total = model.architecture["timesteps"]
            raise InputError(f"found {self.steps} sampling steps, expected a number that divides timesteps, {total}")
        return code

    def _model(self, dataset: Any) -> SiteDiffusion:
        size = list(dataset[0]["fixed_image"].shape[1:])
        channels = {"channels": 2, "label_channels": 2 + 2 * self.label_bits}
        return SiteDiffusion(
            **{"pretended": 0, **self.network, "image_size": size, "spatial_dims": len(size), **channels}
        )

    def learn(
        self,
        task: str,
        dataset: Any,
        code: PairCode,
        run_dir: str | Path,
        init_from: str | Path | None,
        device: torch.device,
        seed: int,
    ) -> SiteDiffusion:
        """Train on a task in a run folder of its own; a killed training goes on where it stopped.

        Args:
            task: new to the generator.
            dataset: of the task's pairs.
            code: of :meth:`code`.
            run_dir: gets ``model.pt``, checkpoints and the training log.
            init_from: run_dir of the generator of the tasks before; None starts a new one.
            device: where to train.
            seed: of weights, order and noise.

        Returns:
            the trained generator, on ``device``.

        Raises:
            InputError: as the trainer and ``prepare_generator``.
        """
        checkpoints = checkpoint_count(self.iterations, 100)
        with _own_randomness(device, sample_seed(seed, task, 0)):
            model = prepare_generator(self._model(dataset), task, init_from, self.later_tasks).to(device)
            groups = parameter_groups(model, self.learning_rate, self.prompt_learning_rate)
            optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
            _PairTrainer(
                site=task,
                task=f"generator of {task}",
                device=device,
                network=model,
                optimizer=optimizer,
                loss_function=DenoisingLoss(),
                dataset=_CodedPairs(dataset, code),
                run_dir=run_dir,
                batch_size=self.batch_size,
                average_decay=self.average_decay,
                max_epochs=checkpoints,
                epoch_length=max(1, self.iterations // checkpoints),
                max_norm=1.0,
                scheduler=WarmupCosineSchedule(optimizer, max(1, self.iterations // 10), self.iterations),
                seed=seed,
                train_handlers=[TrainingLog(run_dir, interval=50)],
            ).run()
            return load_generator(run_dir).to(device)

    def draw(self, model: SiteDiffusion, task: str, count: int, seed: int) -> Iterator[Sample]:
        """Yield ``count`` pairs of a task that are fit for training, on the CPU; the same ones at every call.

        Raises:
            InputError: hardly any is.
        """
        code = PairCode(model.sites[task]["labels"], self.label_bits)
        dropped: Counter[str] = Counter()
        drawn = kept = 0
        with tqdm(total=count, desc=f"pairs of {task}", unit="pair", dynamic_ncols=True) as bar:
            while kept < count:
                if drawn >= self.patience * count:
                    raise InputError(
                        f"{task}: found {kept} fit pairs among {drawn} generated ones ({dict(dropped)}), expected "
                        f"{count}: train the generator longer"
                    )
                seeds = [sample_seed(seed, task, drawn + i) for i in range(self.sampling_batch_size)]
                drawn += len(seeds)
                for channels in draw_samples(model, task, seeds, self.steps).cpu():
                    sample = code.decode(channels, task)
                    fault = code.fault(sample)
                    if fault is not None:
                        dropped[fault] += 1
                    elif kept < count:
                        kept += 1
                        bar.update()
                        yield sample


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch inside and put its state back: new weights know no other source of randomness."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
