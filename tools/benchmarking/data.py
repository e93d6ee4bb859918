"""The training set's loader by itself, beside a distilled step."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarking.steps import OBJECTS
from detectron2.config import CfgNode
from PIL import Image

from mgd_det.data.datasets import register_datasets
from mgd_det.engine.trainer import Trainer

PHOTOS, COPIES = "benchmark_photos", 64


def use_photos(cfg: CfgNode, folder: Path) -> None:
    """Train on scikit-learn's two sample photographs, JPEG files of 427 x 640: as large as COCO's."""
    from sklearn.datasets import load_sample_images  # no part of what this package needs

    files = [Path(name) for name in load_sample_images().filenames]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(COPIES):
        file = files[index % len(files)]
        shutil.copy(file, folder / f"{index}.jpg")
        with Image.open(file) as image:
            width, height = image.size
        images.append({"id": index, "file_name": f"{index}.jpg", "width": width, "height": height})
        for number in range(OBJECTS):
            box = [20 * number, 10 * number, 200, 150]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": index, "category_id": 1, "iscrowd": 0},
                    **{"bbox": box, "area": box[2] * box[3]},
                }
            )
    categories = [{"id": i + 1, "name": str(i)} for i in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "photos.json").write_text(json.dumps(content))
    cfg.DATASETS.REGISTER = [[PHOTOS, str(folder / "photos.json"), str(folder)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (PHOTOS,)
    register_datasets(cfg)


def loader_share(cfg: CfgNode, images: int, batches: int, step: float) -> dict[str, Any]:
    """Seconds that the loader takes for a batch, beside those of a step, and what it makes of a second."""
    cfg = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = images
    loader = iter(Trainer.build_train_loader(cfg))
    for _ in range(3):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds = (time.perf_counter() - start) / batches
    return {
        "seconds": seconds,
        "of a step": seconds / step,
        "images a second": images / seconds,
        "workers": cfg.DATALOADER.NUM_WORKERS,
    }
