"""From files to files: what is written is one transform, seen alike by us and by ITK."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from shared.data.images import read_voxels
from shared.errors import InputError
from shared.quality_check import mutual_information
from shared.register import NetworkField, register
from shared.register.write import WRITTEN
from shared.transform_io import (
    Affine,
    Grid,
    Transform,
    read_point_file,
    read_transform,
    write_image,
    write_nifti,
    write_transform,
)
from shared.transform_io.images import itk_image
from tests.dicom_series import write_dicom
from tests.itk_peer import itk_points, itk_transform, itk_warped
from tests.shared.register.pairs import known_pair, plain_grid, structured, write_points

IMAGES = Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(scope="module", params=[3, 2], ids=["3D", "2D"])
def done(request, tmp_path_factory):
    """An oblique, flipped, anisotropic pair on different grids, registered from a file's affine."""
    folder = tmp_path_factory.mktemp(f"pair{request.param}d")
    pair, truth = known_pair(folder, request.param)
    points = pair.points(12)
    write_points(folder / "fixed.csv", points.numpy())
    write_points(folder / "moving.csv", truth.move(points).numpy())
    write_transform(folder / "start.txt", Transform((pair.affine,)))
    files = {f"{side}_{role}": folder / f"{side}_{role}.nii.gz" for side in ("fixed", "moving") for role in ("label",)}
    result = register(
        folder / "fixed.nii.gz",
        folder / "moving.nii.gz",
        folder / "out",
        init=folder / "start.txt",
        fixed_points=folder / "fixed.csv",
        moving_points=folder / "moving.csv",
        **files,
    )
    return folder, pair, truth, result


def test_everything_is_written_and_better_than_before(done):
    folder, _, _, result = done
    assert {path.name for path in (folder / "out").iterdir()} == set(WRITTEN)
    assert json.loads((folder / "out" / "metrics.json").read_text()) == result
    scores = result["scores"]
    assert scores["similarity"] > scores["similarity_before"] + 0.02
    assert scores["tre_mm"] < 0.5 * scores["tre_mm_before"]
    assert scores["dice"] > scores["dice_before"] + 0.1
    assert scores["folds_percent"] <= 0.01
    assert result["verdict"] == "ok", result["reasons"]


@pytest.mark.parametrize("name", ["transform.h5", "transform.nii.gz"])
def test_the_warped_image_is_what_itk_makes_of_the_transform(done, name):
    folder, pair, _, _ = done
    ours = nib.load(folder / "out" / "warped.nii.gz")
    np.testing.assert_allclose(ours.affine, nib.load(folder / "fixed.nii.gz").affine, atol=1e-6)
    warped = np.asarray(ours.dataobj)
    theirs = itk_warped(
        folder / "moving.nii.gz", folder / "fixed.nii.gz", itk_transform(folder / "out" / name, pair.dims)
    )
    inside = pair.interior(read_transform(folder / "out" / name, pair.dims))
    assert inside.mean() > 0.25
    assert np.abs(warped - theirs)[inside].max() < 1e-3 * np.ptp(warped)


def test_points_agree_with_itk(done):
    folder, pair, _, _ = done
    out = folder / "out"
    points = pair.points(12)
    moved = read_point_file(out / "fixed_points_in_moving.csv", pair.dims).world(None).numpy()
    theirs = itk_points(itk_transform(out / "transform.h5", pair.dims), points.numpy())
    np.testing.assert_allclose(moved, theirs, atol=1e-3)


