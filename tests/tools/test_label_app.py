"""The app for a MONAI Label server, without the server: what it keeps, what it refuses and in which words."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from enum import Enum
from pathlib import Path, PurePosixPath
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

SOURCE = Path(__file__).resolve().parents[2] / "tools" / "label_app.py"
HOST_APP = """
from monailabel.interfaces.app import MONAILabelApp

class MyApp(MONAILabelApp):
    pass
"""


class HTTPError(Exception):
    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(detail)
        self.status_code, self.detail = status_code, detail


class DefaultLabelTag(str, Enum):
    ORIGINAL = "original"
    FINAL = "final"


class Store:
    """Keeps labels as the host's stores do, a remote one with an argument more."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict, label_id: str = ""):
        self.kept[image_id, label_tag] = Path(label_filename).read_bytes()
        return label_id or image_id


class MONAILabelApp:
    def init_datastore(self) -> Store:
        return Store()


class Installed(PurePosixPath):
    """A file of an installed package."""

    root_folder = Path()

    def locate(self) -> Path:
        return self.root_folder / self


@pytest.fixture
def installed(tmp_path, monkeypatch) -> list[Installed]:
    """The host, as far as the app knows it; returns the files of its package."""
    modules = {
        "fastapi": {"HTTPException": HTTPError},
        "monailabel": {},
        "monailabel.interfaces": {},
        "monailabel.interfaces.app": {"MONAILabelApp": MONAILabelApp},
        "monailabel.interfaces.datastore": {"Datastore": Store, "DefaultLabelTag": DefaultLabelTag},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    file = tmp_path / "monailabel" / "sample-apps" / "monaibundle" / "main.py"
    file.parent.mkdir(parents=True)
    file.write_text(HOST_APP)
    monkeypatch.setattr(Installed, "root_folder", tmp_path)
    found = [Installed("monailabel/__init__.py"), Installed(file.relative_to(tmp_path))]
    monkeypatch.setattr(importlib.metadata, "files", lambda name: {"monailabel": found}[name])
    return found


def load() -> ModuleType:
    """Load the app's file as the host does: not as a module of a package."""
    spec = importlib.util.spec_from_file_location("main", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def store(installed) -> Store:
    return load().BundleApp().init_datastore()


def write(path: Path, value: float, affine: np.ndarray | None = None) -> Path:
    """Write a label map with one voxel of a value."""
    voxels = np.zeros((5, 6, 7), np.uint8)
    voxels[1, 2, 3] = value
    if ".nii" in path.name.lower():
        nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    else:
        import itk

        itk.imwrite(itk.image_from_array(voxels), str(path))
    return path


def refusal(store: Store, file: Path) -> str:
    """Return the sentence with which a final label is refused, after a look at what is kept."""
    kept = dict(store.kept)
    with pytest.raises(HTTPError) as caught:
        store.save_label("case", str(file), "final", {})
    assert caught.value.status_code == 400
    assert store.kept == kept
    return caught.value.detail


def test_the_host_finds_the_one_class(installed):
    """The host takes the first class, by name, that has MONAILabelApp among its own bases."""
    classes = inspect.getmembers(load(), inspect.isclass)
    own = [c for name, c in classes if "MONAILabelApp" in [b.__name__ for b in c.__bases__] and name != "MONAILabelApp"]
    assert [c.__name__ for c in own] == ["BundleApp"]
    assert [c.__name__ for c in own[0].__mro__[1:3]] == ["MyApp", "MONAILabelApp"]


def test_a_host_without_its_apps_is_named(installed):
    installed.pop()
    with pytest.raises(FileNotFoundError, match=r"found no sample-apps/monaibundle/main\.py .* expected a release"):
        load()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".seg.nrrd", ".mha", ".NII.GZ"])
def test_an_empty_label_is_refused_and_the_earlier_one_stays(store, tmp_path, suffix):
    good = write(tmp_path / f"good{suffix}", 3)
    assert store.save_label("case", str(good), "final", {}) == "case"
    assert store.kept == {("case", "final"): good.read_bytes()}
    detail = refusal(store, write(tmp_path / f"patient.01{suffix}", 0))
    assert detail.startswith("label of image 'case': found an empty label map (")
    assert f"({suffix.lower().removeprefix('.seg')}, " in detail
    assert detail.endswith(" voxels, none above 0), expected labelled voxels; it is not stored")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_file_that_cannot_be_read_is_refused(store, tmp_path, suffix, share):
    file = write(tmp_path / f"label{suffix}", 1)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))] if share else b"no image")
    assert refusal(store, file) == (
        f"label of image 'case': found a {suffix} file that cannot be read as an image, expected a NIfTI, NRRD or MHA "
        "label map of one layer; it is not stored"
    )


def test_a_label_map_in_layers_is_refused(store, tmp_path):
    """As 3D Slicer writes overlapping segments; no bundle here could learn from it."""
    header = "NRRD0004\ntype: uint8\ndimension: 4\nspace: left-posterior-superior\nsizes: 2 3 3 3\nencoding: raw\n"
    header += (
        "space directions: none (1,0,0) (0,1,0) (0,0,1)\nkinds: list domain domain domain\nspace origin: (0,0,0)\n\n"
    )
    (tmp_path / "label.seg.nrrd").write_bytes(header.encode() + b"\1" * 54)
    assert "expected a NIfTI, NRRD or MHA label map of one layer" in refusal(store, tmp_path / "label.seg.nrrd")


def test_a_label_on_skewed_axes_is_kept(store, tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    store.save_label("case", str(write(tmp_path / "label.nii.gz", 1, affine)), "final", {})
    assert ("case", "final") in store.kept


def test_what_is_no_image_or_not_final_passes_untouched(store, tmp_path):
    empty = write(tmp_path / "empty.nii.gz", 0)
    store.save_label("case", str(empty), "original", {})
    other = tmp_path / "points.json"
    other.write_text("{}")
    store.save_label("other", str(other), "final", {})
    assert store.kept == {("case", "original"): empty.read_bytes(), ("other", "final"): b"{}"}


def test_a_remote_store_gets_what_it_was_called_with(store, tmp_path):
    file = write(tmp_path / "label.nii.gz", 1)
    assert (
        store.save_label("a", label_filename=str(file), label_tag="final", label_info={}, label_id="series") == "series"
    )
