from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

# Threads that spin for work take 4 ms a call on a busy machine; tensors in tests are far smaller than that.
# It counts only when set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure() -> None:
    """Let Triton interpret kernels where there is no GPU: it decides when it is imported, by whomever that may be."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["torch", "compiled"])
def warp_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module's tests with every backend of warps on the CPU."""
    with backend_on_cpu(request.param):
        yield request.param


@pytest.fixture(scope="module", params=["torch", "compiled", "triton"])
def every_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As ``warp_backend``, and with the Triton kernels interpreted, which is slow."""
    with backend_on_cpu(request.param):
        yield request.param


@pytest.fixture(scope="module")
def triton_on_cpu() -> Iterator[None]:
    """Let the Triton kernels serve tensors of the CPU, interpreted, in the place of the compiled ones."""
    with backend_on_cpu("triton"):
        yield


@contextmanager
def backend_on_cpu(name: str) -> Iterator[None]:
    from shared.kernels import warp_backend as choice

    with pytest.MonkeyPatch.context() as patch:
        if name == "triton":
            with interpreted_kernels(patch):
                yield
            return
        if name == "compiled" and choice().name != "cpp":
            pytest.skip(f"no compiled kernels: {choice().reason}")
        patch.setenv("WARP_BACKEND", name)
        yield


@contextmanager
def interpreted_kernels(patch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch

    from shared.kernels import backend, operators

    if torch.cuda.is_available():
        pytest.skip("Triton is not interpreted where there is a GPU: the tests of CUDA run it there")
    try:
        kernels = operators.triton_kernels()
    except ImportError as error:
        pytest.skip(f"no Triton: {error}")
    library = torch.library.Library("registration", "IMPL")
    for operator, kernel in kernels.items():
        library.impl(operator, kernel, "CPU")
    patch.setattr(backend, "_cpp", lambda device: backend.Choice("triton", "interpreted"))
    patch.setenv("WARP_BACKEND", "compiled")
    backend._choose.cache_clear()
    try:
        yield
    finally:
        backend._choose.cache_clear()
        library._destroy()


@pytest.fixture
def generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0)