def test_the_inverse_leads_back(done):
    folder, pair, truth, result = done
    out, voxel = folder / "out", float(np.prod(pair.fixed.spacing_mm) ** (1 / pair.dims))
    points = pair.points(200)
    there = read_transform(out / "transform.h5", pair.dims).move(points)
    seen = pair.moving.holds(pair.moving.to_voxels(there))
    assert seen.sum() > 100
    for name in ("inverse_transform.h5", "inverse_transform.nii.gz"):
        back = read_transform(out / name, pair.dims).move(there[seen])
        error = (back - points[seen]).norm(dim=1) / voxel
        assert float(error.quantile(0.95)) < 0.1, name
        assert float(error.max()) < 0.25, name
    landed = read_point_file(out / "warped_points.csv", pair.dims).world(None)
    again = read_transform(out / "transform.h5", pair.dims).move(landed)
    assert float((again - truth.move(pair.points(12))).norm(dim=1).max()) < 0.1 * voxel
    assert 0 <= result["scores"]["round_trip_mm"] <= result["scores"]["round_trip_max_mm"]
    assert result["scores"]["inverse_residual_mm"] >= 0


def test_labels_keep_their_type_and_the_affine_is_the_start(done):
    folder, pair, _, result = done
    label = nib.load(folder / "out" / "warped_label.nii.gz")
    assert label.get_data_dtype() == np.uint8
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 3}
    assert set(result["labels"]) == {"1", "2", "3"}
    np.testing.assert_allclose(
        read_transform(folder / "out" / "affine.txt").affine.matrix, pair.affine.matrix, atol=1e-6
    )


def test_the_picture_has_its_size(done):
    from PIL import Image

    folder, pair, _, _ = done
    with Image.open(folder / "out" / "qc.png") as picture:
        width, height = picture.size
        pixels = np.asarray(picture.convert("RGB"))
    assert width == 1754
    assert abs(height - {3: 523, 2: 328}[pair.dims]) <= 2
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200


