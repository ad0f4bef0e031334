"""From files to label maps on the files' own grids, and their scores."""

from __future__ import annotations

import csv
import json

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from bundles.smdr.scripts.evaluation import SegmentationEvaluator, evaluate_tasks, validation_title
from bundles.smdr.scripts.inference import LabelOnImaged, LoadVolumed, SliceInferer, segment_files
from shared.data.decathlon import read_site
from shared.data.pooled import PooledSlices, pooled_slices
from shared.data.slice_dataset import SliceDataset, VolumeDataset
from shared.errors import InputError
from shared.files import save_json
from tests.decathlon_folder import write_site
from tests.dicom_series import write_dicom
from tests.learn2reg_folder import affine, save
from tools.results import collect

CPU = torch.device("cpu")
SIZE = (24, 20)
# Of a stage; here nobody measured it.
UNKNOWN = ("peak_memory_bytes", "memory_bytes")


class Threshold(torch.nn.Module):
    """Calls foreground what is brighter than a grey value, in the middle one of three slices."""

    def __init__(self, grey: float = 0.5, middle: int = 1) -> None:
        super().__init__()
        self.grey, self.middle = grey, middle

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        score = 50 * (image[:, self.middle : self.middle + 1] - self.grey)
        return torch.cat([-score, score], dim=1)


@pytest.fixture
def site(tmp_path):
    """A site whose labels are what lies above 70 of intensities that go from about 0 to 100."""
    write_site(tmp_path / "one")
    return tmp_path


def items(site, split="train"):
    return read_site(site, "one", split)


def segment(network, output_dir, size=SIZE, **options):
    return segment_files(
        network, SliceInferer(), CPU, Compose([LoadVolumed(size)]), Compose([LabelOnImaged()]), output_dir, **options
    )


def test_files_and_datasets_give_the_same_volume_and_answer(site, tmp_path):
    """Inference reads by itself, in a form that hosts understand: it must see what training and scoring see."""
    item = items(site)[0]
    loaded = LoadVolumed(SIZE)({"image": item["image"]})["image"]
    sample = VolumeDataset([item], SIZE)[0]
    assert torch.equal(loaded.as_tensor(), sample["image"])
    np.testing.assert_allclose(loaded.affine.numpy(), sample["grids"]["network"].affine)
    assert tuple(loaded.meta["spatial_shape"]) == sample["grids"]["image"].shape
    np.testing.assert_allclose(loaded.meta["original_affine"], nib.load(item["image"]).affine, atol=1e-6)
    (written,) = segment(Threshold(), tmp_path / "out", image=item["image"])
    evaluator = SegmentationEvaluator(CPU, VolumeDataset([item], SIZE), Threshold(), SliceInferer(), tmp_path / "s")
    assert np.array_equal(np.asarray(nib.load(written).dataobj), evaluator.answer(sample)[0].numpy())


@pytest.mark.parametrize("codes", ["RAS", "SPL", "ILA"])
def test_the_label_map_lies_where_the_image_does(tmp_path, codes):
    """A block at a known place in the world, stored with whatever axes, is found there."""
    voxels = np.zeros((30, 26, 8), np.float32)
    voxels[12:20, 6:14, 2:6] = 100
    image = nib.Nifti1Image(voxels, affine((2.0, 2.0, 5.0)))
    start = nib.orientations.io_orientation(image.affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(codes)))
    nib.save(turned, tmp_path / "case.nii.gz")
    (written,) = segment(Threshold(), tmp_path / "out", (30, 26), image=tmp_path / "case.nii.gz")
    answer = nib.load(written)
    assert written.name == "case_label.nii.gz"
    assert answer.shape == turned.shape
    np.testing.assert_allclose(answer.affine, turned.affine, atol=1e-5)
    found, truth = np.asarray(answer.dataobj) > 0, np.asarray(turned.dataobj) > 50
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97


def test_several_files_and_a_sample_of_the_data(site, tmp_path):
    files = [item["image"] for item in items(site)]
    assert len(segment(Threshold(), tmp_path / "many", image=files)) == len(files)
    (written,) = segment(Threshold(), tmp_path / "sample", sample_from=(site, "one"))
    assert written.name.startswith("case_")
    with pytest.raises(InputError, match="expected different names"):
        segment(Threshold(), tmp_path / "twice", image=[files[0], files[0]])
    with pytest.raises(InputError, match="found no image, expected a file or a list"):
        segment(Threshold(), tmp_path / "none")


