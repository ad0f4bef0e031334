"""App of a MONAI Label server for the bundles: the host's own ``monaibundle``, which also refuses empty labels.

Laid into the app's folder as its ``main.py``: ``cp tools/label_app.py monaibundle/main.py``. It runs in the host's
environment and imports nothing of this collection. Without it, an empty label is stored and only a training tells.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import wraps
from importlib.metadata import files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha")
logger = logging.getLogger(__name__)


def _monaibundle() -> Any:
    """Load the host's app for bundles from its installation: ``main.py`` of the app's folder is this file."""
    found = [file for file in files("monailabel") or () if file.as_posix().endswith("sample-apps/monaibundle/main.py")]
    if not found:
        raise FileNotFoundError(
            "found no sample-apps/monaibundle/main.py in the installed monailabel, expected a release (0.8.5), "
            "installed by pip"
        )
    spec: Any = importlib.util.spec_from_file_location("monaibundle", found[0].locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _voxels(file: Path) -> np.ndarray:
    """Read voxels: NIfTI as it lies, since ITK refuses skewed axes; a vector's components are one more axis."""
    if file.name.lower().endswith((".nii", ".nii.gz")):
        return np.asarray(nib.load(file).dataobj)
    import itk

    return np.asarray(itk.imread(str(file)))


def check_label(image: str, file: Path) -> None:
    """Refuse a label map from which nothing could be learnt.

    Args:
        image: that is labelled, for the message; an upload's own name is not known here.
        file: any file; one that is no image by its suffix passes.

    Raises:
        HTTPException: 400; the file cannot be read, or no voxel is above 0.
    """
    suffix = next((s for s in IMAGES if file.name.lower().endswith(s)), None)
    if suffix is None:
        return
    try:
        voxels = _voxels(file)
        labelled = bool(np.any(voxels > 0))
    except Exception as error:
        logger.warning("label of image %s: %s", image, str(error).strip().partition("\n")[0])
        raise HTTPException(
            400,
            f"label of image '{image}': found a {suffix} file that cannot be read as an image, expected a NIfTI, NRRD "
            "or MHA label map of one layer; it is not stored",
        ) from error
    if not labelled:
        size = " x ".join(map(str, voxels.shape))
        raise HTTPException(
            400,
            f"label of image '{image}': found an empty label map ({suffix}, {size} voxels, none above 0), expected "
            "labelled voxels; it is not stored",
        )


def checked(save_label: Callable[..., str]) -> Callable[..., str]:
    """Return a store's ``save_label`` that looks at a final label before it is kept; proposals of models pass."""

    @wraps(save_label)
    def save(image_id: str, label_filename: str, label_tag: str, *rest: Any, **more: Any) -> str:
        if label_tag == DefaultLabelTag.FINAL:
            check_label(image_id, Path(label_filename))
        return save_label(image_id, label_filename, label_tag, *rest, **more)

    return save


_host: Any = _monaibundle()


# The host takes the first class of this file that names MONAILabelApp among its own bases: MyApp too, if it had a name
# here.
class BundleApp(_host.MyApp, MONAILabelApp):
    """The host's app for bundles with a store, local or remote, that keeps no empty final label."""

    def init_datastore(self) -> Datastore:
        """Return the host's store with the check before it."""
        store = super().init_datastore()
        store.save_label = checked(store.save_label)
        return store
