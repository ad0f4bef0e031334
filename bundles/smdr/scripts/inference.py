"""From an image file to a label map on the image's own grid; in steps that hosts of bundles run as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, Transform
from torch import Tensor, nn

from shared.data.embedded import load_sites
from shared.data.intensity import scale_percentiles
from shared.data.resampling import resample
from shared.data.slices import label_on_image, predict_volume, slice_grid
from shared.data.volumes import read_volume
from shared.errors import InputError
from shared.files import writable_dir
from shared.hosting import told_to_host
from shared.transform_io import Grid, image_name, write_nifti

__all__ = ["LabelOnImaged", "LoadVolumed", "SliceInferer", "segment_files"]


class LoadVolumed(Transform):
    """Read ``image``, a file, and put it on the network's grid, as training does.

    The result is a MetaTensor (C, H, W, n) in [0, 1]; its affine is that of the network's grid, ``original_affine`` and
    ``spatial_shape`` are the file's, where hosts look for them.

    Args:
        spatial_size: rows and columns of a slice; a third number, the depth of 3D patches, plays no part here.
        spacing_mm: see :class:`~shared.data.slice_dataset.VolumeDataset`.
        channels: of the image.
        channel_wise: scale each channel by itself.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float] | None = None,
        channels: int = 1,
        channel_wise: bool = False,
    ) -> None:
        self.spatial_size, self.spacing_mm = tuple(spatial_size), spacing_mm
        self.channels, self.channel_wise = channels, channel_wise

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``data`` with the image in the place of its file.

        Raises:
            InputError: see :func:`~shared.data.volumes.read_volume`.
        """
        path = data["image"]
        with told_to_host():
            voxels, own = read_volume(path, self.channels)
        grid = slice_grid(own, self.spatial_size, self.spacing_mm)
        image = resample(scale_percentiles(voxels, self.channel_wise), own, grid)
        meta = {
            "filename_or_obj": str(path),
            "spatial_shape": np.array(own.shape),
            "original_affine": np.array(own.affine),
        }
        return {**data, "image": MetaTensor(image, affine=torch.as_tensor(grid.affine), meta=meta)}


class SliceInferer(Inferer):
    """Run a network over all slices or patches of volumes: (B, C, H, W, n) to probabilities (B, classes, H, W, n).

    Args:
        slices: adjacent slices that a 2D network sees at once.
        depth: slices of a 3D network's patch; None for a 2D network.
        batch_size: slices or patches in one pass.
    """

    def __init__(self, slices: int = 3, depth: int | None = None, batch_size: int = 16) -> None:
        super().__init__()
        self.slices, self.depth, self.batch_size = slices, depth, batch_size

    def __call__(self, inputs: Tensor, network: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the probabilities."""
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        options = {"slices": self.slices, "depth": self.depth, "batch_size": self.batch_size}
        return torch.stack([predict_volume(network, volume, **options) for volume in volumes])


class LabelOnImaged(Transform):
    """Carry ``pred``, probabilities on the network's grid, to a label map on the grid of the ``image`` file."""

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``data`` with ``pred`` (1, i, j, k), a MetaTensor with the file's affine."""
        image = data["image"]
        affine = np.asarray(image.meta["original_affine"], dtype=float)
        own = Grid(tuple(int(n) for n in image.meta["spatial_shape"]), affine)
        pred = data["pred"].as_tensor() if isinstance(data["pred"], MetaTensor) else data["pred"]
        network = Grid(tuple(pred.shape[1:]), np.asarray(image.affine.cpu(), dtype=float))
        label = label_on_image(pred.float().cpu(), network, own)
        return {**data, "pred": MetaTensor(label, affine=torch.as_tensor(affine), meta={"original_affine": affine})}


@torch.no_grad()
def segment_files(
    network: nn.Module,
    inferer: Inferer,
    device: torch.device,
    preprocessing: Compose,
    postprocessing: Compose,
    output_dir: str | Path,
    image: str | Path | Sequence[str | Path] | None = None,
    sample_from: tuple[str | Path, str] | None = None,
) -> list[Path]:
    """Segment image files; each label map lies on its image's own grid, with its affine.

    Writes ``<name>_label.nii.gz`` for each image.

    Args:
        network: trained, on ``device``.
        inferer: see :class:`SliceInferer`.
        device: where the network runs.
        preprocessing: ends with ``image`` (C, H, W, n), see :class:`LoadVolumed`.
        postprocessing: from ``pred`` to a label map (1, i, j, k), see :class:`LabelOnImaged`.
        output_dir: where the label maps go.
        image: one file or several, or folders of a DICOM series, of any size, spacing and orientation.
        sample_from: (dataset_dir, site) of the image that is taken when none is given: the first for validation.

    Returns:
        the files written.

    Raises:
        InputError: an unusable file, two of one name, or none at all.
    """
    files = [Path(image)] if isinstance(image, (str, Path)) else [Path(f) for f in image or []]
    if not files:
        if sample_from is None:
            raise InputError("found no image, expected a file or a list of files")
        files = [Path(load_sites(*sample_from, "val")[0]["image"])]
    folder = writable_dir(output_dir)
    targets = [folder / f"{image_name(file)}_label.nii.gz" for file in files]
    if len(set(targets)) < len(targets):
        raise InputError(f"found images {[f.name for f in files]}, expected different names: results are called so")
    network.eval()
    for file, target in zip(files, targets, strict=True):
        data = preprocessing.transforms[0]({"image": str(file)})  # its own errors, not a transform runner's
        for transform in preprocessing.transforms[1:]:
            data = transform(data)
        data["pred"] = inferer(data["image"][None].to(device), network)[0]
        label = postprocessing(data)["pred"]
        values = label[0].numpy().astype(np.uint8 if int(label.max()) <= np.iinfo(np.uint8).max else np.int16)
        write_nifti(target, values, Grid(tuple(values.shape), np.asarray(label.affine.cpu(), dtype=float)))
        counts = {int(v): int((values == v).sum()) for v in np.unique(values) if v > 0}
        found = ", ".join(f"label {value}: {count} voxels" for value, count in counts.items()) or "no label"
        print(f"{file.name} segmented ({found}): written to {target}", flush=True)
    return targets
