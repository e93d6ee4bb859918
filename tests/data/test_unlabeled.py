"""Sets without labels: what is read of them, and what is said of those that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from mgd_det.config import check_run_values
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.data.unlabeled import unlabeled_records
from mgd_det.errors import ConfigError


def add(cfg, annotations: str, root: Path) -> str:
    """Register one more set, as one without labels; its name."""
    name = f"unlabeled_{root}_{annotations}"
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, [name, annotations, str(root)]]
    cfg.DATASETS.UNLABELED = (name,)
    register_datasets(cfg)
    return name


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two images, one in a sub-folder, and a file that is none."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for name in ("b.png", "more/a.JPG"):
        Image.fromarray(np.zeros((40, 60, 3), dtype=np.uint8)).save(root / name, "PNG")
    (root / "notes.txt").write_text("none")
    return root


def test_a_folder_is_its_images_by_path(student_cfg, folder):
    name = add(student_cfg, "", folder)
    register_datasets(student_cfg)  # again is fine
    expected = [{"file_name": str(folder / path), "image_id": path} for path in ("b.png", "more/a.JPG")]
    assert unlabeled_records(name) == expected
    check_datasets(student_cfg, training=True)


def test_annotations_are_not_read(student_cfg, folder, tmp_path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"images": [{"id": 7, "file_name": "b.png", "width": 60, "height": 40}]}))
    name = add(student_cfg, str(path), folder)
    check_datasets(student_cfg, training=True)
    expected = {"file_name": str(folder / "b.png"), "image_id": 7, "width": 60, "height": 40}
    assert unlabeled_records(name) == [expected]


def test_a_set_of_ones_own_function(student_cfg, folder):
    record = {"file_name": str(folder / "b.png"), "image_id": 1, "annotations": [{"bbox": None}]}
    DatasetCatalog.register(f"own_{folder}", lambda: [record])
    student_cfg.DATASETS.UNLABELED = (f"own_{folder}",)
    register_datasets(student_cfg)
    check_datasets(student_cfg, training=True)
    assert unlabeled_records(f"own_{folder}") == [{"file_name": record["file_name"], "image_id": 1}]


def spoil(folder: Path, how: str) -> None:
    image = folder / "more/a.JPG"
    if how == "broken":
        image.write_bytes(b"no image")
    if how == "deep":
        Image.fromarray(np.full((4, 4), 999, dtype=np.uint16)).save(image, "PNG")
    if how == "dangling":
        image.unlink()
        image.symlink_to("nowhere.jpg")


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("broken", r"more/a\.JPG cannot be opened \(UnidentifiedImageError\)"),
        ("deep", r"more/a\.JPG has more than 8 bits"),
        ("dangling", r"more/a\.JPG does not exist"),
    ],
)
def test_images_that_training_would_stop_at(student_cfg, folder, how, match):
    spoil(folder, how)
    add(student_cfg, "", folder)
    with pytest.raises(ConfigError, match=match):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize("content", ["{", '{"annotations": []}', '{"images": [{"id": 1}]}', "[]"])
def test_files_that_list_no_images(student_cfg, folder, tmp_path, content):
    path = tmp_path / "images.json"
    path.write_text(content)
    add(student_cfg, str(path), folder)
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELED.*images\.json lists no images"):
        check_datasets(student_cfg, training=True)


def test_folders_that_are_empty_or_missing(student_cfg, tmp_path):
    (tmp_path / "empty").mkdir()
    add(student_cfg, "", tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELED.*there are no images in \S+empty"):
        check_datasets(student_cfg, training=True)
    add(student_cfg, "", tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELED.*missing does not exist"):
        check_datasets(student_cfg, training=True)
    student_cfg.DATASETS.UNLABELED = ("nowhere",)
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELED = 'nowhere'.*DATASETS\.REGISTER"):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_a_folder_is_no_set_to_train_or_test_on(student_cfg, folder, key):
    student_cfg.DATASETS[key] = (add(student_cfg, "", folder),)
    with pytest.raises(ConfigError, match=rf"DATASETS\.{key}.*gives this set no annotations"):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize(("ratio", "processes"), [(0.3, 1), (0.5, 2), (0.0, 1), (-1.0, 1)])
def test_ratios_that_give_no_share(student_cfg, ratio, processes):
    student_cfg.DATASETS.UNLABELED = ("some",)
    student_cfg.DATALOADER.UNLABELED_RATIO = ratio
    with pytest.raises(ConfigError, match=r"DATALOADER\.UNLABELED_RATIO"):
        check_run_values(student_cfg, processes)
    student_cfg.DATALOADER.UNLABELED_RATIO = 1.5 * 2 / 3 * processes
    check_run_values(student_cfg, processes)
