"""World geometry against closed forms, nibabel and ITK."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.fields import identity
from shared.transform_io import (
    Grid,
    affine_ddf,
    network_grid,
    points_to_grid,
    to_native,
    write_itk_displacement,
    write_nifti,
)
from shared.warp import warp, warp_points
from tests.itk_peer import itk_resampled
from tests.learn2reg_folder import affine, blobs, save

OBLIQUE = Grid((10, 12, 14), affine((1.5, 2.0, 3.0), (-20, 5, 11), degrees=17, order=(2, 0, 1), flip=(-1, 1, -1)))
FLIPPED = Grid((13, 9, 11), affine((2.0, 1.0, 1.7), (8, -3, 30), flip=(-1, -1, 1)))
PLAIN = Grid((12, 10, 11), affine((1.0, 1.3, 2.1), (-3, 2, 5)))
FLAT = Grid((12, 10), np.array([[-1.2, 0, 4], [0, 2.0, -7], [0, 0, 1]]))
FLAT_TURNED = Grid((9, 14), np.array([[0, 1.5, 1], [0.8, 0, 2], [0, 0, 1.0]]))
GRIDS = {"oblique": OBLIQUE, "flipped": FLIPPED, "plain": PLAIN, "flat": FLAT, "flat turned": FLAT_TURNED}
PAIRS = [("oblique", "flipped"), ("flipped", "oblique"), ("plain", "oblique"), ("flat", "flat turned")]


def world(grid: Grid, voxels: np.ndarray) -> np.ndarray:
    """Voxel coordinates (N, d) -> RAS millimetres."""
    return voxels @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]


def corners(grid: Grid) -> np.ndarray:
    """Outer voxel corners (2^d, d) in millimetres."""
    edges = np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape], indexing="ij")
    return world(grid, np.stack(edges, -1).reshape(-1, len(grid.shape)))


def ordered(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(np.round(points, 6).T)]


def voxels_of(grid: Grid) -> np.ndarray:
    return identity(grid.shape).reshape(len(grid.shape), -1).T.double().numpy()


def test_grid_knows_its_spacing_and_box():
    assert OBLIQUE.spacing_mm == pytest.approx((1.5, 2.0, 3.0))
    assert FLIPPED.box_mm() == "x:-17..9 mm, y:-12..-2 mm, z:29..48 mm"
    assert FLAT.box_mm() == "x:-10..5 mm, y:-8..12 mm"


def test_key_is_equal_to_a_micrometre():
    near, far = PLAIN.affine.copy(), PLAIN.affine.copy()
    near[0, 3] += 1e-5
    far[0, 3] += 1e-2
    assert Grid(PLAIN.shape, near).key == PLAIN.key
    assert Grid(PLAIN.shape, far).key != PLAIN.key
    assert Grid((12, 10, 12), PLAIN.affine).key != PLAIN.key
    assert len({PLAIN.key, OBLIQUE.key, FLAT.key}) == 3


@pytest.mark.parametrize("grid", [PLAIN, Grid((8, 8), np.diag([2.0, 3.0, 1.0]))])
def test_network_grid_of_the_same_size_is_the_image_grid(grid):
    assert network_grid(grid, grid.shape).key == grid.key


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("stretch", [1, 2])
def test_network_grid_covers_the_same_box_in_ras_order(name, stretch):
    image = GRIDS[name]
    d = len(image.shape)
    size = (16 * stretch, 8, 24)[:d]
    grid = network_grid(image, size)
    assert grid.shape == size
    np.testing.assert_allclose(ordered(corners(grid)), ordered(corners(image)), atol=1e-9)
    linear = grid.affine[:d, :d] / np.array(grid.spacing_mm)
    assert np.abs(linear).argmax(0).tolist() == list(range(d))
    assert (np.diag(linear) > 0).all()
    np.testing.assert_allclose(linear.T @ linear, np.eye(d), atol=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_network_grid_at_a_spacing_covers_the_image_around_its_centre(name):
    image = GRIDS[name]
    d = len(image.shape)
    spacing = (2.5, 1.5, 4.0)[:d]
    grid = network_grid(image, spacing_mm=spacing)
    assert grid.spacing_mm == pytest.approx(spacing)
    np.testing.assert_allclose(corners(grid).mean(0), corners(image).mean(0), atol=1e-9)
    inside = (corners(image) - grid.affine[:d, d]) @ np.linalg.inv(grid.affine[:d, :d]).T
    assert inside.min() > -0.5 - 1e-5
    assert (inside.max(0) < np.array(grid.shape) - 0.5 + 1e-5).all()
    smaller = network_grid(image, spacing_mm=spacing, size=(4, 5, 6)[:d])
    assert smaller.shape == (4, 5, 6)[:d]
    assert smaller.spacing_mm == pytest.approx(spacing)
    np.testing.assert_allclose(corners(smaller).mean(0), corners(image).mean(0), atol=1e-9)


def test_network_grid_needs_a_size_or_a_spacing():
    with pytest.raises(ValueError, match="size, spacing_mm or both"):
        network_grid(PLAIN)


@pytest.mark.parametrize(("target", "source"), PAIRS)
def test_affine_ddf_leads_to_the_same_world_point(target, source):
    target, source = GRIDS[target], GRIDS[source]
    d = len(target.shape)
    ddf = affine_ddf(target, source, torch.float64)
    assert ddf.shape == (1, d, *target.shape)
    reached = voxels_of(target) + ddf[0].reshape(d, -1).T.numpy()
    np.testing.assert_allclose(world(source, reached), world(target, voxels_of(target)), atol=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_affine_ddf_to_itself_is_zero(name):
    ddf = affine_ddf(GRIDS[name], GRIDS[name])
    assert ddf.dtype == torch.float32
    assert ddf.abs().max() < 1e-5


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_points_keep_their_world_position(source, target, generator):
    source, target = GRIDS[source], GRIDS[target]
    points = 9 * torch.rand(7, len(source.shape), generator=generator, dtype=torch.float64)
    moved = points_to_grid(points, source, target)
    np.testing.assert_allclose(world(target, moved.numpy()), world(source, points.numpy()), atol=1e-9)
    assert points_to_grid(points.float(), source, target).dtype == torch.float32


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
@pytest.mark.parametrize("spacing", [None, 2.7])
def test_to_native_of_a_translation_in_mm(fixed, moving, spacing):
    fixed, moving = GRIDS[fixed], GRIDS[moving]
    d = len(fixed.shape)
    shift_mm = np.array([3.0, -2.0, 4.5])[:d]
    network = network_grid(fixed, (8, 9, 10)[:d]) if spacing is None else network_grid(fixed, spacing_mm=[spacing] * d)
    in_voxels = torch.from_numpy(np.linalg.inv(network.affine[:d, :d]) @ shift_mm)
    ddf = in_voxels.reshape(1, d, *[1] * d).expand(1, d, *network.shape)
    fixed_ddf, total = to_native(ddf, network, fixed, moving)
    assert fixed_ddf.shape == total.shape == (1, d, *fixed.shape)
    there = fixed_ddf[0].reshape(d, -1).T.numpy() @ fixed.affine[:d, :d].T
    np.testing.assert_allclose(there, np.broadcast_to(shift_mm, there.shape), atol=1e-9)
    reached = voxels_of(fixed) + total[0].reshape(d, -1).T.numpy()
    np.testing.assert_allclose(world(moving, reached), world(fixed, voxels_of(fixed)) + shift_mm, atol=1e-9)


@pytest.mark.parametrize(("fixed", "moving"), PAIRS)
def test_zero_field_is_pure_resampling(fixed, moving):
    fixed, moving = GRIDS[fixed], GRIDS[moving]
    d = len(fixed.shape)
    network = network_grid(fixed, (8,) * d)
    fixed_ddf, total = to_native(torch.zeros(1, d, *network.shape), network, fixed, moving)
    assert fixed_ddf.abs().max() == 0
    torch.testing.assert_close(total, affine_ddf(fixed, moving), atol=1e-4, rtol=0)


def smooth_field(network: Grid, generator: torch.Generator, size: float = 1.2) -> torch.Tensor:
    """Return a smooth random field (1, d, *S) of a voxel or two."""
    d = len(network.shape)
    coarse = size * torch.randn(1, d, *[4] * d, generator=generator)
    mode = "trilinear" if d == 3 else "bilinear"
    return torch.nn.functional.interpolate(coarse, network.shape, mode=mode, align_corners=True)


@pytest.mark.parametrize("fixed", ["oblique", "flipped", "flat turned"])
def test_native_points_move_as_network_points_do(fixed, generator):
    fixed = GRIDS[fixed]
    d = len(fixed.shape)
    network = network_grid(fixed, (10, 9, 8)[:d])
    ddf = smooth_field(network, generator).double()
    fixed_ddf, _ = to_native(ddf, network, fixed, fixed)
    # At whole fixed voxels both fields are read without a second interpolation.
    start = torch.from_numpy(voxels_of(fixed))
    moved = warp_points(start[None], fixed_ddf)[0]
    reference = warp_points(points_to_grid(start, fixed, network)[None], ddf)[0]
    np.testing.assert_allclose(world(fixed, moved.numpy()), world(network, reference.numpy()), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("name", GRIDS)
def test_write_nifti_keeps_voxels_type_and_affine(tmp_path, name, dtype):
    grid = GRIDS[name]
    voxels = blobs(grid.shape).astype(dtype)
    write_nifti(tmp_path / "a.nii.gz", voxels, grid)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    d = len(grid.shape)
    np.testing.assert_allclose(image.affine[:d, :d], grid.affine[:d, :d], atol=1e-5)
    np.testing.assert_allclose(image.affine[:d, 3], grid.affine[:d, d], atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_write_nifti_below_a_file_is_refused(tmp_path):
    (tmp_path / "plain").touch()
    with pytest.raises(InputError, match=r"plain/a\.nii\.gz: cannot be written"):
        write_nifti(tmp_path / "plain" / "a.nii.gz", blobs(PLAIN.shape), PLAIN)


def test_displacement_file_holds_lps_millimetres(tmp_path):
    grid = Grid((4, 5, 6), np.diag([2.0, 3.0, 4.0, 1.0]))
    ddf = torch.tensor([1.0, 1.0, 1.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, *grid.shape)
    write_itk_displacement(tmp_path / "d.nii.gz", ddf, grid)
    image = nib.load(tmp_path / "d.nii.gz")
    assert image.shape == (4, 5, 6, 1, 3)
    assert int(image.header["intent_code"]) == 1007
    np.testing.assert_array_equal(np.unique(np.asarray(image.dataobj).reshape(-1, 3), axis=0), [[-2, -3, 4]])


def interior(inside: torch.Tensor, edge: int = 2) -> np.ndarray:
    """True where a voxel is off the border and samples the moving image off its border."""
    off_border = np.zeros(inside.shape, bool)
    off_border[tuple(slice(edge, -edge) for _ in inside.shape)] = True
    return off_border & inside.numpy()


@pytest.mark.parametrize(
    ("fixed", "moving"),
    [
        (Grid((20, 18, 22), OBLIQUE.affine), Grid((17, 24, 19), FLIPPED.affine)),
        (Grid((19, 21, 17), FLIPPED.affine), Grid((20, 18, 22), OBLIQUE.affine)),
        (Grid((21, 16, 18), PLAIN.affine), Grid((18, 20, 16), affine((2.2, 1.8, 1.4), degrees=-31, order=(1, 2, 0)))),
        (Grid((22, 18), FLAT.affine), Grid((20, 26), FLAT_TURNED.affine)),
    ],
    ids=["oblique fixed", "flipped fixed", "plain fixed", "2D"],
)
def test_warp_with_the_total_field_equals_itk_with_the_written_file(tmp_path, fixed, moving, generator):
    d = len(fixed.shape)
    # Both images around the same world point.
    centre = world(fixed, (np.array(fixed.shape) - 1) / 2) - world(moving, (np.array(moving.shape) - 1) / 2)
    matrix = moving.affine.copy()
    matrix[:d, d] += centre
    moving = Grid(moving.shape, matrix)
    image = blobs(moving.shape, seed=3) + np.random.default_rng(1).uniform(0, 20, moving.shape).astype(np.float32)
    if d == 3:
        save(tmp_path / "moving.nii.gz", image, moving.affine)
        save(tmp_path / "fixed.nii.gz", blobs(fixed.shape), fixed.affine)
    else:
        write_nifti(tmp_path / "moving.nii.gz", image, moving)
        write_nifti(tmp_path / "fixed.nii.gz", blobs(fixed.shape), fixed)
    network = network_grid(fixed, (12, 10, 11)[:d])
    fixed_ddf, total = to_native(smooth_field(network, generator), network, fixed, moving)
    write_itk_displacement(tmp_path / "field.nii.gz", fixed_ddf, fixed)
    ours = warp(torch.from_numpy(image)[None, None], total)[0, 0]
    theirs = itk_resampled(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", tmp_path / "field.nii.gz", d)
    lowest, highest = (torch.ones(d), torch.tensor(moving.shape) - 2.0)
    place = (identity(fixed.shape) + total[0]).movedim(0, -1)
    inside = interior(((place > lowest) & (place < highest)).all(-1))
    assert inside.mean() > 0.15
    assert fixed_ddf.abs().max() > 1
    spread = image.max() - image.min()
    assert np.abs(ours.numpy() - theirs)[inside].max() < 1e-3 * spread
    without = warp(torch.from_numpy(image)[None, None], affine_ddf(fixed, moving))[0, 0].numpy()
    assert np.abs(without - theirs)[inside].max() > 0.1 * spread


@pytest.mark.parametrize("name", ["oblique", "flat"])
def test_itk_reads_the_grid_of_the_displacement_file(tmp_path, name):
    grid = GRIDS[name]
    d = len(grid.shape)
    write_itk_displacement(tmp_path / "field.nii.gz", torch.zeros(1, d, *grid.shape), grid)
    field = itk.imread(str(tmp_path / "field.nii.gz"), itk.Vector[itk.F, d])
    lps = np.diag([-1.0, -1.0, 1.0][:d])
    direction = np.array(itk.GetArrayFromVnlMatrix(field.GetDirection().GetVnlMatrix().as_matrix()))
    assert tuple(field.GetLargestPossibleRegion().GetSize()) == grid.shape
    np.testing.assert_allclose(lps @ direction @ np.diag(field.GetSpacing()), grid.affine[:d, :d], atol=1e-4)
    np.testing.assert_allclose(lps @ np.array(field.GetOrigin()), grid.affine[:d, d], atol=1e-4)
