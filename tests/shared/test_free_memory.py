from pathlib import Path

import pytest
import torch

from shared.free_memory import free_bytes


def test_the_host_says_what_it_has():
    assert 1e6 < free_bytes() < 1e15
    assert 1e6 < free_bytes(torch.device("cpu")) < 1e15


def test_a_host_that_does_not_say_counts_as_free(monkeypatch):
    def missing(self):
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)
    assert free_bytes() > 1e6


def write_group(folder: Path, limit: str, used: int, names: tuple[str, str], cached: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip((*names, "memory.stat"), (limit, used, f"anon 5\n{cached} 100"), strict=True):
        (folder / name).write_text(f"{content}\n")


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch, old, outside):
    """Whether the limit is the process's own group's, or one that a container sees as the root."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    cached = "total_inactive_file" if old else "inactive_file"
    own, root = tmp_path / "own", tmp_path / ("groups/memory" if old else "groups")
    own.write_text("9:cpu,cpuacct:/job\n" + ("4:memory:/job/step\n" if old else "0::/job/step\n"))
    write_group(root if outside else root / "job", "5000000", 1000000, names, cached)
    if not outside:
        write_group(root / "job" / "step", "max", 1000, names, cached)
    monkeypatch.setattr("shared.free_memory.OWN_GROUPS", own)
    monkeypatch.setattr("shared.free_memory.CONTROL_GROUPS", tmp_path / "groups")
    assert free_bytes() == 4000100


def test_without_a_limit_the_host_counts(tmp_path, monkeypatch):
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr("shared.free_memory.OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("shared.free_memory.CONTROL_GROUPS", tmp_path)
    assert free_bytes() > 1e6
