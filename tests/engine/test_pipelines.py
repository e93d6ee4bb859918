"""Detectors of every kind in a trainer that is not ours: stock architectures, and some of nobody's making."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, GeneralizedRCNN, build_model
from detectron2.solver.build import get_default_optimizer_params
from helpers.pipelines import OWN, STOCK, pipeline_config, stock, train

from mgd_det import DistilledDetector, Trainer, student_of

METRICS = {
    "proposals": "box_proposals/AR@100",
    "panoptic": "segm/AP",
    "cascade": "bbox/AP",
    "keypoints": "keypoints/AP",
    "c4": "bbox/AP",
}


def matching(trainer) -> list[list[int]]:
    """The teacher's channels of each of the student's."""
    (solved,) = trainer.model.distill_state()["mgd"]["_extra_state"]["matchings"].values()
    return solved["groups"].tolist()


@pytest.mark.parametrize("kind", [*STOCK, *OWN])
def test_it_trains_resumes_evaluates_and_loads_in_stock_code(kind, demo_data, tmp_path):
    cfg = pipeline_config(demo_data, tmp_path / "run", kind)
    first = train(cfg)
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    scalars = {name: value for line in lines for name, value in json.loads(line).items()}
    tap = cfg.DISTILL.MGD.TAPS[0]
    assert scalars[f"loss_mgd_{tap}"] > 0
    assert scalars[f"loss_imitation_{tap}"] > 0
    assert METRICS.get(kind, "sem_seg/mIoU") in scalars

    cfg.SOLVER.MAX_ITER = 3  # from the checkpoint after the second iteration
    second = train(cfg, resume=True)
    assert second.start_iter == 2
    assert matching(second)
    assert matching(second) == matching(first)  # which is due again before iteration 3 alone

    student, alone = second.model.student, stock(cfg)
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), alone.state_dict().values()))


def test_a_stock_architecture_is_wrapped_where_a_teacher_is_named(demo_data, tmp_path):
    cfg = pipeline_config(demo_data, tmp_path / "run", "cascade")
    model = Trainer.build_model(cfg)
    assert isinstance(model, DistilledDetector)
    assert type(student_of(model)) is GeneralizedRCNN
    cfg.DISTILL.ENABLED = False
    assert type(Trainer.build_model(cfg)) is GeneralizedRCNN
    cfg.DISTILL.ENABLED, cfg.DISTILL.TEACHER.CONFIG_FILE = True, ""
    assert type(Trainer.build_model(cfg)) is GeneralizedRCNN


def test_vitdet_with_layer_wise_decay(demo_data, tmp_path):
    vit = pytest.importorskip("detectron2.modeling.backbone.vit", reason="Detectron2 0.6 has no ViT")
    pytest.importorskip("timm", reason="Detectron2's ViT needs timm")

    @BACKBONE_REGISTRY.register()
    def build_small_vitdet(cfg, input_shape):
        net = vit.ViT(
            img_size=64,
            embed_dim=24,
            depth=2,
            num_heads=2,
            window_size=2,
            window_block_indexes=[0],
            pretrain_img_size=64,
        )
        return vit.SimpleFeaturePyramid(net, "last_feat", 16, (2.0, 1.0), norm="LN")

    def rates(model):
        factor = partial(vit.get_vit_lr_decay_rate, num_layers=2, lr_decay_rate=0.5)
        groups = get_default_optimizer_params(model, base_lr=1.0, lr_factor_func=factor)
        names = {id(p): name for name, p in student_of(model).named_parameters()}
        return {names[id(p)]: g["lr"] for g in groups for p in g["params"] if id(p) in names}

    opts = ["MODEL.BACKBONE.NAME", "build_small_vitdet"]
    taps = ["DISTILL.MGD.TAPS", ["net.blocks.1"], "DISTILL.IMITATION.TAPS", ["p4"]]
    cfg = pipeline_config(demo_data, tmp_path / "run", "TupleFromPreprocessing", *opts, *taps)
    trainer = train(cfg)
    alone = rates(build_model(cfg))
    assert rates(trainer.model) == alone
    assert alone["backbone.net.blocks.0.attn.qkv.weight"] == 0.25
    assert alone["classifier.weight"] == 1.0
    assert trainer.model.get_parameter("backbone.net.blocks.1.attn.qkv.weight").grad.any()
