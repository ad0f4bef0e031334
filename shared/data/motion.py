"""Smooth invertible motion of synthetic anatomy, in continuous coordinates.

Points live in the cube [-1, 1]^3 (the field of view, axes i, j, k of the image), so that motion and anatomy
do not depend on a voxel grid. A `Motion` is a chain of stationary velocities; its inverse is the same chain
run backwards, which makes the displacement between two images exact but for the error of the integrator.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

# The velocity vanishes here, a little outside the field of view: anatomy may leave the image, but not by far.
WALL = 1.12
FLOW_STEPS = 2
BLOCK = 8192
# Products (m, k) @ (k, n) with m * k * n up to this many stay on one thread.
BLAS_ONE_THREAD = 1 << 18

Motion = Sequence[np.ndarray]


def grid_points(size: int) -> np.ndarray:
    """Voxel centres of a ``size``^3 grid, shape (size^3, 3), float32, in the cube [-1, 1]^3."""
    axis = voxels_to_points(np.arange(size, dtype=np.float32), size)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def voxels_to_points(voxels: np.ndarray, size: int) -> np.ndarray:
    """Map voxel coordinates to the cube; voxel 0 has its centre half a voxel inside the wall."""
    return ((2 * voxels + 1) / size - 1).astype(np.float32)


def points_to_voxels(points: np.ndarray, size: int) -> np.ndarray:
    """Inverse of `voxels_to_points`."""
    return ((points + 1) * (size / 2) - 0.5).astype(np.float32)


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b`` for a small ``a`` (m, k) and a long ``b`` (k, n), on one thread.

    OpenBLAS spreads larger products over all cores and then waits for the slowest: on a busy machine that took
    a hundred times longer than the work.
    """
    columns = max(1, BLAS_ONE_THREAD // a.size)
    product = np.empty((len(a), b.shape[1]), np.float32)
    for start in range(0, b.shape[1], columns):
        part = slice(start, start + columns)
        np.matmul(a, b[:, part], out=product[:, part])
    return product


def _sines(x: np.ndarray, count: int) -> np.ndarray:
    """``sin(k pi s)``, k = 1..count, where s runs from 0 to 1 between the walls: (N,) to (count, N)."""
    angle = np.clip((x + WALL) * (np.pi / (2 * WALL)), 0, np.pi)
    sines = np.empty((count, len(x)), np.float32)
    sines[0] = np.sin(angle)
    twice_cosine = 2 * np.cos(angle)
    for k in range(1, count):
        sines[k] = twice_cosine * sines[k - 1] - (sines[k - 2] if k > 1 else 0)
    return sines


def velocity_at(coefficients: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Evaluate a sine series of coefficients (3, g, g, g) at points (N, 3); returns (N, 3)."""
    count = coefficients.shape[-1]
    x, y, z = (_sines(points[:, axis], count) for axis in range(3))
    plane = (y[:, None] * z).reshape(count * count, -1)
    lines = matmul(coefficients.reshape(3 * count, -1), plane).reshape(3, count, -1)
    return (lines * x).sum(axis=1).T


def move(points: np.ndarray, motion: Motion) -> np.ndarray:
    """Carry points (N, 3) along each velocity of the chain for unit time (fourth order Runge-Kutta)."""
    # Blocks that stay in the cache are about twice as fast.
    blocks = np.array_split(points, -(-len(points) // BLOCK))
    return np.concatenate([functools.reduce(_flow, motion, block) for block in blocks])


def _flow(points: np.ndarray, v: np.ndarray) -> np.ndarray:
    h = np.float32(1 / FLOW_STEPS)
    for _ in range(FLOW_STEPS):
        k1 = velocity_at(v, points)
        k2 = velocity_at(v, points + (h / 2) * k1)
        k3 = velocity_at(v, points + (h / 2) * k2)
        k4 = velocity_at(v, points + h * k3)
        points = points + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)
    return points


def inverse(motion: Motion) -> Motion:
    """Return the motion that undoes ``motion``."""
    return [-v for v in reversed(motion)]


def displacement(fixed: Motion, moving: Motion, size: int) -> np.ndarray:
    """True displacement of a pair whose images are ``template(move(x, motion))``.

    Returns:
        ``ddf`` (size, size, size, 3) in voxels of the fixed grid: ``moving(x + ddf(x))`` matches ``fixed(x)``.
    """
    points = grid_points(size)
    # What both scans share, the way from the patient to the template, cancels.
    while fixed and moving and fixed[-1] is moving[-1]:
        fixed, moving = fixed[:-1], moving[:-1]
    matched = move(move(points, fixed), inverse(moving))
    return ((matched - points) * (size / 2)).reshape(size, size, size, 3).astype(np.float32)


def determinants(ddf: np.ndarray) -> np.ndarray:
    """Determinant of ``d(x + ddf)/dx`` by central differences, one-sided at the border: (*S, 3) to (*S)."""
    gradients = [np.stack(np.gradient(ddf[..., component]), axis=-1) for component in range(3)]
    return np.linalg.det(np.stack(gradients, axis=-2) + np.eye(3))


def random_velocity(rng: np.random.Generator, count: int, reach: float, rms: float) -> np.ndarray:
    """Draw a smooth velocity.

    Args:
        rng: source of randomness.
        count: sines along each axis.
        reach: wave number where the spectrum has fallen to ``exp(-1/2)``; larger is rougher.
        rms: root mean square speed of one component in the field of view (1 = half the field of view).
    """
    wave = np.arange(1, count + 1)
    square = wave[:, None, None] ** 2 + wave[:, None] ** 2 + wave**2
    coefficients = rng.standard_normal((3, count, count, count)) * np.exp(-square / (2 * reach**2))
    speed = np.sqrt(np.mean(velocity_at(coefficients, grid_points(12)) ** 2))
    return (coefficients * (rms / speed)).astype(np.float32)


def breathing_velocity(amplitude: float, count: int = 6) -> np.ndarray:
    """Velocity of breathing out: the diaphragm rises and the front of the chest sinks.

    A product of bell curves fitted by sines, strongest under each lung; ``amplitude`` is about its peak
    (1 = half the field of view).
    """
    x = np.linspace(-WALL, WALL, 65, dtype=np.float32)
    basis = _sines(x, count)

    def fit(profile: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(basis.T, profile, rcond=None)[0]

    across = fit(np.exp(-(((np.abs(x) - 0.45) / 0.4) ** 2)))
    depth = fit(np.exp(-(((x - 0.1) / 0.65) ** 4)))
    height = fit(np.exp(-(((x + 0.3) / 0.5) ** 2)))
    rise = np.einsum("a,b,c->abc", across, depth, height)
    return amplitude * np.stack([np.zeros_like(rise), -0.25 * rise, rise]).astype(np.float32)
