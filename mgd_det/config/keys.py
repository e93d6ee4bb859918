"""The config keys of this project, one function for each section."""

from __future__ import annotations

import copy

from detectron2.config import CfgNode

from mgd_det.methods import method_defaults

DISTILLER = "DistilledDetector"  # MODEL.META_ARCHITECTURE of a student with a teacher beside it


def add_mgd_config(cfg: CfgNode) -> None:
    """Add the keys of this project to a Detectron2 config, in place.

    A key that is there keeps its value, so the functions of other projects can be called before or after
    this one, and this one more than once.
    """
    add_missing(cfg, own_keys())


def own_keys() -> CfgNode:
    """Returns the keys of this project with their defaults, in a config of nothing else."""
    cfg = CfgNode(
        {"DATALOADER": {}, "DATASETS": {}, "MODEL": {"RESNETS": {}}, "SOLVER": {"AMP": {}}, "TEST": {}}
    )
    _add_to_stock_sections(cfg)
    _add_torchvision(cfg)
    cfg.DISTILL = CfgNode()
    _add_run(cfg)
    _add_teacher(cfg)
    _add_schedule(cfg)
    _add_matching(cfg)
    _add_mgd(cfg)
    _add_imitation(cfg)
    _add_channel_mlp(cfg)
    _add_pkd(cfg)
    _add_cwd(cfg)
    _add_masked_generation(cfg)
    _add_lsh(cfg)
    _add_logits(cfg)
    _add_crosskd(cfg)
    _add_experiment(cfg)
    for name, defaults in method_defaults().items():
        # Methods that a user has registered bring their keys along.
        cfg.DISTILL.setdefault(name.upper(), CfgNode(copy.deepcopy(defaults)))
    return cfg


def add_missing(cfg: CfgNode, keys: CfgNode) -> None:
    """Add to a config, in place, the keys that it lacks."""
    for key, value in keys.items():
        if key not in cfg:
            setattr(cfg, key, copy.deepcopy(value))  # refused by a frozen config, as an item is not
        elif isinstance(value, dict) and isinstance(cfg[key], dict):  # also a node of yacs's own class
            add_missing(cfg[key], value)


def uses_teacher(cfg: CfgNode) -> bool:
    """Returns True if a run of this config takes anything from a teacher, by a method or by inheriting.

    A stock meta-architecture does where a teacher is named.
    """
    distils = cfg.MODEL.META_ARCHITECTURE == DISTILLER or bool(cfg.DISTILL.TEACHER.CONFIG_FILE)
    return distils and cfg.DISTILL.ENABLED and bool(cfg.DISTILL.METHODS or cfg.DISTILL.INHERIT)


def _add_to_stock_sections(cfg: CfgNode) -> None:
    # Data sets in COCO format to register, each as [name, annotation.json, image_root]. Relative paths
    # start at the working directory.
    # With "" for the annotations it is a folder of images without labels, for DATASETS.UNLABELED.
    cfg.DATASETS.REGISTER = []
    # The names of sets whose images are added to the training batches, and whose annotations are not read.
    # The task does not learn from them; the methods that need no labels do.
    cfg.DATASETS.UNLABELED = ()
    # The number of images of DATASETS.UNLABELED in a batch for each of the SOLVER.IMS_PER_BATCH that have
    # labels. A distillation loss is then the mean over all images, so that its weight means the same.
    cfg.DATALOADER.UNLABELED_RATIO = 1.0
    # If True, images that cannot be read in training are left out with a warning. If False, the run stops and
    # names the first one.
    cfg.DATALOADER.SKIP_UNREADABLE = False
    # The precision of SOLVER.AMP (mixed precision): "float16", as in stock Detectron2, or "bfloat16".
    cfg.SOLVER.AMP.DTYPE = "float16"
    # If True, a training from scratch starts with every residual block as an identity: the weight of its
    # last norm is zero (Goyal et al. 2017, section 5.1). Deep networks then begin to learn earlier.
    cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL = False
    # The optimizer of mgd_det.Trainer: "SGD", as in stock Detectron2, or "AdamW", in upper or lower case.
    # Both use SOLVER.BASE_LR and SOLVER.WEIGHT_DECAY. A trainer of your own may read other values here.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # An exponential moving average of the student's weights, which changes nothing in the training. It is
    # evaluated beside the student, as "ema/...", and saved beside it, as model_final_ema.pth.
    cfg.SOLVER.EMA = CfgNode()
    # If True, the average is kept.
    cfg.SOLVER.EMA.ENABLED = False
    # The share of the average that stays in each iteration; it is mostly over the last 1 / (1 - DECAY) ones.
    cfg.SOLVER.EMA.DECAY = 0.999
    # The metric by which model_best.pth is chosen among all evaluations, such as "bbox/AP"; "ema/bbox/AP"
    # chooses among the averages of SOLVER.EMA, and with several sets in DATASETS.TEST the name of one comes
    # first, as in "mine_val/bbox/AP". If it is empty, there is no such file.
    cfg.TEST.BEST_METRIC = ""
    # "max" if the highest value of BEST_METRIC is the best, "min" if the lowest is.
    cfg.TEST.BEST_MODE = "max"


