"""The pairs of tools/matrix.py, and the small networks in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from mgd_det.config import load_config

BASE = Path(__file__).resolve().parent.parent / "configs/demo/student.yaml"

# Teacher, student, methods; "|" begins another pair of the same two. "method:a,b" names its taps ("a=b": the
# student's a against the teacher's b), "inherit:a,b" is DISTILL.INHERIT, and "all" stands for ALL.
ALL = "mgd imitation channel_mlp pkd cwd masked_generation lsh logits inherit:fpn,head"
PAIRS = """
retinanet-r50     retinanet-r18           mgd | imitation | channel_mlp | pkd | cwd
retinanet-r50     retinanet-r18           masked_generation | lsh | logits | crosskd | all
fcos-r50          fcos-r18                mgd | imitation | channel_mlp | pkd | cwd
fcos-r50          fcos-r18                masked_generation | lsh | logits | crosskd | all
faster-r50        faster-r18              mgd | imitation | channel_mlp | pkd | cwd
faster-r50        faster-r18              masked_generation | lsh | logits | all
mask-r50          mask-r18                mgd | imitation | channel_mlp | pkd | cwd
mask-r50          mask-r18                masked_generation | lsh | logits | all

retinanet-r50     fcos-r18                mgd imitation channel_mlp lsh
retinanet-r50     faster-r18              mgd imitation channel_mlp
retinanet-r50     mask-r18                mgd imitation channel_mlp
fcos-r50          retinanet-r18           mgd imitation channel_mlp lsh crosskd
fcos-r50          faster-r18              mgd imitation channel_mlp
fcos-r50          mask-r18                mgd imitation channel_mlp
faster-r50        retinanet-r18           mgd imitation channel_mlp
faster-r50        fcos-r18                mgd imitation channel_mlp
faster-r50        mask-r18                all
mask-r50          retinanet-r18           mgd imitation channel_mlp
mask-r50          fcos-r18                mgd imitation channel_mlp
mask-r50          faster-r18              all

cascade-r50       cascade-r18             mgd imitation pkd inherit:fpn,head
mask-r50          cascade-r18             mgd cwd masked_generation
c4-r50            c4-r18                  mgd:res3,res4 imitation:res4
faster-r50        c4-r18                  mgd:res3,res4

retinanet-r101    retinanet-r34           all
retinanet-r101    retinanet-r50           all
faster-x50        faster-r18              all
retinanet-x50     fcos-r34                mgd masked_generation pkd cwd
retinanet-regnet  retinanet-regnet_small  all mgd:bottom_up.s2,bottom_up.s3,bottom_up.s4.b1
retinanet-regnet  retinanet-r18           mgd:res3=bottom_up.s2,res4=bottom_up.s3 imitation:p4
retinanet-r50     retinanet-regnet_small  mgd:bottom_up.s2=res3,bottom_up.s4.b1=res5_relu channel_mlp
faster-r50        retinanet-regnet_small  mgd:bottom_up.s1=res2 imitation:bottom_up.s3=res4,p5 lsh:p3

retinanet-r50             retinanet-mobilenet_v2     all
faster-r50                faster-shufflenet_v2_x0_5  all
retinanet-regnet_y_400mf  retinanet-r18              mgd imitation
"""

# Kinds of detectors: what each adds to SMALL.
RCNN_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
FASTER = [
    *("DISTILL.STUDENT_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", RCNN_LEVELS, "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", RCNN_LEVELS[:4]),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
]
MASK = [
    *("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"),  # some objects are run lengths
    *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7),
]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
C4 = [
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
    *("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]]),
    *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
]
KINDS: dict[str, list[Any]] = {
    "retinanet": [],
    "fcos": [],
    "faster": FASTER,
    "mask": [*FASTER, *MASK],
    "cascade": [*FASTER, *CASCADE],
    "c4": [*FASTER, *C4],
}

# Backbones; other names are those of torchvision's networks. FCOS, and all on a RegNet of Detectron2's, are
# described by a LazyConfig.
RESNETS = ["DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS"]
BACKBONES = {
    "r18": (18, 1, 64, 64),
    "r34": (34, 1, 64, 64),
    "r50": (50, 1, 16, 128),
    "r101": (101, 1, 16, 128),
    "x50": (50, 32, 8, 256),
}
REGNETS = {  # X-800MF and X-200MF
    "regnet": {"depth": 16, "w_a": 35.73, "w_0": 56, "w_m": 2.28, "group_width": 16},
    "regnet_small": {"depth": 13, "w_a": 36.44, "w_0": 24, "w_m": 2.49, "group_width": 8},
}
LAZY = """
from detectron2 import model_zoo
from detectron2.config import LazyCall
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import RegNet
from detectron2.modeling.backbone.regnet import ResBottleneckBlock, SimpleStem

