from __future__ import annotations

from pathlib import Path

import pytest

from shared.data.synthetic import write_registration_tasks
from tests.packages import commit_collection, pack_all
from tests.tools.chain_folder import write_chain
from tests.tools.report_page import Page
from tools.report import write_report

TINY = ("synth_brain_mr", "synth_lung_ct", "synth_abdomen_ct")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Three embedded tasks of a few small images."""
    folder = tmp_path_factory.mktemp("tiny_data")
    write_registration_tasks(folder, TINY, size=16, counts={"training": 4, "validation": 1, "test": 2})
    return folder


@pytest.fixture(scope="session")
def collection(tmp_path_factory) -> Path:
    """A clone's files in a repository of their own, all committed."""
    return commit_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def zips(collection, tmp_path_factory) -> dict[str, Path]:
    """Packages of all bundles."""
    return pack_all(collection, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def chain(tmp_path_factory) -> Path:
    """A made-up chain of four tasks."""
    return write_chain(tmp_path_factory.mktemp("chain") / "samcl")


@pytest.fixture(scope="session")
def chain_page(chain) -> Path:
    return write_report([chain], chain.parent / "report.html")


@pytest.fixture(scope="session")
def html(chain_page) -> str:
    return chain_page.read_text()


@pytest.fixture(scope="session")
def page(html) -> Page:
    return Page(html)


@pytest.fixture(scope="session")
def strategies(tmp_path_factory) -> Path:
    """Made-up chains: three seeds of two strategies, one seed of the two bounds; one chain is not finished."""
    folder = tmp_path_factory.mktemp("compare")
    for strategy in ("er", "sequential"):
        for seed in range(3):
            finished = 2 if (strategy, seed) == ("er", 2) else None
            write_chain(folder / strategy / f"seed{seed}", strategy=strategy, seed=seed, finished=finished)
    for strategy in ("joint", "single"):
        write_chain(folder / strategy / "seed0", strategy=strategy)
    return folder


@pytest.fixture(scope="session")
def strategies_page(strategies) -> Path:
    return write_report([strategies], strategies / "report.html")


@pytest.fixture(scope="session")
def comparison(strategies_page) -> Page:
    return Page(strategies_page.read_text())
