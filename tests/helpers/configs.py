"""Configs of small real networks on small real data."""

from __future__ import annotations

from pathlib import Path

from helpers.commands import ROOT
from mgd_det.config import load_config

CLASSES = 6

SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CONVS", 1),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 0),
    *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
    *("DISTILL.MATCHING.NUM_IMAGES", 4, "DISTILL.MATCHING.PERIOD", 3),
    *("TEST.DETECTIONS_PER_IMAGE", 5),
]


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
