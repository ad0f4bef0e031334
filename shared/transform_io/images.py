"""Image files in the world: (i, j, k) order and a RAS affine on our side, reversed arrays and LPS on ITK's."""

from __future__ import annotations

import io
import locale
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..files import atomic_path
from .grid import Grid, lps

__all__ = [
    "IMAGE_SUFFIXES",
    "affine4",
    "check_image_name",
    "grid_of_itk",
    "image_name",
    "itk_image",
    "keep_locale",
    "read_with_itk",
    "save_nifti",
    "write_image",
    "write_itk_image",
    "write_nifti",
]

# What ITK notes on reading a series, in mm, and how much of a slice's distance is more than rounding.
_UNEVEN, _TOLERANCE = "ITK_non_uniform_sampling_deviation", 0.01
# Floating voxels are compressed where a sample (runs, voxels of each) shrinks below this share.
_WORTH, _RUNS, _RUN = 0.8, 32, 1024
IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_MORE_SUFFIXES = (".hdr", ".img", ".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")  # that are read only


def image_name(path: str | Path) -> str:
    """Return the name of an image without the suffix of its format; folders (DICOM) keep theirs, dots and all."""
    path = Path(path)
    ends = () if path.is_dir() else (*IMAGE_SUFFIXES, *_MORE_SUFFIXES)
    return next((path.name[: -len(end)] for end in ends if path.name.lower().endswith(end)), path.name)


def affine4(grid: Grid) -> np.ndarray:
    """Return the grid's affine as NIfTI headers hold it, 4 x 4."""
    d = len(grid.shape)
    full = np.eye(4)
    full[:d, :d], full[:d, 3] = grid.affine[:d, :d], grid.affine[:d, d]
    return full


def grid_of_itk(image: Any) -> Grid:
    """Return the grid of an ITK image of any dimension; axes beyond the third keep their own direction."""
    import itk

    d = image.GetImageDimension()
    direction = np.asarray(itk.array_from_matrix(image.GetDirection()))
    affine = np.eye(d + 1)
    affine[:d, :d] = direction @ np.diag(np.array(image.GetSpacing()))
    affine[:d, d] = np.array(image.GetOrigin())
    frame = np.eye(d + 1)
    frame[:2, :2] = -np.eye(2)
    return Grid(tuple(int(n) for n in image.GetLargestPossibleRegion().GetSize()), frame @ affine)


def itk_image(voxels: np.ndarray, grid: Grid, components: bool = False) -> Any:
    """Return an ITK image that shares no memory with ``voxels`` (*S), or (*S, d) with ``components``."""
    import itk

    d = len(grid.shape)
    if components:
        # Allocated here: a view of an array does not keep the array, and ITK copies no images of vectors.
        number = itk.D if voxels.dtype == np.float64 else itk.F
        image = itk.Image[itk.Vector[number, d], d].New()
        image.SetRegions([int(n) for n in grid.shape])
        image.Allocate()
        itk.array_view_from_image(image)[...] = voxels.transpose((*reversed(range(d)), d))
    else:
        image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    matrix = lps(d) @ grid.affine
    spacing = np.linalg.norm(matrix[:d, :d], axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(x) for x in matrix[:d, d]])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(matrix[:d, :d] / spacing)))
    return image


def _series(folder: Path) -> list[str]:
    """Return the files of the one DICOM series in a folder, sorted along its normal."""
    import itk

    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.SetDirectory(str(folder))
    series = list(names.GetSeriesUIDs())
    if len(series) != 1:
        listed = "".join(f"\n  {len(names.GetFileNames(uid))} files: {uid}" for uid in series)
        raise InputError(f"{folder}: found {len(series)} DICOM series, expected a folder of exactly one{listed}")
    return list(names.GetFileNames(series[0]))


