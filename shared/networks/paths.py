"""How the cascade joins two images, in three ways: what is known of a deformation, and how an increment changes it.

Batches hold the two directions one after another: first moving to fixed, then fixed to moving. A *state* is what a path
knows; an *increment* is a velocity a direction, (2B, d, *S) in voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fields import compose, exponentiate, jacobian_determinant
from ..warp import warp

__all__ = ["PATHS", "SMALLEST_DETERMINANT", "FullPath", "MidpointPath", "Path", "VelocityPath", "swap"]

# Smallest Jacobian determinant that counts as unfolded while the cascade runs: room for what interpolation does later.
SMALLEST_DETERMINANT = 0.05


def swap(x: Tensor) -> Tensor:
    """Exchange the two directions of a batch."""
    first, second = x.chunk(2)
    return torch.cat([second, first])


def _unfolded(ddf: Tensor, smallest: float = SMALLEST_DETERMINANT) -> Tensor:
    """Return (B,): whether every Jacobian determinant of a field is above ``smallest``."""
    return jacobian_determinant(ddf).flatten(1).amin(1) > smallest


class Path(nn.Module):
    """What the three have in common.

    Args:
        steps: squarings of an exponential.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def directions(self, x: Tensor) -> Tensor:
        """Return the rows of the directions that are computed."""
        return x

    def start(self, features: Tensor) -> Tensor:
        """Return the state of the identity for ``features`` (2B, C, *S)."""
        raise NotImplementedError

    def look(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features as far as they are warped, what they should resemble, and the fields that warped them."""
        raise NotImplementedError

    def advance(self, state: Tensor, increment: Tensor) -> Tensor:
        """Return the state after an increment."""
        raise NotImplementedError

    def unfolded(self, state: Tensor) -> Tensor:
        """Return a flag a row of the increment: whether what depends on it is free of folds."""
        raise NotImplementedError

    def spread(self, flags: Tensor) -> Tensor:
        """Return a flag a row of the increment as one a row of the state."""
        raise NotImplementedError

    def agree(self, state: Tensor, steps: int) -> Tensor:
        """Return a state whose fields are closer to each other's inverses; these paths' fields are by construction."""
        return state

    def ends(self, state: Tensor) -> list[Tensor]:
        """Return the forward and the reverse field (B, d, *S)."""
        raise NotImplementedError


class FullPath(Path):
    """State: the forward and the reverse field, (2B, d, *S); each warps one image onto the other.

    Args:
        steps: squarings of an increment's exponential.
        symmetric: False keeps the forward field alone, (B, d, *S).
        compositional: False adds increments to the field as they are.
    """

    __constants__ = ("compositional", "steps", "symmetric")

    def __init__(self, steps: int, symmetric: bool = True, compositional: bool = True) -> None:
        super().__init__(steps)
        self.symmetric, self.compositional = symmetric, compositional

    def directions(self, x: Tensor) -> Tensor:
        """See `Path`."""
        return x if self.symmetric else x.chunk(2)[0]

    def start(self, features: Tensor) -> Tensor:
        """See `Path`."""
        rows = self.directions(features)
        size = [rows.shape[0], features.ndim - 2] + list(features.shape[2:])
        return torch.zeros(size, dtype=torch.float32, device=features.device)

    def look(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Path`; only one image of a direction is warped."""
        moved = warp(self.directions(features), state, padding_mode="border")
        return moved, self.directions(swap(features)), state

    def advance(self, state: Tensor, increment: Tensor) -> Tensor:
        """See `Path`: ``u o exp(w)``, first the increment, then what was known."""
        if self.compositional:
            return compose(state, exponentiate(increment, self.steps))
        return state + increment

    def unfolded(self, state: Tensor) -> Tensor:
        """See `Path`."""
        return _unfolded(state)

    def spread(self, flags: Tensor) -> Tensor:
        """See `Path`."""
        return flags

    def agree(self, state: Tensor, steps: int) -> Tensor:
        """See `Path`; nothing to agree on without symmetry.

        Where the two maps ``f`` and ``r`` leave ``f(r(y)) = y + e(y)``, ``f`` becomes ``f - e(f) / 2`` and ``r`` the
        same with its own residual: half of an error of first order is taken out on either side, so that what remains
        is of second order, and exchanging the images still exchanges the fields.
        """
        if self.symmetric:
            for _ in range(steps):
                residual = compose(swap(state), state)
                state = state - 0.5 * warp(swap(residual), state, padding_mode="border")
        return state

    def ends(self, state: Tensor) -> list[Tensor]:
        """See `Path`; the forward field alone without symmetry."""
        if self.symmetric:
            forward, reverse = state.chunk(2)
            return [forward, reverse]
        return [state]


class MidpointPath(Path):
    """State: two half fields that warp the images towards each other, then their inverses, (4B, d, *S).

    An inverse grows with its field, by the exponential of the negative increment: the whole forward field, the moving
    image's half after the inverse of the fixed one's, undoes the reverse one but for interpolation.
    """

    def start(self, features: Tensor) -> Tensor:
        """See `Path`."""
        size = [2 * features.shape[0], features.ndim - 2] + list(features.shape[2:])
        return torch.zeros(size, dtype=torch.float32, device=features.device)

    def look(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Path`; here both images are warped."""
        half = state.chunk(2)[0]
        moved = warp(features, half, padding_mode="border")
        return moved, swap(moved), half

    def advance(self, state: Tensor, increment: Tensor) -> Tensor:
        """See `Path`."""
        half, inverse = state.chunk(2)
        step, back = exponentiate(torch.cat([increment, -increment]), self.steps).chunk(2)
        return torch.cat([compose(half, step), compose(back, inverse)])

    def unfolded(self, state: Tensor) -> Tensor:
        """See `Path`."""
        half, inverse = _unfolded(state).chunk(2)
        return half & inverse

    def spread(self, flags: Tensor) -> Tensor:
        """See `Path`."""
        return torch.cat([flags, flags])

    def ends(self, state: Tensor) -> list[Tensor]:
        """See `Path`."""
        half_forward, half_reverse, back_forward, back_reverse = state.chunk(4)
        return [compose(half_forward, back_reverse), compose(half_reverse, back_forward)]


class VelocityPath(Path):
    """State: one stationary velocity (B, d, *S), half of the deformation; its negative leads the other way.

    Increments are added: the first term of Baker, Campbell and Hausdorff's series (Vercauteren et al., MICCAI 2008).
    The pair warps as in `MidpointPath`.
    """

    def halves(self, state: Tensor) -> Tensor:
        """Return ``exp(v)`` and ``exp(-v)``, (2B, d, *S)."""
        return exponentiate(torch.cat([state, -state]), self.steps)

    def start(self, features: Tensor) -> Tensor:
        """See `Path`."""
        size = [features.shape[0] // 2, features.ndim - 2] + list(features.shape[2:])
        return torch.zeros(size, dtype=torch.float32, device=features.device)

    def look(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `MidpointPath`."""
        half = self.halves(state)
        moved = warp(features, half, padding_mode="border")
        return moved, swap(moved), half

    def advance(self, state: Tensor, increment: Tensor) -> Tensor:
        """See `Path`; what the two directions propose is averaged."""
        forward, reverse = increment.chunk(2)
        return state + 0.5 * (forward - reverse)

    def unfolded(self, state: Tensor) -> Tensor:
        """See `Path`."""
        forward, reverse = _unfolded(self.halves(state)).chunk(2)
        return torch.cat([forward & reverse, forward & reverse])

    def spread(self, flags: Tensor) -> Tensor:
        """See `Path`."""
        return flags.chunk(2)[0]

    def ends(self, state: Tensor) -> list[Tensor]:
        """See `Path`."""
        half, back = self.halves(state).chunk(2)
        return [compose(half, half), compose(back, back)]


PATHS: dict[str, type[Path]] = {"full": FullPath, "midpoint": MidpointPath, "velocity": VelocityPath}
