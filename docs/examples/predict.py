#!/usr/bin/env python
"""Predict with a distilled student in stock Detectron2. The script does not import mgd_det.

    python docs/examples/predict.py --run output/demo/student_mgd --image photograph.jpg [--tta]

`--tta` augments the image at test time. For Faster and Mask R-CNN this is Detectron2's
`GeneralizedRCNNWithTTA`, which refuses all other models. For RetinaNet, Detectron2 makes the augmented
images and this script merges the detections.
"""

from __future__ import annotations

import argparse
import os

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances


def predict_augmented(cfg: CfgNode, model: torch.nn.Module, image: dict) -> Instances:
    """Returns the detections in an image, a dict in the model's input format at the original size."""
    if isinstance(model, GeneralizedRCNN):
        return GeneralizedRCNNWithTTA(cfg, model)([image])[0]["instances"]
    boxes, scores, classes = [], [], []
    for augmented in DatasetMapperTTA(cfg)(image):  # by TEST.AUG.MIN_SIZES, .MAX_SIZE and .FLIP
        transforms = augmented.pop("transforms")
        augmented["height"], augmented["width"] = augmented["image"].shape[1:]  # predict boxes at this size
        found = model([augmented])[0]["instances"].to("cpu")
        back = transforms.inverse().apply_box(found.pred_boxes.tensor.numpy())  # and transform them back
        boxes.append(torch.as_tensor(back))
        scores.append(found.scores)
        classes.append(found.pred_classes)
    boxes, scores, classes = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    keep = batched_nms(boxes.float(), scores, classes, cfg.MODEL.RETINANET.NMS_THRESH_TEST)
    keep = keep[: cfg.TEST.DETECTIONS_PER_IMAGE]
    result = Instances((image["height"], image["width"]))
    result.pred_boxes = Boxes(boxes[keep])
    result.pred_boxes.clip(result.image_size)
    result.scores, result.pred_classes = scores[keep], classes[keep]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="folder with student_config.yaml and model_final.pth")
    parser.add_argument("--image", required=True)
    parser.add_argument("--tta", action="store_true", help="augment at test time")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score that is shown (default: 0.3)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, such as MODEL.DEVICE cpu")
    args = parser.parse_args()

    config, weights = (os.path.join(args.run, name) for name in ("student_config.yaml", "model_final.pth"))
    for flag, path in (("--run", config), ("--run", weights), ("--image", args.image)):
        if not os.path.isfile(path):
            parser.error(f"{flag}: there is no file {path}")
    cfg = get_cfg()
    try:
        cfg.merge_from_file(config, allow_unsafe=False)
        cfg.MODEL.WEIGHTS = weights
        cfg.merge_from_list(args.opts)
    except (yaml.YAMLError, KeyError, ValueError, AssertionError) as error:
        parser.error(f"{config} and the overrides {args.opts} make no config: {' '.join(str(error).split())}")
    try:
        image = read_image(args.image, format="BGR")  # a DefaultPredictor always takes BGR
    except OSError as error:
        parser.error(f"--image {args.image}: {error}")
    predictor = DefaultPredictor(cfg)

    if args.tta:
        height, width = image.shape[:2]
        pixels = image[:, :, ::-1] if cfg.INPUT.FORMAT == "RGB" else image
        pixels = torch.as_tensor(pixels.transpose(2, 0, 1).copy())
        with torch.no_grad():
            found = predict_augmented(
                cfg, predictor.model, {"image": pixels, "height": height, "width": width}
            )
    else:
        found = predictor(image)["instances"]

    names = MetadataCatalog.get(cfg.DATASETS.TEST[0]).get("thing_classes") if cfg.DATASETS.TEST else None
    found = found[found.scores >= args.score].to("cpu")
    for box, score, number in zip(found.pred_boxes, found.scores, found.pred_classes.tolist()):
        corners = " ".join(f"{x:.0f}" for x in box)
        print(f"{names[number] if names else number} {100 * score:.0f} % at {corners}")


if __name__ == "__main__":
    main()
