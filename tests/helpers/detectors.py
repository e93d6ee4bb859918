"""Configs of small real detectors of every kind, the detectors, teachers of them on disk, and distillers."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from torch import nn

from helpers.commands import ROOT
from mgd_det.config import load_config
from mgd_det.rng import isolated_rng

CLASSES = 6

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 0),
    *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
    *("DISTILL.MATCHING.NUM_IMAGES", 4, "DISTILL.MATCHING.PERIOD", 3),
    *("TEST.DETECTIONS_PER_IMAGE", 5),
]

LEVELS = ["p2", "p3", "p4", "p5", "p6"]

FASTER_RCNN = [
    *("DISTILL.STUDENT_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", LEVELS, "MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", LEVELS[:4]),
    *("MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 24, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 3),
]

MASK_RCNN = [
    *FASTER_RCNN,
    *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 4),
]

# A LazyConfig whose widths are those of the options above; GN has 32 groups.
FCOS = """
from detectron2 import model_zoo
from detectron2.layers import ShapeSpec

model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1
model.backbone.bottom_up.stages.norm = "BN"
model.backbone.bottom_up.stem.norm = "BN"
model.backbone.bottom_up.freeze_at = 0
model.backbone.out_channels = model.backbone.top_block.in_channels = 32
model.head.input_shape = [ShapeSpec(channels=32)] * 5
model.head.conv_dims = [32]
model.num_classes = 6
dataloader = {"test": {"mapper": {"image_format": "RGB"}}}
"""


def small_config(data: Path, output: Path, *opts):
    """A RetinaNet R-18 student on the demonstration set: narrow, trained from scratch on 64 px."""
    cfg = load_config(str(ROOT / "configs/demo/student.yaml"), device="cpu")
    register = [
        [f"{split}_{abs(hash(data))}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
        for split in ("train", "val")
    ]
    cfg.DATASETS.REGISTER = register
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (register[0][0],), (register[1][0],)
    cfg.merge_from_list(SMALL)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 4, (), 2
    cfg.OUTPUT_DIR = str(output)
    cfg.merge_from_list(list(opts))
    return cfg


def network(cfg, seed: int = 7) -> nn.Module:
    """The stock detector that a config describes, its norms and heads no longer as they were initialised."""
    cfg = cfg.clone()
    cfg.DISTILL.ENABLED = False
    with isolated_rng():
        torch.manual_seed(seed)
        model = build_model(cfg).student
        stir(model)
    return model


def stir(model: nn.Module) -> None:
    """As after training: norms that are no identities, and heads that say something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.2, 0.2)
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone.") and name.endswith("weight") and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)


def save_teacher(folder: Path, cfg) -> Path:
    """What an earlier run of this config would leave."""
    folder.mkdir()
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": network(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def distil(cfg, methods, teacher: Path, *opts):
    """The same config, with these methods and that teacher."""
    cfg.DISTILL.ENABLED, cfg.DISTILL.METHODS = True, list(methods)
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher / "model_final.pth")
    cfg.merge_from_list(list(opts))
    return cfg


def small(data, output, kind: str, *opts):
    """A narrow config of a kind of detector, R-18, 64 px: "retinanet", "faster", "mask" or "fcos"."""
    options = {"retinanet": [], "faster": FASTER_RCNN, "mask": MASK_RCNN}
    if kind != "fcos":
        return small_config(data, output, *options[kind], *opts)
    output.mkdir(exist_ok=True)
    (output / "fcos.py").write_text(FCOS)
    lazy = ["DISTILL.STUDENT_ARCHITECTURE", str(output / "fcos.py")]
    return small_config(data, output, *lazy, *opts)


def with_masks(batch: list[dict]) -> list[dict]:
    """The left upper quarter of each image, as the mask of its one instance."""
    for x in batch:
        height, width = x["image"].shape[1:]
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, : height // 2, : width // 2] = True
        x["instances"].gt_masks = BitMasks(mask)
    return batch


class Perfect(nn.Module):
    """A detector that looks the boxes up."""

    def __init__(self, dataset: str) -> None:
        super().__init__()
        self.truth = {d["image_id"]: d for d in get_detection_dataset_dicts(dataset, filter_empty=False)}
        self.seen = []

    def forward(self, inputs):
        self.seen += [x["image_id"] for x in inputs]
        return [{"instances": self.answer(self.truth[x["image_id"]])} for x in inputs]

    def answer(self, truth):
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in truth["annotations"]]
        found = Instances((truth["height"], truth["width"]))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in truth["annotations"]])
        found.scores = torch.ones(len(boxes))
        return found