def _add_torchvision(cfg: CfgNode) -> None:
    # Backbones made from a classification network of torchvision or timm, where MODEL.BACKBONE.NAME is
    # "build_torchvision_backbone" (the network alone), "build_retinanet_torchvision_fpn_backbone" or
    # "build_torchvision_fpn_backbone" (with an FPN for RetinaNet, or for R-CNNs). MODEL.BACKBONE.FREEZE_AT
    # freezes its stages as those of ResNets.
    cfg.MODEL.TORCHVISION = CfgNode()
    # The network: a name of torchvision's, such as "mobilenet_v2", or "timm/" and a name of timm's.
    cfg.MODEL.TORCHVISION.NAME = ""
    # The stages that the network returns: "res2" to "res5" are its last features at the strides 4 to 32.
    cfg.MODEL.TORCHVISION.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # "FrozenBN" freezes parameters and statistics of all batch norms, for pre-trained weights; "BN" trains
    # them.
    cfg.MODEL.TORCHVISION.NORM = "FrozenBN"


def _add_run(cfg: CfgNode) -> None:
    # If False, the student is trained alone, exactly as stock Detectron2 trains it.
    cfg.DISTILL.ENABLED = True
    # The student's own meta-architecture, which the MODEL keys describe; or the path or model-zoo name of
    # a LazyConfig (.py) whose `model` is the student, such as "configs/models/fcos_r18.py". Beside a
    # LazyConfig, only MODEL.WEIGHTS, MODEL.DEVICE and MODEL.MASK_ON (which loads masks) have an effect.
    cfg.DISTILL.STUDENT_ARCHITECTURE = "RetinaNet"
    # Overrides of that LazyConfig, for example ["model.num_classes=6"].
    cfg.DISTILL.STUDENT_OPTS = []
    # If True, the student's weights and features are kept in channels_last order, which is faster on some
    # devices. Its checkpoints are those of any student, and so is what it learns, but for rounding.
    cfg.DISTILL.CHANNELS_LAST = False
    # The path of the module in the student that is its backbone, in which taps are looked for. If it is
    # empty, that is the detector's `backbone`, and where there is none the first Backbone inside.
    cfg.DISTILL.BACKBONE = ""
    # The methods that add their losses: "mgd", "imitation", "channel_mlp", "pkd", "cwd",
    # "masked_generation", "lsh", "logits", "crosskd", or your own.
    cfg.DISTILL.METHODS = ["mgd"]
    # The parts that the student copies from the teacher at the start of a run, wherever shapes agree:
    # "fpn", "head", or the path of any module. This works with every method, and without any.
    cfg.DISTILL.INHERIT = []
    # If True, a run that is interrupted and resumed equals one that was not, bit for bit on a CPU. It
    # replaces Detectron2's data loading, which starts a new order on every resume.
    cfg.DISTILL.EXACT_RESUME = False
    # What to do if the state in the resumed checkpoint does not fit the methods, taps, widths or teacher of
    # this run. If False, the run stops with an error. If True, the methods concerned start afresh.
    cfg.DISTILL.RESUME_FRESH = False
    # How strongly every distillation loss pulls, relative to the task: the norm of its gradient at its tap,
    # divided by the norm of the task's gradient there. The program then finds the weights. They are measured
    # in the first iterations and every GRADIENT_PERIOD iterations from then on, and replace those of the
    # methods' LOSS_WEIGHTS and WEIGHT keys, of which only a 0 still counts. With 0.0 weights are as given.
    cfg.DISTILL.STRENGTH = 0.0
    # The iteration from which the weights of STRENGTH stay as they are; 0 means that they never do.
    cfg.DISTILL.STRENGTH_UNTIL = 0
    # Log gradient ratios every N iterations; 0 disables it. The ratio is the norm of a distillation loss's
    # gradient at its tap, divided by the norm of the task's gradient there; for a tap in the head both are
    # taken at the backbone's outputs.
    cfg.DISTILL.GRADIENT_PERIOD = 200
    # The OUTPUT_DIR of a run of the student alone, which the summary at the end compares with.
    cfg.DISTILL.BASELINE = ""
    # The functions of other projects that add their keys to a config, each "module:function". The flag
    # --config-function sets this key, and a script of your own can. The teacher's config gets these keys as
    # well.
    cfg.DISTILL.CONFIG_FUNCTIONS = []
    # If True, weight files and a teacher's config that hold arbitrary Python objects are loaded. Loading
    # those can run any code.
    cfg.DISTILL.UNSAFE_LOADING = False


