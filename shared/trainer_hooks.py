"""What a subclass of the run trainer may override to keep more than weights and moments."""

from __future__ import annotations

from typing import Any

from .run_directory import RunDirectory

__all__ = ["TrainerHooks"]


class TrainerHooks:
    """Hooks around a run and its checkpoints; as they stand here, they do nothing.

    In order: :meth:`load_extra_state` where a killed run goes on, :meth:`inherit` where an earlier run is built on, or
    :meth:`inherit_weights` where weights alone are; then :meth:`begin`, the iterations, :meth:`end`. At every
    checkpoint :meth:`write_extra_files` and :meth:`extra_state`, and when it counts, :meth:`prune_extra_files`.
    """

    def extra_settings(self) -> dict[str, Any]:
        """Return more of what decides the result, for the run's record."""
        return {}

    def begin(self) -> None:
        """Get ready, with weights, moments and extra state in place.

        Called again when a killed run goes on, then with the state of the checkpoint.
        """

    def end(self) -> None:
        """Take down what later runs need of this one; a killed run does it again, with the same draws."""

    def extra_state(self) -> dict[str, Any]:
        """Return more entries of the checkpoint, tensors and plain containers; alike on all ranks, rank 0 writes."""
        return {}

    def load_extra_state(self, state: dict[str, Any], run: RunDirectory) -> None:
        """Take up a checkpoint of this very run.

        Args:
            state: with the entries of :meth:`extra_state`, and all others.
            run: the folder, with the files of :meth:`write_extra_files`.

        Raises:
            InputError: it does not fit.
        """

    def inherit(self, state: dict[str, Any], previous: RunDirectory) -> None:
        """Take what the run of ``init_from`` hands on beside weights and moments; leave its folder as it is.

        Args:
            state: its last checkpoint.
            previous: its folder.

        Raises:
            InputError: it does not fit.
        """

    def inherit_weights(self) -> None:
        """Note that the run starts from the weights of a file, already loaded, with nothing else handed on."""

    def write_extra_files(self) -> None:
        """Write what lies in files of its own, on every rank, before the checkpoint that names it is committed.

        Nothing that the checkpoint before needs may go.
        """

    def prune_extra_files(self) -> None:
        """Delete what only earlier checkpoints needed, once the new one is committed."""

    def kept_bytes(self) -> int:
        """Return the bytes that are handed on beside weights and moments."""
        return 0
