import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from shared.data.motion import determinants, grid_points, inverse, move, random_velocity, voxels_to_points
from shared.data.synthetic import REGISTRATION_TASKS, is_current, write_registration_tasks
from shared.errors import InputError

FEW = {"training": 2, "validation": 1, "test": 3}


def read(path):
    return np.asanyarray(nib.load(path).dataobj)


def content_of(folder):
    return json.loads((folder / f"{folder.name}_dataset.json").read_text())


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dice(first, second, count):
    scores = []
    for label in range(1, count + 1):
        a, b = first == label, second == label
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return np.mean(scores)


def pull_back(volume, ddf):
    voxels = np.indices(volume.shape) + np.moveaxis(ddf, -1, 0)
    return map_coordinates(volume, voxels, order=0, mode="nearest")


def known_pairs(folder):
    content = content_of(folder)
    items = {item["image"]: item for item in content["training"] + content["test"]}
    for pair in content["registration_val"] + content["registration_test"]:
        yield items[pair["fixed"]], items[pair["moving"]], read(folder / pair["truth"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_registration_tasks(tmp_path_factory.mktemp("tasks"), size=24, counts=FEW)


@pytest.fixture(params=REGISTRATION_TASKS)
def folder(request, folders):
    return folders[request.param]


def test_tasks_come_in_the_order_asked_for(folders):
    assert tuple(folders) == REGISTRATION_TASKS


def test_every_file_of_the_dataset_file_exists_and_no_other(folder):
    content = content_of(folder)
    named = {file for item in content["training"] + content["test"] for file in item.values()}
    pairs = content["registration_val"] + content["registration_test"]
    named |= {pair["truth"] for pair in pairs} | {f"./{folder.name}_dataset.json"}
    assert {f"./{name}" for name in files_of(folder)} == named
    images = {item["image"] for item in content["training"] + content["test"]}
    for pair in pairs + content["training_paired_images"]:
        assert {pair["fixed"], pair["moving"]} <= images


def test_counts_are_kept(folder):
    content = content_of(folder)
    assert len(content["registration_val"]) == content["numRegistration_val"] == FEW["validation"]
    assert len(content["registration_test"]) == content["numRegistration_test"] == FEW["test"]
    assert len(content["training"]) == content["numTraining"]
    scans = {"synth_lung_ct": 2, "synth_abdomen_mrct": 2}.get(folder.name, 1) * FEW["training"]
    assert len(content["training"]) == scans + 2 * FEW["validation"]


def test_training_validation_and_test_patients_differ(folder):
    content = content_of(folder)

    def patients(pairs):
        return {pair[role].split("_")[-2] for pair in pairs for role in ("fixed", "moving")}

    validation, test = patients(content["registration_val"]), patients(content["registration_test"])
    training = {item["image"].split("_")[-2] for item in content["training"]} - validation
    assert len(training) >= FEW["training"]
    assert not test & (training | validation)
    assert not patients(content["training_paired_images"]) & (validation | test)


def test_only_lung_training_scans_are_paired(folders):
    paired = {name: len(content_of(folder)["training_paired_images"]) for name, folder in folders.items()}
    assert paired == {name: FEW["training"] * (name == "synth_lung_ct") for name in REGISTRATION_TASKS}


def test_unpaired_training_patients_have_one_modality_each(folders):
    content = content_of(folders["synth_abdomen_mrct"])
    training = content["training"][: -2 * FEW["validation"]]
    stems = [item["image"].removesuffix(".nii.gz").split("_")[-2:] for item in training]
    assert [suffix for _, suffix in stems] == ["0000", "0000", "0001", "0001"]
    assert len({patient for patient, _ in stems}) == len(stems)


def test_volumes_are_centred_and_of_one_shape(folder):
    item = content_of(folder)["training"][0]
    for kind in ("image", "label", "mask"):
        volume = nib.load(folder / item[kind])
        assert volume.shape == (24, 24, 24)
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
        np.testing.assert_allclose(volume.affine @ [11.5, 11.5, 11.5, 1], [0, 0, 0, 1], atol=1e-4)
    labels = content_of(folder)["labels"]["0"]
    assert set(np.unique(read(folder / item["label"]))) <= {int(number) for number in labels}
    assert set(np.unique(read(folder / item["mask"]))) == {0, 1}


def test_images_have_the_values_of_their_modality(folder):
    content = content_of(folder)
    for item in content["training"]:
        image = read(folder / item["image"])
        suffix = str(int(item["image"].removesuffix(".nii.gz").split("_")[-1]))
        modality = content["modality"].get(suffix, content["modality"]["0"])
        assert image.dtype == np.int16
        if modality == "CT":
            assert image.min() >= -1024
            assert abs(np.median(image[read(folder / item["label"]) == 0].clip(-1024, -950)) + 1000) < 60
            assert 250 < image.max() < 1500
        else:
            assert image.min() >= 0
            assert 400 < np.percentile(image, 99.5) < 4095


def test_ct_organs_have_their_hounsfield_values(folders):
    for name, organ, low, high in (
        ("synth_abdomen_ct", "liver", 60, 150),
        ("synth_abdomen_ct", "aorta", 90, 200),
        ("synth_lung_ct", "right lung", -900, -650),
    ):
        content = content_of(folders[name])
        number = next(int(key) for key, value in content["labels"]["0"].items() if value == organ)
        item = content["training"][0]
        voxels = read(folders[name] / item["image"])[read(folders[name] / item["label"]) == number]
        assert low < np.median(voxels) < high


def test_true_fields_do_not_fold(folder):
    for _, _, ddf in known_pairs(folder):
        assert ddf.shape == (24, 24, 24, 3)
        assert ddf.dtype == np.float32
        assert determinants(ddf).min() > 0.1


def test_true_fields_bring_the_labels_together(folder):
    count = len(content_of(folder)["labels"]["0"]) - 1
    start, end = [], []
    for fixed, moving, ddf in known_pairs(folder):
        first, second = read(folder / fixed["label"]), read(folder / moving["label"])
        start.append(dice(first, second, count))
        end.append(dice(first, pull_back(second, ddf), count))
    assert np.mean(end) > 0.8
    assert np.mean(end) > np.mean(start) + 0.12


def test_true_fields_carry_the_key_points(folder):
    for fixed, moving, ddf in known_pairs(folder):
        source, target = (np.loadtxt(folder / item["keypoints"], delimiter=",") for item in (fixed, moving))
        assert source.shape == target.shape == (96, 3)
        assert source.min() > 0
        assert source.max() < 23
        steps = [map_coordinates(ddf[..., axis], source.T, order=1) for axis in range(3)]
        assert np.linalg.norm(source - target, axis=1).mean() > 0.5
        assert np.linalg.norm(source + np.stack(steps, axis=1) - target, axis=1).max() < 0.3


def test_breathing_out_lifts_the_diaphragm(folders):
    for _, _, ddf in known_pairs(folders["synth_lung_ct"]):
        assert ddf[..., 2].mean() > 0.5


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path, folders):
    name = "synth_lung_ct"
    again = write_registration_tasks(tmp_path / "again", [name], size=24, counts=FEW)[name]
    other = write_registration_tasks(tmp_path / "other", [name], size=24, counts=FEW, seed=1)[name]
    assert files_of(again) == files_of(folders[name])
    for item in content_of(again)["training"]:
        assert (read(again / item["image"]) != read(other / item["image"])).any()


def test_another_size_shows_the_same_patient(tmp_path, folders):
    name = "synth_abdomen_ct"
    finer = write_registration_tasks(tmp_path, [name], size=48, counts={"training": 1, "validation": 0, "test": 0})[
        name
    ]
    item = content_of(finer)["training"][0]["label"]
    assert dice(read(finer / item)[::2, ::2, ::2], read(folders[name] / item), 7) > 0.75
    edges = [nib.load(path / item).header.get_zooms()[0] for path in (finer, folders[name])]
    assert edges[1] == pytest.approx(2 * edges[0])


def test_second_call_writes_nothing(tmp_path):
    arguments = {"tasks": ["synth_brain_mr"], "size": 16, "counts": FEW}
    folder = write_registration_tasks(tmp_path, **arguments)["synth_brain_mr"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_registration_tasks(tmp_path, **arguments)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("survived", [0, 1, 7, 30])
def test_interrupted_writing_is_completed_by_the_next_call(tmp_path, monkeypatch, survived):
    arguments = {"tasks": ["synth_abdomen_mrct"], "size": 16, "counts": FEW}
    whole = write_registration_tasks(tmp_path / "whole", **arguments)["synth_abdomen_mrct"]
    writes = []

    def dying(descriptor):
        writes.append(descriptor)
        if len(writes) > survived:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shared.files.os.fsync", dying)
        with pytest.raises(KeyboardInterrupt):
            write_registration_tasks(tmp_path / "cut", **arguments)
    cut = tmp_path / "cut" / "synth_abdomen_mrct"
    left = files_of(cut)
    assert len(left) == survived
    assert left.items() <= files_of(whole).items()
    write_registration_tasks(tmp_path / "cut", **arguments)
    assert files_of(cut) == files_of(whole)


def test_a_lost_file_is_written_again(tmp_path):
    arguments = {"tasks": ["synth_brain_mr"], "size": 16, "counts": FEW}
    folder = write_registration_tasks(tmp_path, **arguments)["synth_brain_mr"]
    whole = files_of(folder)
    (folder / content_of(folder)["test"][0]["label"]).unlink()
    write_registration_tasks(tmp_path, **arguments)
    assert files_of(folder) == whole


def test_other_settings_replace_the_folder(tmp_path):
    few = {"training": 1, "validation": 0, "test": 1}
    task = "synth_brain_mr"
    write_registration_tasks(tmp_path / "a", [task], size=16, counts=FEW)
    changed = write_registration_tasks(tmp_path / "a", [task], size=12, counts=few)[task]
    fresh = write_registration_tasks(tmp_path / "b", [task], size=12, counts=few)[task]
    assert files_of(changed) == files_of(fresh)


def test_a_real_dataset_is_never_overwritten(tmp_path):
    path = tmp_path / "synth_brain_mr" / "synth_brain_mr_dataset.json"
    path.parent.mkdir()
    path.write_text('{"name": "mine"}')
    with pytest.raises(
        InputError, match="dataset that was not written here, expected a synthetic one or another folder"
    ):
        write_registration_tasks(tmp_path, ["synth_brain_mr"])
    assert path.read_text() == '{"name": "mine"}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["synth_knee"]}, r"found unknown tasks \['synth_knee'\], expected some of \['synth_brain_mr'"),
        ({"tasks": "synth_brain_mr"}, "found tasks 'synth_brain_mr', expected a list of names"),
        ({"size": 4}, "found size 4, expected at least 8 voxels"),
        ({"counts": {"train": 3}}, r"found counts {'train': 3}, expected"),
        ({"counts": {"test": -1}}, "none negative"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        write_registration_tasks(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_motion_and_its_inverse_cancel():
    rng = np.random.default_rng(0)
    motion = [random_velocity(rng, 6, 3.0, 0.045), random_velocity(rng, 4, 2.0, 0.055)]
    points = grid_points(20)
    assert np.abs(move(points, motion) - points).max() > 0.1
    np.testing.assert_allclose(move(move(points, motion), inverse(motion)), points, atol=1e-3)


def test_nothing_moves_at_the_walls():
    velocity = random_velocity(np.random.default_rng(0), 6, 3.0, 0.1)
    walls = np.array([[1.2, 0, 0], [0, -1.2, 0.3], [0.5, 0.1, 1.3]], np.float32)
    np.testing.assert_allclose(move(walls, [velocity]), walls, atol=1e-5)


def test_voxel_centres_fill_the_cube():
    np.testing.assert_allclose(voxels_to_points(np.array([-0.5, 3.5, 7.5]), 8), [-1, 0, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRATION_TASKS)
def test_default_tasks_are_as_hard_as_documented(tmp_path, name):
    folder = write_registration_tasks(tmp_path, [name])[name]
    assert content_of(folder)["numRegistration_test"] >= 20
    count = len(content_of(folder)["labels"]["0"]) - 1
    scores = []
    for fixed, moving, ddf in known_pairs(folder):
        first, second = read(folder / fixed["label"]), read(folder / moving["label"])
        scores.append((dice(first, second, count), dice(first, pull_back(second, ddf), count)))
        assert determinants(ddf).min() > 0.1
    start, end = np.mean(scores, axis=0)
    low, high = (0.7, 0.85) if name == "synth_lung_ct" else (0.48, 0.64)
    assert low < start < high
    assert end > 0.86


def test_only_folders_of_this_version_are_current(tmp_path):
    assert not is_current(tmp_path / "synth_brain_mr")
    folder = write_registration_tasks(tmp_path, ["synth_brain_mr"], size=8, counts=FEW)["synth_brain_mr"]
    assert is_current(folder)
    path = folder / "synth_brain_mr_dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "synthetic": {**content["synthetic"], "version": 0}}))
    assert not is_current(folder)
    path.write_text(json.dumps({k: v for k, v in content.items() if k != "synthetic"}))
    assert is_current(folder)  # a user's own dataset under that name
