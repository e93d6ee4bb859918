"""Cutting the labels of a COCO-format file."""

from __future__ import annotations

import json
import re

import cut_labels
import pytest

EMPTY: dict = {"images": [], "annotations": [], "categories": []}


def coco(n: int) -> dict:
    images = [{"id": 10 + i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(n)]
    annotations = [{"id": k, "image_id": 10 + k % n, "category_id": 1} for k in range(2 * n)]
    return {
        "info": {"year": 2020},
        "categories": [{"id": 1, "name": "a"}],
        "images": images,
        "annotations": annotations,
    }


def ids(part: dict) -> list[int]:
    return [image["id"] for image in part["images"]]


def test_every_image_is_in_one_part_with_all_its_annotations():
    whole = coco(12)
    labelled, rest = cut_labels.split(whole, 0.25, seed=0)
    assert len(ids(labelled)) == 3
    assert sorted(ids(labelled) + ids(rest)) == ids(whole)
    for part in (labelled, rest):
        assert [x["id"] for x in part["annotations"]] == [
            x["id"] for x in whole["annotations"] if x["image_id"] in ids(part)
        ]
        assert part["categories"] == whole["categories"]
        assert part["info"] == {"year": 2020}


def test_a_smaller_share_lies_within_a_larger_one_and_another_seed_draws_others():
    whole = coco(40)
    quarter, half = (set(ids(cut_labels.split(whole, share, seed=3)[0])) for share in (0.25, 0.5))
    assert quarter < half
    assert set(ids(cut_labels.split(whole, 0.25, seed=4)[0])) != quarter


def test_the_order_of_the_file_has_no_influence():
    whole = coco(20)
    turned = {**whole, "images": whole["images"][::-1]}
    assert sorted(ids(cut_labels.split(whole, 0.3, 0)[0])) == sorted(ids(cut_labels.split(turned, 0.3, 0)[0]))


def test_both_files_are_written_beside_the_one_they_come_from(tmp_path, capsys):
    (tmp_path / "train.json").write_text(json.dumps(coco(8)))
    cut_labels.main([str(tmp_path / "train.json"), "--share", "0.25"])
    assert len(ids(json.loads((tmp_path / "train_25_labelled.json").read_text()))) == 2
    assert len(ids(json.loads((tmp_path / "train_25_rest.json").read_text()))) == 6
    assert "train_25_rest.json: 6 images, 12 annotations" in capsys.readouterr().out


def test_the_files_of_another_seed_have_other_names(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(coco(8)))
    cut_labels.main([str(tmp_path / "train.json"), "--share", "0.25", "--seed", "7"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train.json",
        "train_25_seed7_labelled.json",
        "train_25_seed7_rest.json",
    ]


def test_a_file_cannot_be_the_folder(tmp_path, capsys):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(coco(8)))
    with pytest.raises(SystemExit) as end:
        cut_labels.main([str(file), "--share", "0.25", "--out", str(file)])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --out = '{file}': the folder cannot be made (")
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


@pytest.mark.parametrize(
    ("text", "share", "message"),
    [
        (
            "{}",
            "0.5",
            "FILE.json = .*should be an object with the entries images, annotations",
        ),
        ("[", "0.5", "FILE.json = .*cannot be read"),
        (json.dumps({**EMPTY, "images": [1]}), "0.5", r"images\[0\] is 1, and should be an object"),
        (json.dumps({**EMPTY, "images": [{"id": []}]}), "0.5", r"images\[0\].id is \[\], and should be"),
        (json.dumps({**EMPTY, "images": [{"id": 1}]}), "0.5", "images without file_name or id"),
        (json.dumps({**EMPTY, "annotations": [{}]}), "0.5", "annotations without image_id"),
        (
            json.dumps({**EMPTY, "images": [{"id": 7, "file_name": x} for x in "ab"]}),
            "0.5",
            "2 images with the id 7",
        ),
        (json.dumps(coco(8)), "0.01", "--share = 0.01: of 8 images leaves one of the parts empty"),
        ("{}", "1.5", "--share = 1.5: not between 0 and 1"),
        ("{}", "nan", "--share = nan: not between 0 and 1"),
    ],
)
def test_what_cannot_be_cut_is_one_line(text, share, message, tmp_path, capsys):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        cut_labels.main([str(tmp_path / "train.json"), "--share", share])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
