"""A real MONAI Label server in a process of its own, and requests to it as any client makes them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

# Python of an environment made by make_environment.sh.
PYTHON = os.environ.get("LABEL_PYTHON", "")
START_S = 300
# In the place of the host's main.py.
APP = Path(__file__).resolve().parents[2] / "tools" / "label_app.py"


def environment(home: Path) -> dict[str, str]:
    """Return variables with which nothing but the machine itself is reached, and caches go to ``home``."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    own = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = os.pathsep.join([str(Path(PYTHON).parent), os.environ.get("PATH", "")])
    return {**kept, **nowhere, **own, "PATH": path, "REGISTRATION_KERNELS_CACHE": f"{cache}/registration_kernels"}


def make_app(folder: Path, bundles: Sequence[Path], checked: bool = False) -> Path:
    """Fetch MONAI Label's own app for bundles, as its users do, and lay bundles into it.

    Args:
        folder: gets the app.
        bundles: unpacked.
        checked: lay the app that refuses empty labels over it.
    """
    command = [PYTHON, "-m", "monailabel.main", "apps", "--name", "monaibundle", "--download", "--output", str(folder)]
    subprocess.run(command, env=environment(folder), check=True, capture_output=True, timeout=120)
    for bundle in bundles:
        (folder / "monaibundle" / "model").mkdir(exist_ok=True)
        (folder / "monaibundle" / "model" / bundle.name).symlink_to(bundle, target_is_directory=True)
    if checked:
        shutil.copy(APP, folder / "monaibundle" / "main.py")
    return folder / "monaibundle"


@dataclass(frozen=True)
class Answer:
    """What a server answered.

    Attributes:
        status: of HTTP.
        content: bytes.
    """

    status: int
    content: bytes

    @property
    def detail(self) -> str:
        """The sentence of an error."""
        return str(json.loads(self.content)["detail"])

    def image(self, folder: Path) -> nib.Nifti1Image:
        """Return the label map of a good answer."""
        assert self.status == 200, self.content
        path = folder / f"{uuid.uuid4().hex}.nii.gz"
        path.write_bytes(self.content)
        return nib.load(path)


class Server:
    """A server of an app; use it in a ``with`` block.

    Args:
        app: folder.
        models: names of bundles, in the order in which they are loaded.
        studies: folder with images, the server's store.
        log: file for what it says.
    """

    def __init__(self, app: Path, models: Sequence[str], studies: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        conf = [("models", ",".join(models)), ("zoo_source", "local"), ("sam2", "false")]
        self.command = [PYTHON, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
        self.command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self.command += [word for pair in conf for word in ("--conf", *pair)]

    def __enter__(self) -> Server:
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                self.command, stdout=stream, stderr=subprocess.STDOUT, env=environment(self.log.parent)
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.get("/info/").status == 200:
                    return self
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise RuntimeError(f"the server did not start: {self.tail()}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def tail(self, count: int = 3000) -> str:
        """Return the end of what it said."""
        return self.log.read_text(errors="replace")[-count:]

    def _send(self, request: urllib.request.Request, timeout: float = 300) -> Answer:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as response:
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())

    def get(self, path: str) -> Answer:
        """Ask for a page."""
        return self._send(urllib.request.Request(self.url + path), timeout=60)

    def infer(
        self, model: str, image: str = "", file: Path | None = None, output: str = "image", **params: Any
    ) -> Answer:
        """Ask for an answer to an image of the store, to a path on the server, or to a file that is sent along."""
        query = urllib.parse.urlencode({"image": image, "output": output})
        return self._send(_form(f"{self.url}/infer/{model}?{query}", "POST", params, "file", file))

    def submit(self, image: str, label: Path) -> Answer:
        """Submit a final label of an image of the store."""
        query = urllib.parse.urlencode({"image": image})
        return self._send(_form(f"{self.url}/datastore/label?{query}", "PUT", {}, "label", label))


def _form(url: str, method: str, params: dict[str, Any], name: str, file: Path | None) -> urllib.request.Request:
    """Return a request with options and a file, as a form."""
    line = uuid.uuid4().hex
    parts = [(b'name="params"', json.dumps(params).encode())]
    if file is not None:
        parts.append((f'name="{name}"; filename="{file.name}"'.encode(), file.read_bytes()))
    body = b"".join(
        b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (line.encode(), about, content)
        for about, content in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={line}"}
    return urllib.request.Request(url, data=body + f"--{line}--\r\n".encode(), headers=headers, method=method)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the mean Dice over the labels of the second map."""
    values = [v for v in np.unique(other) if v > 0]
    each = [2 * ((one == v) & (other == v)).sum() / ((one == v).sum() + (other == v).sum()) for v in values]
    return float(np.mean(each))
