import json

import pytest

from bundles.smdr.scripts.rehearsal import CaseRehearsal
from shared.errors import InputError
from shared.hashes import hash_of_file
from shared.host_run import HostRun


@pytest.fixture
def files(tmp_path):
    """Four cases; what they hold does not matter here."""
    paths = [tmp_path / f"case{number}.nii.gz" for number in range(4)]
    for path in paths:
        path.write_text(path.name)
    return paths


def rehearsal(root, files, **replay_options):
    host = HostRun([{"image": str(path), "label": "x"} for path in files], root, "site")
    return CaseRehearsal(host, {}, {}, replay_options)


def replay_set(root, name, files=None, complete=True):
    folder = root / "models" / "replay" / name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"complete": complete}))
    if files is not None:
        (folder / "cases.json").write_text(json.dumps([hash_of_file(path) for path in files]))
    return folder


def test_sets_of_other_cases_are_rehearsed(tmp_path, files, capsys):
    shipped = replay_set(tmp_path, "site_1")
    other = replay_set(tmp_path, "labelled_0001", files[:2])
    replay_set(tmp_path, "labelled_0002", files[2:3])
    replay_set(tmp_path, "labelled_0003", files[:1], complete=False)
    assert rehearsal(tmp_path, files[2:]).sets([]) == [other, shipped]
    assert "rehearsed from the bundle's generator: labelled_0001, site_1" in capsys.readouterr().out


def test_of_sets_of_the_same_cases_the_newest_counts(tmp_path, files):
    replay_set(tmp_path, "labelled_0001", files[:1])
    newer = replay_set(tmp_path, "labelled_0002", files[:2])
    assert rehearsal(tmp_path, files[3:]).sets([]) == [newer]


def test_without_sets_it_is_said(tmp_path, files, capsys):
    assert rehearsal(tmp_path, files).sets([]) == []
    assert "found no replay set of other cases, so nothing learnt before is rehearsed" in capsys.readouterr().out


def test_sets_that_are_asked_for_and_runs_on_folders_are_left_alone(tmp_path, files):
    replay_set(tmp_path, "labelled_0001", files[:1])
    assert rehearsal(tmp_path, files[3:]).sets(["mine"]) == ["mine"]
    folders = HostRun([{"image": "a", "label": "b", "site": "s"}], tmp_path, "s")
    quiet = CaseRehearsal(folders, {}, {}, {"count": 100})
    assert quiet.sets([]) == []
    quiet.remember(tmp_path)


def test_a_count_of_zero_leaves_no_set(tmp_path, files):
    rehearsal(tmp_path, files, count=0).remember(tmp_path)
    assert not (tmp_path / "models").exists()


def test_cases_that_the_generator_cannot_learn_spoil_nothing(tmp_path, files, capsys, monkeypatch):
    def refuse(**_):
        raise RuntimeError("in a config") from InputError("no sample was fit")

    monkeypatch.setattr("monai.bundle.run", refuse)
    rehearsal(tmp_path, files).remember(tmp_path)
    assert "no replay set is made of these cases: no sample was fit" in capsys.readouterr().out


def test_other_errors_are_not_hidden(tmp_path, files, monkeypatch):
    def fail(**_):
        raise RuntimeError("a defect")

    monkeypatch.setattr("monai.bundle.run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        rehearsal(tmp_path, files).remember(tmp_path)
