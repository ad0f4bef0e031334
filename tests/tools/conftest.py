from __future__ import annotations

from pathlib import Path

import pytest

from shared.data.synthetic import write_registration_tasks

TINY = ("synth_brain_mr", "synth_lung_ct", "synth_abdomen_ct")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Three embedded tasks of a few small images."""
    folder = tmp_path_factory.mktemp("tiny_data")
    write_registration_tasks(folder, TINY, size=16, counts={"training": 4, "validation": 1, "test": 2})
    return folder
