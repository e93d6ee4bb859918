"""The embedded demonstration set: deterministic, valid COCO, disjoint splits, safe to re-run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import make_demo_data as tool
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

TOOL = Path(__file__).parents[2] / "tools" / "make_demo_data.py"
SPLITS = ("train", "val", "test")
COUNTS = {"train": 32, "val": 16, "test": 16}

# A polygon is drawn twice, by the tool (pixels it covers by half) and by pycocotools, with its own
# rule for the pixels that the outline crosses: their areas may differ by this much per px of
# outline, their boxes by this much per side. Run lengths are exact.
AREA_TOLERANCE = 0.35
BOX_TOLERANCE = 2.0


def make(out: Path, *options: str, **counts: int) -> Path:
    sizes = [f"--{split}={count}" for split, count in {**COUNTS, **counts}.items()]
    assert tool.main(["--out", str(out), *sizes, *options]) == 0
    return out


def files(root: Path) -> dict[str, bytes]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as caught:
        tool.main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="session")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo") / "set", "--objects", "both")


@pytest.fixture(scope="session", params=SPLITS)
def split(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def coco(demo_set: Path, split: str) -> COCO:
    return COCO(str(demo_set / "annotations" / f"{split}.json"))


def test_same_seed_gives_the_same_bytes_in_another_process(demo_set: Path, tmp_path: Path) -> None:
    sizes = [f"--{name}={count}" for name, count in COUNTS.items()]
    command = [sys.executable, str(TOOL), "--out", str(tmp_path / "again"), "--objects", "both"]
    subprocess.run([*command, *sizes], check=True)
    assert files(tmp_path / "again") == files(demo_set)


def test_another_seed_gives_another_set(demo_set: Path, tmp_path: Path) -> None:
    ours, other = files(demo_set), files(make(tmp_path / "o", "--objects", "both", "--seed", "1"))
    assert ours.keys() == other.keys()
    assert not [name for name in ours if ours[name] == other[name]]


def test_an_image_does_not_depend_on_the_number_of_images(demo_set: Path, tmp_path: Path) -> None:
    ours, fewer = files(demo_set), files(make(tmp_path / "fewer", "--objects", "both", train=20))
    changed = {"annotations/train.json", "recipe.json"}
    assert fewer.keys() < ours.keys()
    assert {name for name in fewer if fewer[name] != ours[name]} == changed


@pytest.mark.parametrize("objects", ["shapes", "digits"])
def test_objects_of_one_kind(tmp_path: Path, objects: str) -> None:
    out = make(tmp_path / objects, "--objects", objects, "--size", "128", "160")
    found = json.loads((out / "annotations" / "train.json").read_text())
    assert tuple(c["name"] for c in found["categories"]) == tool.CATEGORIES[objects]
    assert {c["supercategory"] for c in found["categories"]} == {objects[:-1]}
    assert all(128 <= image[side] <= 160 for image in found["images"] for side in ("width", "height"))


def test_coco_fields(coco: COCO, split: str) -> None:
    assert coco.dataset["info"]
    assert coco.dataset["licenses"]
    assert sorted(coco.cats) == list(range(1, len(tool.SHAPES + tool.DIGITS) + 1))
    assert sorted(coco.imgs) == list(range(1, COUNTS[split] + 1))
    # pycocotools takes a match with annotation 0 for no match.
    assert sorted(coco.anns) == list(range(1, len(coco.dataset["annotations"]) + 1))
    assert all(annotation["iscrowd"] == 0 for annotation in coco.anns.values())
    assert all(1 <= len(coco.imgToAnns[i]) <= tool.OBJECTS_PER_IMAGE[1] for i in coco.imgs)


def test_image_files_are_as_described(coco: COCO, demo_set: Path, split: str) -> None:
    names = {image["file_name"] for image in coco.imgs.values()}
    assert names == {path.name for path in (demo_set / split).iterdir()}
    for image in coco.imgs.values():
        with Image.open(demo_set / split / image["file_name"]) as pixels:
            assert pixels.size == (image["width"], image["height"])
            assert pixels.mode == "RGB"
            assert all(96 <= side <= 128 for side in pixels.size)


def test_every_class_is_in_every_split(coco: COCO) -> None:
    assert {annotation["category_id"] for annotation in coco.anns.values()} == set(coco.cats)


def test_masks_agree_with_areas_and_boxes(coco: COCO) -> None:
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])

        x, y, width, height = annotation["bbox"]
        box = np.array([x, y, x + width, y + height])
        assert 0 <= x < x + width <= image["width"]
        assert 0 <= y < y + height <= image["height"]

        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        if isinstance(annotation["segmentation"], dict):
            assert mask.sum() == annotation["area"]
            assert (box == tight).all()
        else:
            (polygon,) = annotation["segmentation"]
            points = np.array(polygon).reshape(-1, 2)
            assert len(points) >= 3
            outline = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
            assert abs(mask.sum() - annotation["area"]) <= AREA_TOLERANCE * outline
            assert np.abs(box - tight).max() <= BOX_TOLERANCE


def test_visible_masks_of_an_image_do_not_overlap(coco: COCO) -> None:
    for image_id in coco.imgs:
        annotations = coco.imgToAnns[image_id]
        masks = [coco.annToMask(a) for a in annotations if isinstance(a["segmentation"], dict)]
        assert np.sum(masks, axis=0).max() <= 1


def test_both_kinds_of_masks_occur(coco: COCO) -> None:
    assert {type(a["segmentation"]) for a in coco.anns.values()} == {dict, list}


@given(hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_decode_to_the_mask(mask: np.ndarray) -> None:
    rle = tool.encode_rle(mask)
    decoded = mask_utils.decode(mask_utils.frPyObjects(rle, *rle["size"]))
    assert (decoded == mask).all()


def test_splits_share_no_photograph_region_and_no_digit() -> None:
    for ranges in (tool.BANDS, tool.DIGIT_RANGES):
        assert set(ranges) == set(SPLITS)
        members = [set(range(*ranges[split])) for split in SPLITS]
        assert all(members)
        assert len(set.union(*members)) == sum(map(len, members))


def test_a_split_draws_from_its_own_ranges_only(split: str) -> None:
    from sklearn.datasets import load_digits, load_sample_images

    sources = tool.load_sources(split)
    left, right = tool.BANDS[split]
    first, end = tool.DIGIT_RANGES[split]
    for ours, photo in zip(sources.photos, load_sample_images().images):
        np.testing.assert_array_equal(ours, photo[:, left:right])
    np.testing.assert_array_equal(sources.digits, load_digits().images[first:end])
    np.testing.assert_array_equal(sources.labels, load_digits().target[first:end])


def test_detectron2_keeps_every_image(demo_set: Path, split: str) -> None:
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    name = f"demo_data_test_{split}"
    file = demo_set / "annotations" / f"{split}.json"
    try:
        records = load_coco_json(str(file), str(demo_set / split), name)
        assert tuple(MetadataCatalog.get(name).thing_classes) == tool.CATEGORIES["both"]
    finally:
        MetadataCatalog.pop(name)
    objects = [annotation for record in records for annotation in record["annotations"]]
    assert len(records) == COUNTS[split]
    assert all(Path(record["file_name"]).is_file() for record in records)
    assert len(objects) == len(json.loads(file.read_text())["annotations"])
    assert {annotation["category_id"] for annotation in objects} == set(range(16))


def test_the_same_set_is_left_alone(demo_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_set.rglob("*")}
    make(demo_set, "--objects", "both")
    assert "holds this set already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in demo_set.rglob("*")}


def test_another_set_is_replaced_only_by_force(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = make(tmp_path / "set")
    before = files(out)
    message = failure(capsys, "--out", str(out), "--seed", "1")
    assert str(out) in message
    assert "--force" in message
    assert "another --out" in message
    assert files(out) == before

    make(out, "--seed", "1", "--force")
    assert json.loads((out / "recipe.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("name", ["notes.txt", "recipe.json"])
def test_a_foreign_directory_is_never_touched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text('{"flour": 500}')
    for options in ([], ["--force"]):
        message = failure(capsys, "--out", str(out), *options)
        assert str(out) in message
        assert "another --out" in message
    assert files(out) == {name: b'{"flour": 500}'}


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert (make(tmp_path / "set") / "recipe.json").is_file()


def test_a_file_in_the_way_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    assert "another --out" in failure(capsys, "--out", str(tmp_path / "file"))
    assert "file" in failure(capsys, "--out", str(tmp_path / "file" / "below"))
    assert files(tmp_path) == {"file": b"kept"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--size", "95", "128"], "--size must be MIN MAX with 96 <= MIN"),
        (["--size", "96", "161"], "--size must be"),
        (["--size", "128", "96"], "--size must be"),
        (["--val", "5"], "--val must be at least 6"),
        (["--objects", "both", "--test", "15"], "--test must be at least 16"),
        (["--objects", "letters"], "invalid choice"),
        (["--train", "many"], "invalid int value"),
    ],
)
def test_bad_parameters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], expected: str
) -> None:
    assert expected in failure(capsys, "--out", str(tmp_path / "set"), *options)
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    command = [sys.executable, str(TOOL), "--out", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "file") in done.stderr


def test_a_killed_run_leaves_no_set_and_is_no_obstacle(tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = subprocess.Popen([sys.executable, str(TOOL), "--out", str(out), "--train", "100000"])
    while not list(tmp_path.glob(".set.*.partial/train/*.png")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not out.exists()
    assert (make(out) / "recipe.json").is_file()
