"""COCO files with any JSON value at any place: a run works and reports the right AP, or one line says why.

More examples than the suite's: `HYPOTHESIS_PROFILE=thorough pytest tests/run/test_any_json.py`.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
from contextlib import redirect_stdout
from io import StringIO
from shutil import rmtree

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mgd_det import Trainer, register_datasets
from mgd_det.data.datasets import check_datasets
from mgd_det.errors import ConfigError

settings.register_profile("suite", max_examples=60, derandomize=True)
settings.register_profile("thorough", max_examples=2000)
EXAMPLES = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.sampled_from([2**31, 2**53 + 1, 2**70, -(2**70)]),
    st.floats(),
    st.sampled_from(["", "0", "1", "a", "000001.png", "../", "\0"]),
    st.lists(st.one_of(st.integers(-3, 9), st.none(), st.text(max_size=2)), max_size=7),
    st.dictionaries(st.sampled_from(["id", "counts", "size"]), st.integers(0, 9), max_size=3),
)
NUMBER = itertools.count()


@pytest.fixture(scope="module")
def plain(demo_data) -> dict:
    """Two images, with all that a COCO file says of them."""
    content = json.loads((demo_data / "annotations/val.json").read_text())
    images = content["images"][:2]
    kept = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in kept]
    return {**content, "images": images, "annotations": annotations}


def places(value, path=()):
    """Yields the path of everything in a JSON value, the whole left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changes(draw):
    """Returns a function that changes a JSON value at one place."""
    at, how = draw(st.integers(0, 10**6)), draw(st.sampled_from(["replace", "replace", "delete", "double"]))
    value = draw(VALUES)

    def change(content):
        # Every second change is of an annotation, of which there are the most kinds of values.
        found = [p for p in places(content) if p[0] != "info" and (at % 2 or p[0] == "annotations")]
        *parents, last = found[at % len(found)]
        parent = content
        for key in parents:
            parent = parent[key]
        if how == "delete":
            del parent[last]
        elif how == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[last]))
        else:
            parent[last] = value
        return content

    return change


def predictions(content) -> dict[object, Instances]:
    """Returns detections for each image: its boxes, a little to the right, with falling scores."""
    found = {}
    numbers = {c["id"]: n for n, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]))}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        x = Instances((int(image["height"]), int(image["width"])))
        boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        x.pred_boxes = Boxes(boxes + torch.tensor([2.0, 0.0, 2.0, 0.0]))
        x.pred_classes = torch.tensor([numbers[a["category_id"]] for a in own], dtype=torch.int64)
        x.scores = 1 - torch.arange(len(own)) / 100
        found[image["id"]] = x
    return found


def reported(cfg, content) -> float:
    """Returns the AP that Detectron2's evaluation of the set gives for these predictions."""
    (name,) = cfg.DATASETS.TEST
    evaluator = COCOEvaluator(name, tasks=("bbox",), distributed=False, use_fast_impl=False)
    evaluator.reset()
    for number, found in predictions(content).items():
        evaluator.process([{"image_id": number}], [{"instances": found}])
    return evaluator.evaluate()["bbox"]["AP"]


def expected(content) -> float:
    """Returns the AP of pycocotools on a file of nothing but what it needs."""
    clean = {
        "images": [{"id": x["id"]} for x in content["images"]],
        "categories": [{"id": x["id"]} for x in content["categories"]],
        "annotations": [
            {
                key: float(a[key]) if key == "area" else a[key]
                for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
            }
            for a in content["annotations"]
        ],
    }
    ids = sorted(c["id"] for c in content["categories"])
    results = [
        {"image_id": number, "category_id": ids[c], "bbox": [x0, y0, x1 - x0, y1 - y0], "score": s}
        for number, x in predictions(content).items()
        for (x0, y0, x1, y1), c, s in zip(
            x.pred_boxes.tensor.tolist(), x.pred_classes.tolist(), x.scores.tolist()
        )
    ]
    with redirect_stdout(StringIO()):
        truth = COCO()
        truth.dataset = clean
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


@settings(EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(change=changes())
def test_a_run_works_and_says_the_right_ap_or_one_line_says_why_not(change, plain, student_cfg, demo_data):
    cfg, number = student_cfg.clone(), next(NUMBER)
    content = change(copy.deepcopy(plain))
    folder = demo_data / "any"
    folder.mkdir(exist_ok=True)
    path = folder / f"{os.getpid()}_{number}.json"
    path.write_text(json.dumps(content))
    name = f"any_{os.getpid()}_{number}"
    cfg.DATASETS.REGISTER = [[name, str(path), str(demo_data / "val")]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(folder / name), 1
    register_datasets(cfg)
    try:
        check_datasets(cfg, training=True)
    except ConfigError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error) or name in str(error)
        return
    try:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        ap, right = reported(cfg, content), expected(content)
        assert ap == pytest.approx(right, abs=1e-6) or (math.isnan(ap) and right < 0)
    finally:
        MetadataCatalog.pop(name)
        rmtree(cfg.OUTPUT_DIR, ignore_errors=True)  # checkpoints of every example
