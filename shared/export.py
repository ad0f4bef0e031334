"""A network as files that run without this project: TorchScript, ONNX, and ONNX with int8 convolutions."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .errors import InputError, did_you_mean
from .files import atomic_path, save_json, writable_dir
from .weights import unwrap

__all__ = ["FILES", "TOLERANCE", "export_network", "onnx_runner"]

FILES = {"torchscript": "model.ts", "onnx": "model.onnx", "onnx_int8": "model_int8.onnx"}
NEEDS = {"torchscript": (), "onnx": ("onnx", "onnxruntime"), "onnx_int8": ("onnx", "onnxruntime")}
# The first opset whose GridSample takes volumes.
OPSET = 20
# A float export that differs by more than this share of the largest value (of 1, if that is less) is no export.
TOLERANCE = 1e-4


def export_network(
    network: nn.Module, output_dir: str | Path, spatial_size: Sequence[int], formats: Sequence[str] = tuple(FILES)
) -> dict[str, dict[str, Any]]:
    """Write a network in other formats, each checked against it on a random pair.

    Input ``image`` (B, 2, *S) float32, output ``pred``, as the network's ``forward`` says. ``model.ts`` (TorchScript)
    takes any B and S. ``model.onnx`` takes any B and the one S it was made for. ``model_int8.onnx`` is the same with
    weights and inputs of convolutions as 8-bit integers, the inputs' range taken at run time. ``export.json`` says what
    was written, how large it is and how far its output is from the network's.

    Args:
        network: a copy on the CPU is exported.
        output_dir: where the files go.
        spatial_size: S.
        formats: of :data:`FILES`; the ONNX ones need the packages onnx and onnxruntime.

    Returns:
        What ``export.json`` says of each format: ``file``, ``bytes``, ``max_difference``, ``largest_value`` (of
        ``pred``, in its units), ``spatial_size``.

    Raises:
        InputError: an unknown format, a package that is missing, or an option of the network that ONNX cannot hold.
        RuntimeError: an exported file that computes something else; it is not kept.
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    _check(network, formats)
    network = copy.deepcopy(unwrap(network)).cpu().eval()
    # Two pairs: for a single one the networks take by-ways that suit torch on a CPU, and a trace would keep them.
    pairs = torch.rand(2, 2, *spatial_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(pairs)
    folder, entries = writable_dir(output_dir), {}
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        # Tracing warns of every size that becomes a constant, and torch of its older exporter: both are meant.
        warnings.simplefilter("ignore")
        graph = Path(scratch) / "float.onnx"
        for name in (bar := tqdm(formats, desc="exporting", unit="format", leave=False)):
            bar.set_postfix_str(name)
            if name != "torchscript" and not graph.exists():
                _write_onnx(network, pairs, graph)
            with atomic_path(folder / FILES[name]) as path:
                runner = _write(name, network, graph, path)
                entries[name] = {"file": FILES[name], "bytes": path.stat().st_size}
                entries[name] |= _compare(name, runner, pairs, expected)
            entries[name]["spatial_size"] = "any" if name == "torchscript" else list(spatial_size)
    packages = ("torch", *sorted({package for name in formats for package in NEEDS[name]}))
    save_json(folder / "export.json", {"formats": entries, "versions": {p: version(p) for p in packages}})
    _report(entries, folder)
    return entries


def onnx_runner(path: str | Path) -> Callable[[Tensor], Tensor]:
    """Return what runs an exported ONNX file on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _check(network: nn.Module, formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FILES:
            raise InputError(f"found format {name!r}{did_you_mean(name, FILES)}, expected some of {list(FILES)}")
        missing = [package for package in NEEDS[name] if find_spec(package) is None]
        if missing:
            raise InputError(
                f"format {name!r}: found no package {' and '.join(missing)}; "
                f"expected them installed (python -m pip install {' '.join(NEEDS[name])}), or other formats"
            )
        if name != "torchscript" and getattr(unwrap(network), "repair_folds", False):
            raise InputError(
                f"format {name!r}: found a network with repair_folds, which looks at each field to decide how often it "
                "is halved: an ONNX graph cannot; expected repair_folds false, or torchscript alone"
            )


def _write(name: str, network: nn.Module, graph: Path, path: Path) -> Callable[[Tensor], Tensor]:
    """Write one format and return what runs the file."""
    if name == "torchscript":
        torch.jit.script(network).save(str(path))
        return torch.jit.load(str(path))
    if name == "onnx":
        path.write_bytes(graph.read_bytes())
    else:
        _write_int8(graph, path)
    return onnx_runner(path)


def _write_onnx(network: nn.Module, pairs: Tensor, path: Path) -> None:
    import onnx

    with torch.no_grad():
        # Frozen, weights that are computed from others become constants: ONNX convolutions need their kernel's size.
        traced = torch.jit.freeze(torch.jit.trace(network, pairs, check_trace=False))
    # Torch before 2.5 has only the exporter that takes traces, and no option to choose it.
    choice = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        traced,
        (pairs,),
        str(path),
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": {0: "batch"}, "pred": {0: "batch"}},
        opset_version=OPSET,
        **choice,
    )
    model = onnx.load(path)
    _share_constants(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _share_constants(graph: Any) -> None:
    """Make constant nodes initialisers, one for equal ones: freezing writes weights out as often as they are used."""
    kept: dict[bytes, str] = {}
    names: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type != "Constant" or node.attribute[0].name != "value":
            nodes.append(node)
            continue
        tensor, name = node.attribute[0].t, node.output[0]
        tensor.name = ""
        content = tensor.SerializeToString()
        if content not in kept:
            kept[content] = tensor.name = name
            graph.initializer.append(tensor)
        names[name] = kept[content]
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _write_int8(graph: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    prepared = graph.with_name("prepared.onnx")
    # Shapes are known from the trace; the symbolic search for them fails on these graphs.
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    # Unsigned weights: onnxruntime's int8 convolution takes more than twice as long with signed ones.
    quantize_dynamic(prepared, path, op_types_to_quantize=["Conv"], weight_type=QuantType.QUInt8)


def _compare(name: str, runner: Callable[[Tensor], Tensor], pairs: Tensor, expected: Tensor) -> dict[str, float]:
    """Return how far a file's output is from the network's, for one pair and for two."""
    with torch.no_grad():
        found = runner(pairs), runner(pairs[:1])
    difference = max(float((found[0] - expected).abs().max()), float((found[1] - expected[:1]).abs().max()))
    largest = float(expected.abs().max())
    if name != "onnx_int8" and not difference <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"{FILES[name]} differs from the network by {difference} where the largest value is {largest}"
        )
    return {"max_difference": difference, "largest_value": largest}


def _report(entries: dict[str, dict[str, Any]], folder: Path) -> None:
    print(f"{'format':>12} {'file':>16} {'MB':>7} {'max difference':>15} {'of':>8} {'size':>14}")
    for name, entry in entries.items():
        size = entry["spatial_size"]
        size = size if isinstance(size, str) else "x".join(map(str, size))
        print(
            f"{name:>12} {entry['file']:>16} {entry['bytes'] / 1e6:7.2f} {entry['max_difference']:15.2g} "
            f"{entry['largest_value']:8.2f} {size:>14}"
        )
    print(f"written to {folder}", flush=True)
