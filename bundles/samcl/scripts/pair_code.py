"""What a pair is to a generator: channels, and back again.

Both images, both masks and both label maps are drawn together, so that a generated pair keeps what relates its two
images: two modalities, or the same patient twice. Labels are written as bits (Chen, Zhang & Hinton, "Analog bits", ICLR
2023), two maps of up to 15 labels in eight channels instead of 30.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from shared.data.pairs import Sample
from shared.errors import InputError

__all__ = ["SIDES", "PairCode", "labels_of"]

SIDES = ("fixed", "moving")


def labels_of(dataset: Any, task: str) -> list[int] | None:
    """Return the values above 0 in the label maps of all pairs; None where no pair has labels.

    Args:
        dataset: of pairs.
        task: for messages and the progress bar.

    Raises:
        InputError: some pairs have labels and some have none.
    """
    found: set[int] = set()
    labelled = 0
    for index in tqdm(range(len(dataset)), desc=f"labels of {task}", unit="pair", dynamic_ncols=True, leave=False):
        sample = dataset[index]
        labelled += "labels" in sample
        found.update(sample.get("labels", ()))
    if labelled not in (0, len(dataset)):
        raise InputError(
            f"{task}: found {labelled} of {len(dataset)} pairs with labels, expected all or none: a generator learns "
            "them along with the images"
        )
    return sorted(found) if labelled else None


class PairCode:
    """Pairs of one task as channels in [-1, 1]: two images, two masks, and the bits of two label maps.

    Landmarks are not drawn: generated pairs have none.

    Args:
        labels: values of the task's label maps, see :func:`labels_of`.
        bits: channels of a label map; so many tell ``2^bits - 1`` labels apart.

    Raises:
        InputError: more labels than that.
    """

    def __init__(self, labels: Sequence[int] | None, bits: int) -> None:
        if labels is not None and len(labels) >= 2**bits:
            raise InputError(
                f"found {len(labels)} labels, expected at most {2**bits - 1} with label_bits {bits}; raise label_bits"
            )
        self.labels, self.bits = None if labels is None else list(labels), bits
        self._values = torch.tensor([0, *(labels or ())], dtype=torch.int16)

    def encode(self, sample: Sample) -> Tensor:
        """Return channels (4 + 2 bits, *S) of a pair."""
        images = [sample[f"{side}_image"].float() for side in SIDES]
        masks = [(sample[f"{side}_mask"] > 0).float() for side in SIDES]
        bits = [self._bits(sample[f"{side}_label"]) for side in SIDES] if self.labels is not None else []
        if not bits:
            bits = [torch.zeros(2 * self.bits, *images[0].shape[1:])]
        return 2 * torch.cat([*images, *masks, *bits]) - 1

    def _bits(self, label: Tensor) -> Tensor:
        """Return the bits (bits, *S) of each voxel's place among the labels, from 1; 0 is the background."""
        place = torch.searchsorted(self._values, label.to(torch.int16).clamp(min=0))
        return torch.cat([(place >> bit) & 1 for bit in range(self.bits)]).float()

    def decode(self, channels: Tensor, task: str) -> Sample:
        """Return the pair that channels (4 + 2 bits, *S) show; bits that stand for no label are background."""
        sample: Sample = {"task": task}
        for number, side in enumerate(SIDES):
            sample[f"{side}_image"] = ((channels[number : number + 1] + 1) / 2).clamp(0, 1)
            sample[f"{side}_mask"] = (channels[2 + number : 3 + number] > 0).to(torch.uint8)
        if self.labels is not None:
            for number, side in enumerate(SIDES):
                first = 4 + number * self.bits
                weights = 2 ** torch.arange(self.bits).reshape(-1, *[1] * (channels.ndim - 1))
                place = ((channels[first : first + self.bits] > 0) * weights).sum(0, keepdim=True)
                sample[f"{side}_label"] = self._values[place * (place < len(self._values))]
            both = torch.cat([sample[f"{side}_label"].flatten() for side in SIDES])
            sample["labels"] = [int(v) for v in torch.unique(both) if v > 0]
        return sample

    def fault(self, sample: Sample) -> str | None:
        """Return why a decoded pair is of no use, or None: nothing to compare, or no label that both sides have."""
        if not all(bool(sample[f"{side}_mask"].any()) for side in SIDES):
            return "empty mask"
        if self.labels:
            found = [set(torch.unique(sample[f"{side}_label"]).tolist()) - {0} for side in SIDES]
            if not found[0] & found[1]:
                return "no common label"
        return None
