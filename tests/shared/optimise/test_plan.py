from __future__ import annotations

import pytest
import torch

from shared.errors import InputError
from shared.optimise import OptimiseSettings
from shared.optimise.plan import fit_to_memory, plan, stiffen
from tests.shared.optimise.scenes import grid_of

HEAD = grid_of((160, 192, 144))


def test_levels_follow_the_field_of_view_and_end_with_local_correlation():
    stages = plan(HEAD, HEAD, OptimiseSettings(), multimodal=False)
    lengths = [s.spacing_mm for s in stages]
    assert lengths == sorted(lengths, reverse=True)
    assert 1.2 < lengths[-1] <= 2.0
    assert [s.similarity for s in stages[-2:]] == ["lncc", "lncc"]
    assert stages[0].similarity == "mind"
    # A field of view ten times smaller has levels ten times finer, but for the voxels that it has.
    small = grid_of((320, 384, 288), (0.05, 0.05, 0.05))
    ratio = stages[-1].spacing_mm / plan(small, small, OptimiseSettings(), False)[-1].spacing_mm
    assert ratio == pytest.approx(10, rel=0.1)


def test_no_level_is_finer_than_the_images_nor_larger_than_two_million_voxels():
    thorax = grid_of((300, 300, 200), (1.2, 1.2, 2.0))
    finest = plan(thorax, thorax, OptimiseSettings(), False)[-1].spacing_mm
    assert 360 * 360 * 400 / finest**3 < 2.1e6
    coarse = grid_of((64, 64, 40), (4.0, 4.0, 4.0))
    assert plan(coarse, coarse, OptimiseSettings(), False)[-1].spacing_mm == pytest.approx(4.0)


def test_a_small_moving_field_of_view_has_no_level_that_it_hardly_fills():
    box = grid_of((75, 77, 28), (1.0, 1.0, 3.3))
    coarsest = plan(HEAD, box, OptimiseSettings(), multimodal=True)[0].spacing_mm
    assert 75 / coarsest >= 15


def test_options_override_the_levels():
    stages = plan(HEAD, HEAD, OptimiseSettings(levels_mm=(6, 3), iterations=(5, 7), similarity="mi"), False)
    assert [(s.spacing_mm, s.similarity, s.iterations) for s in stages] == [(6, "mi", 5), (3, "mi", 7)]


def test_one_patient_is_stiffer_than_two_and_two_modalities_than_one():
    stages = plan(HEAD, HEAD, OptimiseSettings(), False)
    between, within = (stiffen(stages, motion, False)[-1].stiffness for motion in ("between", "within"))
    across = stiffen(stages, "within", True)[-1].stiffness
    assert between.field < within.field < across.field
    assert across.step < within.step


def test_too_little_memory_makes_the_finest_level_coarser_and_says_so():
    stages = plan(HEAD, HEAD, OptimiseSettings(), False)
    cpu = torch.device("cpu")
    assert fit_to_memory(stages, HEAD, cpu, OptimiseSettings(memory_gb=8.0)) == (stages, "")
    fitted, note = fit_to_memory(stages, HEAD, cpu, OptimiseSettings(memory_gb=0.3))
    assert fitted[-1].spacing_mm > stages[-1].spacing_mm
    lengths = [s.spacing_mm for s in fitted]
    assert lengths == sorted(lengths, reverse=True)
    assert f"{fitted[-1].spacing_mm:.2g} mm" in note
    with pytest.raises(InputError, match=r"fixed image of \(160, 192, 144\) voxels"):
        fit_to_memory(stages, HEAD, cpu, OptimiseSettings(memory_gb=0.01))


def test_labels_that_pull_count_in_the_memory():
    stages = plan(HEAD, HEAD, OptimiseSettings(), False)
    cpu, room = torch.device("cpu"), OptimiseSettings(memory_gb=2.0)
    assert fit_to_memory(stages, HEAD, cpu, room) == (stages, "")
    fitted, note = fit_to_memory(stages, HEAD, cpu, room, labels=100)
    assert fitted[-1].spacing_mm > stages[-1].spacing_mm
    assert " with 100 labels would take about" in note


@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "ncc"},
        {"motion": "breathing"},
        {"levels_mm": (2, 4)},
        {"levels_mm": (8, 4), "iterations": (3,)},
        {"iterations": (3, 4)},
        {"time_limit": -1.0},
        {"label_weight": float("nan")},
    ],
)
def test_options_that_cannot_be(options):
    with pytest.raises(InputError, match=next(iter(reversed(options)))):
        OptimiseSettings(**options)
