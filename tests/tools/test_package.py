import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from shared.errors import InputError
from tools.package import MANIFEST, bundle_names, digest, pack
from tools.package_check import check_package, unpack
from tools.plan import ROOT

SCHEMA = ROOT.parent / "shared" / "zoo" / "meta_schema_20240725.json"


@pytest.mark.parametrize("bundle", bundle_names())
def test_a_package_holds_the_bundle_and_the_part_of_shared_that_it_imports(bundle, zips, tmp_path):
    assert zips[bundle].name == f"{bundle}_v0.1.0.zip"
    folder = unpack(zips[bundle], tmp_path)
    assert folder.name == bundle
    for path in folder.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("from shared", "import shared")), path
    record = json.loads((folder / MANIFEST).read_text())
    assert len(record["commit"]) == 40
    assert (folder / "scripts" / "_shared" / "kernels" / "warp_cpu.cpp").is_file()
    assert (folder / "scripts" / "_shared" / "kernels" / "vectors.h").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert not (folder / "data").exists()


def test_a_package_leaves_out_what_the_bundle_does_not_import(zips, tmp_path):
    vendored = unpack(zips["smdr"], tmp_path) / "scripts" / "_shared"
    assert (vendored / "data" / "slices.py").is_file()
    assert not (vendored / "losses").exists()


@pytest.mark.parametrize("bundle", bundle_names())
def test_its_scripts_import_with_the_collection_out_of_reach(bundle, zips, tmp_path):
    folder = unpack(zips[bundle], tmp_path)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "shared.py").write_text("raise ImportError('the collection')")
    code = (
        f"import sys; sys.path[:0] = [{str(blocked)!r}, {str(folder)!r}]; import scripts; print(len(scripts.__all__))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 10


def test_the_same_files_give_the_same_bytes(zips, collection, tmp_path):
    again = pack("samcl", tmp_path, root=collection)
    assert digest(again.read_bytes()) == digest(zips["samcl"].read_bytes())


def test_wrong_names_and_versions_are_refused(collection, tmp_path):
    with pytest.raises(InputError, match=r"found bundle 'samlc' .did you mean 'samcl'"):
        pack("samlc", tmp_path, root=collection)
    with pytest.raises(InputError, match=r"found version 0.1.0, expected 9.9.9"):
        pack("samcl", tmp_path, version="9.9.9", root=collection)


def test_a_version_without_a_line_in_the_changelog_is_refused(collection, tmp_path):
    path = collection / "bundles" / "samcl" / "configs" / "metadata.json"
    before = path.read_text()
    try:
        path.write_text(before.replace('"version": "0.1.0"', '"version": "0.2.0"'))
        with pytest.raises(InputError, match="not committed"):
            pack("samcl", tmp_path, root=collection)
        with pytest.raises(InputError, match=r"found version 0.2.0 and no line for it in the changelog"):
            pack("samcl", tmp_path, allow_dirty=True, root=collection)
    finally:
        path.write_text(before)


def altered(source, target, change):
    """Copy a zip; ``change`` gets a dict of its files."""
    with zipfile.ZipFile(source) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.update({"../escaped.py": b""}), "path '../escaped.py', expected none that leaves"),
        (lambda files: files.update({"/tmp/escaped.py": b""}), "expected none that leaves the folder"),
        (lambda files: files.update({"other/file": b""}), "found 2 top folders"),
        (lambda files: files.update({"samcl/extra.py": b""}), "files that differ from its list"),
        (lambda files: files.update({"samcl/LICENSE": b"mine"}), "found LICENSE changed since it was packed"),
        (lambda files: files.pop(f"samcl/{MANIFEST}"), f"found no {MANIFEST}"),
    ],
)
def test_tampered_packages_are_refused(zips, tmp_path, change, message):
    package = altered(zips["samcl"], tmp_path / "changed.zip", change)
    with pytest.raises(InputError, match=message):
        unpack(package, tmp_path / "out")
    assert not Path("/tmp/escaped.py").exists()
    assert not (tmp_path / "escaped.py").exists()


def test_a_link_is_refused(tmp_path):
    package = tmp_path / "link.zip"
    entry = zipfile.ZipInfo("samcl/link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(InputError, match="found the link 'samcl/link'"):
        unpack(package, tmp_path / "out")


def test_what_is_no_zip_is_refused(tmp_path):
    package = tmp_path / "text.zip"
    package.write_text("no zip")
    with pytest.raises(InputError, match=r"text.zip: not readable"):
        unpack(package, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not SCHEMA.is_file(), reason="the zoo's schema is not at hand")
@pytest.mark.parametrize("bundle", bundle_names())
def test_packages_run_on_their_own(bundle, zips):
    steps = []
    record = check_package(zips[bundle], SCHEMA, steps.append)
    assert record["bundle"] == bundle
    assert steps[:2] == ["metadata", "network"]
    assert steps[-2:] == ["training", "inference"]
