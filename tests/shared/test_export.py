from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bundles.samcl.scripts.network import LKUNet
from shared.errors import InputError
from shared.export import FILES, export_network, onnx_runner
from shared.networks import SymmetricCascade
from tests.tiny import make_network

ONNX_FORMATS = ["onnx", "onnx_int8"]
CASCADE = {"levels": 2, "finest": 1, "widths": 4, "hidden": 4, "steps_per_level": 2, "integration_steps": 2}


def lively(network: torch.nn.Module) -> torch.nn.Module:
    """Return an untrained network whose fields are not zero."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    return network.eval()


def cascade(**options) -> torch.nn.Module:
    return lively(SymmetricCascade(**{**CASCADE, **options}))


NETWORKS = {
    "cascade": (cascade, (16, 12, 9)),
    "cascade 2D": (lambda: cascade(spatial_dims=2, finest=0, steps_per_level=1), (16, 13)),
    "midpoint": (lambda: cascade(spatial_dims=2, path="midpoint", steps_per_level=1), (8, 8)),
    "velocity": (lambda: cascade(path="velocity", output="dvf", backbone="mobile", steps_per_level=1), (8, 8, 8)),
    "forward only": (lambda: cascade(spatial_dims=2, symmetric=False, steps_per_level=1), (8, 8)),
    "LKUNet": (lambda: lively(LKUNet(3, channels=4, depth=2, half_resolution=True)), (16, 11, 12)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_format_computes_the_field(name, tmp_path, capsys):
    make, size = NETWORKS[name]
    network = make()
    written = export_network(network, tmp_path, size)
    assert {p.name for p in tmp_path.iterdir()} == {*FILES.values(), "export.json"}
    assert json.loads((tmp_path / "export.json").read_text())["formats"] == written
    torch.manual_seed(1)
    for batch in (1, 2, 3):
        image = torch.rand(batch, 2, *size)
        with torch.no_grad():
            expected = network(image)
            largest = float(expected.abs().max())
            assert largest > 0.05
            script = torch.jit.load(tmp_path / "model.ts")(image)
            torch.testing.assert_close(script, expected, atol=1e-5 * max(1, largest), rtol=0)
        found = onnx_runner(tmp_path / "model.onnx")(image)
        torch.testing.assert_close(found, expected, atol=1e-5 * max(1, largest), rtol=0)
        rounded = onnx_runner(tmp_path / "model_int8.onnx")(image)
        difference = float((rounded - expected).abs().max())
        assert 1e-5 * largest < difference < 0.25 * largest  # 8 bits are coarser, but the field is the same
    for entry in written.values():
        assert entry["bytes"] == (tmp_path / entry["file"]).stat().st_size
    assert written["onnx"]["spatial_size"] == list(size)
    assert "model_int8.onnx" in capsys.readouterr().out


def test_torchscript_takes_any_size_and_onnx_the_one_it_was_made_for(tmp_path):
    network = cascade()
    export_network(network, tmp_path, (8, 8, 8), ["torchscript", "onnx"])
    image = torch.rand(1, 2, 11, 16, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(image), network(image))
    with pytest.raises(Exception, match="invalid dimensions"):
        onnx_runner(tmp_path / "model.onnx")(image)


def test_the_network_stays_as_it_was(tmp_path):
    network = cascade().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    export_network(network, tmp_path, (8, 8, 8))
    assert network.training
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    network(torch.rand(1, 2, 8, 8, 8)).sum().backward()


def test_weights_are_stored_once(tmp_path):
    """A trace passes through the weights of a scale once a step."""
    network = cascade(widths=8, hidden=8, steps_per_level=3)
    export_network(network, tmp_path, (8, 8, 8), ["onnx"])
    import onnx

    stored = sum(len(tensor.raw_data) for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer)
    assert stored < 1.1 * 4 * sum(p.numel() for p in network.parameters())


def test_int8_files_are_smaller(tmp_path):
    network = lively(
        SymmetricCascade(**{**CASCADE, "spatial_dims": 2, "widths": 32, "hidden": 32, "steps_per_level": 1})
    )
    written = export_network(network, tmp_path, (8, 8), ONNX_FORMATS)
    assert written["onnx_int8"]["bytes"] < 0.6 * written["onnx"]["bytes"]
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "model_int8.onnx").graph.node}
    assert "ConvInteger" in kinds
    assert "Conv" not in kinds


def test_repair_folds_is_kept_by_torchscript_and_refused_by_onnx(tmp_path):
    network = cascade(repair_folds=True)
    for name in ONNX_FORMATS:
        with pytest.raises(InputError, match=r"repair_folds.*expected repair_folds false"):
            export_network(network, tmp_path, (8, 8, 8), ["torchscript", name])
    assert not list(tmp_path.iterdir())
    export_network(network, tmp_path, (8, 8, 8), ["torchscript"])
    assert torch.jit.load(tmp_path / "model.ts").repair_folds


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"'onnx_int9' .did you mean 'onnx_int8'"):
        export_network(make_network(), tmp_path / "out", (8, 8, 8), ["torchscript", "onnx_int9"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_and_torchscript_needs_none(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"found no package {package}; .*pip install onnx onnxruntime"):
        export_network(make_network(), tmp_path, (8, 8, 8))
    export_network(make_network(), tmp_path, (8, 8, 8), ["torchscript"])
    assert "onnx" not in json.loads((tmp_path / "export.json").read_text())["versions"]


class OtherWhenTraced(torch.nn.Module):
    """Computes something else once it is an ONNX graph."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and torch.jit.is_tracing():
            return 2 * image
        return 3 * image


def test_a_file_that_computes_something_else_is_not_kept(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"an earlier one")
    with pytest.raises(RuntimeError, match=r"model.onnx differs from the network by 0.99\d+ where"):
        export_network(OtherWhenTraced(), tmp_path, (8, 8, 8), ["onnx"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.onnx": b"an earlier one"}


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    export_network(make_network(), tmp_path, (8, 8, 8), ["onnx"])
    before = (tmp_path / "model.onnx").read_bytes()

    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.endswith("model.onnx"):
            write(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"model.onnx: cannot be written \(No space left on device\)"):
        export_network(lively(make_network()), tmp_path, (8, 8, 8), ["onnx"])
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))
