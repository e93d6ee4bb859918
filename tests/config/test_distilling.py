"""A stock config with a teacher named in it."""

from __future__ import annotations

import pytest
from detectron2.config import get_cfg

import mgd_det


@pytest.mark.parametrize("with_keys", [True, False])
def test_a_stock_config_names_its_teacher_in_place(with_keys):
    cfg = get_cfg()
    if with_keys:
        mgd_det.add_mgd_config(cfg)
        cfg.DISTILL.METHODS = ["imitation"]
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.freeze()
    assert mgd_det.distill(cfg, "COCO-Detection/retinanet_R_50_FPN_3x.yaml") is cfg
    assert cfg.is_frozen()
    assert (cfg.MODEL.META_ARCHITECTURE, cfg.DISTILL.STUDENT_ARCHITECTURE) == (
        "DistilledDetector",
        "RetinaNet",
    )
    assert cfg.DISTILL.TEACHER.CONFIG_FILE == "COCO-Detection/retinanet_R_50_FPN_3x.yaml"
    assert cfg.DISTILL.TEACHER.WEIGHTS == ""
    assert (["imitation"] if with_keys else ["mgd"]) == cfg.DISTILL.METHODS


def test_doing_it_again_changes_the_teacher_alone():
    cfg = mgd_det.distill(get_cfg(), "a.yaml", "a.pth")
    mgd_det.distill(cfg, "b.yaml", "b.pth")
    assert cfg.DISTILL.STUDENT_ARCHITECTURE == "GeneralizedRCNN"
    assert (cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS) == ("b.yaml", "b.pth")