def test_files_of_an_earlier_run_do_not_stay(tmp_path, monkeypatch):
    known_pair(tmp_path, 2)
    out, files = tmp_path / "out", (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")
    register(*files, out, init="none", optimise=0, moving_label=tmp_path / "moving_label.nii.gz")
    (out / "notes.txt").write_text("mine")
    (out / "warped_points.csv").write_text("x,y\n1,2\n")
    others = {"warped_label.nii.gz", "warped_points.csv", "fixed_points_in_moving.csv"}
    register(*files, out, init="none", optimise=0)
    assert {path.name for path in out.iterdir()} == {"notes.txt", *WRITTEN} - others

    def broken(*_: object) -> None:
        raise OSError("no space left on device")

    # What ends half-way leaves no scores beside files that they do not belong to.
    monkeypatch.setattr("shared.register.run.write_transform", broken)
    with pytest.raises(OSError, match="no space"):
        register(*files, out, init="none", optimise=0)
    assert {path.name for path in out.iterdir()} == {"notes.txt", "warped.nii.gz"}


def test_points_outside_are_kept_and_counted(tmp_path):
    pair, truth = known_pair(tmp_path, 2)
    points = pair.points(4).numpy()
    points[0] = [500.0, 500.0]
    write_points(tmp_path / "fixed.csv", points)
    write_points(tmp_path / "moving.csv", truth.move(torch.from_numpy(points)).numpy())
    said: list[str] = []
    result = register(
        tmp_path / "fixed.nii.gz",
        tmp_path / "moving.nii.gz",
        tmp_path / "out",
        fixed_points=tmp_path / "fixed.csv",
        moving_points=tmp_path / "moving.csv",
        guide="points",
        optimise=3,
        init="none",
        say=said.append,
    )
    assert "1 of 4 fixed points lie outside the fixed image: they are kept" in said
    assert result["points"]["fixed"] == {"count": 4, "outside": 1}
    assert result["points"]["warped_points"]["count"] == 4
    assert len((tmp_path / "out" / "warped_points.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("role", ["label", "mask"])
@pytest.mark.parametrize("d", [2, 3])
def test_labels_and_masks_lie_where_their_header_says(tmp_path, d, role):
    known_pair(tmp_path, d)
    label, grid = read_voxels(tmp_path / "moving_label.nii.gz", d)
    flipped = grid.affine.copy()
    flipped[:, d] += flipped[:, 0] * (grid.shape[0] - 1)
    flipped[:, 0] *= -1
    write_nifti(tmp_path / "flipped.nii.gz", np.ascontiguousarray(label[::-1]), Grid(grid.shape, flipped))
    pair_of = (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")
    options = {"init": "none", "optimise": 0, "fixed_label": tmp_path / "fixed_label.nii.gz"}
    options["moving_label"] = tmp_path / "moving_label.nii.gz"
    plain = register(*pair_of, tmp_path / "a", **options, moving_mask=tmp_path / "moving_label.nii.gz")
    options["moving_mask"] = tmp_path / "moving_label.nii.gz"
    with pytest.warns(UserWarning, match=rf"flipped\.nii\.gz: this {role} is stored with other axes") as told:
        other = register(*pair_of, tmp_path / "b", **options | {f"moving_{role}": tmp_path / "flipped.nii.gz"})
    assert other["scores"] == plain["scores"]
    assert f"warning: {told[0].message}" in other["log"]
    grid.affine[0, d] += 20
    write_nifti(tmp_path / "far.nii.gz", label, grid)
    with pytest.raises(InputError, match=rf"far\.nii\.gz: found a {role} that lies elsewhere in the world than"):
        register(*pair_of, tmp_path / "c", **options | {f"moving_{role}": tmp_path / "far.nii.gz"})


def test_before_the_registration_no_label_lies_outside_the_moving_label_map(tmp_path):
    image = structured((24, 24))
    # A crop that holds one label alone, shifted by half its size.
    grids = [plain_grid((24, 24)), plain_grid((24, 24))]
    grids[1].affine[0, 2] = 24.0
    for side, grid in zip(("fixed", "moving"), grids, strict=True):
        write_nifti(tmp_path / f"{side}.nii.gz", image, grid)
        write_nifti(tmp_path / f"{side}_label.nii.gz", np.full((24, 24), 5, np.uint8), grid)
    files = {f"{side}_label": tmp_path / f"{side}_label.nii.gz" for side in ("fixed", "moving")}
    result = register(
        tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out", **files, init="none", optimise=0
    )
    # Half of the fixed label map, and half of the moving one: 2 * 12 / (24 + 12).
    assert result["scores"]["dice_before"] == pytest.approx(2 / 3, abs=0.02)


def organ_and_table(folder: Path, places, table: int | None) -> dict[str, Path]:
    """Write two images (96, 96) of an organ at two places, over a table that stays, and a mask around each organ."""

    def disc(size: int, seed: int) -> np.ndarray:
        away = np.hypot(*(np.mgrid[:size, :size] - (size - 1) / 2))
        texture = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 1.5)
        return np.where(away < size / 2, 300 + 700 * (texture - texture.min()) / np.ptp(texture), 0)

    files, organ = {}, disc(24, 5)
    for side, (i, j) in zip(("fixed", "moving"), places, strict=True):
        image, mask = np.zeros((96, 96), np.float32), np.zeros((96, 96), np.uint8)
        if table is not None:
            image[table : table + 40, 50:90] = disc(40, 9)
        image[i : i + 24, j : j + 24], mask[i - 4 : i + 28, j - 4 : j + 28] = organ, 1
        for name, voxels in ((side, image), (f"{side}_mask", mask)):
            files[name] = folder / f"{name}.nii.gz"
            write_nifti(files[name], voxels, plain_grid((96, 96), 1.0))
    return files


def test_a_fit_without_optimisation_looks_at_the_masks(tmp_path):
    files = organ_and_table(tmp_path, ((60, 10), (60, 20)), 4)
    register(**files, out=tmp_path / "out", init="rigid", optimise=0)
    matrix = read_transform(tmp_path / "out" / "affine.txt", 2).affine.matrix
    organ = np.array([72.0, 22.0, 1.0])
    np.testing.assert_allclose((matrix @ organ)[:2], [72, 32], atol=1.0)


@pytest.mark.parametrize("init", ["rigid", "centre"])
def test_masks_may_meet_after_the_alignment_only(tmp_path, init):
    files = organ_and_table(tmp_path, ((36, 6), (36, 62)), None)
    result = register(**files, out=tmp_path / "out", init=init, optimise=3)
    assert result["verdict"] == "ok", result["reasons"]
    with pytest.raises(InputError, match="the masks leave nothing in common where the images overlap"):
        register(**files, out=tmp_path / "out", init="none", optimise=3)


def test_masks_that_do_not_meet_after_the_alignment_are_refused(tmp_path):
    files = organ_and_table(tmp_path, ((36, 36), (36, 36)), None)
    corner = np.zeros((96, 96), np.uint8)
    corner[:6, :6] = 1
    write_nifti(files["moving_mask"], corner, plain_grid((96, 96), 1.0))
    with pytest.raises(InputError, match="the masks leave nothing in common where the images overlap"):
        register(**files, out=tmp_path / "out", optimise=3)


def slide(size=128) -> np.ndarray:
    """Return a round piece of tissue of many grey values on white, as a microscope shows it."""
    away = np.hypot(*(np.mgrid[:size, :size] - size / 2))
    tissue = gaussian_filter(np.random.default_rng(3).standard_normal((size, size)), 1.0)
    tissue = 20 + 200 * (tissue - tissue.min()) / np.ptp(tissue)
    return np.where(away < 0.2 * size, tissue, 255).astype(np.uint8)


def test_images_on_a_bright_background_are_images(tmp_path):
    write_nifti(tmp_path / "fixed.nii.gz", slide(), plain_grid((128, 128), 1.0))
    write_nifti(tmp_path / "moving.nii.gz", np.roll(slide(), 3, 0), plain_grid((128, 128), 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out")
    assert result["scores"]["correlation"] > 0.9


@pytest.mark.parametrize("values", [100, 200])
def test_what_looks_like_labels_is_refused_and_with_many_values_warned_about(tmp_path, values):
    blocks = np.arange(225).reshape(15, 15).clip(max=values - 1).repeat(6, 0).repeat(6, 1).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", blocks, plain_grid(blocks.shape, 1.0))
    files = (tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", tmp_path / "out")
    if values > 128:
        with pytest.warns(UserWarning, match=r"a\.nii\.gz: looks like a label map \(200 whole values\); it is taken"):
            register(*files, init="none", optimise=0)
    else:
        with pytest.raises(InputError, match=r"a\.nii\.gz: looks like a label map \(100 whole values\), expected an"):
            register(*files, init="none", optimise=0)


def test_distances_before_and_after_are_over_the_same_labels(tmp_path):
    image = structured((40, 40))
    label = np.zeros((40, 40), np.uint8)
    # The second label leaves the fixed image with the shift that brings the first one into its place.
    label[10:20, 10:20], label[0:3, 30:36] = 1, 2
    shifted = np.where(np.roll(label, -4, 0) == 1, 1, 0).astype(np.uint8)
    shifted[0:3, 4:10] = 2
    for side, voxels, values in (("fixed", np.roll(image, -4, 0), shifted), ("moving", image, label)):
        write_nifti(tmp_path / f"{side}.nii.gz", voxels, plain_grid((40, 40), 1.0))
        write_nifti(tmp_path / f"{side}_label.nii.gz", values, plain_grid((40, 40), 1.0))
    shift = np.eye(3)
    shift[0, 2] = 4.0
    write_transform(tmp_path / "shift.txt", Transform((Affine(shift),)))
    labels = {f"{side}_label": tmp_path / f"{side}_label.nii.gz" for side in ("fixed", "moving")}
    files = (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out")
    result = register(*files, init=tmp_path / "shift.txt", optimise=0, **labels)
    assert result["labels"]["2"]["hd95_mm"] is None
    assert result["scores"]["hd95_mm"] == 0
    assert result["scores"]["hd95_mm_before"] == 4
    assert result["scores"]["labels_lost"] == 1


@pytest.mark.parametrize("init", ["centre", "rigid"])
def test_starts_without_optimisation_are_one_affine(tmp_path, init):
    pair, _ = known_pair(tmp_path, 2)
    register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out", init=init, optimise=0)
    whole = read_transform(tmp_path / "out" / "transform.h5", 2)
    points = pair.points(5)
    affine = read_transform(tmp_path / "out" / "affine.txt", 2)
    torch.testing.assert_close(whole.move(points), affine.move(points))


@pytest.mark.parametrize("d", [2, 3])
def test_the_optimisation_goes_on_from_a_composite(tmp_path, d):
    pair, truth = known_pair(tmp_path, d)
    write_transform(tmp_path / "truth.h5", truth)
    result = register(
        tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out", init=tmp_path / "truth.h5", optimise=10
    )
    assert "start: read from truth.h5" in result["log"]
    points = pair.points(30)
    reached = read_transform(tmp_path / "out" / "transform.h5", d).move(points)
    error = (reached - truth.move(points)).norm(dim=1)
    assert float(error.mean()) < 0.3 * float((truth.move(points) - points).norm(dim=1).mean())
    assert float(error.mean()) < 1.0


@pytest.mark.parametrize("d", [2, 3])
def test_points_pull_on_top_of_a_field_to_start_from(tmp_path, d):
    pair, truth = known_pair(tmp_path, d)
    write_transform(tmp_path / "truth.h5", truth)
    points = pair.points(12)
    write_points(tmp_path / "fixed.csv", points.numpy())
    write_points(tmp_path / "moving.csv", truth.move(points).numpy())
    result = register(
        tmp_path / "fixed.nii.gz",
        tmp_path / "moving.nii.gz",
        tmp_path / "out",
        init=tmp_path / "truth.h5",
        optimise=10,
        guide="points",
        fixed_points=tmp_path / "fixed.csv",
        moving_points=tmp_path / "moving.csv",
    )
    # The start has the landmarks in their places already.
    assert result["scores"]["tre_mm"] < 0.2 * result["scores"]["tre_mm_before"]


def test_a_network_gives_the_start(tmp_path):
    pair, truth = known_pair(tmp_path, 2)
    files = (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz")
    seen = []

    def field(images: torch.Tensor) -> torch.Tensor:
        from shared.transform_io import network_grid

        seen.append(tuple(images.shape))
        grid = network_grid(pair.fixed, (24, 20))
        return truth.ddf(grid, grid)

    good = register(
        *files, tmp_path / "a", init="none", optimise=0, network=NetworkField(field, (24, 20), name="oracle")
    )
    assert seen == [(1, 2, 24, 20)]
    assert good["scores"]["similarity"] > good["scores"]["similarity_before"]
    assert any(line.startswith("oracle: normalised mutual information") for line in good["log"])
    write_transform(tmp_path / "truth.h5", truth)

    def wild(images: torch.Tensor) -> torch.Tensor:
        return 6 * torch.randn(1, 2, 24, 20, generator=torch.Generator().manual_seed(0))

    start = {"init": tmp_path / "truth.h5", "optimise": 0}
    kept = register(*files, tmp_path / "b", **start, network=NetworkField(wild, (24, 20)))
    assert any("left out, its field makes the pair less alike" in line for line in kept["log"])
    points = pair.points(9)
    reached = read_transform(tmp_path / "b" / "transform.h5", 2).move(points)
    assert float((reached - truth.move(points)).norm(dim=1).max()) < 1e-3


def test_the_start_and_the_optimisation_share_one_time_limit(tmp_path):
    known_pair(tmp_path, 2)

    def slow(images: torch.Tensor) -> torch.Tensor:
        time.sleep(1.0)
        return torch.zeros(1, 2, 24, 20)

    result = register(
        tmp_path / "fixed.nii.gz",
        tmp_path / "moving.nii.gz",
        tmp_path / "out",
        init="none",
        time_limit=1.0,
        network=NetworkField(slow, (24, 20)),
    )
    assert "stopped by the time limit" in result["log"]
    assert not any(" iterations (" in line for line in result["log"])
    fitted = register(
        tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out", init="rigid", time_limit=0, optimise=0
    )
    assert fitted["log"][0].endswith("; stopped by the time limit)")


def test_guiding_labels_make_coarser_levels_where_memory_is_short(tmp_path):
    pair, _ = known_pair(tmp_path)
    labels = {f"{side}_label": tmp_path / f"{side}_parcels.nii.gz" for side in ("fixed", "moving")}
    for file, grid in zip(labels.values(), (pair.fixed, pair.moving), strict=True):
        i, j, k = (np.arange(n) * 5 // n for n in grid.shape)
        parcels = 1 + 25 * i[:, None, None] + 5 * j[:, None] + k
        write_nifti(file, parcels.astype(np.uint8), grid)
    files = (tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "out")
    options = {"init": "none", "optimise": 1, "memory_gb": 0.012}
    for guide, told in (("none", False), ("labels", True)):
        log = register(*files, **labels, **options, guide=guide)["log"]
        assert any("with 125 labels would take about" in line for line in log) == told


def test_other_formats(tmp_path):
    known_pair(tmp_path)
    for name, source in (("fixed.mha", "fixed.nii.gz"), ("moving.nrrd", "moving.nii.gz")):
        write_image(tmp_path / name, *read_voxels(tmp_path / source))
    options = {"init": "none", "optimise": 0}
    plain = register(tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz", tmp_path / "a", **options)
    other = register(tmp_path / "fixed.mha", tmp_path / "moving.nrrd", tmp_path / "b", **options)
    ours, theirs = (np.asarray(nib.load(tmp_path / out / "warped.nii.gz").dataobj) for out in "ab")
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert other["scores"]["similarity"] == pytest.approx(plain["scores"]["similarity"], abs=1e-4)


def test_a_dicom_folder_registers_as_the_same_image_in_one_file(tmp_path):
    known_pair(tmp_path)
    for side in ("fixed", "moving"):
        voxels, grid = read_voxels(tmp_path / f"{side}.nii.gz")
        whole = (10 * voxels).round().astype(np.int16)
        write_image(tmp_path / f"{side}.nrrd", whole, grid)
        write_dicom(tmp_path / side, itk_image(whole, grid), "1")
    options = {"init": "none", "optimise": 0, "modality": "ct"}
    plain = register(tmp_path / "fixed.nrrd", tmp_path / "moving.nrrd", tmp_path / "a", **options)
    series = register(tmp_path / "fixed", tmp_path / "moving", tmp_path / "b", **options)
    one, other = (nib.load(tmp_path / out / "warped.nii.gz") for out in "ab")
    np.testing.assert_allclose(other.affine, one.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(other.dataobj), np.asarray(one.dataobj), atol=0.05)
    assert series["scores"]["similarity"] == pytest.approx(plain["scores"]["similarity"], abs=1e-3)


def test_two_numbers_agree_with_theory():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20_000)
    assert mutual_information(x, x) == pytest.approx(2.0)
    assert mutual_information(x, rng.standard_normal(20_000)) < 1.03
    assert np.isnan(mutual_information(x[:5], x[:5]))


@pytest.mark.skipif(not IMAGES.is_dir(), reason=f"no real images at {IMAGES}")
def test_a_real_pair(tmp_path):
    folder = IMAGES / "brain_mr_ptbp_slab"
    result = register(
        folder / "child_1_t1.nii.gz",
        folder / "child_3_t1.nii.gz",
        tmp_path / "out",
        fixed_label=folder / "child_1_label.nii.gz",
        moving_label=folder / "child_3_label.nii.gz",
        optimise=15,
    )
    assert result["scores"]["dice"] > result["scores"]["dice_before"]
    assert result["scores"]["folds_percent"] <= 0.01
    assert result["verdict"] == "ok", result["reasons"]