def _add_teacher(cfg: CfgNode) -> None:
    # The teacher, which has a config of its own. No key of the student reaches it, and none of its keys
    # reaches the student.
    cfg.DISTILL.TEACHER = CfgNode()
    # The path of a yaml config (also the config.yaml of an earlier run) or LazyConfig (.py), or a model-zoo
    # name such as "COCO-Detection/retinanet_R_50_FPN_3x.yaml".
    cfg.DISTILL.TEACHER.CONFIG_FILE = ""
    # The path, URL or model-zoo name of its weights. It may be empty if CONFIG_FILE is a model-zoo name,
    # whose own weights are then used.
    cfg.DISTILL.TEACHER.WEIGHTS = ""
    # Overrides of the teacher's config: ["KEY", value, ...], or ["key=value", ...] for a LazyConfig.
    cfg.DISTILL.TEACHER.OPTS = []
    # The path of the module in the teacher that is its backbone, see DISTILL.BACKBONE.
    cfg.DISTILL.TEACHER.BACKBONE = ""
    # The teacher runs in every k-th iteration only, in which the distillation losses are multiplied by k, so
    # that a weight means the same. In the others the student learns from its task alone.
    cfg.DISTILL.TEACHER.EVERY = 1
    # The teacher sees the images with their sides multiplied by this factor, from above 0 to 1.0, and its
    # features are resized to the size that the student's have. At 0.5 an object lies one level lower in the
    # teacher's FPN than in the student's, which taps such as "p4=p3" make up for. With RetinaNet or FCOS,
    # "logits", "crosskd" and "cwd" at the tap "classes" need 1.0. The teacher's own evaluations see the
    # images in full size.
    cfg.DISTILL.TEACHER.SCALE = 1.0
    # The precision that the teacher computes in: "float32", "float16" or "bfloat16". If empty, it is that
    # of the training. With "auto" they are timed on the first batch (on a CPU without float16), and the
    # fastest one is taken whose features differ from those in float32 by at most 2% at every tap (in the
    # Euclidean norm).
    cfg.DISTILL.TEACHER.DTYPE = ""
    # If True, the teacher's weights and features are kept in channels_last order, which is faster on some
    # devices. If "auto", the first batch decides, as with DTYPE; both may be "auto". None means False.
    cfg.DISTILL.TEACHER.CHANNELS_LAST = None
    # If True, torch.compile translates the parts of the teacher between its taps. This takes one
    # to several minutes at the start.
    cfg.DISTILL.TEACHER.COMPILE = False
    # If True, a weight file that lacks some of the teacher's tensors is accepted.
    cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = False
    # The box AP, from 0 to 100, that the teacher must reach before a new run begins; 0 disables the check.
    cfg.DISTILL.TEACHER.MIN_AP = 0.0
    # The number of images for that check: the first ones of each set in DATASETS.TEST.
    cfg.DISTILL.TEACHER.CHECK_IMAGES = 100


