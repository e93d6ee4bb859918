"""A LazyConfig of a RetinaNet R-18 that learns from a RetinaNet R-50 by Matching Guided Distillation (MGD).

To the model zoo's RetinaNet it adds the parts that lazy_train.py uses: a `model` that wraps the student,
a `hook`, and `train.matching_images`.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from mgd_det import DistilledDetector, RematchHook
from mgd_det.engine.matching import MatchingSchedule
from mgd_det.engine.schedules import UpdateSchedule, WeightSchedule
from mgd_det.methods.mgd import MGD
from mgd_det.modeling.teacher import TeacherSpec

_base = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
dataloader, lr_multiplier = _base.dataloader, _base.lr_multiplier
optimizer, train = _base.optimizer, _base.train

_student = _base.model
_student.backbone.bottom_up.stages.depth = 18
del _student.backbone.bottom_up.stages.stride_in_1x1  # the blocks of an R-18 do not have it
_student.backbone.bottom_up.freeze_at = 1
_student.backbone.top_block.in_channels = 512
# Channel order and normalisation of torchvision's ImageNet weights.
_student.pixel_mean, _student.pixel_std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_student.input_format = dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = "torchvision://resnet18"
train.output_dir = "output/lazy_retinanet_r18_mgd"

model = L(DistilledDetector)(
    student=_student,
    # `instantiate` does not look for calls inside plain dicts, so this one is made by a call.
    methods=L("builtins.dict")(mgd=L(MGD)(channels={"res3": 128, "res4": 256, "res5": 512}, weights=[0.05])),
    teacher=L(TeacherSpec)(config_file="COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
    input_format="${.student.input_format}",
)

hook = L(RematchHook)(
    matching=L(MatchingSchedule)(
        images=None,  # set by the script, as `optimizer.params.model` is
        updates=L(UpdateSchedule)(period=5000, slow_after=15000, slow_period=15000),
    ),
    weights=L(WeightSchedule)(),
)
train.matching_images = 1024  # number of images that a matching is solved from
