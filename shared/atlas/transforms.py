"""Atlas label propagation in the three steps that hosts of bundles run: preprocessing, inferer, postprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import Tensor, nn

from ..errors import InputError
from ..hosting import told_to_host
from ..optimise import OptimiseSettings
from ..quality_check import covered_share
from ..register.inputs import Files, Pair, Side, read_side
from ..register.memory import check_memory, thinned
from ..register.search import Found, search
from ..register.start import GivenField, NetworkField, find_start, network_input
from ..register.write import pulled
from ..transform_io import Affine, Displacement, Grid
from ..transform_io import Transform as WorldMap
from ..transform_io.grid import network_grid
from .files import Atlas, choose_atlases
from .fusion import fuse_labels, local_similarity
from .options import PropagationOptions

__all__ = ["AtlasInferer", "LoadAtlasPairsd", "PropagateLabelsd"]

_ASIDE = "propagation"


@dataclass(frozen=True, eq=False)
class _Work:
    """A pair on its way: as read, the atlas in the image's frame; as registered, maybe coarser; the field's grid."""

    atlas: Atlas
    pair: Pair
    small: Pair
    grid: Grid
    messages: tuple[str, ...]


def _settings(alignment: str, steps: int) -> OptimiseSettings:
    # An atlas is another patient, whatever the images look like once a network has warped one to the other.
    discrete = "auto" if steps else "never"
    return OptimiseSettings(alignment=alignment, iterations=steps, motion="between", discrete=discrete)


class LoadAtlasPairsd(Transform):
    """Read ``image``, a file, and the atlases that the request chooses; make the network's input of them.

    ``image`` becomes a MetaTensor (2A, *spatial_size) for A atlases, moving and fixed in turn, in [0, 1]; its affine is
    that of the network's grid, ``original_affine`` and ``spatial_shape`` are the file's, where hosts look for them.

    Args:
        atlas_dir: the bundle's own atlases, see :mod:`shared.atlas.files`.
        spatial_size: voxels of the network's grid.
        spacing_mm: voxel size of the network's grid; None stretches it over the image.
        ct_window: HU window for CT.
    """

    def __init__(
        self,
        atlas_dir: str | Path,
        spatial_size: Sequence[int],
        spacing_mm: Sequence[float] | None = None,
        ct_window: Sequence[float] | None = None,
    ) -> None:
        self.atlas_dir = Path(atlas_dir)
        self.network = NetworkField(_unused, tuple(spatial_size), spacing_mm, ct_window)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``data`` with the image in the place of its file.

        Raises:
            InputError: an unusable image, atlas or option, or an atlas that does not overlap with the image.
        """
        with told_to_host():
            options = PropagationOptions.of_request(data)
            files = (options.atlas_image, options.atlas_label)
            atlases = choose_atlases(self.atlas_dir, options.atlases, *files)
            fixed = read_side(Files(data["image"]), "fixed", len(self.network.spatial_size))
            device = data.get("device") or "cpu"
            work = [_prepared(fixed, atlas, options, self.network, device) for atlas in atlases]
        channels = [network_input(self.network, w.small, np.eye(len(fixed.grid.affine)), "auto") for w in work]
        meta = {
            "filename_or_obj": str(data["image"]),
            "spatial_shape": np.array(fixed.grid.shape),
            "original_affine": np.array(fixed.grid.affine),
        }
        image = MetaTensor(torch.cat(channels), affine=torch.as_tensor(work[0].grid.affine), meta=meta)
        return {**data, "image": image, _ASIDE: (options, work)}


def _unused(images: Tensor) -> Tensor:
    raise RuntimeError("the host runs the network")


def _prepared(fixed: Side, atlas: Atlas, options: PropagationOptions, network: NetworkField, device: str) -> _Work:
    """Read an atlas and bring it into the frame of the image."""
    moving = read_side(Files(atlas.image, atlas.label), "moving", len(fixed.grid.shape))
    pair = Pair(fixed, moving)
    thin, message = check_memory(pair)
    small = Pair(thinned(fixed, thin), thinned(moving, thin))
    alignment = "identity" if options.init == "none" else options.init
    start = find_start(small, options.init, _settings(alignment, 0), device, fit=True)
    matrix = start.matrix if start is not None else np.eye(len(fixed.grid.affine))
    still = WorldMap((Affine(matrix),))
    if covered_share(still, fixed, moving.grid) == 0:
        raise InputError(
            f"{fixed.name}: does not overlap with the atlas {moving.name}: found the boxes ({fixed.grid.box_mm()}) and "
            f"({moving.grid.box_mm()}), expected images in one world frame, or an option 'init' that aligns them"
        )
    notes = [message] if message else []
    if start is not None and options.init != "none":
        notes.append(f"start: {start.note}")
    pair, small = (Pair(p.fixed, p.moving.placed(matrix)) for p in (pair, small))
    grid = network_grid(small.fixed.grid, network.spatial_size, network.spacing_mm)
    return _Work(atlas, pair, small, grid, tuple(notes))


class AtlasInferer(Inferer):
    """Run an inferer of pairs on each pair of ``LoadAtlasPairsd``: (B, 2A, *S) to fields (B, A, d, *S) in voxels.

    Args:
        inferer: takes (B, 2, *S) and a network, and returns a dict with ``ddf``.
    """

    def __init__(self, inferer: Callable[..., Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the fields."""
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        return torch.stack([self.inferer(pair, network)["ddf"] for pair in images.split(2, dim=1)], dim=1)


class PropagateLabelsd(Transform):
    """Carry the atlases' label maps through ``pred``, their fields, to one label map on the grid of the ``image`` file.

    Where the request asks for it, each field is optimised further first. ``result`` tells how alike each atlas is.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``data`` with ``pred`` (1, *S), a MetaTensor with the file's affine."""
        options, work = data[_ASIDE]
        fields = data["pred"].as_tensor() if isinstance(data["pred"], MetaTensor) else data["pred"]
        labels, weights, told = [], [], []
        with told_to_host():
            for each, field in zip(work, fields, strict=True):
                found = _registered(each, field[None].float().cpu(), options, data.get("device"))
                fixed, moving = each.pair.fixed, each.pair.moving
                grids = (found.transform, fixed.grid, moving.grid)
                labels.append(pulled(moving.label, *grids, "label"))
                if len(work) > 1 and options.fusion == "similarity":
                    warped = pulled(moving.image[0, 0].numpy(), *grids, "linear")
                    weights.append(local_similarity(fixed.image[0, 0].numpy(), warped))
                told.append({"atlas": each.atlas.name, "messages": [*each.messages, *found.messages[1:]]})
        label = labels[0] if len(labels) == 1 else fuse_labels(labels, weights or None)
        kind = np.uint8 if label.max() <= np.iinfo(np.uint8).max else np.int16
        own = torch.as_tensor(work[0].pair.fixed.grid.affine)
        pred = MetaTensor(torch.from_numpy(label.astype(kind))[None], affine=own, meta={"original_affine": own.numpy()})
        rest = {key: value for key, value in data.items() if key != _ASIDE}
        return {**rest, "pred": pred, "result": {**(data.get("result") or {}), "atlases": told}}


def _registered(work: _Work, ddf: Tensor, options: PropagationOptions, device: str | None) -> Found:
    settings, given = _settings("identity", options.optimise), GivenField(Displacement(work.grid, ddf))
    return search(work.small, "none", settings, frozenset(), given, device or "cpu", say=lambda _: None, progress=False)
