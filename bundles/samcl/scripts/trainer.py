"""The continual trainer: the registration trainer with a strategy in the place of the single optimizer step."""

from __future__ import annotations

from shared.continual import StrategyHooks
from shared.trainer import RegistrationTrainer

__all__ = ["ContinualTrainer"]


class ContinualTrainer(StrategyHooks, RegistrationTrainer):
    """Train on one task with a continual strategy, see :class:`~shared.continual.StrategyHooks`.

    Args:
        strategy: see ``strategies.py``.
        options: of :class:`~shared.trainer.RegistrationTrainer`.
    """
