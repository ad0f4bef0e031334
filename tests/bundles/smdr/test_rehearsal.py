import json
from pathlib import Path

import pytest
import torch

from bundles.smdr.scripts import rehearsal as module
from bundles.smdr.scripts.rehearsal import CaseRehearsal
from shared.errors import InputError
from shared.files import save_tensors
from shared.hashes import hash_of_file
from shared.host_run import HostRun
from tests.bundles import runs
from tests.bundles.smdr.tiny_generator import make_generator


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


@pytest.mark.parametrize("given", ["none", "folder", "sets", "afresh"])
def test_weights_without_replay_sets_are_told_to_forget(tmp_path, capsys, given):
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"")
    start = {"folder": tmp_path, "afresh": None}.get(given, weights)
    host = HostRun([{"image": "a", "label": "b", "site": "s"}], tmp_path, "s", start)
    sets = ["mine"] if given == "sets" else []
    assert CaseRehearsal(host, {}, {}, {"count": 100}).sets(sets) == sets
    told = (
        f"{weights}: found no replay_sets, so nothing is replayed: what these weights have learnt of earlier sites will"
    )
    assert capsys.readouterr().out.count(told) == (given == "none")


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


@pytest.fixture
def drawn(monkeypatch):
    """What is asked of the bundle's configs; a set that is asked for is complete."""
    asked = []

    def run(**options):
        asked.append(options)
        if options["run_id"] == "generating":
            folder = Path(options["output_dir"])
            folder.mkdir(parents=True)
            (folder / "index.json").write_text(json.dumps({"complete": True}))

    monkeypatch.setattr("monai.bundle.run", run)
    return asked


SLICES = {"slices": 1, "channels": 1, "spatial_size": [8, 8]}


def shipped(root, files, options=None, **generator_options):
    """A bundle with weights and a generator of two sites."""
    models = root / "models"
    models.mkdir(exist_ok=True)
    save_tensors(models / "model.pt", {"weight": torch.zeros(1)})
    generator = make_generator("site_1", **generator_options)
    generator.add_site("site_2")
    generator.save(models / "generator.pt")
    found = rehearsal(root, files)
    found.options = SLICES if options is None else options
    found.shipped_model = hash_of_file(models / "model.pt")
    return found


def test_what_the_weights_that_ship_have_learnt_is_drawn_once(tmp_path, files, drawn):
    first = shipped(tmp_path, files)
    sites = [tmp_path / "models" / "replay" / name for name in ("site_1", "site_2")]
    assert first.sets([]) == sites
    assert [(run["task"], run["generator"], run["model"]) for run in drawn] == [
        (site.name, str(tmp_path / "models" / "generator.pt"), str(tmp_path / "models" / "model.pt")) for site in sites
    ]
    assert first.sets([]) == sites
    assert len(drawn) == 2


def test_samples_of_a_hosts_cases_are_compared_with_the_cases(tmp_path, files, drawn, capsys):
    held_out = [{"image": "validation.nii.gz", "label": "x"}]
    host = HostRun([{"image": str(path), "label": "x"} for path in files], tmp_path, "site")
    CaseRehearsal(host, {}, {}, {}, held_out=held_out).remember(tmp_path)
    assert drawn[1]["real_images#training"] == host.cases
    assert drawn[1]["real_images#held_out"] == held_out
    assert "replay_set#originals" not in drawn[1]
    assert "not compared" not in capsys.readouterr().out


@pytest.mark.parametrize("held_out", [[], [{"image": "other", "label": "x", "site": "embedded"}]])
def test_without_cases_for_validation_it_is_said_that_nothing_is_compared(tmp_path, files, drawn, capsys, held_out):
    host = HostRun([{"image": str(path), "label": "x"} for path in files], tmp_path, "site")
    CaseRehearsal(host, {}, {}, {}, held_out=held_out).remember(tmp_path)
    assert drawn[1]["replay_set#originals"] == "$None"
    assert capsys.readouterr().out.count("are not compared with them: that needs cases for validation") == 1


def test_nothing_real_is_read_for_the_sites_that_ship(tmp_path, files, drawn, capsys):
    shipped(tmp_path, files).sets([])
    assert [run["replay_set#originals"] for run in drawn] == ["$None", "$None"]
    assert "compared" not in capsys.readouterr().out


def test_renewed_weights_do_not_label_what_ships(tmp_path, files, drawn, capsys):
    first = shipped(tmp_path, files)
    model, previous = tmp_path / "models" / "model.pt", tmp_path / "models" / "model_previous.pt"
    model.rename(previous)
    save_tensors(model, {"weight": torch.ones(1)})
    assert first.sets([]) == []
    first.shipped_model = None
    assert first.sets([]) == []
    assert drawn == []
    assert "found other weights" not in capsys.readouterr().out


def test_weights_put_there_do_not_label_what_they_never_learnt(tmp_path, files, drawn, capsys):
    first = shipped(tmp_path, files)
    model = tmp_path / "models" / "model.pt"
    save_tensors(model, {"weight": torch.ones(1)})
    assert first.sets([]) == []
    assert drawn == []
    told = f"{model}: found other weights than those that generator.pt ships with, so the sites that it draws are not"
    assert capsys.readouterr().out.count(told) == 1
    # Said to belong to whatever lies there: a pair of one's own.
    first.shipped_model = None
    assert [folder.name for folder in first.sets([])] == ["site_1", "site_2"]


def test_the_generator_that_ships_is_loaded_once_and_draws_no_random_number(tmp_path, files, drawn, monkeypatch):
    loaded = []
    load = module.load_generator
    monkeypatch.setattr(module, "load_generator", lambda *given: loaded.append(given) or load(*given))
    first, state = shipped(tmp_path, files), torch.random.get_rng_state()
    first.sets([])
    assert [path.name for path, _ in loaded] == ["generator.pt"]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_config_names_the_weights_that_ship():
    folder = runs.ROOT / "bundles" / "smdr"
    named = json.loads((folder / "configs" / "train.json").read_text())["rehearsal"]["shipped_model"]
    assert named == hash_of_file(folder / "models" / "model.pt")


def test_a_generator_of_other_images_is_told_and_left(tmp_path, files, drawn, capsys):
    assert shipped(tmp_path, files, {**SLICES, "spatial_size": [32, 32]}).sets([]) == []
    assert drawn == []
    assert "the generator that ships is not used" in capsys.readouterr().out


def test_a_generator_of_patches_is_used(tmp_path, files, drawn):
    patches = {"slices": 3, "channels": 1, "spatial_size": [8, 8, 8]}
    assert len(shipped(tmp_path, files, patches, spatial_dims=3).sets([])) == 2


def test_the_generator_goes_on_from_the_one_that_ships_then_from_its_own(tmp_path, files, drawn):
    found = shipped(tmp_path, files)
    found.remember(tmp_path)
    own = tmp_path / "runs" / "generator_labelled_0001"
    assert drawn[0]["generator_from"] == str(tmp_path / "models" / "generator.pt")
    assert drawn[0]["run_dir"] == drawn[1]["generator"] == str(own)
    own.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "model.pt"):
        (own / name).write_text("{}")
    again = shipped(tmp_path, files)
    again.remember(tmp_path)
    assert drawn[2]["generator_from"] == str(own)
