import os
import sys

import pytest

from shared.errors import InputError
from tools.__main__ import package as package_command
from tools.package_push import push

GITHUB = "gh release create samcl_v0.1.0 {zip} --repo me/bundles --title 'samcl 0.1.0' --notes 'samcl 0.1.0'"


def programs(folder, monkeypatch, code=0):
    """Put programs of the uploaders' names on the PATH that write down what they were given."""
    folder.mkdir()
    for name in ("gh", "hf"):
        path = folder / name
        record = f"open({str(folder / 'calls')!r}, 'a').write(' '.join(sys.argv) + '\\n')"
        path.write_text(f"#!{sys.executable}\nimport sys\n{record}\nsys.exit({code})\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder / "calls"


def test_without_yes_the_command_is_shown_and_nothing_runs(zips, tmp_path, monkeypatch):
    calls, said = programs(tmp_path / "bin", monkeypatch), []
    push(zips["samcl"], "github", "me/bundles", tell=said.append)
    assert said == [GITHUB.format(zip=zips["samcl"]), "nothing was uploaded; --yes runs this"]
    assert not calls.exists()


def test_with_yes_exactly_the_shown_command_runs(zips, tmp_path, monkeypatch):
    calls, said = programs(tmp_path / "bin", monkeypatch), []
    push(zips["samcl"], "github", "me/bundles", yes=True, tell=said.append)
    assert said == [GITHUB.format(zip=zips["samcl"])]
    assert calls.read_text().split()[1:] == said[0].replace("'", "").split()[1:]


def test_hugging_face_gets_the_unpacked_bundle_and_a_tag(zips, tmp_path, monkeypatch):
    calls, said = programs(tmp_path / "bin", monkeypatch), []
    push(zips["samcl"], "hf", "me/samcl", yes=True, tell=said.append)
    folder = zips["samcl"].with_suffix("") / "samcl"
    assert (folder / "configs" / "metadata.json").is_file()
    assert said[0] == f"hf upload me/samcl {folder} . --commit-message 'samcl 0.1.0'"
    assert said[1] == "hf repo tag create me/samcl 0.1.0"
    assert len(calls.read_text().splitlines()) == 2


def test_large_files_are_uploaded_with_the_package(tmp_path):
    package = tmp_path / "samcl_v0.1.0.zip"
    package.write_bytes(b"")
    (tmp_path / "samcl_v0.1.0_models_model.pt").write_bytes(b"")
    said = []
    push(package, "github", "me/bundles", tell=said.append)
    assert f"{package} {tmp_path / 'samcl_v0.1.0_models_model.pt'} --repo" in said[0]


def test_bad_requests_are_refused(zips, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--push githup .did you mean 'github'.*, expected one of github, hf"):
        push(zips["samcl"], "githup", "me/bundles")
    with pytest.raises(InputError, match="--repo None, expected OWNER/NAME"):
        push(zips["samcl"], "github", None)
    programs(tmp_path / "bin", monkeypatch, code=4)
    with pytest.raises(InputError, match=r"'gh release create .* failed with code 4"):
        push(zips["samcl"], "github", "me/bundles", yes=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="no program 'gh' on the PATH"):
        push(zips["samcl"], "github", "me/bundles", yes=True)


def test_a_zip_that_is_tried_is_not_pushed():
    with pytest.raises(InputError, match="found --push and --verify"):
        package_command(verify="x.zip", push="github")
