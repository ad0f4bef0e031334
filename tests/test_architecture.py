"""The direction of imports: tools -> bundles (by subprocess) -> shared -> monai, torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(p.name for p in (ROOT / "bundles").iterdir() if (p / "configs").is_dir())
HEAVY = {"itk", "matplotlib", "mlflow", "onnx", "onnxruntime", "triton", "tensorboard"}
# `apply`, `register` and `optimise` are whole commands that Python users call as functions; the tool is their command
# line.
COMMANDS = {"apply", "optimise", "register"}
TOOLS_MAY_USE = {"metrics", "transform_io", "plots", "data", "errors", "files", "settings", *COMMANDS}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the dotted names that a file imports, relative ones resolved against the repository."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *(node.module or "").split(".")]).strip("."))
    return found


@pytest.mark.parametrize("path", sources("shared"), ids=lambda p: str(p.relative_to(ROOT)))
def test_shared_imports_no_bundle_and_no_tool(path):
    assert not {n for n in imports(path) if n.split(".")[0] in {"bundles", "tools", "scripts"}}


@pytest.mark.parametrize("path", sources("shared"), ids=lambda p: str(p.relative_to(ROOT)))
def test_shared_imports_itself_relatively(path):
    tree = ast.parse(path.read_text())
    absolute = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level and n.module]
    assert not [n.module for n in absolute if n.module.split(".")[0] == "shared"]


@pytest.mark.parametrize("path", sources("shared"), ids=lambda p: str(p.relative_to(ROOT)))
def test_shared_imports_itself_at_once(path):
    """A host of several bundles drops a bundle's modules while its objects live on: what they import later is gone."""
    # Pictures of a training, and kernels that need Triton, whose import may fail.
    if path.name in {"evaluation.py", "operators.py"}:
        return
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    late = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.ImportFrom) and n.level]
    assert not [n.module for n in late]


@pytest.mark.parametrize("path", sources("bundles"), ids=lambda p: str(p.relative_to(ROOT)))
def test_bundles_import_neither_each_other_nor_tools(path):
    own = path.relative_to(ROOT).parts[1]
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in {"tools", "scripts"}, name
        assert parts[0] != "bundles" or parts[1] == own, name


@pytest.mark.parametrize("path", sources("bundles"), ids=lambda p: str(p.relative_to(ROOT)))
def test_bundles_import_shared_in_the_one_form_that_packaging_rewrites(path):
    tree = ast.parse(path.read_text())
    plain = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not [n for n in plain if n.split(".")[0] == "shared"]


@pytest.mark.parametrize("path", sources("tools"), ids=lambda p: str(p.relative_to(ROOT)))
def test_tools_use_little_of_shared_and_no_bundle(path):
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] != "bundles", name
        assert parts[0] != "shared" or parts[1] in TOOLS_MAY_USE, name


@pytest.mark.parametrize("path", [*sources("shared"), *sources("bundles")], ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_packages_wait_for_the_function_that_needs_them(path):
    if path.name.endswith("_triton.py"):
        return  # Triton kernels are decorated functions; only the function that chooses them imports a file
    assert not {n for n in imports(path, top_level_only=True) if n.split(".")[0] in HEAVY}


def test_no_folder_called_scripts_at_the_root():
    assert not (ROOT / "scripts").exists()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_bundle_has_what_hosts_ask_for(bundle):
    folder = ROOT / "bundles" / bundle
    needed = ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/logging.conf"]
    needed += [f"configs/{n}.json" for n in ("train", "inference", "evaluate", "smoke", "paper", "multi_gpu_train")]
    assert not [n for n in needed if not (folder / n).is_file()]


def test_there_are_bundles_to_check():
    assert {"samcl", "dccnn_lstm_reg"} <= set(BUNDLES)
