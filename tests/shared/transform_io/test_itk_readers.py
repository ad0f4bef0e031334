"""What we read of ITK's transform files without ITK is what ITK reads of them: kinds, number types, centres, orders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import itk
import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.transform_io import Affine, Displacement, Transform, read_transform
from shared.transform_io.images import grid_of_itk, itk_image
from shared.transform_io.itk_readers import read_plain_transform
from shared.transform_io.vectors import vectors_in_mm
from tests.itk_peer import itk_points
from tests.world_pair import smooth_field, world_pair

D, F = itk.D, itk.F
ROOT = Path(__file__).resolve().parents[3]
TYPES = {D: np.float64, F: np.float32}
CENTRE, SHIFT = [10.0, -20.0, 5.0], [3.0, 4.0, -5.0]


def affine(d: int, number: Any = D) -> Any:
    transform = itk.AffineTransform[number, d].New()
    matrix = np.eye(d) + 0.1 * np.random.default_rng(d).standard_normal((d, d))
    transform.SetMatrix(itk.matrix_from_array(matrix.astype(TYPES[number])))
    return placed(transform, d)


def placed(transform: Any, d: int) -> Any:
    transform.SetCenter(CENTRE[:d])
    transform.SetTranslation(SHIFT[:d])
    return transform


def euler(zyx: bool = False) -> Any:
    transform = placed(itk.Euler3DTransform[D].New(), 3)
    transform.SetComputeZYX(zyx)
    transform.SetRotation(0.4, -0.3, 0.5)
    return transform


def versor(kind: Any) -> Any:
    transform = kind[D].New()
    transform.SetRotation([0.3, -0.5, 0.8], 0.7)
    return placed(transform, 3)


def similarity() -> Any:
    transform = versor(itk.Similarity3DTransform)
    transform.SetScale(1.2)
    return transform


def plane(kind: Any, scale: float | None = None) -> Any:
    transform = kind[D].New()
    transform.SetAngle(0.6)
    if scale is not None:
        transform.SetScale(scale)
    return placed(transform, 2)


def translation(d: int) -> Any:
    transform = itk.TranslationTransform[D, d].New()
    transform.SetOffset(SHIFT[:d])
    return transform


def field(d: int, number: Any = D) -> Any:
    """Return a displacement field on an oblique, flipped, anisotropic lattice."""
    part = smooth_field(world_pair(d).fixed, seed=7)
    vectors = vectors_in_mm(part.ddf, part.grid, to_lps=True)
    transform = itk.DisplacementFieldTransform[number, d].New()
    transform.SetDisplacementField(itk_image(vectors.astype(TYPES[number]), part.grid, components=True))
    return transform


def composite(d: int, number: Any = D) -> Any:
    transform = itk.CompositeTransform[number, d].New()
    for part in (affine(d, number), euler() if d == 3 and number == D else affine(d, number), field(d, number)):
        transform.AddTransform(part)
    return transform


LINEAR: dict[str, tuple[int, Callable[[], Any]]] = {
    "affine 2D": (2, lambda: affine(2)),
    "affine 3D": (3, lambda: affine(3)),
    "Euler 2D": (2, lambda: plane(itk.Euler2DTransform)),
    "rigid 2D": (2, lambda: plane(itk.Rigid2DTransform)),
    "similarity 2D": (2, lambda: plane(itk.Similarity2DTransform, 1.3)),
    "Euler 3D": (3, euler),
    "Euler 3D, x before y": (3, lambda: euler(zyx=True)),
    "versor": (3, lambda: versor(itk.VersorRigid3DTransform)),
    "similarity 3D": (3, similarity),
    "translation 2D": (2, lambda: translation(2)),
    "translation 3D": (3, lambda: translation(3)),
    "identity 2D": (2, itk.IdentityTransform[D, 2].New),
    "identity 3D": (3, itk.IdentityTransform[D, 3].New),
}


def write(path: Path, *transforms: Any, number: Any = D) -> None:
    writer = itk.TransformFileWriterTemplate[number].New()
    writer.SetFileName(str(path))
    for transform in transforms:
        writer.AddTransform(transform)
    writer.Update()


def agrees_with_itk(path: Path, d: int, tolerance: float) -> Transform:
    """Check that our reader does with points what ITK's does, in whatever order its list stands."""
    ours = read_plain_transform(path)
    points = world_pair(d).points()
    theirs = points.numpy()
    for transform in reversed(list(itk.transformread(str(path)))):
        theirs = itk_points(itk.down_cast(transform), theirs)
    np.testing.assert_allclose(ours.move(points), theirs, atol=tolerance)
    return ours


