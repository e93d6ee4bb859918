"""Registering own data from the config, and what is said about data that cannot work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.errors import ConfigError


def changed(cfg, tmp_path, change) -> str:
    """Register, as the training set, a copy of it whose JSON went through `change`; its name."""
    _, annotations, root = cfg.DATASETS.REGISTER[0]
    path = tmp_path / "changed.json"
    with open(annotations) as f:
        path.write_text(change(json.load(f)))
    name = f"changed_{tmp_path}"
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, [name, str(path), root]]
    cfg.DATASETS.TRAIN = (name,)
    return name


def one_annotation(content, *without: str, **changes) -> str:
    """The file with its first annotation lacking some entries or having others."""
    first, *others = content["annotations"]
    first = {key: value for key, value in first.items() if key not in without}
    return json.dumps({**content, "annotations": [{**first, **changes}, *others]})


def test_registering_twice_is_fine_and_reads_what_is_there(student_cfg):
    register_datasets(student_cfg)
    register_datasets(student_cfg)
    assert len(DatasetCatalog.get(student_cfg.DATASETS.TRAIN[0])) == 16
    check_datasets(student_cfg, training=True)


def test_a_name_that_is_taken(student_cfg):
    student_cfg.DATASETS.REGISTER = [["coco_2017_val", "a.json", "b"]]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER.*already registered.*another name"):
        register_datasets(student_cfg)


@pytest.mark.parametrize("entry", ["name", ["name", "a.json"], ["name", "a.json", 3]])
def test_an_entry_of_another_form(student_cfg, entry):
    student_cfg.DATASETS.REGISTER = [entry]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER.*image_root"):
        register_datasets(student_cfg)


def test_a_set_that_is_not_registered(student_cfg):
    student_cfg.DATASETS.TRAIN = ("nowhere",)
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN = 'nowhere'.*DATASETS\.REGISTER"):
        check_datasets(student_cfg, training=True)
    check_datasets(student_cfg, training=False)  # evaluation does not need it


def test_no_training_set(student_cfg):
    student_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN"):
        check_datasets(student_cfg, training=True)


def test_missing_files_of_registered_and_built_in_sets(student_cfg, tmp_path):
    name = f"gone_{tmp_path}"
    student_cfg.DATASETS.REGISTER = [[name, str(tmp_path / "gone.json"), str(tmp_path)]]
    student_cfg.DATASETS.TRAIN = (name,)
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match=r"gone\.json does not exist"):
        check_datasets(student_cfg, training=True)
    student_cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(ConfigError, match="DETECTRON2_DATASETS"):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: "{", "is not JSON"),
        (lambda content: "[1, 2]", "not in COCO format"),
        (lambda content: json.dumps({"images": []}), "not in COCO format"),
        (lambda content: json.dumps({**content, "annotations": []}), "no boxes to train on"),
        (
            lambda content: json.dumps(
                {**content, "annotations": [{**a, "iscrowd": 1} for a in content["annotations"]]}
            ),
            "no boxes to train on",
        ),
        (
            lambda content: json.dumps(
                {**content, "categories": content["categories"] + [{"id": 99, "name": "seventh"}]}
            ),
            r"MODEL\.RETINANET\.NUM_CLASSES = 6.*has 7 classes.*NUM_CLASSES 7",
        ),
        (lambda content: one_annotation(content, "bbox"), r"annotation 1 lacks bbox\. Give every"),
        (
            lambda content: one_annotation(content, bbox=[8, 8, 16]),
            r"annotations\[0\].bbox is \[8, 8, 16\], and should be four numbers",
        ),
        (lambda content: one_annotation(content, bbox=[8, 8, -1, 4]), r"has the bbox \[8, 8, -1, 4\]"),
        (lambda content: one_annotation(content, bbox=[8, 8, float("nan"), 4]), "has the bbox .*nan"),
        (lambda content: json.dumps({**content, "images": []}), r"DATASETS\.TRAIN = .* lists no images"),
        (
            lambda content: json.dumps({**content, "images": [*content["images"], content["images"][2]]}),
            "several images have the id 3, of which Detectron2 would read one",
        ),
        (lambda content: one_annotation(content, id=2), "annotation 2 has the id of another one"),
        (lambda content: one_annotation(content, ignore=1), "annotation 1 is marked 'ignore'"),
        (
            lambda content: json.dumps({**content, "categories": [{"id": 1}]}),
            r"a category lacks id or name: \{'id': 1\}",
        ),
        (
            lambda content: json.dumps({**content, "categories": [*content["categories"]] * 2}),
            "several categories have the id 1, of which Detectron2 would read one",
        ),
        (
            lambda content: json.dumps(
                {**content, "categories": [*content["categories"], {"id": 99, "name": "disc"}]}
            ),
            "several categories have the name 'disc', and AP is reported by name",
        ),
        (
            lambda content: json.dumps({**content, "categories": [{"id": [1], "name": "disc"}]}),
            r"categories\[0\].id is \[1\], and should be a whole number or a text",
        ),
        (
            lambda content: json.dumps(
                {**content, "categories": [*content["categories"], {"id": "7", "name": "seventh"}]}
            ),
            "the ids of some categories are numbers, and those of others texts",
        ),
        (
            lambda content: json.dumps({**content, "images": [{**content["images"][0], "file_name": 7}]}),
            r"images\[0\].file_name is 7, and should be a text",
        ),
        (lambda content: one_annotation(content, category_id=[1]), r"annotations\[0\].category_id is \[1\]"),
        (
            lambda content: json.dumps(
                {**content, "annotations": [{**a, "segmentation": [[]]} for a in content["annotations"]]}
            ),
            "no segmentation is a valid polygon, and Detectron2 leaves out such annotations",
        ),
    ],
    ids=[
        "not JSON",
        "a list",
        "lacks entries",
        "no annotations",
        "crowds only",
        "a class too many",
        "no bbox",
        "a short bbox",
        "a negative width",
        "no number",
        "no images",
        "an image id twice",
        "an id twice",
        "ignored",
        "a class without a name",
        "a class id twice",
        "a class name twice",
        "a class id that is none",
        "class ids of two kinds",
        "a file name that is none",
        "a list of classes",
        "no polygons",
    ],
)
def test_annotation_files_that_cannot_be_trained_on(student_cfg, tmp_path, change, match):
    changed(student_cfg, tmp_path, change)
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match=match):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize("entry", ["area", "iscrowd"])
def test_what_coco_evaluation_asks_for_is_in_the_test_set(student_cfg, tmp_path, entry):
    name = changed(student_cfg, tmp_path, lambda content: one_annotation(content, entry))
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)  # training does without
    student_cfg.DATASETS.TEST = (name,)
    with pytest.raises(ConfigError, match=rf"DATASETS\.REGISTER.*annotation 1 lacks {entry}\..*crowds"):
        check_datasets(student_cfg, training=True)


def test_coco_evaluation_never_finds_an_annotation_with_the_id_0(student_cfg, tmp_path):
    name = changed(student_cfg, tmp_path, lambda content: one_annotation(content, id=0))
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    student_cfg.DATASETS.TEST = (name,)
    with pytest.raises(ConfigError, match="annotation 0 has an id that COCO evaluation takes for none"):
        check_datasets(student_cfg, training=True)


def test_masks_that_are_not_there(student_cfg, tmp_path):
    changed(student_cfg, tmp_path, lambda content: one_annotation(content, "segmentation"))
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    student_cfg.MODEL.MASK_ON = True
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_ON = True.*annotation 1 has no segmentation"):
        check_datasets(student_cfg, training=True)


def test_boxes_that_look_like_corners_are_warned_of(student_cfg, tmp_path, caplog):
    def corners(content):
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]
        return json.dumps(content)

    changed(student_cfg, tmp_path, lambda content: json.dumps(content))
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    assert "reach over the edge" not in caplog.text
    (tmp_path / "corners").mkdir()
    changed(student_cfg, tmp_path / "corners", corners)
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    assert re.search(
        r"\d+ of the 47 boxes in .* reach over the edge .* are these \[x0, y0, x1, y1\]\?", caplog.text
    )


def test_sets_of_other_classes(student_cfg, tmp_path):
    """The same names with other ids: Detectron2 would number the classes of the two sets differently."""

    def turn_round(content):
        ids = {number: 7 - number for number in range(1, 7)}
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        content["categories"] = [{**c, "id": ids[c["id"]]} for c in content["categories"]]
        return json.dumps(content)

    student_cfg.DATASETS.TEST = (changed(student_cfg, tmp_path, turn_round),)
    student_cfg.DATASETS.TRAIN = (student_cfg.DATASETS.REGISTER[0][0],)
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST.*class 1,.*'cross', and .* is 'disc'.*same ids"):
        check_datasets(student_cfg, training=True)
    check_datasets(student_cfg, training=False)  # there is nothing to differ from


def check_images(cfg, folder: Path, *images: tuple[str, int, int]) -> None:
    """Check a training set of these images: (file name, width, height) each."""
    entries = [dict(zip(("file_name", "width", "height"), image), id=i) for i, image in enumerate(images)]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 8, 8]}
    categories = [{"id": number, "name": str(number)} for number in range(1, 7)]
    content = {"images": entries, "annotations": [box], "categories": categories}
    (folder / "images.json").write_text(json.dumps(content))
    name = f"images_{folder}"
    cfg.DATASETS.REGISTER = [[name, str(folder / "images.json"), str(folder)]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    register_datasets(cfg)
    check_datasets(cfg, training=True)


def picture(path: Path, width: int, height: int, **options) -> Path:
    """A grey picture as a file."""
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (width, height)).save(path, **options)
    return path


def turned() -> Image.Exif:
    """EXIF data of a picture taken with the camera on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_sizes_are_those_of_the_upright_picture(student_cfg, tmp_path, suffix):
    name = "a folder/turned" + suffix
    picture(tmp_path / name, 48, 32, exif=turned())
    check_images(student_cfg, tmp_path, (name, 32, 48))
    with pytest.raises(
        ConfigError, match=r"turned.* is 32 x 48 pixels once its EXIF.* says 48 x 32\. Correct"
    ):
        check_images(student_cfg, tmp_path, (name, 48, 32))
    record = {"file_name": str(tmp_path / name), "width": 48, "height": 32}
    with pytest.raises(SizeMismatchError):  # what training would have come to
        DatasetMapper(student_cfg, False)(record)


