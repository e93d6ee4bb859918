"""The config keys of this project."""

from __future__ import annotations

import copy

import torch
from detectron2.config import CfgNode

from mgd_det.methods import method_defaults

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
DISTILLER = "DistilledDetector"  # MODEL.META_ARCHITECTURE of a student with a teacher beside it


def add_mgd_config(cfg: CfgNode) -> None:
    """Add the keys of this project to a Detectron2 config, in place."""
    # COCO-format data sets to register: [name, annotation.json, image_root] each. Relative paths are
    # relative to the working directory.
    cfg.DATASETS.REGISTER = []
    # Of SOLVER.AMP (mixed precision): "float16", as in stock Detectron2, or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # True starts training from scratch with every residual block an identity: the last norm of each is
    # zero (Goyal et al. 2017, section 5.1). Deep networks then start to learn earlier.
    cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL = False
    # "SGD" (stock Detectron2) or "AdamW", at SOLVER.BASE_LR and SOLVER.WEIGHT_DECAY.
    cfg.SOLVER.OPTIMIZER = "SGD"

    cfg.DISTILL = CfgNode()
    # False trains the student alone, exactly as stock Detectron2 does.
    cfg.DISTILL.ENABLED = True
    # The student's own meta-architecture; every MODEL.* key describes the student. Or the path or model-zoo
    # name of a LazyConfig (.py) whose `model` is the student, such as "configs/models/fcos_r18.py"; MODEL.*
    # is then left aside, but for WEIGHTS, DEVICE, and MASK_ON, by which Detectron2 loads masks.
    cfg.DISTILL.STUDENT_ARCHITECTURE = "RetinaNet"
    # Overrides of such a LazyConfig, for example ["model.num_classes=6"].
    cfg.DISTILL.STUDENT_OPTS = []
    # Which methods add their losses: "mgd", "imitation", "channel_mlp", "lsh", "logits", or your own.
    cfg.DISTILL.METHODS = ["mgd"]
    # What a new run's student takes over from the teacher wherever shapes agree: "fpn", "head", or the path
    # of any module. Works with every method and with none.
    cfg.DISTILL.INHERIT = []
    # True: a run that is interrupted and resumed equals one that was not, bit for bit on a CPU. It takes
    # a data loader of its own; False leaves Detectron2's, which starts a new order on resume.
    cfg.DISTILL.EXACT_RESUME = False

    # Where the state of the run that is resumed does not fit the methods, taps or channels of this one:
    # False ends in an error, True starts the matching and adapters of that method afresh, and those of all
    # methods with another teacher.
    cfg.DISTILL.RESUME_FRESH = False
    # Every so many iterations, log for every distillation loss at a tap in the backbone how large its
    # gradient there is beside the task's (the ratio of their norms, of one process's share); 0: never.
    cfg.DISTILL.GRADIENT_PERIOD = 200

    # OUTPUT_DIR of a run of the student alone, for the summary at the end; empty: none.
    cfg.DISTILL.BASELINE = ""
    # True loads weight files that hold arbitrary Python objects, which can run any code.
    cfg.DISTILL.UNSAFE_LOADING = False

    # A factor on all distillation losses over the run.
    cfg.DISTILL.SCHEDULE = CfgNode()
    # Iterations over which it rises from 0 to 1.
    cfg.DISTILL.SCHEDULE.WARMUP_ITERS = 0
    # Iteration from which it falls, to reach 0 at STOP_ITER; 0: no fall, the losses stop at once.
    cfg.DISTILL.SCHEDULE.DECAY_ITER = 0
    # Iteration from which it is 0, and the teacher does not run; 0: no end.
    cfg.DISTILL.SCHEDULE.STOP_ITER = 0

    cfg.DISTILL.TEACHER = CfgNode()
    # Path of a config file, also the config.yaml of an earlier run of ours or a LazyConfig (.py), or a
    # model-zoo name such as "COCO-Detection/retinanet_R_50_FPN_3x.yaml".
    cfg.DISTILL.TEACHER.CONFIG_FILE = ""
    # Path, URL or model-zoo name. Empty is right only where CONFIG_FILE is a model-zoo name: its own.
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    # Overrides for the teacher's config alone: ["KEY", value, ...]; of a LazyConfig ["key=value", ...].
    cfg.DISTILL.TEACHER.OPTS = []
    # What it computes in, under autocast: "float32", "float16", "bfloat16"; empty: as the training does.
    cfg.DISTILL.TEACHER.DTYPE = ""
    # True keeps its weights and features in channels_last order, in which some devices convolve faster.
    cfg.DISTILL.TEACHER.CHANNELS_LAST = False
    # True translates what lies between its taps with torch.compile, which takes a minute at the start.
    cfg.DISTILL.TEACHER.COMPILE = False
    # True accepts a weight file that lacks some of the teacher's tensors.
    cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = False
    # Box AP, 0 to 100, that the teacher must reach before a new run begins; 0: no such check.
    cfg.DISTILL.TEACHER.MIN_AP = 0.0
    # Number of images for that check, the first of each set of DATASETS.TEST.
    cfg.DISTILL.TEACHER.CHECK_IMAGES = 100

    # Matching Guided Distillation (ECCV 2020).
    cfg.DISTILL.MGD = CfgNode()
    # Where student and teacher are compared: "res2" .. "res5" (last block of the stage, before the
    # ReLU), "res2_relu" .. (after it), "p2" .. "p7" (FPN outputs), or the path of any module inside the
    # backbone, such as "bottom_up.res4.0"; "a=b" is the student's a against the teacher's b. FPN outputs
    # differ in scale from residual sums, p6 and p7 by hundreds: look at the losses before weighting them.
    cfg.DISTILL.MGD.TAPS = ["res3", "res4", "res5"]
    # Loss weight, one for all taps or one for each. The loss is a mean over all unpadded elements, so
    # a weight means the same at any batch size, image size and number of GPUs.
    cfg.DISTILL.MGD.WEIGHTS = [0.05]
    # "mean", as said, or "reference": the sum over all elements, padding included, divided by the reference
    # implementation's constants for res2 .. res5 and by the global batch size; its WEIGHTS are [1.0].
    cfg.DISTILL.MGD.REDUCTION = "mean"
    # How the teacher channels of a group become one target: "absolute_max" ("amp", the paper's choice
    # for detection), "sparse" ("sm"), "random_drop" ("rd"), "simple_max" ("sp").
    cfg.DISTILL.MGD.REDUCER = "absolute_max"
    # Below which value a negative target no longer matters: "batch_norm" (from the norm before the tap),
    # "empirical" (from the images of the matching pass), "auto" (batch_norm where it holds).
    cfg.DISTILL.MGD.MARGIN = "auto"
    # Norm on the student's features before the loss, in training only: "GN", "BN" (statistics of each
    # process's own batch), "" (none).
    cfg.DISTILL.MGD.NORM = "GN"
    # True uses every teacher channel also where the student's channels do not divide their number:
    # some groups then hold one more than others.
    cfg.DISTILL.MGD.SPREAD = False
    # "solved", or a control for comparisons: "random", drawn once; "identity", by channel number.
    cfg.DISTILL.MGD.ASSIGNMENT = "solved"
    # By which "random" draws; SEED changes nothing about it.
    cfg.DISTILL.MGD.ASSIGNMENT_SEED = 0
    # When the matching is solved again, after a first time at the start.
    cfg.DISTILL.MGD.UPDATE = CfgNode()
    # What it is solved from: "pass", both networks in eval mode over NUM_IMAGES images read for it, as
    # in the paper; or "online", the features that training computes anyway (the first time by a pass).
    cfg.DISTILL.MGD.UPDATE.MODE = "pass"
    # Online: the features of every so many-th iteration are taken.
    cfg.DISTILL.MGD.UPDATE.ONLINE_EVERY = 20
    # Online: what earlier statistics count whenever new ones are taken.
    cfg.DISTILL.MGD.UPDATE.ONLINE_DECAY = 0.98
    # Every so many iterations; 0: never.
    cfg.DISTILL.MGD.UPDATE.PERIOD = 5000
    # Beyond this iteration SLOW_PERIOD takes the place of PERIOD.
    cfg.DISTILL.MGD.UPDATE.SLOW_AFTER = 15000
    # Every so many iterations; 0: never.
    cfg.DISTILL.MGD.UPDATE.SLOW_PERIOD = 15000
    # Exactly at these iterations, instead of by period, if any are given.
    cfg.DISTILL.MGD.UPDATE.ITERATIONS = []
    # None after this iteration; 0: no end.
    cfg.DISTILL.MGD.UPDATE.UNTIL = 0
    # Training images, over all processes together, that each solution is computed from.
    cfg.DISTILL.MGD.UPDATE.NUM_IMAGES = 1024

    # Plain imitation (FitNets, ICLR 2015): the mean squared error to the teacher's features.
    cfg.DISTILL.IMITATION = CfgNode()
    # As DISTILL.MGD.TAPS. RetinaNet's p6 and p7 are left out: their values are larger by far, and so would
    # be their losses.
    cfg.DISTILL.IMITATION.TAPS = ["p3", "p4", "p5"]
    # Loss weight, one for all taps or one for each.
    cfg.DISTILL.IMITATION.WEIGHTS = [1.0]
    # A 1x1 convolution on the student's features, in training only: "auto" where the widths differ,
    # "always", "never".
    cfg.DISTILL.IMITATION.ADAPTER = "auto"
    # Weight of positions in ground-truth boxes; all others count 1.
    cfg.DISTILL.IMITATION.FOREGROUND_WEIGHT = 1.0

    # Channel-wise transformation (arXiv 2303.13212): imitation through an MLP over the student's channels.
    cfg.DISTILL.CHANNEL_MLP = CfgNode()
    # As DISTILL.IMITATION.TAPS.
    cfg.DISTILL.CHANNEL_MLP.TAPS = ["p3", "p4", "p5"]
    # Loss weight (the paper's alpha), one for all taps or one for each.
    cfg.DISTILL.CHANNEL_MLP.WEIGHTS = [1.0]
    # Width of its hidden layer; 0: the teacher's.
    cfg.DISTILL.CHANNEL_MLP.HIDDEN = 0

    # Feature mimicking with locality-sensitive hashing (TPAMI 2022).
    cfg.DISTILL.LSH = CfgNode()
    # "head": what the classifier of RetinaNet or FCOS looks at (3x3 neighbourhoods), or the box head's
    # output of Faster and Mask R-CNN, the teacher's for the student's proposals. Any other tap is possible.
    cfg.DISTILL.LSH.TAPS = ["head"]
    # Loss weight (the paper's beta), one for all taps or one for each.
    cfg.DISTILL.LSH.WEIGHTS = [7.0]
    # Random projections that the features are hashed along.
    cfg.DISTILL.LSH.NUM_HASHES = 4096
    # Which of its two losses: "hash" without "l2" diverges easily.
    cfg.DISTILL.LSH.TERMS = ["l2", "hash"]

    # Predictions: dense classification and boxes of RetinaNet and FCOS, the box head's of R-CNN.
    cfg.DISTILL.LOGITS = CfgNode()
    # Of the classification loss.
    cfg.DISTILL.LOGITS.WEIGHT = 1.0
    # Of the box loss, weighted by how sure the teacher is (and of FCOS's centerness); 0: none.
    cfg.DISTILL.LOGITS.BOX_WEIGHT = 1.0
    # Sigmoid classifiers: exponent of the student's error, by which an element counts; 0: all alike.
    cfg.DISTILL.LOGITS.GAMMA = 2.0
    # Softmax classifiers: temperature of both distributions.
    cfg.DISTILL.LOGITS.TEMPERATURE = 1.0

    for name, defaults in method_defaults().items():
        # Methods that a user has registered bring their keys along.
        cfg.DISTILL.setdefault(name.upper(), CfgNode(copy.deepcopy(defaults)))


def uses_teacher(cfg: CfgNode) -> bool:
    """Whether a run of this config takes anything from a teacher, rather than train the student alone."""
    distils = DISTILLER == cfg.MODEL.META_ARCHITECTURE and cfg.DISTILL.ENABLED
    return distils and bool(cfg.DISTILL.METHODS or cfg.DISTILL.INHERIT)
