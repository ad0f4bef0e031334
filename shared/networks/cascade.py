"""The symmetric registration cascade of DCCNN-LSTM-Reg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import check_bools
from ..fields import jacobian_determinant
from .paths import PATHS, FullPath, Path
from .pyramid import FeaturePyramid
from .recurrent import CorrectionModule

__all__ = ["SymmetricCascade"]

OUTPUTS = ("ddf", "dvf")
UPDATES = ("compose", "add")
# `repair_folds` halves what would fold so often, then drops it.
HALVINGS = 5


def _per_scale(values: int | Sequence[int], levels: int, name: str) -> list[int]:
    """Return one value a scale, from the full to the coarsest."""
    listed = [values] * levels if isinstance(values, int) else list(values)
    if len(listed) != levels or min(listed) < 1:
        raise ValueError(f"found {name} {values}, expected a number or {levels} of them, at least 1 each")
    return listed


class SymmetricCascade(nn.Module):
    """Register a pair both ways at once by a cascade of CNN-LSTM corrections, from coarse to fine.

    After Deng, Chen, Li, Zhang, Chen, Frangi and Zhang, arXiv 2411.02888 (DCCNN-LSTM-Reg): a shared U-Net makes a
    feature pyramid of either image; at every scale a recurrent module corrects the forward and the reverse field by
    small velocity increments, which are exponentiated and composed; its state is carried over the steps and up the
    scales. Both directions go through the same weights, so that exchanging the images exchanges the fields. What the
    abstract leaves open is chosen here; the bundle's docs list the choices. The untrained network is the identity.

    Args:
        spatial_dims: 2 or 3.
        levels: number of scales, each half the size of the one before.
        finest: finest scale that is corrected; 1 leaves out the full resolution (its memory and its time).
        widths: features from the full to the coarsest scale.
        hidden: width of the recurrent state, the same way.
        steps_per_level: corrections, the same way.
        path: "full": a forward and a reverse field, each warping one image onto the other. "midpoint": either image
            is warped halfway; the two fields are exact inverses of each other but for interpolation. "velocity": as
            midpoint, with one stationary velocity that the increments are added to.
        increment_bound: largest increment in voxels of its scale and component; 0 for none.
        backbone: "unet" or "mobile", see `FeaturePyramid`.
        recurrent: False leaves out the LSTM.
        symmetric: False computes the forward field alone (path "full" only).
        update: "compose" exponentiates and composes increments; "add" adds them to the field as they are.
        repair_folds: halve an increment (at last drop it) where the field would fold, so that no voxel ever does.
        consistency_steps: how often the forward and the reverse field are brought closer to each other's inverses, both
            alike, before they are given out (path "full"; the others' fields are so by construction).
        integration_steps: squarings of an increment's exponential. Increments are small: 4 are within 1e-3 voxels.
        checkpointing: compute the steps' activations again in the backward pass instead of keeping them.
        output: what `forward` returns: "ddf", or "dvf": the velocity of half the deformation, as `samcl` wants it from
            its networks (path "velocity" only).
        input_mean: subtracted from the images before the first convolution.
        input_std: the images are divided by it.

    Raises:
        ValueError: an option that is not among the known ones, two that do not go together, or a switch that is neither
            True nor False.
    """

    __constants__ = ("consistency_steps", "finest", "halvings", "output", "repair_folds", "spatial_dims")

    def __init__(
        self,
        spatial_dims: int = 3,
        levels: int = 5,
        finest: int = 0,
        widths: int | Sequence[int] = (8, 16, 32, 32, 32),
        hidden: int | Sequence[int] = (16, 16, 32, 32, 32),
        steps_per_level: int | Sequence[int] = (1, 2, 2, 2, 2),
        path: str = "full",
        increment_bound: float = 0.4,
        backbone: str = "unet",
        recurrent: bool = True,
        symmetric: bool = True,
        update: str = "compose",
        repair_folds: bool = False,
        consistency_steps: int = 1,
        integration_steps: int = 4,
        checkpointing: bool = False,
        output: str = "ddf",
        input_mean: float = 0.0,
        input_std: float = 1.0,
    ) -> None:
        super().__init__()
        check_bools(recurrent=recurrent, symmetric=symmetric, repair_folds=repair_folds, checkpointing=checkpointing)
        for name, value, known in (
            ("path", path, tuple(PATHS)),
            ("output", output, OUTPUTS),
            ("update", update, UPDATES),
        ):
            if value not in known:
                raise ValueError(f"found {name} {value!r}, expected one of {known}")
        if spatial_dims not in (2, 3) or levels < 1:
            raise ValueError(f"found spatial_dims {spatial_dims}, levels {levels}, expected 2 or 3 and at least 1")
        if output == "dvf" and path != "velocity":
            raise ValueError(f"found output 'dvf' with path {path!r}, expected path 'velocity': others have no dvf")
        if path != "full" and not (symmetric and update == "compose"):
            raise ValueError(f"found path {path!r}, expected 'full' where symmetric is false or update is 'add'")
        widths, hidden, steps = (
            _per_scale(v, levels, n)
            for v, n in ((widths, "widths"), (hidden, "hidden"), (steps_per_level, "steps_per_level"))
        )
        self.spatial_dims, self.levels, self.finest, self.output = spatial_dims, levels, finest, output
        self.repair_folds, self.consistency_steps = repair_folds, consistency_steps
        self.input_mean, self.input_std = input_mean, input_std
        full = FullPath(integration_steps, symmetric, update == "compose")
        self.path: Path = full if path == "full" else PATHS[path](integration_steps)
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"
        self.factor, self.halvings = 2 ** (levels - 1), HALVINGS
        self.pyramid = FeaturePyramid(spatial_dims, widths, finest, backbone)
        self.corrections = nn.ModuleList(
            CorrectionModule(
                spatial_dims,
                widths[s],
                hidden[s],
                steps[s],
                carried=0 if s == levels - 1 else hidden[s + 1],
                recurrent=recurrent,
                bound=increment_bound,
                checkpointing=checkpointing,
            )
            for s in reversed(range(finest, levels))
        )

    def settings(self) -> dict[str, Any]:
        """Return the options that decide the output and that the layers do not show."""
        names = ("output", "finest", "repair_folds", "consistency_steps", "input_mean", "input_std")
        path = {
            "name": type(self.path).__name__,
            **{k: v for k, v in vars(self.path).items() if type(v) in (bool, int)},
        }
        corrections = [(m.steps, m.bound) for m in self.corrections]
        return {n: getattr(self, n) for n in names} | {"path": str(path), "corrections": str(corrections)}

    def forward(self, image: Tensor) -> Tensor:
        """Register a pair.

        Args:
            image: (B, 2, *S), channel 0 moving, channel 1 fixed, intensities in [0, 1].

        Returns:
            ddf (B, d, *S) in voxels, ``warped(x) = moving(x + ddf(x))``; with ``output="dvf"`` the stationary
            velocity of half of it. `fields` returns the reverse field too.
        """
        states, _ = self._cascade(image)
        if self.output == "dvf":
            return self._crop(self._enlarge(states[-1]), image)
        return self._native(self._ends(self._enlarge(states[-1])), image)[0]

    @torch.jit.unused
    def fields(self, image: Tensor) -> dict[str, Any]:
        """Return what the forward pass found, and what training looks at.

        Args:
            image: as in `forward`.

        Returns:
            ``ddf`` and ``inv_ddf`` (B, d, *S) in voxels; ``inv_ddf`` is missing where ``symmetric`` is false.
            ``scales``: dicts from the coarsest to the finest corrected scale with ``scale`` (size / 2^scale), ``ddf``
            and ``inv_ddf`` on that scale's grid and in its voxels, not cropped; ``increments``: one (N, d, *s) each
            step, in voxels of its scale. ``padding``: what `F.pad` did to the image before.
        """
        states, increments = self._cascade(image)
        scales: list[dict[str, Any]] = []
        pair: list[Tensor] = []
        for number, state in enumerate(states):
            pair = self._ends(state)
            names = ("ddf", "inv_ddf")[: len(pair)]
            scales.append({"scale": self.levels - 1 - number, **dict(zip(names, pair, strict=True))})
        if self.finest > 0:
            pair = self._ends(self._enlarge(states[-1]))
        pair = self._native(pair, image)
        ends = dict(zip(("ddf", "inv_ddf"), pair, strict=False))
        return {**ends, "scales": scales, "increments": increments, "padding": self._padding(image)}

    # -- the cascade ---------------------------------------------------------------------------------------------------

    def _cascade(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the state at the end of every scale, from the coarsest, and all increments."""
        x = (F.pad(image, self._padding(image), mode="replicate") - self.input_mean) / self.input_std
        both = torch.cat([x[:, :1], x[:, 1:]])  # the two directions: moving to fixed, fixed to moving
        features = self.pyramid(both)
        states: list[Tensor] = []
        increments: list[Tensor] = []
        state = self.path.start(features[0])
        hidden = cell = features[0]
        for number, module in enumerate(self.corrections):
            own = features[number]
            if number > 0:
                state = self._keep_unfolded(2 * self._double(state))
            hidden, cell = module.begin(self.path.directions(own), hidden, cell)
            for _ in range(module.steps):
                moved, target, field = self.path.look(own, state)
                increment, hidden, cell = module(moved, target, field, hidden, cell)
                state = self._advance(state, increment)
                increments.append(increment)
            states.append(state)
        return states, increments

    def _advance(self, state: Tensor, increment: Tensor) -> Tensor:
        """Return the state after an increment, or after as much of it as folds nothing."""
        proposed = self.path.advance(state, increment)
        if self.repair_folds:
            for halving in range(self.halvings + 1):
                good = self.path.unfolded(proposed)
                if bool(good.all()):
                    break
                increment = self._shrink(increment, good, halving)
                proposed = self.path.advance(state, increment)
        return proposed

    def _keep_unfolded(self, state: Tensor) -> Tensor:
        """Return the state, shrunk as a whole until nothing folds: enlarging it may have folded what was not."""
        if self.repair_folds:
            for halving in range(self.halvings + 1):
                good = self.path.unfolded(state)
                if bool(good.all()):
                    break
                state = self._shrink(state, self.path.spread(good), halving)
        return state

    def _ends(self, state: Tensor) -> list[Tensor]:
        """Return the forward and the reverse field, brought closer to each other's inverses unless that folds one."""
        closer = self.path.agree(state, self.consistency_steps)
        if self.repair_folds:
            good = self.path.unfolded(closer)
            closer = torch.where(self._rows(self.path.spread(good)), closer, state)
        return self.path.ends(closer)

    def _unfold(self, ddf: Tensor) -> Tensor:
        """Return final fields, shrunk until no voxel folds: composing halves and cropping may fold a last one."""
        for halving in range(self.halvings + 1):
            good = jacobian_determinant(ddf).flatten(1).amin(1) > 0
            if bool(good.all()):
                break
            ddf = self._shrink(ddf, good, halving)
        return ddf

    def _shrink(self, field: Tensor, good: Tensor, halving: int) -> Tensor:
        """Return the fields with those that are not good halved, the last time set to zero."""
        share = 0.5 if halving < self.halvings else 0.0
        return torch.where(self._rows(good), field, field * share)

    def _rows(self, flags: Tensor) -> Tensor:
        """Return flags (N,) as they broadcast over fields."""
        return flags.view([-1] + [1] * (self.spatial_dims + 1))

    def _native(self, ends: list[Tensor], image: Tensor) -> list[Tensor]:
        """Return fields of the full, padded size on the image's grid."""
        native: list[Tensor] = []
        for end in ends:
            field = self._crop(end, image)
            native.append(self._unfold(field) if self.repair_folds else field)
        return native

    def _double(self, field: Tensor) -> Tensor:
        return F.interpolate(field, scale_factor=2.0, mode=self.mode, align_corners=False)

    def _enlarge(self, state: Tensor) -> Tensor:
        for _ in range(self.finest):
            state = self._keep_unfolded(2 * self._double(state))
        return state

    def _padding(self, image: Tensor) -> list[int]:
        """Return what makes every size a multiple of the coarsest voxel, and at least two of them."""
        padding: list[int] = []
        for i in range(self.spatial_dims):  # the last axis comes first in F.pad
            size = image.shape[image.ndim - 1 - i]
            extra = max(2 * self.factor - size, -size % self.factor)
            padding.append(extra // 2)
            padding.append(extra - extra // 2)
        return padding

    def _crop(self, field: Tensor, image: Tensor) -> Tensor:
        padding = self._padding(image)
        for i in range(self.spatial_dims):
            axis = image.ndim - 1 - i
            field = field.narrow(axis, padding[2 * i], image.shape[axis])
        return field
