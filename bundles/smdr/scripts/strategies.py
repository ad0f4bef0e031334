"""Continual strategies of the segmenter: what one iteration does with the current site's slices and the past.

Sequential, EWC and SI are those of registration (``shared/continual``). Here: learning without forgetting on class
probabilities, and what replays earlier sites, from kept real slices or from generated replay sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from shared.continual import Distillation, Parts, Strategy
from shared.errors import InputError
from shared.weights import unwrap

from .alignment import ParallelAlignment
from .memory import ExemplarMemory, Past, draw_evenly

if TYPE_CHECKING:
    from .trainer import Batch, Sample, SegmenterTrainer

__all__ = ["ER", "FORGOTTEN", "SMDR", "LwF"]

FORGOTTEN = "what these weights have learnt of earlier sites will be forgotten"


class LwF(Distillation):
    """Learning without forgetting (Li & Hoiem, ECCV 2016), for segmentation: distil the previous site's probabilities.

    Added to the loss: ``strength`` times the mean over voxels of ``T^2 KL(teacher || student)``, of probabilities
    softened by the temperature T, on the current batch. One pass a sample, and a forward one.

    Args:
        strength: of the divergence.
        temperature: T, above 0.

    Raises:
        ValueError: a temperature that is not above 0.
    """

    def __init__(self, strength: float = 10.0, temperature: float = 2.0) -> None:
        if not temperature > 0:
            raise ValueError(f"found temperature {temperature}, expected a number above 0")
        super().__init__(strength)
        self.temperature = temperature

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the divergence of scores (B, classes, *S)."""
        student, teacher = ((scores / self.temperature).log_softmax(1) for scores in (output, target))
        divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(1).mean()
        return self.temperature**2 * divergence