def test_broken_exif_data_is_none(student_cfg, tmp_path):
    picture(tmp_path / "1.jpg", 48, 32, exif=b"Exif\0\0nonsense")
    check_images(student_cfg, tmp_path, ("1.jpg", 48, 32))


def test_images_that_training_would_stop_at(student_cfg, tmp_path):
    picture(tmp_path / "1.png", 48, 32)
    (tmp_path / "2.png").write_text("not an image")
    Image.fromarray(np.full((32, 48), 1000, np.uint16)).save(tmp_path / "3.png")
    good = ("1.png", 48, 32)
    for image, match in (
        (("gone.png", 48, 32), r"DATASETS\.REGISTER.*gone\.png does not exist\. Correct .*images\.json"),
        (("2.png", 48, 32), r"2\.png cannot be opened \(UnidentifiedImageError\)\. Replace it"),
        (("3.png", 48, 32), r"3\.png has more than 8 bits \(I;16.*\), .* white\. Convert"),
        (
            ("1.png", 32, 48),
            r"1\.png is 48 x 32 pixels, and .* says 32 x 48\. Correct width and height there\.$",
        ),
    ):
        with pytest.raises(ConfigError, match=match):
            check_images(student_cfg, tmp_path, good, image)


def test_every_image_is_looked_at_and_no_pixels_are(student_cfg, tmp_path):
    """Of each the header, behind which this file has been cut off."""
    whole = picture(tmp_path / "1.png", 480, 320).read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    images = [("1.png", 480, 320)] * 300
    check_images(student_cfg, tmp_path, *images)
    with pytest.raises(ConfigError, match=r"gone\.png does not exist"):
        check_images(student_cfg, tmp_path, *images, ("gone.png", 480, 320), *images)


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("area", [4.0], "a number of pixels"),
        ("area", None, "a number of pixels"),
        ("area", "4", "a number of pixels"),
        ("iscrowd", None, "1 for crowds and 0 for others"),
        ("iscrowd", "0", "1 for crowds and 0 for others"),
        ("id", "1", "a whole number below 2^53"),
        ("id", 2**60, "a whole number below 2^53"),
        ("image_id", True, "a whole number or a text"),
        ("segmentation", "none", "a list of polygons"),
        ("segmentation", {"counts": 7}, "a list of polygons"),
        ("keypoints", ["1"], "a list of numbers"),
    ],
)
def test_types_that_evaluation_would_stop_at_or_misread(entry, value, expected, student_cfg, tmp_path):
    name = changed(student_cfg, tmp_path, lambda content: one_annotation(content, **{entry: value}))
    register_datasets(student_cfg)
    student_cfg.DATASETS.TEST = (name,)
    with pytest.raises(
        ConfigError, match=rf"annotations\[0\].{entry} is .*, and should be {re.escape(expected)}"
    ):
        check_datasets(student_cfg, training=False)


def test_boxes_outside_their_images_are_counted_and_none_left_is_an_error(student_cfg, tmp_path, caplog):
    def outside(content, number):
        for annotation in content["annotations"][:number]:
            annotation["bbox"] = [1000, 8, 10, 10]
        return json.dumps(content)

    changed(student_cfg, tmp_path, lambda content: outside(content, 2))
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    assert re.search(r"2 of the 47 boxes in .* teach nothing, that of annotation 1 for one", caplog.text)
    (tmp_path / "all").mkdir()
    changed(student_cfg, tmp_path / "all", lambda content: outside(content, None))
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match="no box has an area inside its image"):
        check_datasets(student_cfg, training=True)


def test_a_set_that_somebody_else_has_registered_is_checked_as_well(student_cfg, tmp_path):
    name = changed(student_cfg, tmp_path, lambda content: one_annotation(content, area="4"))
    register_datasets(student_cfg)
    student_cfg.DATASETS.REGISTER, student_cfg.DATASETS.TEST = [], (name,)
    with pytest.raises(ConfigError, match="area is '4'"):
        check_datasets(student_cfg, training=False)
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]  # as of COCO's test-dev
    path.write_text(json.dumps(content))
    check_datasets(student_cfg, training=False)