def _add_schedule(cfg: CfgNode) -> None:
    # A factor that multiplies all distillation losses, as a function of the iteration.
    cfg.DISTILL.SCHEDULE = CfgNode()
    # The number of iterations over which the factor rises linearly from 0 to 1.
    cfg.DISTILL.SCHEDULE.WARMUP_ITERS = 0
    # The iteration from which the factor is 0 and the teacher no longer runs; 0 means never.
    cfg.DISTILL.SCHEDULE.STOP_ITER = 0


def _add_matching(cfg: CfgNode) -> None:
    # When, and from which features, the methods that match channels solve their matching. It is always
    # solved before the first iteration; the keys below say when it is solved again.
    cfg.DISTILL.MATCHING = CfgNode()
    # "pass" solves it from a pass of both networks, in eval mode, over NUM_IMAGES training images, as in
    # the paper. "online" solves it from the features that training computes anyway (the first time from a
    # pass).
    cfg.DISTILL.MATCHING.MODE = "pass"
    # With "online", features are collected every N iterations.
    cfg.DISTILL.MATCHING.ONLINE_EVERY = 20
    # Solve the matching every N iterations, up to DISTILL.EXPERIMENT.SLOW_AFTER (15000); from then on every
    # DISTILL.EXPERIMENT.SLOW_PERIOD (15000) iterations. With 0 it is solved at the start and never again.
    cfg.DISTILL.MATCHING.PERIOD = 5000
    # Solve the matching at exactly these iterations. If the list is not empty, it replaces PERIOD.
    cfg.DISTILL.MATCHING.ITERATIONS = []
    # The last iteration at which the matching is solved; 0 means no limit.
    cfg.DISTILL.MATCHING.UNTIL = 0
    # The number of training images of a pass, over all processes together.
    cfg.DISTILL.MATCHING.NUM_IMAGES = 1024


def _add_mgd(cfg: CfgNode) -> None:
    # Matching Guided Distillation (ECCV 2020), not masked generative distillation.
    cfg.DISTILL.MGD = CfgNode()
    # The places where student and teacher are compared: "res2" to "res5" (the last block of the stage,
    # before its ReLU), "res2_relu" to "res5_relu" (after it), "p2" to "p7" (outputs of the FPN), or the
    # path of any module inside the backbone, such as "bottom_up.res4.0". "a=b" compares the student's a
    # with the teacher's b. FPN outputs differ in scale from residual sums, p6 and p7 by a factor of
    # hundreds: look at the losses before you weight them.
    cfg.DISTILL.MGD.TAPS = ["res3", "res4", "res5"]
    # The loss weight, one for all taps or one for each. The loss is a mean over all unpadded elements, so a
    # weight means the same at any batch size, image size and number of GPUs.
    cfg.DISTILL.MGD.LOSS_WEIGHTS = [0.05]
    # "mean" is that mean. "reference" is the sum over all elements, padding included, divided by the
    # reference implementation's constants for res2 to res5 and by the global batch size; its LOSS_WEIGHTS
    # are [1.0].
    cfg.DISTILL.MGD.REDUCTION = "mean"
    # How the teacher channels of a group become one target: "absolute_max" ("amp", the paper's choice for
    # detection), "sparse" ("sm"), "random_drop" ("rd") or "simple_max" ("sp").
    cfg.DISTILL.MGD.REDUCER = "absolute_max"
    # The value below which a negative target no longer matters: "batch_norm" (computed from the norm before
    # the tap), "empirical" (measured on the images of the matching pass), or "auto" ("batch_norm" where it
    # is valid).
    cfg.DISTILL.MGD.MARGIN = "auto"
    # The norm on the student's features before the loss, in training only: "GN", "BN" (with the statistics
    # of each process's own batch), or "" for none.
    cfg.DISTILL.MGD.NORM = "GN"
    # If True, every teacher channel is used even if the student's channels do not divide their number.
    # Some groups then hold one channel more than others.
    cfg.DISTILL.MGD.SPREAD = False