class _Replay(Strategy):
    """Base of strategies whose batch is half current site, half earlier sites, each of these with the same share.

    Args:
        past: samples of the earlier sites: kept real slices, or replay sets.
        alignment: the objective of both halves.
    """

    def __init__(self, past: Past, alignment: ParallelAlignment) -> None:
        self.past, self._alignment = past, alignment
        self.memory: ExemplarMemory | None = past if isinstance(past, ExemplarMemory) else None
        self._learnt: list[str] = []

    def looks_back(self, init_from: str | Path | None) -> bool:
        """Whether a run that starts from there replays: the trainer asks, for the size of its batches."""
        if self.memory is None:
            return len(self.past) > 0
        return init_from is not None and Path(init_from).is_dir()

    def begin_task(self, trainer: SegmenterTrainer) -> None:
        """Compare what can be replayed with the sites that were learnt.

        Raises:
            InputError: an earlier site without samples, samples of the site that is learnt, or of another size; or no
                room in the memory for the site.
        """
        if self.memory is not None and not trainer.task_ended:
            self.memory.share_with(trainer.task)  # before hours of training, not at its end
        earlier, found = [site for site in self._learnt if site != trainer.task], list(self.past.sites)
        if self.memory is None and trainer.task in found:
            raise InputError(f"found a replay set of {trainer.task!r}, the site that is learnt; expected earlier ones")
        missing = [site for site in earlier if site not in found]
        if missing:
            raise InputError(
                f"{trainer.init_from or trainer.run_directory.path}: learnt {', '.join(earlier)}, but there is nothing "
                f"to replay of {', '.join(missing)}; expected replay_sets of all earlier sites"
            )
        if not found and trainer.init_from is not None and trainer.init_from.is_dir():
            wanted = "replay_sets of the earlier sites" if self.memory is None else "one that kept slices of its sites"
            raise InputError(f"{trainer.init_from}: found nothing to replay with this run, expected {wanted}")
        if self.memory is not None and not found and trainer.init_from is not None:
            trainer.say(f"{trainer.init_from}: found no kept slices, so nothing is replayed: {FORGOTTEN}")
        if found:
            shapes = [tuple(data[0]["image"].shape) for data in (self.past, trainer.data_loader.dataset)]
            if shapes[0] != shapes[1]:
                raise InputError(f"found replayed images {shapes[0]}, expected those of {trainer.task}, {shapes[1]}")

    def step(self, trainer: SegmenterTrainer, samples: Sequence[Sample]) -> Parts:
        """Do one optimizer step on the objective of this batch and as large a one of the earlier sites."""
        # The site just learnt is in the memory where a run is scored or resumed after its end, never while it learns.
        replayed = trainer.augment(draw_evenly(self.past, len(samples), trainer.generator))
        current = trainer.stack(samples)
        parts = self._descend_on(trainer, current, trainer.stack(replayed) if replayed else None)
        trainer.optimizer.step()
        return parts

    def _descend_on(self, trainer: SegmenterTrainer, current: Batch, replay: Batch | None) -> Parts:
        objective = self._alignment
        total, found = objective(trainer.loss, unwrap(trainer.network), current, replay, trainer.generator)
        count = len(current["image"]) + (0 if replay is None else len(replay["image"]))
        trainer.differentiate(total, count * ((objective.orientational > 0) + (objective.arbitrary > 0)))
        parts = {"loss": found.get("current", found.get("first", total.detach()))}
        parts.update({f"{name}_loss": value for name, value in found.items() if name != "current"})
        return parts

    def end_task(self, trainer: SegmenterTrainer) -> None:
        """Note the site as learnt, and keep some of it where real slices are kept."""
        self._learnt = [*self._learnt, trainer.task]
        if self.memory is not None:
            self.memory.add(trainer.task, trainer.data_loader.dataset, trainer.generator)

    def settings(self) -> dict[str, Any]:
        """Return the objective, and what is replayed."""
        return {**super().settings(), **self.past.settings()}

    def state_dict(self) -> dict[str, Any]:
        """Return the names of the sites that were learnt."""
        return {"learnt": self._learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up :meth:`state_dict`."""
        self._learnt = list(state["learnt"])


class ER(_Replay):
    """Experience replay (Rolnick et al., NeurIPS 2019): the sum of two losses, of the site and of the earlier ones.

    With replay sets, diffusion replay without alignment. Without an earlier site, plain training. One pass a sample.

    Args:
        past: samples of the earlier sites.
    """

    def __init__(self, past: Past) -> None:
        super().__init__(past, ParallelAlignment(step=0.0, orientational=1.0, arbitrary=0.0))


class SMDR(_Replay):
    """Parallel gradient alignment on replay (Xu et al., arXiv 2406.18037, 2024), see ``alignment.py``.

    With replay sets the full method, with kept slices alignment alone. At the first site, the two halves of the
    arbitrary part are augmented slices of that site. Every sample goes forward once for each part, so twice; the exact
    gradient of ``J_O`` makes its passes twice as costly as plain ones.

    Args:
        past: samples of the earlier sites.
        step: inner step ``a``.
        orientational: weight of ``J_O``, for memory; 0 leaves it out.
        arbitrary: weight ``lambda`` of ``J_A``, for unseen sites; 0 leaves it out.
        second_order: exact gradient of ``J_O``; False takes the first order.
        second_order_arbitrary: exact gradient of ``J_A``.

    Raises:
        ValueError: a negative number, or both weights 0.
    """

    def __init__(
        self,
        past: Past,
        step: float = 5e-4,
        orientational: float = 1.0,
        arbitrary: float = 1.0,
        second_order: bool = True,
        second_order_arbitrary: bool = False,
    ) -> None:
        self.inner_step, self.orientational, self.arbitrary = step, orientational, arbitrary
        self.second_order, self.second_order_arbitrary = second_order, second_order_arbitrary
        alignment = ParallelAlignment(step, orientational, arbitrary, second_order, second_order_arbitrary)
        super().__init__(past, alignment)
