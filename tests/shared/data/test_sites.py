"""The embedded sites: what is written, that it is written once, and that the sites differ as they should."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from shared.data.decathlon import channel_names, label_names, read_site
from shared.data.scanners import FundusCamera, MRScanner
from shared.data.site_patients import SITES
from shared.data.sites import SEGMENTATION_SITES, is_current_site, write_sites
from shared.data.slices import slice_axis
from shared.data.volumes import read_volume_grid
from shared.errors import InputError

FEW = {"size": 48, "patients": 3}
SITE = "site_prostate_1"


def content_of(folder):
    return json.loads((folder / "dataset.json").read_text())


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def items_of(folder):
    content = content_of(folder)
    return [item for split in ("training", "validation", "test") for item in content[split]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_sites(tmp_path_factory.mktemp("sites"), **FEW)


@pytest.fixture(params=SEGMENTATION_SITES)
def folder(request, folders):
    return folders[request.param]


def test_sites_come_in_the_order_asked_for(folders):
    assert tuple(folders) == SEGMENTATION_SITES
    assert [sum(kind in name for name in folders) for kind in ("prostate", "fundus")] == [6, 4]


def test_every_file_of_the_dataset_file_exists_and_no_other(folder):
    named = {file for item in items_of(folder) for file in item.values()}
    assert {f"./{name}" for name in files_of(folder)} == named | {"./dataset.json"}


def test_the_folder_is_laid_out_as_the_decathlon(folder):
    content = content_of(folder)
    assert content["numTraining"] == len(content["training"]) == 1
    assert all(item["image"].startswith("./imagesTr/") for item in content["training"] + content["validation"])
    assert all(item["image"].startswith("./imagesTs/") for item in content["test"])
    listed = load_decathlon_datalist(folder / "dataset.json", True, "training", folder)
    assert listed == [{k: i[k] for k in ("image", "label")} for i in read_site(folder.parent, folder.name, "train")]


def test_images_have_the_channels_and_labels_that_the_dataset_file_names(folder):
    channels, names = channel_names(folder.parent, folder.name), label_names(folder.parent, folder.name)
    for item in items_of(folder):
        image, label = (nib.load(folder / item[kind]) for kind in ("image", "label"))
        assert image.shape[:3] == label.shape
        assert (image.shape[3] if image.ndim > 3 else 1) == len(channels)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert set(np.unique(label.dataobj)) == {0, *names}
        assert np.ptp(np.asarray(image.dataobj)) > 20
    assert list(names.values()) == (["disc", "cup"] if "fundus" in folder.name else ["prostate"])


@pytest.mark.parametrize("size", [48, 64])
def test_slices_lie_across_the_axis_of_the_largest_spacing_at_every_size(size):
    for site in SITES:
        if isinstance(site.scanner, MRScanner):
            shape, spacing = site.scanner.grid(size, 58.0)
            assert spacing[2] > 1.02 * spacing[0]
            assert 9 <= shape[2] <= 15
        else:
            assert site.scanner.grid(size)[0][2] == 1


def test_volumes_are_centred_and_cover_the_field_of_view_of_their_scanner(folders):
    for site in SITES:
        grid = read_volume_grid(folders[site.name] / items_of(folders[site.name])[0]["image"])
        assert grid.shape[0] * grid.spacing_mm[0] == pytest.approx(site.scanner.field_mm)
        assert slice_axis(grid) == 2
        centre = grid.affine[:3, :3] @ ((np.array(grid.shape) - 1) / 2) + grid.affine[:3, 3]
        np.testing.assert_allclose(centre, 0, atol=1e-3)


def test_the_prostate_has_its_size_in_mm_at_every_site(folders):
    for name, folder in folders.items():
        if "prostate" not in name:
            continue
        for item in items_of(folder):
            label = nib.load(folder / item["label"])
            millilitres = np.asarray(label.dataobj).sum() * abs(np.linalg.det(label.affine[:3, :3])) / 1000
            assert 20 < millilitres < 110


def test_the_cup_lies_in_the_disc(folders):
    for name, folder in folders.items():
        if "fundus" not in name:
            continue
        for item in items_of(folder):
            label = np.asarray(nib.load(folder / item["label"]).dataobj)[:, :, 0]
            cup, disc = label == 2, label > 0
            around = [np.roll(disc, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
            assert all(a[cup].all() for a in around)
            assert 0.1 < cup.sum() / disc.sum() < 0.7


def test_sites_show_the_same_tissues_differently(folders):
    ratios = {}
    for name, folder in folders.items():
        inside, outside = [], []
        for item in items_of(folder):
            image, label = (np.asarray(nib.load(folder / item[kind]).dataobj) for kind in ("image", "label"))
            image = image if image.ndim == 3 else image.mean(axis=-1)
            inside.append(image[label > 0].mean())
            outside.append(image[label == 0].mean())
        ratios[name] = np.mean(inside) / np.mean(outside)
    prostate = [ratio for name, ratio in ratios.items() if "prostate" in name]
    assert min(prostate) < 0.8
    assert max(prostate) > 2


def test_a_second_call_writes_nothing_and_equal_arguments_give_equal_bytes(tmp_path, folders):
    folder = write_sites(tmp_path, [SITE], **FEW)[SITE]
    assert files_of(folder) == files_of(folders[SITE])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_sites(tmp_path, [SITE], **FEW)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_sites_and_seeds_differ(tmp_path, folders):
    other = write_sites(tmp_path, [SITE], **FEW, seed=1)[SITE]
    ours, theirs = files_of(folders[SITE]), files_of(other)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if ours[name] == theirs[name]]
    labels = [
        np.asarray(nib.load(folders[n] / items_of(folders[n])[0]["label"]).dataobj) for n in (SITE, "site_prostate_2")
    ]
    assert labels[0].shape != labels[1].shape or (labels[0] != labels[1]).any()


@pytest.mark.parametrize("survived", [0, 1, 4])
def test_interrupted_writing_is_completed_by_the_next_call(tmp_path, monkeypatch, folders, survived):
    writes = []

    def dying(descriptor):
        writes.append(descriptor)
        if len(writes) > survived:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shared.files.os.fsync", dying)
        with pytest.raises(KeyboardInterrupt):
            write_sites(tmp_path, [SITE], **FEW)
    assert not is_current_site(tmp_path / SITE)
    assert files_of(tmp_path / SITE).items() <= files_of(folders[SITE]).items()
    assert len(files_of(tmp_path / SITE)) == survived
    assert files_of(write_sites(tmp_path, [SITE], **FEW)[SITE]) == files_of(folders[SITE])


def test_a_lost_file_is_written_again_and_other_settings_replace_the_folder(tmp_path, folders):
    folder = write_sites(tmp_path, [SITE], size=48, patients=4)[SITE]
    assert len(files_of(folder)) == 9
    write_sites(tmp_path, [SITE], **FEW)
    assert files_of(folder) == files_of(folders[SITE])
    (folder / content_of(folder)["test"][0]["label"]).unlink()
    write_sites(tmp_path, [SITE], **FEW)
    assert files_of(folder) == files_of(folders[SITE])


def test_a_real_dataset_is_never_overwritten(tmp_path):
    path = tmp_path / SITE / "dataset.json"
    path.parent.mkdir()
    path.write_text('{"name": "mine"}')
    with pytest.raises(InputError, match="dataset that was not written here, expected a synthetic one or another"):
        write_sites(tmp_path, [SITE])
    assert path.read_text() == '{"name": "mine"}'
    assert is_current_site(tmp_path / SITE)


def test_only_folders_of_this_version_are_current(tmp_path):
    folder = write_sites(tmp_path, [SITE], **FEW)[SITE]
    assert is_current_site(folder)
    assert not is_current_site(tmp_path / "site_prostate_2")
    content = content_of(folder)
    (folder / "dataset.json").write_text(json.dumps({**content, "synthetic": {**content["synthetic"], "version": 0}}))
    assert not is_current_site(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": ["site_prostate_7"]}, r"found no site 'site_prostate_7' \(did you mean 'site_prostate_6'\?\)"),
        ({"sites": SITE}, f"found sites '{SITE}', expected a list of names"),
        ({"size": 32}, "found size 32, expected at least 48 voxels"),
        ({"patients": 2}, "found 2 patients, expected at least 3"),
        ({"patients": 0}, "found 0 patients, expected at least 3"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        write_sites(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_coil_in_the_rectum_brightens_its_surroundings():
    points = np.array([[0, -0.35, 0], [0, 0.9, 0]], np.float32)
    tissue, texture = np.full(2, 2, np.uint8), np.zeros(2, np.float32)  # muscle
    means = []
    for balloon in (0.0, 8.0):
        scanner = MRScanner(field_mm=150, thickness_mm=4, balloon=balloon, bias=0.0, noise=0.0, blur_mm=1e-3)
        image = scanner.render(tissue, texture, points, (2, 1, 1), np.random.default_rng(0))
        means.append(image[0, 0, 0] / image[1, 0, 0])
    assert means[1] > 5 * means[0]


def test_the_aperture_hides_the_corners():
    points = np.array([[0, 0, 0], [1.4, 1.4, 0]], np.float32)
    assert FundusCamera(field_mm=9, aperture=0.95).outside(points).tolist() == [False, True]
    assert not FundusCamera(field_mm=9).outside(points).any()