@contextmanager
def keep_locale() -> Iterator[None]:
    """Undo what ITK's DICOM code does to the process: a C locale, in which Python takes text files for ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@keep_locale()
def read_with_itk(path: str | Path) -> tuple[np.ndarray, Grid, int]:
    """Read an image file, or a folder that holds one DICOM series, through ITK.

    Returns:
        voxels (*S), or (*S, C) with several components; the grid, in RAS; and the number C of components.

    Raises:
        InputError: a folder without exactly one DICOM series, or one with slices missing.
        RuntimeError: ITK cannot read it; OSError: nor find it.
    """
    import itk

    path = Path(path)
    image = itk.imread(_series(path) if path.is_dir() else str(path))
    tags = image.GetMetaDataDictionary()
    uneven = float(tags[_UNEVEN]) if path.is_dir() and tags.HasKey(_UNEVEN) else 0.0
    if uneven > _TOLERANCE * max(image.GetSpacing()):
        raise InputError(
            f"{path}: found slices at uneven distances (off by {uneven:.3g} mm), expected a complete DICOM series"
        )
    grid, count = grid_of_itk(image), int(image.GetNumberOfComponentsPerPixel())
    d = len(grid.shape)
    array = np.asarray(itk.array_from_image(image))
    return array.transpose((*reversed(range(d)), *range(d, array.ndim))), grid, count


def _storable(path: Path, voxels: np.ndarray) -> np.ndarray:
    """Return the voxels in their own type, or in the nearest that every format and reader knows."""
    nearest = {"bool": "uint8", "float16": "float32"}.get(voxels.dtype.name)
    if nearest is None and voxels.dtype.name in ("int64", "uint64", "int8"):
        nearest = "int16" if voxels.dtype.name == "int8" else "int32"
        limits = np.iinfo(nearest)
        if voxels.size and (voxels.min() < limits.min or voxels.max() > limits.max):
            raise InputError(f"{path}: found the value {voxels.max()}, expected whole numbers within {nearest}")
    return voxels.astype(nearest) if nearest else voxels


class _Deflater(io.RawIOBase):
    """A stream to write into that is compressed as gzip does it, on its way to another."""

    def __init__(self, stream: IO[bytes], level: int, strategy: int) -> None:
        super().__init__()
        self._stream, self._place = stream, 0
        self._packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS + 16, zlib.DEF_MEM_LEVEL, strategy)

    def write(self, data: Any) -> int:
        self._stream.write(self._packer.compress(data))
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._place:
            raise io.UnsupportedOperation("found a seek backwards, expected to go on")
        self.write(bytes(offset - self._place))
        return offset

    def close(self) -> None:
        if not self.closed:
            self._stream.write(self._packer.flush())
        super().close()


def _packing(image: nib.Nifti1Image) -> tuple[int, int]:
    """Return level and strategy of a compression that is worth its time.

    Floating voxels hardly repeat: to look for more than runs of one byte takes three times as long and saves nothing.
    A smooth field has no such runs either, and is stored as it is; one that is zero over much of its grid has.
    """
    if image.get_data_dtype().kind != "f":
        return 1, zlib.Z_DEFAULT_STRATEGY
    voxels = np.asarray(image.dataobj).ravel(order="K")
    starts = np.linspace(0, max(0, voxels.size - _RUN), _RUNS, dtype=int)
    sample = b"".join(voxels[first : first + _RUN].tobytes() for first in starts)
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    packed = len(packer.compress(sample) + packer.flush())
    return (1 if packed < _WORTH * len(sample) else 0), zlib.Z_RLE


def save_nifti(path: str | Path, image: nib.Nifti1Image) -> None:
    """Write ``.nii`` or ``.nii.gz``, atomically; ``.gz`` compressed as far as that pays."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        if temporary.name.lower().endswith(".gz"):
            with _Deflater(stream, *_packing(image)) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(stream)


def _thick(voxels: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Return a slice's voxels (*S, ...) and its grid as those of a volume; others as they are."""
    return voxels.reshape(*grid.thick.shape, *voxels.shape[len(grid.shape) :]), grid.thick


def write_nifti(path: str | Path, voxels: np.ndarray, grid: Grid) -> None:
    """Write an image (*S), (*S, C) or a label map in the array's own type, atomically; a slice where it lies."""
    voxels, grid = _thick(voxels, grid)
    image = nib.Nifti1Image(voxels, affine4(grid))
    image.header.set_xyzt_units("mm")
    image.set_sform(affine4(grid), code=1)
    image.set_qform(affine4(grid), code=1)
    save_nifti(path, image)


def write_itk_image(path: Path, image: Any) -> None:
    """Write an ITK image, compressed; formats of two files (``.mhd``) get both, the header last."""
    import itk

    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as folder:
            itk.imwrite(image, str(Path(folder) / path.name), compression=True)
            for written in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
                written.replace(path.with_name(written.name))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({error}); expected a writable folder with free space") from error


def check_image_name(path: str | Path) -> None:
    """Raise InputError unless the suffix is one of :data:`IMAGE_SUFFIXES`."""
    path = Path(path)
    if not path.name.lower().endswith(IMAGE_SUFFIXES):
        raise InputError(f"{path}: unknown image suffix {path.suffix!r}, expected one of {', '.join(IMAGE_SUFFIXES)}")


def write_image(path: str | Path, voxels: np.ndarray, grid: Grid) -> None:
    """Write an image or label map (*S) in the format of the file's suffix, in the array's own type.

    Types that not all formats know are replaced: bool by uint8, float16 by float32, int64 by int32 where it fits.

    Raises:
        InputError: an unknown suffix, values beyond int32, or a folder that cannot be written.
    """
    path = Path(path)
    check_image_name(path)
    voxels = _storable(path, voxels)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        write_nifti(path, voxels, grid)
    else:
        write_itk_image(path, itk_image(*_thick(voxels, grid)))
