"""What SAMCL minimises, and how its velocity becomes a deformation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from shared.data.pairs import Sample
from shared.fields import compose, exponentiate, resize
from shared.losses import (
    BendingEnergyLoss,
    FoldingLoss,
    LandmarkLoss,
    LocalNCCLoss,
    MembraneEnergyLoss,
    MINDSSCLoss,
    MutualInformationLoss,
    SoftDiceLoss,
    prepare_sample,
)
from shared.warp import warp, warp_points

__all__ = ["RegistrationObjective", "VelocityInferer", "half_deformations"]


def half_deformations(dvf: Tensor, steps: int = 7, downsize: int = 1) -> tuple[Tensor, Tensor]:
    """Return ``exp(v)`` and ``exp(-v)``, each (B, d, *S), in one pass of scaling and squaring.

    Args:
        dvf: (B, d, *S) in voxels.
        steps: squarings.
        downsize: integrate on a grid coarser by this factor, as VoxelMorph does (Dalca et al., MICCAI 2018): at 2 an
            eighth of the work, for velocities that hold nothing finer.
    """
    size = dvf.shape[2:]
    coarse = [max(2, n // downsize) for n in size]
    velocity = dvf.float() if downsize == 1 else resize(dvf.float(), coarse)
    fields = exponentiate(torch.cat([velocity, -velocity]), steps)
    half, half_inv = (fields if downsize == 1 else resize(fields, list(size))).chunk(2)
    return half, half_inv


class VelocityInferer(Inferer):
    """Pair in, displacement fields out: ``half = exp(v)``, ``ddf = half o half``; ``inv_ddf`` the same of ``-v``.

    The symmetric model of SAMCL (Wang, Luo & Zhuang, MICCAI 2024): both images meet at the midpoint.
    """

    def __init__(self, steps: int = 7, downsize: int = 1) -> None:
        super().__init__()
        self.steps, self.downsize = steps, downsize

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return ``dvf``, ``ddf``, ``inv_ddf``, each (B, d, *S) in voxels, for ``inputs`` (B, 2, *S)."""
        dvf = network(inputs, *args, **kwargs).float()
        half, half_inv = half_deformations(dvf, self.steps, self.downsize)
        return {"dvf": dvf, "ddf": compose(half, half), "inv_ddf": compose(half_inv, half_inv)}


class RegistrationObjective(nn.Module):
    """Weighted sum of image similarity at the midpoint, label overlap, landmark distance and smoothness.

    The five terms of SAMCL (papers' weights: 1 each); a term with weight 0 is not computed. Labels and landmarks are
    used where the pair has them: training is weakly supervised.

    Args:
        similarity: weight of the image term; "lncc" and "mind" are masked to where both warped images are valid, "mi"
            is taken over the whole grid.
        overlap: weight of the Dice loss on smoothed labels.
        landmarks: weight of the RMS landmark distance in voxels.
        bending: weight of the mean squared second derivatives of the velocity.
        membrane: weight of the mean squared first derivatives of the velocity.
        folding: weight of the penalty on non-positive Jacobian determinants of the half deformation (not in SAMCL).
        metric: image term: "lncc", "mind" or "mi".
        window: LNCC window in voxels.
        label_sigma: smoothing of the one-hot labels in voxels.
        steps: squarings of the exponential.
        downsize: see :func:`half_deformations`.

    Raises:
        ValueError: unknown metric.
    """

    def __init__(
        self,
        similarity: float = 1.0,
        overlap: float = 1.0,
        landmarks: float = 1.0,
        bending: float = 1.0,
        membrane: float = 1.0,
        folding: float = 0.0,
        metric: str = "lncc",
        window: int = 3,
        label_sigma: float = 1.0,
        steps: int = 7,
        downsize: int = 1,
    ) -> None:
        super().__init__()
        if metric not in ("lncc", "mind", "mi"):
            raise ValueError(f"found metric {metric!r}, expected lncc, mind or mi")
        self.weights = {
            "similarity": similarity,
            "overlap": overlap,
            "landmarks": landmarks,
            "bending": bending,
            "membrane": membrane,
            "folding": folding,
        }
        self.metric, self.window, self.label_sigma = metric, window, label_sigma
        self.steps, self.downsize = steps, downsize
        image_losses: dict[str, Callable[[], nn.Module]] = {
            "lncc": lambda: LocalNCCLoss(window),
            "mind": MINDSSCLoss,
            "mi": lambda: MutualInformationLoss(23),
        }
        self.image_loss = image_losses[metric]()
        self.dice, self.distance = SoftDiceLoss(), LandmarkLoss()
        self.bending, self.membrane, self.folding = BendingEnergyLoss(), MembraneEnergyLoss(), FoldingLoss()

    def extra_repr(self) -> str:
        """Return the options that decide the loss."""
        return f"{self.weights}, {self.metric}, {self.window}, {self.label_sigma}, {self.steps}, {self.downsize}"

    def prepare(self, sample: Sample, device: torch.device) -> Sample:
        """Move a sample to the device and smooth its labels once, for all passes of a step over it."""
        return prepare_sample(sample, device, self.label_sigma if self.weights["overlap"] else None)

    def forward(self, dvf: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its unweighted parts by name.

        Args:
            dvf: (B, d, *S) velocity of the half deformation, in voxels.
            samples: B samples of :meth:`prepare`.
        """
        dvf = dvf.float()
        half, half_inv = half_deformations(dvf, self.steps, self.downsize)
        terms: dict[str, list[Tensor]] = {}
        for i, sample in enumerate(samples):
            for name, value in self._pair_terms(sample, half[i : i + 1], half_inv[i : i + 1]).items():
                terms.setdefault(name, []).append(value)
        parts = {name: torch.stack(values).mean() for name, values in terms.items()}
        for name, field in (("bending", dvf), ("membrane", dvf), ("folding", half)):
            if self.weights[name]:
                parts[name] = getattr(self, name)(field)
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    def _pair_terms(self, sample: Sample, half: Tensor, half_inv: Tensor) -> dict[str, Tensor]:
        terms = {}
        if self.weights["similarity"]:
            fixed, moving = warp(sample["fixed_image"][None], half_inv), warp(sample["moving_image"][None], half)
            terms["similarity"] = self._similarity(sample, fixed, moving, half, half_inv)
        if "fixed_probabilities" in sample:
            maps = sample["moving_probabilities"], sample["fixed_probabilities"]
            terms["overlap"] = self.dice.warped(maps[0], half, maps[1], half_inv)
        if self.weights["landmarks"] and "fixed_points" in sample:
            # Two steps of the half deformation are the whole one: only these points are moved, no field is built.
            midway = warp_points(sample["fixed_points"][None], half)
            terms["landmarks"] = self.distance(midway, sample["moving_points"][None], half)
        return terms

    def _similarity(self, sample: Sample, fixed: Tensor, moving: Tensor, half: Tensor, half_inv: Tensor) -> Tensor:
        if self.metric == "mi":
            return self.image_loss(moving, fixed)
        with torch.no_grad():
            # Zero padding also takes out what comes from outside either image.
            mask = warp(sample["fixed_mask"][None].float(), half_inv, mode="nearest")
            mask = mask * warp(sample["moving_mask"][None].float(), half, mode="nearest")
        return self.image_loss(moving, fixed, mask)
