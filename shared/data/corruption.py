"""Images as another scanner, or a bad day, would have given them: to see what a trained network stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.transforms import GaussianSmooth, RandAdjustContrast, RandBiasField, RandGaussianNoise
from monai.transforms.transform import Randomizable
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError, did_you_mean
from ..fields import exponentiate
from ..warp import warp
from .pairs import PairDataset, Sample

__all__ = ["CORRUPTIONS", "CorruptedPairs"]

# Largest velocity of the extra motion, as a share of the image's size, and the knots that it is drawn on.
MOTION, MOTION_KNOTS = 0.08, 4

# Strengths at which a person sees at once that something is wrong, and still sees the anatomy.
IMAGE_CORRUPTIONS: dict[str, Callable[[], Callable]] = {
    "noise": lambda: RandGaussianNoise(prob=1.0, std=0.1, sample_std=False),
    "bias": lambda: RandBiasField(prob=1.0, coeff_range=(0.1, 0.3)),
    "contrast": lambda: RandAdjustContrast(prob=1.0, gamma=(0.5, 2.0)),
    "blur": lambda: GaussianSmooth(sigma=1.0),
}
CORRUPTIONS = (*IMAGE_CORRUPTIONS, "motion")


class CorruptedPairs(Dataset):
    """A :class:`PairDataset` whose images are spoilt, each on its own and the same way at every look.

    The files that scores are computed from stay as they are: only what the network sees changes. With ``motion`` the
    moving image is deformed once more, as no task was; the sample's ``motion`` (1, d, *S) says how,
    and a scorer composes it with the field found.

    Args:
        dataset: pairs.
        name: one of `CORRUPTIONS`: ``noise`` (Gaussian, sd 0.1 of the intensity range), ``bias`` (smooth shading),
            ``contrast`` (gamma 0.5 to 2, drawn anew for each image), ``blur`` (Gaussian, 1 voxel), ``motion`` (smooth,
            free of folds, up to a twelfth of the image).
        seed: draws the corruption.

    Raises:
        InputError: an unknown corruption.
    """

    def __init__(self, dataset: PairDataset, name: str, seed: int = 0) -> None:
        if name not in CORRUPTIONS:
            hint = did_you_mean(name, CORRUPTIONS)
            raise InputError(f"found corruption {name!r}{hint}, expected one of {', '.join(CORRUPTIONS)}")
        self.dataset, self.name, self.seed = dataset, name, seed
        self.pairs = dataset.pairs

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = dict(self.dataset[index])
        if self.name == "motion":
            motion = self._motion(sample["moving_image"].shape[1:], index)
            sample["moving_image"] = warp(sample["moving_image"][None], motion, padding_mode="border")[0]
            return {**sample, "motion": motion}
        for number, side in enumerate(("fixed", "moving")):
            sample[f"{side}_image"] = self._spoil(sample[f"{side}_image"], 2 * index + number)
        return sample

    def _motion(self, size: torch.Size, number: int) -> Tensor:
        """Return a smooth random displacement (1, d, *size) in voxels, the exponential of a velocity."""
        generator = torch.Generator().manual_seed(self.seed + number)
        knots = torch.randn(1, len(size), *[MOTION_KNOTS] * len(size), generator=generator)
        mode = "trilinear" if len(size) == 3 else "bilinear"
        velocity = F.interpolate(knots, size=size, mode=mode, align_corners=True)
        return exponentiate(velocity / velocity.abs().max() * MOTION * min(size))

    def _spoil(self, image: Tensor, number: int) -> Tensor:
        transform = IMAGE_CORRUPTIONS[self.name]()
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=self.seed + number)
        return torch.as_tensor(transform(image), dtype=torch.float32).clamp(0, 1)
