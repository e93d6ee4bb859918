"""The evaluator of each kind of data set, and runs that could not be evaluated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator, SemSegEvaluator
from helpers.detectors import FASTER_RCNN, Perfect, small
from helpers.pipelines import pipeline_config
from helpers.voc import make_voc

from mgd_det import Trainer, register_datasets
from mgd_det.engine.evaluators import build_evaluator, check_augmented_test, check_evaluators
from mgd_det.errors import ConfigError
from mgd_det.run.summary import summary


@pytest.fixture
def cfg(student_cfg):
    register_datasets(student_cfg)
    return student_cfg


@pytest.fixture
def of_kind(cfg):
    """A function from an evaluator_type to a config that is tested on a set of that type."""
    names = []

    def make(kind: str):
        name = f"set_of_{kind}"
        DatasetCatalog.register(name, list)
        names.append(name)
        MetadataCatalog.get(name).set(
            evaluator_type=kind, thing_classes=["a"], stuff_classes=["a"], ignore_label=255, json_file=""
        )
        cfg.DATASETS.TEST = (name,)
        return cfg

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_sets_in_coco_format(cfg):
    assert type(Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])) is COCOEvaluator


def test_a_set_of_classes_per_pixel(of_kind):
    cfg = of_kind("sem_seg")
    check_evaluators(cfg)
    assert type(build_evaluator(cfg, cfg.DATASETS.TEST[0], cfg.OUTPUT_DIR)) is SemSegEvaluator
    cfg.DISTILL.TEACHER.MIN_AP = 30.0
    with pytest.raises(
        ConfigError, match=r"MIN_AP = 30.0: the set 'set_of_sem_seg' has no boxes in COCO format"
    ):
        check_evaluators(cfg)


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("lvis", "lvis"),
        ("coco_panoptic_seg", "panopticapi"),
        ("cityscapes_instance", "cityscapesscripts"),
        ("cityscapes_sem_seg", "cityscapesscripts"),
    ],
)
def test_sets_whose_evaluation_needs_a_package(kind, package, of_kind):
    cfg = of_kind(kind)
    if importlib.util.find_spec(package):
        check_evaluators(cfg)
    else:
        with pytest.raises(ConfigError, match=f"'set_of_{kind}': .* needs the package {package}. Install it"):
            check_evaluators(cfg)


def test_a_kind_that_nobody_knows_is_refused_before_the_run(of_kind):
    cfg = of_kind("point_clouds")
    with pytest.raises(
        ConfigError, match=r"'set_of_point_clouds': there is no evaluator .* override build_ev"
    ):
        Trainer(cfg)

    class WithItsOwn(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, output_folder=None):
            return COCOEvaluator(dataset_name, output_dir=output_folder)

    WithItsOwn(cfg)


def test_pascal_voc_counts_as_its_own_evaluator_does(cfg, demo_data, tmp_path):
    name = make_voc(demo_data, tmp_path / "voc", "val")
    cfg.DATASETS.TEST = (name,)
    check_evaluators(cfg)
    assert type(Trainer.build_evaluator(cfg, name)) is PascalVOCDetectionEvaluator
    results = Trainer.test(cfg, Perfect(name))
    assert results["bbox"] == pytest.approx({"AP": 100.0, "AP50": 100.0, "AP75": 100.0})
    assert f"AP 100.0, AP50 100.0 on {name}" in summary(cfg, results, 1)


def test_a_semantic_segmentor_is_evaluated_by_its_pixels(demo_data, tmp_path):
    cfg = pipeline_config(demo_data, tmp_path / "run", "semantic")
    cfg.DISTILL.ENABLED = False
    cfg.SOLVER.MAX_ITER = 1
    (name,) = cfg.DATASETS.TEST
    MetadataCatalog.get(name).evaluator_type = "sem_seg"
    trainer = Trainer(cfg)
    trainer.train()
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    measured = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 <= measured["sem_seg/mIoU"] <= 100
    text = summary(cfg, {"sem_seg": {"mIoU": 41.26, "fwIoU": 50.0}}, 1)
    assert f"  sem_seg/mIoU 41.3 on {name}" in text


def test_augmentation_at_test_time_is_for_rcnns(cfg, demo_data, tmp_path):
    cfg.TEST.AUG.ENABLED = True
    with pytest.raises(
        ConfigError, match=r"^TEST\.AUG\.ENABLED = True: .* the student is a RetinaNet\. Set it"
    ):
        Trainer(cfg)
    cfg.merge_from_list(FASTER_RCNN)
    check_augmented_test(cfg)
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match=r"TEST\.AUG\.ENABLED = True"):
        check_augmented_test(cfg)


def test_an_rcnn_is_tested_with_augmentation_at_its_end(demo_data, tmp_path):
    cfg = small(
        demo_data, tmp_path / "run", "faster", "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96)
    )
    register_datasets(cfg)
    cfg.SOLVER.MAX_ITER = 1
    Trainer(cfg).train()
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    measured = {key for line in lines for key in json.loads(line)}
    assert {"bbox/AP", "bbox_TTA/AP"} <= measured


def test_a_set_of_a_function_is_evaluated_on_what_that_returns_now(cfg, demo_data, tmp_path):
    """Not on the json that an earlier run of the same name has left in the folder."""
    name, source = f"now_{tmp_path.name}", DatasetCatalog.get(cfg.DATASETS.TEST[0])
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes
    for count in (4, 2):
        DatasetCatalog.register(name, lambda count=count: source[:count])
        MetadataCatalog.get(name).set(thing_classes=classes)
        build_evaluator(cfg, name, str(tmp_path))
        written = json.loads((tmp_path / f"{name}_coco_format.json").read_text())
        assert len(written["images"]) == count
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
