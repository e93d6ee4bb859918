"""Awkward data, made by `tools/make_odd_data.py`: what is in it, and real runs on it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import make_odd_data as tool
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from helpers.commands import ROOT, run_tool
from helpers.detectors import Perfect, small_config
from PIL import Image
from pycocotools.coco import COCO

from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.engine.trainer import Trainer

TRAIN_NET = ROOT / "tools/train_net.py"
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="session")
def odd_data(demo_data, tmp_path_factory) -> Path:
    """The awkward copy of the demonstration set of 16, 6 and 6 images."""
    out = tmp_path_factory.mktemp("odd") / "set with spaces"
    assert tool.main(["--data", str(demo_data), "--out", str(out)]) == 0
    return out


@pytest.fixture(params=SPLITS)
def pair(request, demo_data, odd_data) -> tuple[COCO, COCO, Path, Path]:
    """A split as it was and as it is now, and the folders of their images."""
    split = request.param
    before, after = (COCO(str(data / "annotations" / f"{split}.json")) for data in (demo_data, odd_data))
    return before, after, demo_data / split, odd_data / split


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def failure(capsys, *argv: object) -> str:
    """The one line of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        tool.main([str(argument) for argument in argv])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def old_image(annotation: dict, before: COCO) -> dict:
    """The image that an annotation was on: its id is the old one and `FIRST_ID`."""
    return before.imgs[before.anns[annotation["id"] - tool.FIRST_ID]["image_id"]]


