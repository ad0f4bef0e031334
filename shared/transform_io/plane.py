"""Where a single slice of a volume lies in space, and the two axes that count its millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Plane", "in_plane"]

_TILTED = 1e-4


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane of a slice that is stored as a volume of one voxel along an axis.

    Its two axes are the world's own, turned by the least angle into the plane: those of an axial slice are x and y.

    Attributes:
        matrix: (4, 4), takes in-plane millimetres (u, v, 0) to RAS ones.
        axis: of the file, the one of a single voxel.
        step: (3,) RAS millimetres from this slice to the next.
    """

    matrix: np.ndarray
    axis: int
    step: np.ndarray

    @property
    def tilted(self) -> bool:
        """Whether in-plane millimetres are others than the world's x and y."""
        return bool(np.abs(self.matrix[:3, :2] - np.eye(3)[:, :2]).max() > _TILTED)

    def affine(self, flat: np.ndarray) -> np.ndarray:
        """Return the (4, 4) voxel-to-RAS affine of a lattice in the plane, from its (3, 3) one."""
        whole = np.eye(4)
        whole[:3, [a for a in range(3) if a != self.axis]] = self.matrix[:3, :2] @ flat[:2, :2]
        whole[:3, self.axis] = self.step
        whole[:3, 3] = (self.matrix @ [*flat[:2, 2], 0.0, 1.0])[:3]
        return whole


def in_plane(affine: np.ndarray, axis: int) -> tuple[np.ndarray, Plane]:
    """Return the (3, 3) affine of a slice to in-plane millimetres, and its plane.

    Args:
        affine: (4, 4), voxels to RAS.
        axis: the one of a single voxel.

    Raises:
        ValueError: the two other axes span no plane.
    """
    columns, origin = affine[:3, [a for a in range(3) if a != axis]], affine[:3, 3]
    normal = np.cross(columns[:, 0], columns[:, 1])
    area = float(np.linalg.norm(normal))
    if not np.isfinite(affine).all() or area <= 1e-6 * float(np.prod(np.linalg.norm(columns, axis=0))):
        raise ValueError("the axes of the slice span no plane")
    normal = normal / area
    # Ties go to the lower axis, whatever the last digits say.
    main = int((np.abs(normal) - 1e-6 * np.arange(3)).argmax())
    normal = normal * np.sign(normal[main])
    cross = np.cross(np.eye(3), np.cross(np.eye(3)[main], normal))
    turn = np.eye(3) + cross + cross @ cross / (1 + normal[main])
    matrix = np.eye(4)
    matrix[:3, :2] = turn[:, [a for a in range(3) if a != main]]
    matrix[:3, 2], matrix[:3, 3] = normal, normal * (normal @ origin)
    flat = np.eye(3)
    flat[:2, :2], flat[:2, 2] = matrix[:3, :2].T @ columns, matrix[:3, :2].T @ origin
    # Some headers give a single slice no thickness.
    step = affine[:3, axis] if abs(normal @ affine[:3, axis]) > 1e-6 else normal
    return flat, Plane(matrix, axis, step)
