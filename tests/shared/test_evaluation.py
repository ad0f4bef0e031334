"""Scores on the images' own grids, in 2D and 3D, from training to picture."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from bundles.samcl.scripts.memory import ReservoirMemory
from bundles.samcl.scripts.network import LKUNet
from bundles.samcl.scripts.objective import RegistrationObjective, VelocityInferer
from bundles.samcl.scripts.strategies import SAMCL
from bundles.samcl.scripts.trainer import ContinualTrainer
from shared.data.corruption import CorruptedPairs
from shared.data.learn2reg import read_pairs
from shared.data.pairs import PairDataset
from shared.data.pooled import pooled_pairs
from shared.data.synthetic import write_registration_tasks
from shared.evaluation import RegistrationEvaluator, format_table, score_pair, summarise, validation_title
from shared.fields import compose, invert
from shared.transform_io import to_native
from tests.learn2reg_folder import affine, blobs, save


def shifted_pair(folder, dims: int, shift: int = 2) -> dict[str, str]:
    """Write a pair whose moving image, label and points are the fixed ones, ``shift`` voxels on along axis 0."""
    shape, matrix = (24, 20, 16)[:dims], affine(spacing_mm=(2.0, 3.0, 4.0))
    image = blobs(shape, seed=1)
    label = (image > 50).astype(np.uint8)
    label[:shift], label[-shift:] = 0, 0
    pair = {"task": "shifted"}
    for side, offset in (("fixed", 0), ("moving", shift)):
        pair[f"{side}_image"] = str(save(folder / f"{side}.nii.gz", np.roll(image, offset, 0), matrix))
        pair[f"{side}_label"] = str(save(folder / f"{side}_label.nii.gz", np.roll(label, offset, 0), matrix))
        points = np.full((3, dims), 8.0)
        points[:, 0] += offset
        pair[f"{side}_points"] = str(folder / f"{side}.csv")
        np.savetxt(pair[f"{side}_points"], points, delimiter=",")
    return pair


@pytest.mark.parametrize("dims", [2, 3])
def test_the_right_shift_scores_perfectly(tmp_path, dims):
    size = (24, 20, 16)[:dims]
    sample = PairDataset([shifted_pair(tmp_path, dims)], size)[0]
    ddf = torch.zeros(1, dims, *size)
    ddf[:, 0] = 2.0
    row = score_pair(sample, ddf)
    assert row["dice"] == pytest.approx(1.0)
    assert row["hd95_mm"] == row["assd_mm"] == 0.0
    assert row["tre_mm"] == pytest.approx(0.0, abs=1e-4)
    assert row["tre_mm_before"] == pytest.approx(4.0, abs=1e-4)  # two voxels of 2 mm
    assert row["dice_before"] < 0.9
    assert row["folds_percent"] == 0.0
    assert row["sdlogj"] == pytest.approx(0.0, abs=1e-5)


def test_a_coarser_network_grid_scores_on_the_images_own_grid(tmp_path):
    sample = PairDataset([shifted_pair(tmp_path, 3)], (12, 10, 8))[0]
    ddf = torch.zeros(1, 3, 12, 10, 8)
    ddf[:, 0] = 1.0  # voxels of 4 mm
    row = score_pair(sample, ddf)
    assert row["dice"] == pytest.approx(1.0)
    assert row["tre_mm"] == pytest.approx(0.0, abs=1e-4)


def test_fields_that_the_caller_has_score_alike(tmp_path):
    sample = PairDataset([shifted_pair(tmp_path, 3)], (12, 10, 8))[0]
    ddf = torch.zeros(1, 3, 12, 10, 8)
    ddf[:, 0] = 0.7
    native = to_native(ddf, *(sample["grids"][name] for name in ("network", "fixed", "moving")))
    assert score_pair(sample, ddf, native) == score_pair(sample, ddf)
    other = to_native(0 * ddf, *(sample["grids"][name] for name in ("network", "fixed", "moving")))
    assert score_pair(sample, ddf, other)["dice"] != score_pair(sample, ddf)["dice"]


def relabelled(folder, side: str, changes: dict[int, int], box: tuple[slice, int] | None = None) -> None:
    """Give voxels of a pair's label map other labels; with ``box``, a part along axis 0 gets one of its own."""
    import nibabel as nib

    image = nib.load(folder / f"{side}_label.nii.gz")
    values = np.asarray(image.dataobj)
    for old, new in changes.items():
        values[values == old] = new
    if box:
        values[box[0]] = box[1]
    save(folder / f"{side}_label.nii.gz", values, image.affine)


