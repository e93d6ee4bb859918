"""Pipelines of other people: detectors of many kinds, data that they want, and a trainer of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, SemSegEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model
from detectron2.structures import ImageList
from PIL import Image
from torch import nn
from torch.nn import functional as F

import mgd_det
from helpers.detectors import CLASSES, FASTER_RCNN, LEVELS, MASK_RCNN, distil, small_config, stir

SEMANTIC = [
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES + 1, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.SEM_SEG_HEAD.IN_FEATURES", LEVELS[:4], "MODEL.SEM_SEG_HEAD.NORM", ""),
]

# Kinds of stock detectors: architecture, options, a tap of the backbone.
STOCK = {
    "proposals": ("ProposalNetwork", FASTER_RCNN, "res4"),
    "semantic": ("SemanticSegmentor", [*FASTER_RCNN, *SEMANTIC], "p3"),
    "panoptic": ("PanopticFPN", [*MASK_RCNN, *SEMANTIC, "INPUT.MASK_FORMAT", "bitmask"], "res4"),
    "cascade": (
        "GeneralizedRCNN",
        [
            *FASTER_RCNN,
            *("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ],
        "p4",
    ),
    "keypoints": (
        "GeneralizedRCNN",
        [
            *FASTER_RCNN,
            *("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2),
            *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,), "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", 4),
            *("TEST.KEYPOINT_OKS_SIGMAS", [0.1, 0.1]),
        ],
        "res4",
    ),
    "c4": (
        "GeneralizedRCNN",
        [
            *FASTER_RCNN,
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
            *("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32]]),
            *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
        ],
        "res4",
    ),
}


class Own(nn.Module):
    """A classifier of images in the form of a detector: it detects its class everywhere, once."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.classifier = nn.Linear(cfg.MODEL.FPN.OUT_CHANNELS, CLASSES)
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1))

    def preprocess_image(self, batched_inputs):
        images = [(x["image"].float() - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, 32)

    def scores(self, images):
        return self.classifier(self.backbone(images.tensor)["p3"].mean((2, 3)))

    def forward(self, batched_inputs):
        scores = self.scores(self.preprocess_image(batched_inputs))
        if not self.training:
            return [{"sem_seg": F.one_hot(s.argmax(), CLASSES)[:, None, None]} for s in scores]
        truth = torch.stack([x["instances"].gt_classes[0] for x in batched_inputs])
        return {"loss_class": F.cross_entropy(scores, truth)}


@META_ARCH_REGISTRY.register()
class TupleFromPreprocessing(Own):
    """Its `preprocess_image` returns more than images, and its forward pass more than losses."""

    def preprocess_image(self, batched_inputs):
        return super().preprocess_image(batched_inputs), len(batched_inputs)

    def forward(self, batched_inputs):
        images, count = self.preprocess_image(batched_inputs)
        assert count == len(batched_inputs)
        scores = self.scores(images)
        if not self.training:
            return [{"sem_seg": F.one_hot(s.argmax(), CLASSES)[:, None, None]} for s in scores]
        truth = torch.stack([x["instances"].gt_classes[0] for x in batched_inputs])
        return {"loss_class": F.cross_entropy(scores, truth)}


@META_ARCH_REGISTRY.register()
class WithoutPixelMean(Own):
    """It normalises by a function, as many set-prediction detectors do."""

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        mean, std = self.pixel_mean, self.pixel_std
        del self.pixel_mean, self.pixel_std
        self.normalize = lambda image: (image.float() - mean) / std

    def preprocess_image(self, batched_inputs):
        return ImageList.from_tensors([self.normalize(x["image"]) for x in batched_inputs], 32)


class Body(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body = backbone

    def forward(self, images: ImageList):
        return self.body(images.tensor)


@META_ARCH_REGISTRY.register()
class BackboneInside(Own):
    """Its backbone lies deeper, as DETR's does."""

    def __init__(self, cfg) -> None:
        super().__init__(cfg)
        self.network = Body(self.backbone)
        del self.backbone

    def scores(self, images):
        return self.classifier(self.network(images)["p3"].mean((2, 3)))


OWN = ["TupleFromPreprocessing", "WithoutPixelMean", "BackboneInside"]


def register(data: Path, split: str, output: Path) -> str:
    """Registers the demonstration data with keypoints and a map of classes for each image."""
    name = f"pipeline_{split}_{abs(hash(output))}"
    if name in DatasetCatalog.list():
        return name
    maps = data / f"semantic_{split}"
    maps.mkdir(exist_ok=True)
    records = load_coco_json(str(data / "annotations" / f"{split}.json"), str(data / split), name)
    for record in records:
        classes = np.zeros((record["height"], record["width"]), dtype=np.uint8)
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            classes[int(y) : int(y + h), int(x) : int(x + w)] = annotation["category_id"] + 1
            annotation["keypoints"] = [x, y, 2, x + w - 1, y + h - 1, 2]
        record["sem_seg_file_name"] = str(maps / f"{record['image_id']}.png")
        Image.fromarray(classes).save(record["sem_seg_file_name"])
    DatasetCatalog.register(name, lambda: records)
    metadata = MetadataCatalog.get(name)  # with the classes, since the json was read
    metadata.set(
        stuff_classes=["nothing", *metadata.thing_classes],
        ignore_label=255,
        keypoint_names=["first", "last"],
        keypoint_flip_map=[("first", "last")],
        keypoint_connection_rules=[],
    )
    return name


def pipeline_config(data: Path, output: Path, kind: str, *opts):
    """A small config of a kind in `STOCK` or `OWN`, whose teacher has the same architecture."""
    architecture, options, tap = STOCK.get(kind) or (kind, [], "res4")
    cfg = small_config(data, output, *options, "MODEL.META_ARCHITECTURE", architecture, *opts)
    cfg.DATASETS.REGISTER = []
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (
        (register(data, "train", output),),
        (register(data, "val", output),),
    )
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 2, 1e-4
    teacher = output.parent / f"teacher_{kind}"
    if not teacher.exists():
        teacher.mkdir(parents=True)
        (teacher / "config.yaml").write_text(cfg.dump())
        torch.manual_seed(7)
        model = build_model(cfg)
        stir(model)
        torch.save({"model": model.state_dict()}, teacher / "model_final.pth")
    distil(cfg, ["mgd", "imitation"], teacher, "DISTILL.MGD.TAPS", [tap], "DISTILL.IMITATION.TAPS", [tap])
    cfg.merge_from_list(list(opts))
    return cfg


class TheirTrainer(DefaultTrainer):
    """Stock Detectron2's trainer, with the one line that puts a teacher beside the detector."""

    @classmethod
    def build_model(cls, cfg):
        return mgd_det.wrap(super().build_model(cfg), cfg)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        if cfg.MODEL.META_ARCHITECTURE in ("SemanticSegmentor", *OWN):
            return SemSegEvaluator(dataset_name, distributed=False)
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, kpt_oks_sigmas=sigmas)


def train(cfg, *, resume: bool = False) -> TheirTrainer:
    """Trains with the hook, and returns the trainer."""
    trainer = TheirTrainer(cfg)
    trainer.register_hooks([mgd_det.RematchHook(cfg)])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def stock(cfg) -> nn.Module:
    """The detector as stock code builds it, with the weights of the last checkpoint."""
    model = build_model(cfg)
    checkpointer = DetectionCheckpointer(model)
    checkpoint = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=False)
    assert set(checkpoint["model"]) == set(model.state_dict())
    checkpointer.load(str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    return model