def test_two_dicom_series_are_not_taken_for_one(tmp_path):
    folders = [tmp_path / f"1.2.840.113.{number}" for number in (1, 2)]
    for series, folder in enumerate(folders):
        values = np.random.default_rng(series).integers(0, 100, (4, 6, 6)).astype(np.int16)
        write_dicom(folder, itk.image_from_array(values), str(series))
    written = segment(Threshold(), tmp_path / "out", image=folders)
    assert [path.name for path in written] == ["1.2.840.113.1_label.nii.gz", "1.2.840.113.2_label.nii.gz"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"bad\.nii\.gz: no such"),
        (lambda path: save(path, np.random.default_rng(0).random((6, 6, 4, 3)), affine()), "3 channels, expected 1"),
        (lambda path: save(path, np.full((6, 6, 4), 7.0), affine()), "found the constant value 7"),
    ],
    ids=["missing", "colour", "constant"],
)
def test_images_that_cannot_be_used_are_named(tmp_path, spoil, message):
    path = tmp_path / "bad.nii.gz"
    save(path, np.random.default_rng(0).random((6, 6, 4)), affine())
    spoil(path)
    with pytest.raises(InputError, match=message):
        segment(Threshold(), tmp_path / "out", image=path)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


# -- scores ------------------------------------------------------------------------------------------------------------


def evaluated(site, folder, network=None, **options):
    volumes = VolumeDataset(items(site), SIZE, **options)
    evaluator = SegmentationEvaluator(CPU, volumes, network or Threshold(), SliceInferer(), folder, "evaluation")
    evaluator.run()
    return list(csv.DictReader((folder / "evaluation_cases.csv").open()))


def test_scores_are_those_of_the_answer_on_the_images_grid(site, tmp_path):
    from shared.metrics import assd_per_label, dice_per_label, hd95_per_label

    rows = evaluated(site, tmp_path / "scores")
    for row, item in zip(rows, items(site), strict=True):
        (written,) = segment(Threshold(), tmp_path / "out", image=item["image"])
        found, truth = (
            torch.from_numpy(np.asarray(nib.load(f).dataobj).astype(np.int16)) for f in (written, item["label"])
        )
        spacing = nib.load(item["image"]).header.get_zooms()
        assert row["task"] == "one"
        assert float(row["dice"]) > 0.5
        assert float(row["dice"]) == pytest.approx(float(dice_per_label(found, truth, [1])))
        assert float(row["hd95_mm"]) == pytest.approx(float(hd95_per_label(found, truth, [1], spacing)), rel=1e-5)
        assert float(row["assd_mm"]) == pytest.approx(float(assd_per_label(found, truth, [1], spacing)), rel=1e-5)
    assert min(float(row["dice"]) for row in rows) < 1
    summary = json.loads((tmp_path / "scores" / "evaluation_summary.json").read_text())
    assert summary["images"] == len(rows)
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(np.mean([float(r["dice"]) for r in rows]))
    assert (tmp_path / "scores" / "evaluation_example.png").stat().st_size > 3000


def test_what_is_not_found_counts_as_zero(site, tmp_path):
    rows = evaluated(site, tmp_path / "scores", Threshold(grey=2.0))
    assert [float(row["dice"]) for row in rows] == [0.0] * len(rows)
    assert all(row["hd95_mm"] == "nan" for row in rows)


def test_scores_know_the_label_map(site, tmp_path):
    plain = evaluated(site, tmp_path / "plain")
    for item in items(site):
        label = nib.load(item["label"])
        nib.save(nib.Nifti1Image(np.asarray(label.dataobj) * np.uint8(4), label.affine), item["label"])
    mapped = evaluated(site, tmp_path / "mapped", label_map={4: 1})
    assert [r["dice"] for r in plain] == [r["dice"] for r in mapped]
    with pytest.raises(InputError, match=r"found the label values 4, unknown to the network; expected 0\.\.1"):
        evaluated(site, tmp_path / "unknown")