def test_labels_are_chosen_once_from_both_maps_as_they_are(tmp_path):
    """Label 2 of both maps leaves the fixed image under the field; 5 and 7 are in one map each."""
    pair = shifted_pair(tmp_path, 3)
    relabelled(tmp_path, "fixed", {}, (slice(0, 2), 2))
    relabelled(tmp_path, "moving", {}, (slice(0, 2), 2))
    size = (24, 20, 16)
    ddf = torch.zeros(1, 3, *size)
    ddf[:, 0] = 2.0
    without = score_pair(PairDataset([pair], size)[0], ddf)
    assert without["dice"] == pytest.approx(0.5)  # label 1 fits, label 2 vanished
    assert without["dice_before"] > without["dice"]  # it was there before
    assert without["hd95_mm"] == 0.0  # no distance where nothing is left
    relabelled(tmp_path, "fixed", {}, (slice(-2, None), 5))
    relabelled(tmp_path, "moving", {}, (slice(-1, None), 7))
    row = score_pair(PairDataset([pair], size)[0], ddf)
    assert row["dice"] == pytest.approx(without["dice"], abs=0.01)
    assert row["dice_before"] == pytest.approx(without["dice_before"], abs=0.05)


def test_maps_without_a_common_label_are_not_scored_and_said(tmp_path):
    pair = shifted_pair(tmp_path, 2)
    relabelled(tmp_path, "moving", {1: 4})
    sample = PairDataset([pair], (24, 20))[0]
    with pytest.warns(UserWarning, match=r"moving_label\.nii\.gz: found no label in both"):
        row = score_pair(sample, torch.zeros(1, 2, 24, 20))
    assert not {"dice", "hd95_mm", "assd_mm", "dice_before"} & set(row)
    assert row["tre_mm"] > 0


def test_folds_are_counted():
    sample = {"pair": {}, "grids": PairGrids((8, 8, 8)).grids}
    ddf = torch.zeros(1, 3, 8, 8, 8)
    ddf[:, 0] = -2 * torch.arange(8.0)[:, None, None]
    assert score_pair(sample, ddf)["folds_percent"] == 100.0


class PairGrids:
    def __init__(self, shape) -> None:
        from shared.transform_io import Grid

        grid = Grid(shape, np.eye(4))
        self.grids = {"network": grid, "fixed": grid, "moving": grid}


@pytest.mark.parametrize("task", ["synth_brain_mr", "synth_lung_ct"])
def test_the_true_field_is_found_good(tmp_path, task):
    write_registration_tasks(tmp_path, [task], size=16, counts={"training": 2, "validation": 2, "test": 2})
    import nibabel as nib

    pairs = read_pairs(tmp_path, task, "val")
    dataset = PairDataset(pairs, (16, 16, 16))
    for index, pair in enumerate(pairs):
        truth = torch.from_numpy(np.asarray(nib.load(pair["truth"]).dataobj, dtype=np.float32))
        row = score_pair(dataset[index], truth.movedim(-1, 0)[None])
        assert row["dice"] > row["dice_before"]
        assert row["tre_mm"] < 0.2 * row["tre_mm_before"]
        assert row["folds_percent"] == 0.0


def test_the_heading_says_when_scored_images_were_trained_on(tmp_path):
    def dataset(folder: str) -> PairDataset:
        (tmp_path / folder).mkdir()
        return PairDataset([shifted_pair(tmp_path / folder, 2)], (8, 8))

    one, other = dataset("one"), dataset("other")
    assert validation_title(one, other) == "shifted, validation pairs (never trained on)"
    assert validation_title(one, one) == "shifted, validation pairs (2 of 2 images were trained on)"


def still(image, network):
    """Register nothing."""
    return {"ddf": torch.zeros(1, image.ndim - 2, *image.shape[2:])}


def tasks_of_pairs(folder, counts: dict[str, int]) -> list[dict[str, str]]:
    """Write pairs of several tasks, each with a shift of its own."""
    pairs = []
    for shift, (task, count) in enumerate(counts.items(), start=1):
        for number in range(count):
            (folder / f"{task}{number}").mkdir()
            pairs.append({**shifted_pair(folder / f"{task}{number}", 2, shift), "task": task})
    return pairs


def evaluate(folder, pairs, capsys) -> tuple[dict, list[str], dict]:
    """Return what was written and printed, and the evaluator's metrics."""
    dataset = PairDataset(pairs, (24, 20))
    evaluator = RegistrationEvaluator(torch.device("cpu"), dataset, torch.nn.Identity(), still, folder, picture=False)
    evaluator.run()
    summary = json.loads((folder / "validation_summary.json").read_text())
    return summary, capsys.readouterr().out.splitlines(), evaluator.state.metrics


