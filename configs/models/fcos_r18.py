"""FCOS R-18: the model zoo's FCOS R-50 with a smaller backbone, for torchvision's ImageNet weights."""

from detectron2 import model_zoo

model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages.stride_in_1x1  # the blocks of an R-18 do not have it
model.backbone.bottom_up.freeze_at = 1
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
dataloader = {"test": {"mapper": {"image_format": "RGB"}}}
