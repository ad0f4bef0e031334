import json
import subprocess
import sys

import pytest

from shared.errors import InputError
from tools.package import MANIFEST, digest, pack
from tools.package_check import unpack
from tools.package_large_files import LIST, set_apart

MODEL = "models/model.pt"


@pytest.fixture
def small(monkeypatch, collection):
    """Half of the weights' size is large."""
    limit = (collection / "bundles" / "samcl" / MODEL).stat().st_size // 2
    monkeypatch.setattr("tools.package_large_files.LARGEST", limit)
    monkeypatch.setattr("tools.package.LARGEST", limit)


@pytest.mark.usefixtures("small")
def test_a_large_file_needs_an_address(collection, tmp_path):
    with pytest.raises(InputError, match=r"models/model.pt: found \d MB, .* expected --large_files_url FOLDER"):
        pack("samcl", tmp_path, root=collection)


@pytest.mark.usefixtures("small")
def test_a_large_file_stays_beside_the_package_and_monai_fetches_it(collection, tmp_path):
    weights = (collection / "bundles" / "samcl" / MODEL).read_bytes()
    package = pack("samcl", tmp_path, root=collection, large_files_url=tmp_path.as_uri())
    assert package.stat().st_size < len(weights)
    bundle = unpack(package, tmp_path / "unpacked")
    assert not (bundle / MODEL).exists()
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert manifest["large_files"] == {MODEL: digest(weights)}
    assert MODEL not in manifest["files"]
    pytest.importorskip("yaml", reason="MONAI reads large_files.yml with PyYAML")
    command = [sys.executable, "-m", "monai.bundle", "download_large_files", "--bundle_path", str(bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (bundle / MODEL).read_bytes() == weights


@pytest.mark.usefixtures("small")
def test_large_files_that_git_does_not_have_are_packed_without_complaint(collection, tmp_path):
    extra = collection / "bundles" / "samcl" / "models" / "large.pt"
    extra.write_bytes(bytes((collection / "bundles" / "samcl" / MODEL).stat().st_size))
    try:
        package = pack("samcl", tmp_path, root=collection, large_files_url="https://example.org/files/")
    finally:
        extra.unlink()
    bundle = unpack(package, tmp_path / "unpacked")
    assert "https://example.org/files/samcl_v0.1.0_models_large.pt" in (bundle / LIST).read_text()
    assert (tmp_path / "samcl_v0.1.0_models_large.pt").is_file()


def test_entries_are_added_to_those_of_the_bundle(tmp_path, monkeypatch):
    yaml = pytest.importorskip("yaml")
    monkeypatch.setattr("tools.package_large_files.LARGEST", 2)
    own = {"path": "models/old.pt", "url": "https://example.org/old.pt", "hash_val": "", "hash_type": ""}
    files = {LIST: ("large_files:\n  - " + "\n    ".join(f'{k}: "{v}"' for k, v in own.items())).encode()}
    monkeypatch.setattr("tools.package_large_files.LARGEST", len(files[LIST]))
    kept, large = set_apart({**files, "models/new.pt": b"x" * 1000}, "name_v1.0.0", tmp_path, "https://example.org")
    listed = yaml.safe_load(kept[LIST])["large_files"]
    assert listed[0] == own
    assert listed[1]["path"] == "models/new.pt"
    assert listed[1]["hash_val"] == large["models/new.pt"] == digest(b"x" * 1000)