def test_several_tasks_are_shown_each_and_together(tmp_path, capsys):
    pairs = tasks_of_pairs(tmp_path, {"brain": 2, "lung": 1})
    summary, lines, metrics = evaluate(tmp_path / "all", pairs, capsys)
    assert summary["pairs"] == 3
    assert summary["metrics"]["tre_mm"]["mean"] == pytest.approx((2 + 2 + 4) / 3)  # shifts of 1, 1 and 2 voxels of 2 mm
    assert metrics["tre_mm"] == summary["metrics"]["tre_mm"]["mean"]
    assert list(summary["tasks"]) == ["brain", "lung"]
    for task, own in (("brain", pairs[:2]), ("lung", pairs[2:])):
        alone, _, _ = evaluate(tmp_path / task, own, capsys)
        assert summary["tasks"][task] == alone["metrics"]
        assert "tasks" not in alone
    headings = [line for line in lines if line.endswith(("pairs", "sd"))]
    assert headings == ["validation pairs: 3 pairs, mean +- sd", "brain: 2 pairs", "lung: 1 pairs"]
    tre = [line for line in lines if line.split()[:1] == ["after"]]
    assert ["2.667 +- 0.943" in tre[0], "2.000 +- 0.000" in tre[1], "4.000 +- 0.000" in tre[2]] == [True] * 3


def test_the_heading_names_all_tasks(tmp_path):
    pairs = tasks_of_pairs(tmp_path, {"brain": 1, "lung": 1})
    training = pooled_pairs(pairs, (8, 8))
    validation = PairDataset(pairs, (8, 8))
    assert validation_title(training, validation) == ("brain+lung, validation pairs (4 of 4 images were trained on)")


def test_summary_leaves_out_what_is_missing():
    rows = [{"task": "a", "dice": 0.5, "tre_mm": float("nan")}, {"task": "a", "dice": 0.7}]
    summary = summarise(rows)
    assert summary == {"dice": {"mean": pytest.approx(0.6), "sd": pytest.approx(0.1), "n": 2}}
    table = format_table({**summary, "dice_before": summary["dice"]}, "title")
    assert table.splitlines()[0] == "title"
    assert "0.600 +- 0.100" in table.splitlines()[2]


def test_two_dimensional_data_goes_all_the_way(tmp_path):
    """Read, train, score and draw 2D images with the same classes."""
    size = (24, 20)
    dataset = PairDataset([shifted_pair(tmp_path, 2)], size)
    network = LKUNet(2, channels=4, depth=2)
    trainer = ContinualTrainer(
        device=torch.device("cpu"),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=3e-3),
        loss_function=RegistrationObjective(window=5, bending=0.1, membrane=0.1),
        dataset=dataset,
        strategy=SAMCL(ReservoirMemory(4), beta=1.0),
        run_dir=tmp_path / "run",
        max_epochs=1,
        epoch_length=25,
    )
    trainer.run()
    evaluator = RegistrationEvaluator(
        torch.device("cpu"), dataset, network, VelocityInferer(), tmp_path / "scores", name="scores"
    )
    evaluator.run()
    summary = json.loads((tmp_path / "scores" / "scores_summary.json").read_text())["metrics"]
    assert summary["dice"]["mean"] > summary["dice_before"]["mean"]
    assert summary["tre_mm"]["mean"] < summary["tre_mm_before"]["mean"]
    cases = list(csv.DictReader((tmp_path / "scores" / "scores_cases.csv").open()))
    assert [c["fixed"] for c in cases] == ["fixed.nii.gz"]
    assert (tmp_path / "scores" / "scores_example.png").read_bytes().startswith(b"\x89PNG")


def test_extra_motion_counts_as_part_of_the_way(tmp_path):
    """A network that finds the whole way from the moved image scores as if nothing had been moved."""
    dataset = PairDataset([shifted_pair(tmp_path, 3)], (24, 20, 16))
    moved = CorruptedPairs(dataset, "motion")
    shift = torch.zeros(1, 3, 24, 20, 16)
    shift[:, 0] = 2.0
    back = invert(moved[0]["motion"])[0]
    scores = {}
    for name, ddf in {"found": compose(back, shift), "ignored": shift}.items():
        evaluator = RegistrationEvaluator(
            torch.device("cpu"), moved, torch.nn.Identity(), lambda *_, ddf=ddf: {"ddf": ddf}, tmp_path / name
        )
        evaluator.run()
        scores[name] = evaluator.state.metrics
    assert scores["found"]["dice"] > scores["ignored"]["dice"]
    assert scores["found"]["tre_mm"] < 0.1
    assert scores["ignored"]["tre_mm"] > 0.4
    summary = json.loads((tmp_path / "found" / "validation_summary.json").read_text())
    assert summary["seconds_per_pair"] > 0
