"""Data sets in the layouts of their authors, in COCO format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import convert_dataset as tool
import pytest
from helpers.detectors import small_config
from PIL import Image

from mgd_det.data.datasets import check_datasets, register_datasets

CELL = (
    "<object><name>{}</name><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def convert(*arguments: object) -> int:
    return tool.main([str(argument) for argument in arguments])


def contents(out: Path) -> dict[str, dict]:
    """Of a set, the annotation files by their splits."""
    return {path.stem: json.loads(path.read_text()) for path in (out / "annotations").iterdir()}


@pytest.fixture
def bccd(tmp_path) -> tuple[Path, Path]:
    """14 images of 640 x 480 with a cell each; the first also has a box without an area."""
    for number in range(14):
        objects = CELL.format("WBC", 260, 177, 491, 376)
        if not number:
            objects += CELL.format("RBC", 504, 337, 504, 337)
        (tmp_path / f"BloodImage_{number:05d}.xml").write_text(f"<annotation>{objects}</annotation>")
        Image.new("RGB", (640, 480), (200, 100, 50)).save(tmp_path / f"BloodImage_{number:05d}.jpg")
    return tmp_path, tmp_path


def test_blood_cells(bccd, tmp_path, capsys):
    assert convert("bccd", *bccd, "--out", tmp_path / "out") == 0
    found = contents(tmp_path / "out")
    assert sorted(found) == ["test", "train", "val"]
    train = found["train"]
    # The names are those of the real set, and so are their splits.
    numbers = {
        split: [int(i["file_name"][11:16]) for i in content["images"]] for split, content in found.items()
    }
    assert numbers == {"train": [*range(4), *range(5, 10), 12], "val": [4, 10, 11], "test": [13]}
    assert train["images"][0] == {"id": 1, "file_name": "BloodImage_00000.jpg", "width": 320, "height": 240}
    # The box of no area is left out, so image 2 has annotation 2.
    box = {"category_id": 3, "bbox": [130.0, 88.5, 115.5, 99.5], "area": 11492.25, "iscrowd": 0}
    assert train["annotations"][:2] == [{"id": n, "image_id": n, **box} for n in (1, 2)]
    assert train["categories"] == [
        {"id": 1, "name": "Platelets"},
        {"id": 2, "name": "RBC"},
        {"id": 3, "name": "WBC"},
    ]
    with Image.open(tmp_path / "out/train/BloodImage_00000.jpg") as image:
        assert (image.size, image.mode) == ((320, 240), "RGB")


def animal_pose(folder: Path) -> tuple[Path, Path]:
    """An upright image with a cow and a cat, a grey one with a dog, and one that is not of VOC."""
    content = {
        "images": {"7": "2008_000002.jpg", "1": "ca110.jpg", "3": "2007_000175.jpg"},
        "categories": [{"id": 5, "name": "cow"}, {"id": 2, "name": "cat"}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 5, "bbox": [10, 20, 110, 220], "keypoints": []},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5], "keypoints": []},
            {"image_id": 3, "category_id": 1, "bbox": [25, 34, 419, 271], "keypoints": []},
            {"image_id": 7, "category_id": 2, "bbox": [0, 0, 333, 500], "keypoints": []},
        ],
    }
    (folder / "keypoints.json").write_text(json.dumps(content))
    Image.new("RGB", (333, 500)).save(folder / "2008_000002.jpg")
    Image.new("L", (500, 332)).save(folder / "2007_000175.jpg")
    return folder / "keypoints.json", folder


def test_animals(tmp_path):
    """Sides are rounded to whole pixels, so both axes have a scale of their own: 149 / 333 and 224 / 500."""
    assert convert("animal_pose", *animal_pose(tmp_path), "--out", tmp_path / "out") == 0
    images, annotations = {}, {}
    for split in contents(tmp_path / "out").values():
        for image in split["images"]:
            images[image["file_name"]] = image["width"], image["height"]
            annotations[image["file_name"]] = [
                (a["category_id"], a["bbox"]) for a in split["annotations"] if a["image_id"] == image["id"]
            ]
    assert images == {"2007_000175.jpg": (224, 149), "2008_000002.jpg": (149, 224)}
    assert annotations == {
        "2007_000175.jpg": [(1, [11.2, 15.26, 176.51, 106.36])],
        "2008_000002.jpg": [(5, [4.47, 8.96, 44.74, 89.6]), (2, [0.0, 0.0, 149.0, 224.0])],
    }


def test_a_name_decides_about_its_split():
    """The last decimal digits of the hashes are 0 to 9; cells are told by the name without its end."""
    digits = {}
    for number in range(100):
        digest = hashlib.sha256(f"name {number}".encode()).hexdigest()
        digits[int(str(int(digest, 16))[-1])] = f"name {number}"
    splits = [tool.split_of(digits[digit]) for digit in range(10)]
    assert splits == ["test", "test", "val"] + ["train"] * 7


def test_detectron2_reads_a_set(bccd, tmp_path):
    convert("bccd", *bccd, "--out", tmp_path / "out")
    cfg = small_config(tmp_path / "out", tmp_path / "run", "MODEL.RETINANET.NUM_CLASSES", 3)
    register_datasets(cfg)
    check_datasets(cfg, training=True)


def test_the_same_set_is_not_made_again(bccd, tmp_path, capsys):
    for _ in range(2):
        assert convert("bccd", *bccd, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'out'} holds this set already"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<annotation>", "ParseError: no element found"),
        (f"<annotation>{CELL.format('Cell', 1, 2, 3, 4)}</annotation>", r"unknown categories \['Cell'\]"),
        ("<annotation><object><name>RBC</name></object></annotation>", "could not convert string to float"),
        ("", "no element found"),
    ],
)
def test_other_annotations_end_in_one_line(content, problem, tmp_path, capsys):
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(SystemExit) as end:
        convert("bccd", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert problem.replace("\\", "") in error
    assert not (tmp_path / "out").exists()


def test_a_missing_image_ends_in_one_line(bccd, tmp_path, capsys):
    (tmp_path / "BloodImage_00003.jpg").unlink()
    with pytest.raises(SystemExit) as end:
        convert("bccd", *bccd, "--out", tmp_path / "out")
    assert end.value.code == 2
    assert "BloodImage_00003.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
