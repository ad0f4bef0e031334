"""Label maps of atlases carried onto an image: which atlases, on what terms, and what their labels agree on."""

from .files import Atlas, atlas_choices, choose_atlases
from .fusion import fuse_labels, local_similarity
from .options import FUSIONS, PropagationOptions
from .transforms import AtlasInferer, LoadAtlasPairsd, PropagateLabelsd

__all__ = [
    "FUSIONS",
    "Atlas",
    "AtlasInferer",
    "LoadAtlasPairsd",
    "PropagateLabelsd",
    "PropagationOptions",
    "atlas_choices",
    "choose_atlases",
    "fuse_labels",
    "local_similarity",
]
