"""What may lie in a run folder: generated samples, weights, statistics. Anything else is reported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.errors import InputError
from shared.files import load_tensors, read_json, save_json
from shared.hashes import hash_of_file

from .replay import INDEX

__all__ = ["check_private", "foreign_files"]

_WEIGHTS = {"model.pt", "model_previous.pt", "generator.pt", "state.pt"}
_STATE_KEYS = {
    *("iteration", "world", "task_ended", "network", "optimizer", "scheduler", "handlers", "rng", "passes", "seconds"),
    *("waited", "log", "average", "updates", "strategy", "strategy_name"),
}
_TABLES = {".log", ".lock"}
_LONGEST = 4096  # numbers in one list of a JSON file: a 64 x 64 image would have as many
_WIDEST = 64  # numbers in one row of a table: that image would have as many


def check_private(folders: Sequence[str | Path], record: str | Path) -> None:
    """Make sure that folders hold no image of a real patient, as far as :func:`foreign_files` can tell.

    Args:
        folders: of generator, replay and segmenter.
        record: JSON file that says what was looked at.

    Raises:
        InputError: something else lies there; the first files are named.
    """
    found = [f"{Path(folder) / line}" for folder in folders for line in foreign_files(folder)]
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{'; '.join(found[:3])}{more}: expected generated samples, weights and statistics alone, so that no "
            "image of a patient stays"
        )
    looked_at = {str(folder): sum(p.is_file() for p in Path(folder).rglob("*")) for folder in folders}
    save_json(record, {"files_looked_at": looked_at, "foreign_files": []})


def foreign_files(run_dir: str | Path) -> list[str]:
    """Return every file under a folder that is not a generated sample, weights or statistics, with what is wrong.

    A sample counts as generated where the index of its replay set lists it with the hash that it has. Weights and
    checkpoints may hold parameters, moments and counters; beside a ``state.pt``, weights must have the names and shapes
    of its network. TensorBoard events may hold scalars; tables may be text with few numbers a row: file names, scores.

    Args:
        run_dir: of generator, replay or segmenter; all folders below it are searched.

    Raises:
        InputError: no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError(f"{run_dir}: no such folder; expected a run_dir")
    listed = {path: digest for index in run_dir.rglob(INDEX) for path, digest in _samples(index)}
    found = []
    for path in sorted(p for p in run_dir.rglob("*") if p.is_file() or p.is_symlink()):
        fault = _fault(path, listed)
        if fault:
            found.append(f"{path.relative_to(run_dir)}: {fault}")
    return found


def _samples(index: Path) -> Iterator[tuple[Path, str]]:
    content = read_json(index)
    for entry in content.get("samples", []) if isinstance(content, dict) else []:
        yield index.parent / entry["file"], entry["sha256"]


def _fault(path: Path, listed: dict[Path, str]) -> str | None:
    """Return why a file does not belong, or None."""
    fault: str | None = "neither sample, weights nor statistics"
    if path.is_symlink():
        fault = "a link, expected files"
    elif path.suffix == ".npz":
        fault = _fault_of_sample(path, listed.get(path))
    elif path.name in _WEIGHTS:
        fault = _fault_of_weights(path)
    elif path.name.startswith("events.out.tfevents"):
        fault = _fault_of_events(path)
    elif path.suffix == ".json":
        longest = _longest_list(read_json(path))
        fault = f"a list of {longest} numbers" if longest >= _LONGEST else None
    elif path.suffix == ".csv":
        widest = _widest_row(path)
        fault = f"a row of {widest} numbers" if widest >= _WIDEST else None
    elif path.suffix in _TABLES or path.name in _TABLES:
        fault = None
    return fault


def _fault_of_sample(path: Path, digest: str | None) -> str | None:
    if digest is None:
        return "arrays that no replay index lists"
    return None if hash_of_file(path) == digest else "not the sample that its replay index lists"


def _fault_of_weights(path: Path) -> str | None:
    content = load_tensors(path)
    if not isinstance(content, dict):
        return f"a {type(content).__name__}, expected named weights"
    if path.name != "state.pt" and all(isinstance(value, Tensor) for value in content.values()):
        return _fault_beside_state(content, path.with_name("state.pt"))
    more = sorted(set(content) - _STATE_KEYS)
    more += _unlike_weights(content.get("strategy"), content.get("network", {}), "strategy")
    return f"holds {', '.join(more)}, expected weights, moments and counters" if more else None


def _fault_beside_state(weights: Mapping[str, Tensor], state: Path) -> str | None:
    """Compare weights with the network whose training they come from, where its checkpoint lies beside them."""
    checkpoint = load_tensors(state) if state.is_file() else {}
    network = checkpoint.get("network") if isinstance(checkpoint, dict) else None
    if not isinstance(network, dict):
        return None
    more = [name for name, value in weights.items() if name not in network or network[name].shape != value.shape]
    return (
        f"holds {', '.join(sorted(more))}, expected the names and shapes of the network in {state.name}"
        if more
        else None
    )


def _widest_row(path: Path) -> int:
    """Return the largest count of numbers in a line of a table, whatever separates them."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return max((sum(map(_is_number, re.split(r"[,;\s]+", line))) for line in lines), default=0)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unlike_weights(known: Any, weights: Mapping[str, Tensor], place: str) -> list[str]:
    """Return the places of tensors that have not the shape of the weight whose name they bear: images would be such."""
    if isinstance(known, Mapping):
        return [p for key, value in known.items() for p in _unlike_weights(value, weights, f"{place}/{key}")]
    if isinstance(known, (list, tuple)):
        return [p for number, value in enumerate(known) for p in _unlike_weights(value, weights, f"{place}/{number}")]
    name = place.rpartition("/")[2]
    fits = not isinstance(known, Tensor) or (name in weights and weights[name].shape == known.shape)
    return [] if fits else [place]


def _fault_of_events(path: Path) -> str | None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(path)).Reload().Tags()
    more = sorted(kind for kind in ("images", "audio", "tensors", "histograms") if tags.get(kind))
    return f"holds {', '.join(more)}, expected scalars" if more else None


def _longest_list(content: Any) -> int:
    """Return the length of the longest list of numbers, nested lists counted through."""
    if isinstance(content, dict):
        return max(map(_longest_list, content.values()), default=0)
    if isinstance(content, list):
        numbers = sum(isinstance(item, (int, float)) for item in content)
        nested = [_longest_list(item) for item in content]
        rows = sum(nested) if all(isinstance(item, list) for item in content) else max(nested, default=0)
        return max(numbers, rows)
    return 0
