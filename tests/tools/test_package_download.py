"""Packages as their users get them: from a web server, run and loaded from another folder."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nibabel as nib
import numpy as np
import pytest

from shared.kernels import warp_backend
from shared.kernels.build import cache_dir
from tests.learn2reg_folder import write_pair
from tools.package import bundle_names
from tools.package_check import unpack

# What a user's program looks like: nothing of the collection is on the path.
USE = """
import sys
sys.path.insert(0, {name!r})
import monai, torch
network = monai.bundle.load({name!r}, bundle_dir=".", workflow_type="inference")
print("output", tuple(network.eval()(torch.rand(1, {channels}, *{shape})).shape))
monai.bundle.run(run_id="inference", config_file="{name}/configs/inference.json", **{options!r})
"""
WARP = """
import json, os, sys
sys.path.insert(0, "samcl")
import torch
from scripts._shared.kernels import warp_backend
from scripts._shared.warp import warp
image, ddf = (torch.randn(1, c, 7, 8, 9, generator=torch.Generator().manual_seed(c)) for c in (1, 3))
for wanted in ("auto", "torch"):
    os.environ["WARP_BACKEND"] = wanted
    print(json.dumps([warp_backend().name, warp(image, ddf).flatten().tolist()]))
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(zips):
    """Serve the packages on this machine alone."""
    folder = next(iter(zips.values())).parent
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def python(folder, *arguments, **environment):
    """Run Python in a folder where the collection is out of reach; it must succeed."""
    for name in ("shared", "tools"):
        (folder / "blocked").mkdir(exist_ok=True)
        (folder / "blocked" / f"{name}.py").write_text("raise ImportError('the collection')")
    clean = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder / "blocked")}
    command = [sys.executable, *arguments]
    found = subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module", params=bundle_names())
def downloaded(request, address, zips, tmp_path_factory):
    """A folder into which a user has downloaded a bundle."""
    name = request.param
    folder = tmp_path_factory.mktemp(f"user_{name}")
    options = ["--name", name, "--version", "0.1.0", "--url", f"{address}/{zips[name].name}", "--bundle_dir", "."]
    python(folder, "-m", "monai.bundle", "download", *options)
    return name, folder


def test_a_downloaded_bundle_loads_and_runs_from_another_folder(downloaded):
    name, folder = downloaded
    formats = json.loads((folder / name / "configs" / "metadata.json").read_text())["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    shape = [32] * len(image["spatial_shape"])
    pair = write_pair(folder / "images")
    files = {"image": pair["fixed_image"]} if name == "smdr" else pair
    options = {"output_dir": str(folder / "out"), **files}
    said = python(folder, "-c", USE.format(name=name, channels=image["num_channels"], shape=shape, options=options))
    assert f"output {(1, pred['num_channels'], *shape)}" in said
    answer = folder / "out" / ("fixed_label.nii.gz" if name == "smdr" else "warped.nii.gz")
    found, expected = nib.load(answer), nib.load(pair["fixed_image"])
    assert found.shape == expected.shape
    assert np.allclose(found.affine, expected.affine)


def test_the_kernels_come_along_and_give_the_fallbacks_answer(zips, tmp_path):
    if warp_backend().name != "cpp":
        pytest.skip(f"no compiled kernels: {warp_backend().reason}")
    unpack(zips["samcl"], tmp_path)
    # The cache is that of the other tests: the same source gives the same key.
    cache = {"REGISTRATION_KERNELS_CACHE": str(cache_dir())}
    compiled, plain = map(json.loads, python(tmp_path, "-c", WARP, **cache).splitlines())
    assert (compiled[0], plain[0]) == ("cpp", "torch")
    assert np.allclose(compiled[1], plain[1], atol=1e-5)


def test_without_a_compiler_the_fallback_takes_over(zips, tmp_path):
    unpack(zips["samcl"], tmp_path)
    broken = {"CXX": "no-such-compiler", "REGISTRATION_KERNELS_CACHE": str(tmp_path / "empty")}
    first, second = map(json.loads, python(tmp_path, "-c", WARP, **broken).splitlines())
    assert first == second
    assert first[0] == "torch"