model = model_zoo.get_config("COCO-Detection/{kind}_R_50_FPN_1x.py").model
backbone = model.backbone
{backbone}
backbone.out_channels = backbone.top_block.in_channels = 64
backbone.top_block.in_feature = "p5"
model.head.input_shape = [ShapeSpec(channels=64)] * 5
model.head.conv_dims = [64]
model.num_classes = 6
model.test_score_thresh = 0.0
model.pixel_mean, model.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
model.pop("input_format", None)
dataloader = {{"test": {{"mapper": {{"image_format": "RGB"}}}}}}
"""
LAZY_RESNET = """
backbone.bottom_up.stages.depth = {depth}
del backbone.bottom_up.stages.stride_in_1x1
backbone.bottom_up.stages.norm = backbone.bottom_up.stem.norm = "BN"
backbone.bottom_up.freeze_at = 0
"""
LAZY_REGNET = """
backbone.bottom_up = LazyCall(RegNet)(
    stem_class=SimpleStem, stem_width=32, block_class=ResBottleneckBlock, norm="BN",
    out_features=["s2", "s3", "s4"], **{sizes}
)
backbone.in_features = ["s2", "s3", "s4"]
"""

# What all runs share, beside BASE.
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 5),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.STEPS", (), "DATALOADER.NUM_WORKERS", 0),
    *("DISTILL.MATCHING.NUM_IMAGES", 4, "DISTILL.MATCHING.PERIOD", 3, "DISTILL.GRADIENT_PERIOD", 2),
    *("DISTILL.LSH.NUM_HASHES", 64),
]


def network_config(name: str, folder: Path, data: Path) -> CfgNode:
    """A config that trains a network alone; `folder` gets its LazyConfig, if it is described by one."""
    kind, backbone = name.split("-")
    cfg = load_config(str(BASE), device="cpu")
    cfg.merge_from_list([*SMALL, *KINDS[kind]])
    if kind == "fcos" or backbone in REGNETS:
        text = LAZY_REGNET if backbone in REGNETS else LAZY_RESNET
        sizes = REGNETS.get(backbone)
        part = text.format(sizes=sizes, depth=sizes or BACKBONES[backbone][0])
        path = folder / f"{name}.py"
        path.write_text(LAZY.format(kind=kind, backbone=part))
        cfg.DISTILL.STUDENT_ARCHITECTURE = str(path)
    elif backbone not in BACKBONES:
        cfg.MODEL.TORCHVISION.NAME, cfg.MODEL.TORCHVISION.NORM = backbone, "BN"
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("resnet", "torchvision")
    else:
        sizes_by_key = zip(RESNETS, BACKBONES[backbone])
        cfg.merge_from_list([x for key, size in sizes_by_key for x in (f"MODEL.RESNETS.{key}", size)])
    sets = [
        (f"matrix_{part}", f"{data}/annotations/{part}.json", f"{data}/{part}") for part in ("train", "val")
    ]
    cfg.DATASETS.REGISTER = [list(entry) for entry in sets]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (sets[0][0],), (sets[1][0],)
    cfg.DISTILL.ENABLED = False
    return cfg