@pytest.mark.parametrize("suffix", ["h5", "tfm", "txt", "mat"])
@pytest.mark.parametrize("kind", LINEAR)
def test_linear_kinds_about_their_centres(tmp_path, kind, suffix):
    d, make = LINEAR[kind]
    if suffix == "mat" and "identity" in kind:
        pytest.skip("ITK writes no empty matrix")
    write(tmp_path / f"t.{suffix}", make())
    ours = agrees_with_itk(tmp_path / f"t.{suffix}", d, 1e-9)
    points = world_pair(d).points()
    assert ("identity" in kind) == bool(torch.equal(ours.move(points), points))


@pytest.mark.parametrize("number", [D, F])
@pytest.mark.parametrize("d", [2, 3])
def test_fields_of_either_precision(tmp_path, d, number):
    write(tmp_path / "t.h5", field(d, number), number=number)
    (part,) = agrees_with_itk(tmp_path / "t.h5", d, 1e-4).parts
    theirs = itk.down_cast(itk.transformread(str(tmp_path / "t.h5"))[0]).GetDisplacementField()
    np.testing.assert_allclose(part.grid.affine, grid_of_itk(theirs).affine, atol=1e-5)
    ours = vectors_in_mm(part.ddf, part.grid, to_lps=True).transpose(*reversed(range(d)), d)
    assert np.ptp(ours) > 1
    np.testing.assert_allclose(ours, itk.array_from_image(theirs), atol=1e-5)


@pytest.mark.parametrize("suffix", ["h5", "tfm"])
@pytest.mark.parametrize("number", [D, F])
@pytest.mark.parametrize("d", [2, 3])
def test_composites_run_backwards(tmp_path, d, number, suffix):
    write(tmp_path / f"t.{suffix}", composite(d, number), number=number)
    ours = agrees_with_itk(tmp_path / f"t.{suffix}", d, 1e-3 if number == F else 1e-4)
    assert [type(part) for part in ours.parts] == [Displacement, Affine, Affine]


@pytest.mark.parametrize("suffix", ["h5", "tfm"])
def test_a_list_without_composite(tmp_path, suffix):
    write(tmp_path / f"t.{suffix}", affine(3), euler(), translation(3))
    ours = agrees_with_itk(tmp_path / f"t.{suffix}", 3, 1e-9)
    swapped = type(ours)(ours.parts[::-1])
    points = world_pair().points()
    assert (swapped.move(points) - ours.move(points)).abs().max() > 0.1


def test_the_names_of_older_itk(tmp_path):
    write(tmp_path / "t.h5", affine(3))
    points = world_pair().points()
    before = read_plain_transform(tmp_path / "t.h5").move(points)
    with h5py.File(tmp_path / "t.h5", "a") as file:
        for word in ("Parameters", "FixedParameters"):
            file.move(f"TransformGroup/0/Transform{word}", f"TransformGroup/0/Tranform{word}")
    assert torch.equal(agrees_with_itk(tmp_path / "t.h5", 3, 1e-9).move(points), before)


