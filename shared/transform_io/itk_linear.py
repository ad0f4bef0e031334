"""The linear transforms of ITK as matrices: what the parameters of each kind mean, as its documentation has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

__all__ = ["LINEAR"]


def _exactly(values: np.ndarray, count: int, what: str = "parameters") -> np.ndarray:
    if len(values) != count:
        raise ValueError(f"found {len(values)} {what}, expected {count}")
    return values


def _about(centre: np.ndarray, matrix: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return ``x -> matrix @ (x - centre) + centre + translation``."""
    d = len(matrix)
    centre = _exactly(centre, d, "numbers of a centre")
    whole = np.eye(d + 1)
    whole[:d, :d], whole[:d, d] = matrix, translation + centre - matrix @ centre
    return whole


def _plane_turn(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _axis_turn(axis: int, angle: float) -> np.ndarray:
    """Return the rotation by ``angle`` in radians about one of three axes."""
    others = [(axis + 1) % 3, (axis + 2) % 3]
    matrix = np.eye(3)
    matrix[np.ix_(others, others)] = _plane_turn(angle)
    return matrix


def _versor_turn(vector: np.ndarray) -> np.ndarray:
    """Return the rotation of the unit quaternion with this vector part, and a real part that is not negative."""
    vector = vector / max(1.0, float(np.linalg.norm(vector)))
    real = np.sqrt(max(0.0, 1.0 - float(vector @ vector)))
    cross = np.cross(vector, np.eye(3)).T
    return np.eye(3) + 2 * real * cross + 2 * cross @ cross


def _affine(parameters: np.ndarray, fixed: np.ndarray, d: int) -> np.ndarray:
    parameters = _exactly(parameters, d * d + d)
    return _about(fixed, parameters[: d * d].reshape(d, d), parameters[d * d :])


def _identity(parameters: np.ndarray, fixed: np.ndarray, d: int) -> np.ndarray:
    return np.eye(d + 1)


def _translation(parameters: np.ndarray, fixed: np.ndarray, d: int) -> np.ndarray:
    return _about(np.zeros(d), np.eye(d), _exactly(parameters, d))


def _euler(parameters: np.ndarray, fixed: np.ndarray, d: int) -> np.ndarray:
    """Three angles and a translation; newer ITK notes after the centre whether x is turned before y."""
    parameters = _exactly(parameters, 6)
    x, y, z = (_axis_turn(axis, angle) for axis, angle in enumerate(parameters[:3]))
    return _about(fixed[:3], z @ y @ x if fixed[3:].any() else z @ x @ y, parameters[3:])


def _versor(parameters: np.ndarray, fixed: np.ndarray, d: int, scaled: bool) -> np.ndarray:
    """Three numbers of a versor, a translation, and for a similarity the scale."""
    parameters = _exactly(parameters, 7 if scaled else 6)
    scale = parameters[6] if scaled else 1.0
    return _about(fixed, scale * _versor_turn(parameters[:3]), parameters[3:6])


def _plane(parameters: np.ndarray, fixed: np.ndarray, d: int, scaled: bool) -> np.ndarray:
    """For a similarity the scale, then an angle and a translation."""
    parameters = _exactly(parameters, 4 if scaled else 3)
    scale = parameters[0] if scaled else 1.0
    return _about(fixed, scale * _plane_turn(parameters[-3]), parameters[-2:])


# By class and dimensions: parameters, fixed parameters and dimensions -> (d+1, d+1) in LPS millimetres. They raise
# ValueError where there are not as many as the kind has.
LINEAR: dict[tuple[str, int], Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    **{(kind, d): _affine for kind in ("AffineTransform", "MatrixOffsetTransformBase") for d in (2, 3)},
    **{("IdentityTransform", d): _identity for d in (2, 3)},
    **{("TranslationTransform", d): _translation for d in (2, 3)},
    ("Euler2DTransform", 2): partial(_plane, scaled=False),
    ("Rigid2DTransform", 2): partial(_plane, scaled=False),
    ("Similarity2DTransform", 2): partial(_plane, scaled=True),
    ("Euler3DTransform", 3): _euler,
    ("VersorRigid3DTransform", 3): partial(_versor, scaled=False),
    ("Similarity3DTransform", 3): partial(_versor, scaled=True),
}
