"""World space: the only place that knows affines, millimetres, LPS, and how transforms are kept in files.

A :class:`Grid` is a voxel lattice in RAS millimetres, a :class:`Transform` a map from the world of the fixed to that
of the moving image. Everywhere else fields are in voxels of the grid they live on.
"""

from .files import TRANSFORM_FORMATS, NeedsGridsError, read_transform, write_transform
from .grid import Grid, affine_ddf, network_grid, points_to_grid, to_native
from .images import IMAGE_SUFFIXES, check_image_name, image_name, read_with_itk, write_image, write_nifti
from .itk_files import write_itk_displacement
from .plane import Plane, in_plane
from .points import POINT_SUFFIXES, PointFile, is_point_file, read_point_file, write_point_file
from .slices import in_space, read_between
from .transform import Affine, Displacement, Transform

__all__ = [
    "IMAGE_SUFFIXES",
    "POINT_SUFFIXES",
    "TRANSFORM_FORMATS",
    "Affine",
    "Displacement",
    "Grid",
    "NeedsGridsError",
    "Plane",
    "PointFile",
    "Transform",
    "affine_ddf",
    "check_image_name",
    "image_name",
    "in_plane",
    "in_space",
    "is_point_file",
    "network_grid",
    "points_to_grid",
    "read_between",
    "read_point_file",
    "read_transform",
    "read_with_itk",
    "to_native",
    "write_image",
    "write_itk_displacement",
    "write_nifti",
    "write_point_file",
    "write_transform",
]