def test_other_kinds_are_left_to_itk(tmp_path):
    centred = itk.CenteredAffineTransform[D, 3].New()
    centred.SetCenter(CENTRE)
    centred.SetTranslation(SHIFT)
    for name, made in (("scale.h5", itk.ScaleTransform[D, 3].New()), ("centred.tfm", centred)):
        write(tmp_path / name, made)
        assert read_plain_transform(tmp_path / name) is None
        points = world_pair().points()
        np.testing.assert_allclose(read_transform(tmp_path / name).move(points), itk_points(made, points), atol=1e-9)
    write(tmp_path / "b.h5", itk.BSplineTransform[D, 3, 3].New())
    assert read_plain_transform(tmp_path / "b.h5") is None


def test_several_in_a_mat_file_are_left_to_itk(tmp_path):
    write(tmp_path / "t.mat", affine(3), euler())
    assert read_plain_transform(tmp_path / "t.mat") is None


def edited(change: Callable[[h5py.Group], None]) -> Callable[[Path], None]:
    def broken(path: Path) -> None:
        write(path, field(3))
        with h5py.File(path, "a") as file:
            change(file["TransformGroup/0"])

    return broken


def spacing_of_zero(group: h5py.Group) -> None:
    group["TransformFixedParameters"][7] = 0


def without_vectors(group: h5py.Group) -> None:
    del group["TransformParameters"]


def text(parameters: str, fixed: str = "0 0 0") -> Callable[[Path], None]:
    head = "#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n"
    return lambda path: path.write_text(f"{head}Parameters: {parameters}\nFixedParameters: {fixed}\n")


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("t.h5", lambda p: h5py.File(p, "w").close(), r"not readable as a transform \(.*TransformGroup"),
        ("t.h5", edited(spacing_of_zero), "DisplacementFieldTransform: found size, origin, spacing and direction"),
        ("t.h5", edited(without_vectors), r"found 0 parameters, expected 3 for each of \(20, 18, 22\) voxels"),
        ("t.tfm", text("1 0 0 0 1 0 0 0 1 0 0"), r"\(AffineTransform: found 11 parameters, expected 12\)"),
        ("t.tfm", text("1 0 0 0 1 0 0 0 1 0 0 0", "0 0"), "found 2 numbers of a centre, expected 3"),
        ("t.tfm", text("1 0 0 0 1 0 0 0 1 0 0 x"), r"not readable as a transform \(could not convert"),
        ("t.tfm", text("1 0 0 0 1 0 0 0 1 0 0 nan"), "found NaN or infinite parameters"),
    ],
)
def test_broken_files_are_named(tmp_path, name, broken, message):
    broken(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: .*({message})"):
        read_transform(tmp_path / name)


def test_a_truncated_file_is_named(tmp_path):
    write(tmp_path / "whole.h5", field(3))
    content = (tmp_path / "whole.h5").read_bytes()
    (tmp_path / "t.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"t\.h5: not readable as a transform \(.*expected an ITK file"):
        read_transform(tmp_path / "t.h5")


def test_nifti_images_are_carried_without_itk(tmp_path):
    """ITK's transform classes take longer to load than all the rest of ``python -m tools apply``."""
    pair = world_pair()
    pair.write(tmp_path)
    for name, transform in (("f.h5", field(3)), ("a.tfm", affine(3)), ("b.mat", euler())):
        write(tmp_path / name, transform)
    script = (
        "import sys\nfrom shared.apply import apply_files\n"
        "apply_files(['f.h5', 'a.tfm', 'b.mat'], 'fixed.nii.gz', 'out.nii.gz', 'moving.nii.gz')\n"
        "apply_files(['f.h5', 'a.tfm', 'b.mat'], 'fixed.nii.gz', 'out.h5')\n"
        "apply_files(['out.h5'], 'fixed.nii.gz', 'field.nii.gz')\n"
        "apply_files(['field.nii.gz'], 'fixed.nii.gz', 'back.nii.gz', 'moving.nii.gz')\n"
        "sys.exit('itk' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment)
