"""Which files are atlases, and which of them a request gets."""

from __future__ import annotations

import re

import pytest

from shared.atlas import atlas_choices, choose_atlases
from shared.errors import InputError


def touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def names(atlases):
    return [atlas.name for atlas in atlases]


def test_pairs_are_found_by_name_in_any_format(tmp_path):
    touch(tmp_path, "b.nii.gz", "b_label.nii.gz", "a.nrrd", "a_label.mha", "README.md", "c.nii", "c_label.nii")
    assert atlas_choices(tmp_path) == ["all", "a", "b", "c"]
    first, *_ = choose_atlases(tmp_path)
    assert (first.image.name, first.label.name) == ("a.nrrd", "a_label.mha")
    assert names(choose_atlases(tmp_path, "c, a,c")) == ["c", "a"]


def test_the_sample_steps_back_where_there_are_others(tmp_path):
    touch(tmp_path, "synthetic.nii.gz", "synthetic_label.nii.gz")
    assert names(choose_atlases(tmp_path)) == ["synthetic"]
    touch(tmp_path, "own.nii.gz", "own_label.nii.gz")
    assert names(choose_atlases(tmp_path)) == ["own"]
    assert names(choose_atlases(tmp_path, "synthetic,own")) == ["synthetic", "own"]


def test_files_of_a_request_take_the_place_of_the_folder(tmp_path):
    (atlas,) = choose_atlases(tmp_path, images=["/x/one.nii.gz"], labels=["/x/two.nrrd"])
    assert (atlas.name, str(atlas.image), str(atlas.label)) == ("one", "/x/one.nii.gz", "/x/two.nrrd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "won"}, "found no atlas 'won' (did you mean 'own'?), expected all or some of bare, own"),
        ({"choice": "bare"}, "found no label map to this atlas, expected bare_label.nii.gz beside it"),
        ({}, "bare.nii.gz: found no label map"),
        ({"images": ["a.nii"]}, "found 1 atlas images and 0 label maps"),
        ({"labels": ["a.nii"]}, "found 0 atlas images and 1 label maps"),
    ],
)
def test_what_cannot_be_chosen_is_said(tmp_path, options, message):
    touch(tmp_path, "own.nii.gz", "own_label.nii.gz", "bare.nii.gz")
    with pytest.raises(InputError, match=re.escape(message)):
        choose_atlases(tmp_path, **options)


def test_a_folder_without_atlases_is_said(tmp_path):
    with pytest.raises(InputError, match="found no atlas, expected NAME"):
        choose_atlases(tmp_path / "none")


def test_a_label_map_without_an_image_is_said(tmp_path):
    touch(tmp_path, "lost_label.nii.gz")
    with pytest.raises(InputError, match=r"lost_label\.nii\.gz: found no label map to this atlas"):
        choose_atlases(tmp_path)
