"""What the cascade minimises: both directions, at every scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn

from shared.data.pairs import Sample
from shared.fields import compose
from shared.losses import (
    FoldingLoss,
    LandmarkLoss,
    LocalNCCLoss,
    MembraneEnergyLoss,
    MINDSSCLoss,
    SoftDiceLoss,
    prepare_sample,
)
from shared.warp import warp

__all__ = ["SymmetricObjective"]

# A direction: its field, and the image, labels and points that it moves onto the others.
DIRECTIONS = (("ddf", "moving", "fixed"), ("inv_ddf", "fixed", "moving"))


def _halve(volume: Tensor) -> Tensor:
    """Average 2^d voxels into one, as the cascade's scales see the images."""
    return F.avg_pool3d(volume, 2) if volume.ndim == 5 else F.avg_pool2d(volume, 2)


class SymmetricObjective(nn.Module):
    """Weighted sum over scales of image similarity in both directions, and of what keeps the fields well behaved.

    ``sum_s 2^-s (D_s(moving o ddf, fixed) + D_s(fixed o inv_ddf, moving)) / 2`` with ``D`` = 1 - local NCC, plus: the
    mean squared gradient of the fields at every scale and of the increments (their control energy), folding beyond a
    margin, inverse consistency, and, where the pair has labels and landmarks, soft Dice and landmark distance of both
    directions. Deng et al., arXiv 2411.02888, state no loss: the terms are this bundle's choice. A term with weight 0
    is not computed.

    Args:
        similarity: weight of the image term.
        overlap: weight of the Dice loss on smoothed labels.
        landmarks: weight of the RMS landmark distance in voxels.
        smoothness: weight of the fields' and increments' mean squared first differences.
        folding: weight of the penalty on Jacobian determinants below ``margin``.
        inverse: weight of the mean squared residual, in voxels, of one field after the other, in both orders.
        metric: image term: "lncc" or "mind" (MIND-SSC, between modalities).
        windows: LNCC window in voxels from the full to the coarsest scale; the last one counts for all coarser.
        label_sigma: smoothing of the one-hot labels in voxels.
        margin: smallest Jacobian determinant left unpunished.

    Raises:
        ValueError: unknown metric.
    """

    def __init__(
        self,
        similarity: float = 1.0,
        overlap: float = 1.0,
        landmarks: float = 0.1,
        smoothness: float = 1.0,
        folding: float = 1.0,
        inverse: float = 0.1,
        metric: str = "lncc",
        windows: Sequence[int] = (9, 7, 5, 3),
        label_sigma: float = 1.0,
        margin: float = 0.01,
    ) -> None:
        super().__init__()
        if metric not in ("lncc", "mind"):
            raise ValueError(f"found metric {metric!r}, expected lncc or mind")
        self.weights = {
            "similarity": similarity,
            "overlap": overlap,
            "landmarks": landmarks,
            "smoothness": smoothness,
            "folding": folding,
            "inverse": inverse,
        }
        self.metric, self.windows, self.label_sigma = metric, tuple(windows), label_sigma
        self.blur_sigma = 0.0  # see `BlurSchedule`
        self.image_losses = [MINDSSCLoss() if metric == "mind" else LocalNCCLoss(w) for w in windows]
        self.dice, self.distance = SoftDiceLoss(), LandmarkLoss()
        self.membrane, self.fold = MembraneEnergyLoss(), FoldingLoss(margin)

    def extra_repr(self) -> str:
        """Return the options that decide the loss."""
        return f"{self.weights}, {self.metric}, {self.windows}, {self.label_sigma}, {self.fold.margin}"

    def prepare(self, sample: Sample, device: torch.device) -> Sample:
        """Move a sample to the device and smooth its labels once."""
        return prepare_sample(sample, device, self.label_sigma if self.weights["overlap"] else None)

    def forward(self, output: dict[str, Any], samples: Sequence[Sample]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its unweighted parts by name.

        Args:
            output: of ``SymmetricCascade.fields``.
            samples: B samples of :meth:`prepare`.
        """
        parts = {}
        if self.weights["similarity"]:
            parts["similarity"] = self._similarity(output, samples)
        parts.update(self._supervised(output, samples))
        if self.weights["smoothness"]:
            parts["smoothness"] = self._smoothness(output)
        ends = [output[name] for name in ("ddf", "inv_ddf") if name in output]
        if self.weights["folding"]:
            parts["folding"] = torch.stack([self.fold(end) for end in ends]).mean()
        if self.weights["inverse"] and len(ends) == 2:
            residuals = compose(*ends), compose(*ends[::-1])
            parts["inverse"] = torch.stack([r.square().sum(1).mean() for r in residuals]).mean()
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return loss, {name: value.detach() for name, value in parts.items()}

    def _similarity(self, output: dict[str, Any], samples: Sequence[Sample]) -> Tensor:
        """Return the image term of all scales and directions, as a mean of scales weighted with 2^-scale."""
        volumes, masks = {}, {}
        for side in ("moving", "fixed"):
            image, mask = (torch.stack([s[f"{side}_{kind}"] for s in samples]).float() for kind in ("image", "mask"))
            if self.blur_sigma > 0:
                image = GaussianFilter(image.ndim - 2, self.blur_sigma).to(image.device)(image)
            volumes[side] = F.pad(image, output["padding"], mode="replicate")
            masks[side] = F.pad(mask, output["padding"])
        total, weights = volumes["fixed"].new_zeros(()), 0.0
        by_scale = {entry["scale"]: entry for entry in output["scales"]}
        for scale in range(max(by_scale) + 1):
            if scale > 0:
                volumes = {side: _halve(v) for side, v in volumes.items()}
                masks = {side: _halve(m) for side, m in masks.items()}
            if scale in by_scale:
                loss = self.image_losses[min(scale, len(self.windows) - 1)]
                for name, own, other in DIRECTIONS:
                    if name in by_scale[scale]:
                        total = total + 2.0**-scale * self._compare(
                            loss, by_scale[scale][name], volumes, masks, own, other
                        )
                        weights += 2.0**-scale
        return total / weights

    def _compare(
        self, loss: nn.Module, ddf: Tensor, volumes: dict[str, Tensor], masks: dict[str, Tensor], own: str, other: str
    ) -> Tensor:
        with torch.no_grad():
            mask = (masks[other] > 0.5).float() * (warp(masks[own], ddf) > 0.5).float()
        return loss(warp(volumes[own], ddf), volumes[other], mask)

    def _supervised(self, output: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Tensor]:
        terms: dict[str, list[Tensor]] = {}
        for i, sample in enumerate(samples):
            for name, own, other in DIRECTIONS:
                if name not in output:
                    continue
                ddf = output[name][i : i + 1]
                if self.weights["overlap"] and f"{own}_probabilities" in sample:
                    maps = sample[f"{own}_probabilities"], sample[f"{other}_probabilities"]
                    terms.setdefault("overlap", []).append(self.dice.warped(maps[0], ddf, maps[1], None))
                if self.weights["landmarks"] and f"{own}_points" in sample:
                    # A field moves points the other way: from the image that stands still into the one it warps.
                    points = sample[f"{other}_points"][None]
                    terms.setdefault("landmarks", []).append(self.distance(points, sample[f"{own}_points"][None], ddf))
        return {name: torch.stack(values).mean() for name, values in terms.items()}

    def _smoothness(self, output: dict[str, Any]) -> Tensor:
        fields = [entry[name] for entry in output["scales"] for name in ("ddf", "inv_ddf") if name in entry]
        groups = (fields, output["increments"])
        return torch.stack([torch.stack([self.membrane(f) for f in group]).mean() for group in groups]).sum()
