import pytest

from shared.data.pairs import PairDataset, form_pairs
from shared.data.pooled import pooled_pairs
from shared.data.slice_dataset import VolumeDataset
from shared.data.validation import NoCases, validation_pairs, validation_volumes
from shared.errors import InputError
from tests.learn2reg_folder import affine, blobs, save


@pytest.fixture
def items(tmp_path):
    """Three images in one place, and one far away."""
    origins = (0, 3, 5, 900)  # an image is 20 mm wide
    files = [save(tmp_path / f"{x}.nii.gz", blobs(seed=x), affine(origin_mm=(x, 0, 0))) for x in origins]
    return [{"image": str(file)} for file in files]


def test_nothing_and_a_single_image_are_no_pairs(items):
    for data, reason in (([], "no image was held back"), (items[:1], r"one image was held back .*0.nii.gz")):
        found = validation_pairs(data, (8, 8, 8))
        assert isinstance(found, NoCases)
        assert (len(found), found.pairs, found.items) == (0, [], [])
        found.check()
        with pytest.raises(IndexError, match=reason):
            found[0]


def test_two_images_are_two_pairs(items):
    found = validation_pairs(items[:2], (8, 8, 8))
    assert isinstance(found, PairDataset)
    assert len(found) == 2


def test_a_single_pair_is_taken(items):
    pair = {"fixed_image": items[0]["image"], "moving_image": items[1]["image"]}
    assert len(validation_pairs([pair], (8, 8, 8))) == 1


def test_volumes_may_be_none_or_one(items):
    assert isinstance(validation_volumes([], (8, 8)), NoCases)
    assert isinstance(validation_volumes(items[:1], (8, 8)), VolumeDataset)


def test_images_that_do_not_meet_are_not_paired(items):
    with pytest.warns(UserWarning, match=r"6 of 12 pairs are left out: their images hardly overlap"):
        pairs = form_pairs(items)
    assert len(pairs) == 6
    assert not any("900" in pair[f"{side}_image"].rpartition("/")[2] for pair in pairs for side in ("fixed", "moving"))
    with pytest.warns(UserWarning, match="left out"):
        assert len(pooled_pairs(items, (8, 8, 8))) == 6
    with pytest.raises(InputError, match=r"0.nii.gz: does not overlap with .*900.nii.gz, nor do other two of the 2"):
        form_pairs([items[0], items[3]])


@pytest.mark.parametrize(("origin", "count"), [(14, 2), (16, 0)])
def test_pairs_need_a_quarter_of_the_smaller_image(tmp_path, origin, count):
    data = [
        {"image": str(save(tmp_path / "a.nii.gz", blobs()))},
        {"image": str(save(tmp_path / "b.nii.gz", blobs(), affine(origin_mm=(0, 0, origin * 24 / 20))))},
    ]
    if count:
        assert len(form_pairs(data)) == count
    else:
        with pytest.raises(InputError, match="expected images in one world frame"):
            form_pairs(data)