def test_images_without_label_cannot_be_scored(site, tmp_path):
    volumes = VolumeDataset([{"image": items(site)[0]["image"]}], SIZE)
    with pytest.raises(InputError, match="found no label, expected one: the segmentation is scored"):
        SegmentationEvaluator(CPU, volumes, Threshold(), SliceInferer(), tmp_path / "out").run()


def test_all_sites_are_scored_once(site, tmp_path):
    write_site(tmp_path / "two", count=6)
    tasks = [[site, "one"], [site, "two"]]
    options = {"split": "test", "output_dir": tmp_path / "out", "spatial_size": SIZE}
    found = evaluate_tasks(Threshold(), SliceInferer(), CPU, tasks, **options)
    assert set(found) == {"one", "two"}
    for name in found:
        rows = list(csv.DictReader((tmp_path / "out" / name / "evaluation_cases.csv").open()))
        assert {row["task"] for row in rows} == {name}
    times = [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*.json"))]
    evaluate_tasks(Threshold(), SliceInferer(), CPU, tasks, **options)
    assert [p.stat().st_mtime_ns for p in sorted((tmp_path / "out").rglob("*.json"))] == times
    with pytest.raises(InputError, match="expected each name once"):
        evaluate_tasks(Threshold(), SliceInferer(), CPU, [tasks[0], tasks[0]], **options)
    with pytest.raises(InputError, match="found corruptions"):
        evaluate_tasks(Threshold(), SliceInferer(), CPU, tasks, corruptions=["noise"], **options)


def test_the_matrix_of_a_chain_comes_out_of_the_scores(site, tmp_path):
    """Two stages, the second of which has lost the first site: the tool for chains of registration reads them."""
    write_site(site / "two", count=6)
    tasks = [[site, "one"], [site, "two"]]
    chain = tmp_path / "chain"
    for stage, greys in (("01_one", (0.5, 0.5)), ("02_two", (2.0, 0.5))):
        for task, grey in zip(tasks, greys, strict=True):
            folder = chain / stage / "evaluation"
            evaluate_tasks(Threshold(grey), SliceInferer(), CPU, [task], "test", folder, SIZE)
        record = {"passes": 1, "seconds": 1.0, "sharpness": {}, **dict.fromkeys(UNKNOWN)}
        save_json(chain / stage / "stage.json", record)
    summary = collect(chain, ["one", "two"], 2, ["01_one", "02_two"], "continued")
    dice = summary["metrics"]["dice"]
    rows = list(csv.DictReader((chain / "01_one" / "evaluation" / "one" / "evaluation_cases.csv").open()))
    learnt = np.mean([float(row["dice"]) for row in rows])
    assert learnt > 0.5
    assert dice["forgetting"] == pytest.approx(learnt, abs=1e-5)
    assert dice["backward_transfer"] == pytest.approx(-learnt, abs=1e-5)
    assert (chain / "R.csv").read_text().startswith("metric,after,one,two")


# -- data --------------------------------------------------------------------------------------------------------------


def test_pooled_sites_have_the_same_share(site):
    write_site(site / "two", count=9)
    both = [item for name in ("one", "two") for item in read_site(site, name, "train")]
    pooled = pooled_slices(both, SIZE, margin=0)
    assert isinstance(pooled, PooledSlices)
    assert len(pooled.datasets[0]) < len(pooled.datasets[1])
    assert [pooled[i]["site"] for i in range(len(pooled))] == ["one", "two"] * (len(pooled) // 2)
    assert len(pooled.items) == len(both)
    assert isinstance(pooled_slices(both[:2], SIZE), SliceDataset)


def test_the_heading_says_what_was_trained_on(site):
    training = SliceDataset(items(site), SIZE)
    assert validation_title(training, VolumeDataset(items(site, "val"), SIZE)).endswith("(never trained on)")
    again = validation_title(training, VolumeDataset(items(site)[:1], SIZE))
    assert again == "one, validation images (1 of 1 were trained on)"


def test_a_site_without_labels_is_refused(tmp_path):
    folder = write_site(tmp_path / "bare")
    content = json.loads((folder / "dataset.json").read_text())
    content["training"] = [{"image": entry["image"]} for entry in content["training"]]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="found no label for 5 of 5 'training' images"):
        read_site(tmp_path, "bare")
