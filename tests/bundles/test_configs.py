"""What holds for the configs of every bundle, and what the hosts of bundles ask of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundles import runs

CONFIGS = sorted((runs.ROOT / "bundles").glob("*/configs/**/*.json"))
# The public schema, where a copy of it lies beside the checkout.
SCHEMAS = runs.ROOT.parent / "shared" / "zoo"


def strings(node: object):
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield "", value
            yield from strings(value)


def test_there_are_configs_to_check():
    assert {"samcl", "dccnn_lstm_reg"} <= set(runs.BUNDLES)
    assert {path.parents[1].name for path in CONFIGS} >= set(runs.BUNDLES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(runs.ROOT / "bundles")))
def test_configs_hold_wiring_only(path):
    """No lambda, no long expression, no target outside the bundle, torch, ignite and MONAI."""
    content = json.loads(path.read_text())
    for key, value in strings(content):
        if isinstance(value, str) and value.startswith("$"):
            assert len(value) <= 90, value
            assert "lambda" not in value
        if key == "_target_":
            assert value.split(".")[0] in {"scripts", "torch", "ignite", "monai"} or value[0].isupper(), value
    assert "initialize" not in content


@pytest.mark.parametrize("bundle", runs.BUNDLES)
def test_metadata_keeps_to_its_schema(bundle):
    metadata = runs.ROOT / "bundles" / bundle / "configs" / "metadata.json"
    schema = SCHEMAS / Path(json.loads(metadata.read_text())["schema"]).name
    if not schema.is_file():
        pytest.skip(f"no copy of the schema at {schema}")
    pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from monai.bundle import verify_metadata

    verify_metadata(meta_file=str(metadata), filepath=str(schema))


@pytest.mark.parametrize("bundle", runs.BUNDLES)
def test_monai_finds_the_network_as_the_metadata_describe_it(bundle):
    result = runs.host_command(bundle, "verify_net_in_out", "network_def")
    assert "verified with no error" in result.stdout + result.stderr