def _add_imitation(cfg: CfgNode) -> None:
    # Plain imitation (FitNets, ICLR 2015): the mean squared error to the teacher's features.
    cfg.DISTILL.IMITATION = CfgNode()
    # As DISTILL.MGD.TAPS. RetinaNet's p6 and p7 are left out, because their values and therefore their
    # losses are far larger.
    cfg.DISTILL.IMITATION.TAPS = ["p3", "p4", "p5"]
    # The loss weight, one for all taps or one for each.
    cfg.DISTILL.IMITATION.LOSS_WEIGHTS = [1.0]
    # When a 1x1 convolution is applied to the student's features, in training only: "auto" (where the
    # widths differ), "always" or "never".
    cfg.DISTILL.IMITATION.ADAPTER = "auto"
    # What is foreground: the positions inside ground-truth "boxes"; or what the "teacher" takes for it: every
    # position as far as its largest class probability there, which needs no labels, but a RetinaNet or an
    # FCOS as the teacher.
    cfg.DISTILL.IMITATION.FOREGROUND = "boxes"
    # The weight of foreground; that of background is 1. A position that the teacher takes for an object with
    # a probability of 0.3 is at three tenths of the way between the two.
    cfg.DISTILL.IMITATION.FOREGROUND_WEIGHT = 1.0


def _add_channel_mlp(cfg: CfgNode) -> None:
    # Channel-wise transformation (arXiv 2303.13212): imitation through an MLP over the student's channels.
    cfg.DISTILL.CHANNEL_MLP = CfgNode()
    # As DISTILL.IMITATION.TAPS.
    cfg.DISTILL.CHANNEL_MLP.TAPS = ["p3", "p4", "p5"]
    # The loss weight (the paper's alpha), one for all taps or one for each.
    cfg.DISTILL.CHANNEL_MLP.LOSS_WEIGHTS = [1.0]
    # The width of the MLP's hidden layer; 0 means the teacher's width.
    cfg.DISTILL.CHANNEL_MLP.HIDDEN = 0


def _add_pkd(cfg: CfgNode) -> None:
    # PKD (NeurIPS 2022): 1 minus Pearson's correlation of the student's channels with the teacher's, through
    # a 1x1 convolution where the widths differ. The correlation is one over the positions of all images that
    # a process has in its batch: with several processes the loss is the mean of theirs, and not exactly that
    # of one process with the whole batch.
    cfg.DISTILL.PKD = CfgNode()
    # As DISTILL.MGD.TAPS. The scale of the features does not matter. On small images p6 and p7 have too few
    # positions for a correlation: with the demonstration's 96 px, losses there pulled 100,000 times as
    # strongly as the task.
    cfg.DISTILL.PKD.TAPS = ["p3", "p4", "p5"]
    # The loss weight, one for all taps or one for each. The loss is between 0 and 2. With the default it
    # pulls about as strongly in the demonstration as imitation does with its own. The paper has 6 for Faster
    # R-CNN and 10 for RetinaNet.
    cfg.DISTILL.PKD.LOSS_WEIGHTS = [3.0]


def _add_cwd(cfg: CfgNode) -> None:
    # Channel-wise distillation (ICCV 2021): the divergence of each channel's softmax over the positions from
    # the teacher's, through a 1x1 convolution where the widths differ.
    cfg.DISTILL.CWD = CfgNode()
    # As DISTILL.IMITATION.TAPS; and "classes", the class predictions of a RetinaNet or an FCOS, whose anchors
    # and classes must be the teacher's. The loss there is the mean over the levels.
    cfg.DISTILL.CWD.TAPS = ["p3", "p4", "p5"]
    # The loss weight, one for all taps or one for each. With the default it pulls about as strongly in the
    # demonstration as imitation does with its own. The paper has 10 for FPN outputs.
    cfg.DISTILL.CWD.LOSS_WEIGHTS = [1.5]
    # The temperature of both distributions.
    cfg.DISTILL.CWD.TEMPERATURE = 1.0


def _add_masked_generation(cfg: CfgNode) -> None:
    # Masked generation (ECCV 2022), which its authors call MGD as well: positions of the student's features
    # are left out at random, and two 3x3 convolutions generate the teacher's features from the rest, through
    # a 1x1 convolution where the widths differ.
    cfg.DISTILL.MASKED_GENERATION = CfgNode()
    # As DISTILL.IMITATION.TAPS.
    cfg.DISTILL.MASKED_GENERATION.TAPS = ["p3", "p4", "p5"]
    # The loss weight, one for all taps or one for each. The loss is a mean over all unpadded elements. With
    # the default it pulls about as strongly in the demonstration as imitation does with its own.
    cfg.DISTILL.MASKED_GENERATION.LOSS_WEIGHTS = [10.0]
    # The probability that a position is left out. The paper has 0.65 for RetinaNet and 0.45 for two-stage
    # detectors.
    cfg.DISTILL.MASKED_GENERATION.PROBABILITY = 0.65