def test_kinds_of_files(odd_data):
    """16 images and 2 without boxes: 18 to four kinds."""
    kinds: Counter = Counter()
    orientations = []
    for path in filter(Path.is_file, (odd_data / "train").rglob("*")):
        with Image.open(path) as image:
            kinds[image.format, image.mode] += 1
            orientations += [image.getexif()[0x0112]] if 0x0112 in image.getexif() else []
    assert kinds == {("PNG", "RGB"): 5, ("PNG", "L"): 5, ("JPEG", "CMYK"): 4, ("JPEG", "RGB"): 4}
    assert sorted(orientations) == [3, 5, 6, 8]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_picture_is_read_upright(tmp_path, orientation):
    """One red quarter: no way to turn or mirror the picture leaves it as it is."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32, 0] = 250
    name = tool.store(Image.fromarray(pixels), tmp_path, "a b/ü", "turned", iter([orientation]))
    assert name == "a b/ü.jpg"
    with Image.open(tmp_path / name) as stored:
        assert stored.size == ((32, 64) if orientation >= 5 else (64, 32))
        assert not np.array_equal(np.asarray(stored) > 125, pixels > 125)
    read = read_image(str(tmp_path / name), "RGB")
    assert read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).max() <= 4


def test_pictures_are_as_they_were(pair):
    before, after, before_root, after_root = pair
    for annotation in after.anns.values():
        old, new = old_image(annotation, before), after.imgs[annotation["image_id"]]
        with Image.open(after_root / new["file_name"]) as image:
            mode = image.mode
        read = read_image(str(after_root / new["file_name"]), "RGB").astype(int)
        assert read.shape[:2] == (new["height"], new["width"]) == (old["height"], old["width"])
        with Image.open(before_root / old["file_name"]) as image:
            expected = np.asarray(image.convert("L").convert("RGB") if mode == "L" else image).astype(int)
        assert np.abs(read - expected).mean() < (2.5 if new["file_name"].endswith(".jpg") else 1e-9)


def test_annotations_are_as_they_were(pair):
    before, after, _, _ = pair
    assert len(after.anns) == len(before.anns)
    for annotation in after.anns.values():
        old = before.anns[annotation["id"] - tool.FIRST_ID]
        assert (annotation["bbox"], annotation["area"]) == (old["bbox"], old["area"])
        names = after.cats[annotation["category_id"]]["name"], before.cats[old["category_id"]]["name"]
        assert names[0] == names[1]


def test_crowds_are_run_lengths_of_the_same_mask(pair):
    before, after, _, _ = pair
    crowds = [a for a in after.anns.values() if a["iscrowd"]]
    assert len(crowds) == round(0.08 * len(after.anns)) > 0
    for crowd in crowds:
        assert isinstance(crowd["segmentation"]["counts"], list)
        assert (after.annToMask(crowd) == before.annToMask(before.anns[crowd["id"] - tool.FIRST_ID])).all()


def test_a_polygon_becomes_run_lengths():
    """A square of two pixels in an image three wide and four high: columns from the left, zeros first."""
    square = {"segmentation": [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]], "iscrowd": 0}
    crowd = tool.as_crowd(square, {"width": 3, "height": 4})
    assert crowd == {"segmentation": {"size": [4, 3], "counts": [5, 2, 2, 2, 1]}, "iscrowd": 1}


def test_ids_are_large_and_have_gaps_and_no_order(odd_data):
    splits = [json.loads((odd_data / "annotations" / f"{split}.json").read_text()) for split in SPLITS]
    categories = [sorted((c["id"], c["name"]) for c in split["categories"]) for split in splits]
    assert categories[0] == categories[1] == categories[2]
    ids = [number for number, _ in categories[0]]
    assert len(set(ids)) == 6
    assert ids[0] > 1
    assert ids[-1] - ids[0] > 5
    assert ids[-1] <= 90
    for entries in (splits[0]["images"], splits[0]["annotations"]):
        numbers = [entry["id"] for entry in entries]
        assert min(numbers) > 2**32
        assert len(set(numbers)) == len(numbers)
        assert numbers != sorted(numbers)


def test_some_images_have_no_box_and_odd_names(odd_data):
    coco = COCO(str(odd_data / "annotations/train.json"))
    assert len(coco.imgs) == 18
    assert len([number for number in coco.imgs if not coco.imgToAnns[number]]) == 2
    names = " ".join(image["file_name"] for image in coco.imgs.values())
    assert all(part in names for part in ("camera 1/", "Köln/Straße Nr. ", "東京/写真 "))


def test_a_seed_gives_a_set_and_the_same_in_another_process(demo_data, odd_data, tmp_path):
    script = ROOT / "tools/make_odd_data.py"
    run_tool(script, "--data", demo_data, "--out", tmp_path / "again")
    assert files(tmp_path / "again") == files(odd_data)
    assert tool.main(["--data", str(demo_data), "--out", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert files(tmp_path / "other").keys() != files(odd_data).keys()


def test_the_same_set_is_left_alone(demo_data, odd_data, capsys):
    before = {path: path.stat().st_mtime_ns for path in odd_data.rglob("*")}
    assert tool.main(["--data", str(demo_data), "--out", str(odd_data)]) == 0
    assert "holds this set already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in odd_data.rglob("*")}


def test_bad_input_is_one_line_and_nothing_is_written(demo_data, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    data = ["--data", demo_data]
    assert "holds no set of tools/make_demo_data.py" in failure(capsys, "--data", tmp_path, "--out", tmp_path)
    assert "--seed must be 0 or more" in failure(capsys, *data, "--out", tmp_path / "new", "--seed", -1)
    for out in (tmp_path / "mine", demo_data):
        assert "give another --out" in failure(capsys, *data, "--out", out, "--force")
    assert files(tmp_path) == {"mine/notes.txt": b"kept"}
    assert (demo_data / "recipe.json").is_file()


def test_another_set_is_replaced_only_by_force(demo_data, tmp_path, capsys):
    out = tmp_path / "set"
    command = ["--data", str(demo_data), "--out", str(out)]
    assert tool.main(command) == 0
    assert "--force" in failure(capsys, *command, "--seed", 1)
    assert tool.main([*command, "--seed", "1", "--force"]) == 0
    assert json.loads((out / "recipe.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


# Runs on it: a teacher, and a student that makes use of all that depends on images, boxes or classes.


def train(cfg, folder: Path) -> str:
    """A run of the command; its output."""
    cfg.merge_from_list(["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "SOLVER.MAX_ITER", 2])
    config = folder.with_suffix(".yaml")
    config.write_text(cfg.dump())
    result = run_tool(TRAIN_NET, "--config-file", config, "--num-gpus", 0)
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def runs(odd_data, tmp_path_factory) -> dict[str, Path]:
    """OUTPUT_DIR of a teacher of a few iterations and of its student."""
    out = tmp_path_factory.mktemp("runs")
    teacher, student = out / "teacher", out / "student"
    cfg = small_config(odd_data, teacher, "MODEL.RESNETS.DEPTH", 50)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16, 128
    train(cfg, teacher)

    cfg = small_config(odd_data, student)
    cfg.DISTILL.ENABLED, cfg.DISTILL.EXACT_RESUME = True, True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher / "model_final.pth")
    cfg.DISTILL.METHODS, cfg.DISTILL.INHERIT = ["mgd", "imitation", "logits"], ["fpn", "head"]
    cfg.DISTILL.MGD.TAPS, cfg.DISTILL.IMITATION.FOREGROUND_WEIGHT = ["res4"], 4.0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.SOLVER.IMS_PER_BATCH = 8  # with 18 images, of which 2 or more have nothing to learn from
    cfg.DISTILL.MATCHING.NUM_IMAGES = 18
    (out / "student.log").write_text(train(cfg, student))
    return {"teacher": teacher, "student": student}


def test_all_losses_are_there_and_finite(runs):
    lines = [json.loads(line) for line in (runs["student"] / "metrics.json").read_text().splitlines()]
    losses = {name: value for line in lines for name, value in line.items() if name.startswith("loss_")}
    assert {"loss_cls", "loss_mgd_res4", "loss_imitation_p4", "loss_logits_cls"} <= set(losses)
    assert np.isfinite(list(losses.values())).all()
    log = (runs["student"].parent / "student.log").read_text()
    assert "matching mgd_res4 before iteration 0, from 18 images" in log
    assert "inherited from the teacher" in log


def test_what_was_detected_has_the_ids_of_the_data(runs, odd_data):
    coco = COCO(str(odd_data / "annotations/val.json"))
    found = json.loads((runs["student"] / "inference/coco_instances_results.json").read_text())
    assert {detection["image_id"] for detection in found} == set(coco.imgs)
    assert {detection["category_id"] for detection in found} <= set(coco.cats)


def test_a_detector_that_finds_everything_has_the_full_ap(odd_data, tmp_path):
    """Pictures are read, ids translated there and back, and crowds count neither way."""
    cfg = small_config(odd_data, tmp_path)
    register_datasets(cfg)
    check_datasets(cfg, training=True)
    assert Trainer.test(cfg, Perfect(cfg.DATASETS.TEST[0]))["bbox"]["AP"] == pytest.approx(100)


def test_a_page_shows_it(runs, tmp_path):
    run_tool(ROOT / "tools/visualize.py", "--run", runs["student"], "--images", 4, "--out", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not here" not in page
    titles = re.findall(r'alt="Image \d with boxes. ground truth: (\d+) objects(, crowds dashed)?;', page)
    # Of seven images, in the order of their ids: the second has no box, the last one shown also a crowd.
    assert titles == [("3", ""), ("0", ""), ("1", ""), ("4", ", crowds dashed")]


def test_drawn_boxes_lie_on_the_upright_picture(tmp_path):
    """A PNG, which loses nothing, once upright and once turned by its EXIF orientation."""
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = {"id": 1, "file_name": "1.png", "width": 64, "height": 32}
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [8, 8, 16, 16], "iscrowd": crowd}
        for crowd in (0, 1)
    ]
    drawn = []
    for name, picture, extra, shown in (
        ("upright", upright, {}, boxes[:1]),
        ("turned", upright.transpose(tool.STORED[6]), {"exif": exif}, boxes),  # the crowd is left out
    ):
        folder = tmp_path / name
        folder.mkdir()
        picture.save(folder / "1.png", **extra)
        content = {"images": [image], "annotations": shown, "categories": [{"id": 7, "name": "square"}]}
        (folder / "boxes.json").write_text(json.dumps(content))
        script = ROOT / "tools/draw_detections.py"
        out = folder / "drawn.png"
        run_tool(script, "--annotations", folder / "boxes.json", "--images", folder, "--out", out)
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1]
