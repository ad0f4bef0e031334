from __future__ import annotations

import os

import pytest
import torch

from shared.errors import InputError
from shared.files import (
    atomic_path,
    atomic_write,
    load_tensors,
    read_json,
    save_json,
    save_tensors,
    sole_owner,
    writable_dir,
)

WRITERS = {
    "bytes": lambda path: atomic_write(path, lambda stream: stream.write(b"new" * 5000)),
    "json": lambda path: save_json(path, {"a": list(range(5000))}),
    "tensors": lambda path: save_tensors(path, {"a": torch.zeros(5000)}),
}


def temporary(path):
    return path.with_name(f".tmp-{os.getpid()}-{path.name}")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, writer):
    path = tmp_path / "file"
    path.write_text("old")
    temporary(path).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"file: cannot be written \(No space left.*expected a writable folder"):
        WRITERS[writer](path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_path_below_a_file_is_named(tmp_path, writer):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(InputError, match=r"plain/file: cannot be written \(Not a directory\)"):
        WRITERS[writer](tmp_path / "plain" / "file")
    assert (tmp_path / "plain").read_text() == "x"


def test_an_exception_while_writing_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def die_in_the_middle() -> None:
        with atomic_path(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        die_in_the_middle()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_keeps_the_suffixes(tmp_path):
    with atomic_path(tmp_path / "image.nii.gz") as part:
        assert part.parent == tmp_path
        assert part.name.endswith("image.nii.gz")
        part.write_text("x")
    assert (tmp_path / "image.nii.gz").read_text() == "x"


def test_json_comes_back(tmp_path):
    save_json(tmp_path / "a.json", {"a": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None, "ü"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', r"a\.json: malformed JSON \(.*line 2 column 6.*expected a valid JSON"),
        (b"\xff\xfe\x00", r"a\.json: malformed JSON"),
        (b"", r"a\.json: malformed JSON"),
    ],
)
def test_malformed_json_is_located(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["", "missing.json", "plain/a.json"])
def test_unreadable_json_is_named(tmp_path, name):
    (tmp_path / "plain").touch()
    with pytest.raises(InputError, match="expected a JSON file"):
        read_json(tmp_path / name)


def test_tensors_come_back_with_plain_containers(tmp_path):
    content = {"w": torch.arange(4.0), "list": [1, "a", None, {"b": (2.0, True)}]}
    save_tensors(tmp_path / "a.pt", content)
    back = load_tensors(tmp_path / "a.pt")
    assert torch.equal(back.pop("w"), content.pop("w"))
    assert back == content


class Surprise:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_runs_code_is_refused(tmp_path, capsys):
    torch.save({"a": Surprise()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt: not readable as weights"):
        load_tensors(tmp_path / "a.pt")
    assert "executed" not in capsys.readouterr().out


def test_truncated_and_missing_weights_are_named(tmp_path):
    save_tensors(tmp_path / "a.pt", {"a": torch.zeros(1000)})
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.pt: not readable as weights"):
        load_tensors(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"b\.pt: no such file"):
        load_tensors(tmp_path / "b.pt")


def test_writable_dir_makes_parents_and_leaves_no_probe(tmp_path):
    assert writable_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["plain", "plain/below"])
def test_writable_dir_names_what_is_in_the_way(tmp_path, name):
    (tmp_path / "plain").write_text("x")
    with pytest.raises(InputError, match=rf"{name}: cannot be written .*expected a writable folder"):
        writable_dir(tmp_path / name)
    assert (tmp_path / "plain").read_text() == "x"


def test_a_folder_has_one_owner_at_a_time(tmp_path):
    with (
        sole_owner(tmp_path, "writer"),
        pytest.raises(InputError, match="another writer at work"),
        sole_owner(tmp_path, "writer", patience=0.1),
    ):
        pass
    with sole_owner(tmp_path, "writer", patience=0.1):
        pass