def _add_lsh(cfg: CfgNode) -> None:
    # Feature mimicking with locality-sensitive hashing (TPAMI 2022).
    cfg.DISTILL.LSH = CfgNode()
    # "head" is the input of the classifier of RetinaNet and FCOS (in 3x3 neighbourhoods), or the output of
    # the box head of Faster and Mask R-CNN (the teacher's, on the student's proposals). Any tap of
    # DISTILL.MGD.TAPS works as well.
    cfg.DISTILL.LSH.TAPS = ["head"]
    # The loss weight (the paper's beta), one for all taps or one for each.
    cfg.DISTILL.LSH.LOSS_WEIGHTS = [7.0]
    # The number of random projections that the features are hashed with.
    cfg.DISTILL.LSH.NUM_HASHES = 4096
    # The losses to use. "hash" without "l2" diverges easily.
    cfg.DISTILL.LSH.TERMS = ["l2", "hash"]


def _add_logits(cfg: CfgNode) -> None:
    # Distillation of predictions: the dense classes and boxes of RetinaNet and FCOS, or those of the box
    # head of R-CNN.
    cfg.DISTILL.LOGITS = CfgNode()
    # The weight of the classification loss.
    cfg.DISTILL.LOGITS.WEIGHT = 1.0
    # The weight of the box loss, in which a box counts by the teacher's confidence, and of FCOS's
    # centerness; 0 disables them.
    cfg.DISTILL.LOGITS.BOX_WEIGHT = 1.0
    # For sigmoid classifiers, the exponent of the student's error, by which an element counts; 0 counts all
    # elements alike.
    cfg.DISTILL.LOGITS.GAMMA = 2.0
    # For softmax classifiers, the temperature of both distributions.
    cfg.DISTILL.LOGITS.TEMPERATURE = 1.0


def _add_crosskd(cfg: CfgNode) -> None:
    # CrossKD (CVPR 2024): the student's features half-way through its head go on through the teacher's frozen
    # head, and the predictions that come out imitate the teacher's own. Student and teacher are RetinaNets or
    # FCOS with heads of one width. On their way the features are given the teacher's mean and deviation over
    # the positions of all images that a process has in its batch.
    cfg.DISTILL.CROSSKD = CfgNode()
    # The weight of the classification loss. Both losses are divided by what the student divides its own by,
    # its running number of positive anchors or points.
    cfg.DISTILL.CROSSKD.WEIGHT = 1.0
    # The weight of the box loss, in which a box counts by the teacher's confidence; 0 disables it.
    cfg.DISTILL.CROSSKD.BOX_WEIGHT = 1.0


def _add_experiment(cfg: CfgNode) -> None:
    # Keys that experiments have needed: a control for comparison, and parts of schedules that are rarely
    # changed.
    cfg.DISTILL.EXPERIMENT = CfgNode()
    # "solved", or a control for comparison that ignores the features: "random" (drawn once) or "identity"
    # (by channel number).
    cfg.DISTILL.EXPERIMENT.ASSIGNMENT = "solved"
    # The seed that "random" is drawn with; SEED has no influence on it.
    cfg.DISTILL.EXPERIMENT.ASSIGNMENT_SEED = 0
    # With DISTILL.MATCHING.MODE "online", the factor on the earlier statistics whenever new ones are added.
    cfg.DISTILL.EXPERIMENT.ONLINE_DECAY = 0.98
    # The iteration after which SLOW_PERIOD replaces a DISTILL.MATCHING.PERIOD above 0, as in the reference.
    cfg.DISTILL.EXPERIMENT.SLOW_AFTER = 15000
    # Solve the matching every N iterations from then on; 0 means never again.
    cfg.DISTILL.EXPERIMENT.SLOW_PERIOD = 15000
    # The iteration from which the factor of DISTILL.SCHEDULE falls linearly, to reach 0 at STOP_ITER. If it
    # is 0, the losses stop at once.
    cfg.DISTILL.EXPERIMENT.DECAY_ITER = 0
