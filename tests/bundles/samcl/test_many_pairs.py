"""10,000 pairs: memory does not grow with those that are seen, and with those that are listed by their names alone."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Events

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.objective import RegistrationObjective
from bundles.samcl.scripts.strategies import ER
from shared.data.loader import SampleLoader
from shared.data.pairs import PairDataset
from shared.data.sampler import ResumableSampler
from tests.bundles.samcl.tiny import make_trainer

IMAGES, SIDE = 5000, 16
PAIRS = 2 * IMAGES
KEPT = 64
ITEM_BYTES = SIDE**3 * 7
MIB = 2**20
# What the allocator holds back; 5000 images would take twelve times as much.
SLACK = 12 * MIB
LISTED_BYTES = 4096  # of names, headers and grids, a pair
MEMORY = Path("/proc/self/status")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MEMORY.exists(), reason="the system does not tell what a process holds"),
]


def resident() -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return next(int(line.split()[1]) * 1024 for line in MEMORY.read_text().splitlines() if line.startswith("VmRSS"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[dict[str, str]]:
    """Every image with the next two."""
    folder = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(0)
    volumes = [generator.integers(0, 900, (SIDE,) * 3).astype(np.int16) for _ in range(20)]
    contents = [nib.Nifti1Image(volume, np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes() for volume in volumes]
    names = [str(folder / f"image_{i:05d}.nii") for i in range(IMAGES)]
    for name, content in zip(names, itertools.cycle(contents), strict=False):
        Path(name).write_bytes(content)
    mr = {"fixed_modality": "mr", "moving_modality": "mr", "task": "many"}
    return [
        {"fixed_image": names[i], "moving_image": names[(i + step) % IMAGES], **mr}
        for i in range(IMAGES)
        for step in (1, 2)
    ]


@pytest.fixture(scope="module")
def listed(pairs) -> tuple[PairDataset, int]:
    """The data set, and what making it took."""
    PairDataset(pairs[:10], (SIDE,) * 3)
    before = resident()
    dataset = PairDataset(pairs, (SIDE,) * 3, cache_num=KEPT)
    return dataset, resident() - before


def test_a_listed_pair_takes_little(listed):
    dataset, taken = listed
    assert len(dataset) == PAIRS
    assert dataset.unread == IMAGES - KEPT
    assert taken < PAIRS * LISTED_BYTES + KEPT * ITEM_BYTES


def test_seen_pairs_leave_nothing_behind(listed):
    dataset, _ = listed
    batches = iter(SampleLoader(dataset, ResumableSampler(PAIRS), batch_size=10))
    for _ in itertools.islice(batches, 30):
        pass
    before = resident()
    for _ in itertools.islice(batches, 270):
        pass
    after = resident()
    batches.close()
    assert after - before < SLACK


def test_the_bound_would_notice_what_is_kept(pairs):
    before = resident()
    dataset = PairDataset(pairs[:1600], (SIDE,) * 3, cache_num=800)
    for index in range(0, 1600, 2):
        dataset[index]
    assert resident() - before > SLACK


@pytest.mark.parametrize("on_disk", [False, True])
def test_training_holds_its_memory(listed, tmp_path, on_disk):
    dataset, _ = listed
    held = {}

    def look(engine) -> None:
        if engine.state.iteration in (15, 45):
            held[engine.state.iteration] = resident()

    memory = ReservoirMemory(30, on_disk)
    loss = RegistrationObjective(window=3, steps=2, overlap=0, landmarks=0)
    options = {"dataset": dataset, "batch_size": 12, "epoch_length": 15, "max_epochs": 3, "loss_function": loss}
    trainer = make_trainer(tmp_path, ER(memory), **options)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    assert memory.seen == 45 * 12
    assert len(memory) == len(list((tmp_path / "memory" / "rank0").glob("*.npz"))) == 30
    # 360 more pairs have been seen, which are 20 MB of images, and 41 MB with those replayed.
    assert held[45] - held[15] < SLACK
