"""The values that config keys may have, as a table, and the check of a config against it.

A method checks the keys of its own node when it is built.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch
from detectron2.config import CfgNode

from mgd_det.errors import ConfigError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}  # precisions of autocast
AUTO = "auto"  # of keys of DISTILL.TEACHER: chosen on the first batch
TEACHER_DTYPES = {"": None, "float32": torch.float32, **DTYPES}  # "" leaves it to the training
SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")  # Detectron2's
CLIP_TYPES = ("value", "norm")
OPTIMIZERS = ("SGD", "AdamW")
BOX_TASKS = ("bbox", "segm", "keypoints")  # of the evaluations in COCO's manner
# Their metrics, those of LVIS included; "AP-" and a class is one as well.
AP_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
ASSIGNMENTS = ("solved", "random", "identity")


@dataclass(frozen=True)
class OneOf:
    """One of a few names; with `any_case` in upper or lower case."""

    names: tuple[str, ...]
    any_case: bool = False

    def problem(self, value: object) -> str:
        """Returns what is wrong with a value, or "" if nothing is."""
        return "unknown" if self.find(value) is None else ""

    def find(self, value: object) -> str | None:
        """Returns the name that a value stands for, None if there is none."""
        if not self.any_case:
            return next((name for name in self.names if name == value), None)
        return next((name for name in self.names if name.lower() == str(value).lower()), None)

    @property
    def remedy(self) -> str:
        return f"Choose one of {', '.join(map(repr, self.names))}."


@dataclass(frozen=True)
class Range:
    """A finite number from `low` to `high`; with `open_below` greater than `low`."""

    low: float
    high: float = math.inf
    open_below: bool = False
    hint: str = ""  # replaces the remedy where there is more to say than the range

    def problem(self, value: float | None) -> str:
        """Returns what is wrong with a value, or "" if nothing is."""
        if value is None:  # which yacs takes for any value
            return "not a number"
        if value < self.low:
            return f"less than {self.low}"
        if self.high == math.inf and not math.isfinite(value):
            return "not a finite number"
        inside = value <= self.high and not (self.open_below and value == self.low)
        return "" if inside else f"not in {'(' if self.open_below else '['}{self.low}, {self.high}]"

    @property
    def remedy(self) -> str:
        if self.hint:
            return self.hint
        if self.high == math.inf:
            return f"Give a number of at least {self.low}."
        return f"Give a number {'above' if self.open_below else 'from'} {self.low} to {self.high}."


@dataclass(frozen=True)
class WholeNumbers:
    """A list of whole numbers."""

    remedy: str = "Give a list like [5000, 10000]."

    def problem(self, value: Sequence[object] | None) -> str:
        """Returns what is wrong with a value, or "" if nothing is."""
        if value is None:
            return "not a list"
        return "" if all(isinstance(x, int) for x in value) else "not all are whole numbers"


@dataclass(frozen=True)
class Switch:
    """True, False or "auto". The default None is False; yacs would not let a text replace a bool."""

    remedy: str = f"Choose one of True, False, {AUTO!r}."

    def problem(self, value: object) -> str:
        """Returns what is wrong with a value, or "" if nothing is."""
        return "" if value is None or isinstance(value, bool) or value == AUTO else "unknown"


Rule = Union[OneOf, Range, Switch, WholeNumbers]

# What distilling reads, in any trainer.
VALUES: dict[str, Rule] = {
    # NumPy takes no larger seeds.
    "SEED": Range(-1, 2**32 - 1, hint="Give a whole number of 32 bits, or -1 for a seed that is drawn."),
    "SOLVER.IMS_PER_BATCH": Range(1, hint="Give a multiple of the number of processes."),
    "DATALOADER.UNLABELED_RATIO": Range(0, open_below=True, hint="Give a number above 0, such as 1.0."),
    "DATALOADER.NUM_WORKERS": Range(0, hint="0 loads in the main process."),
    "DISTILL.STRENGTH": Range(0),
    "DISTILL.STRENGTH_UNTIL": Range(0),
    "DISTILL.GRADIENT_PERIOD": Range(0),
    "DISTILL.TEACHER.EVERY": Range(1, hint="1 runs the teacher in every iteration."),
    "DISTILL.TEACHER.SCALE": Range(0, 1, open_below=True, hint="Give a number above 0.0, up to 1.0."),
    "DISTILL.TEACHER.DTYPE": OneOf((*TEACHER_DTYPES, AUTO)),
    "DISTILL.TEACHER.CHANNELS_LAST": Switch(),
    "DISTILL.TEACHER.MIN_AP": Range(0, 100),
    "DISTILL.TEACHER.CHECK_IMAGES": Range(1),
    "DISTILL.SCHEDULE.WARMUP_ITERS": Range(0),
    "DISTILL.SCHEDULE.STOP_ITER": Range(0),
    "DISTILL.MATCHING.MODE": OneOf(("pass", "online")),
    "DISTILL.MATCHING.ONLINE_EVERY": Range(1),
    "DISTILL.MATCHING.PERIOD": Range(0),
    "DISTILL.MATCHING.ITERATIONS": WholeNumbers(),
    "DISTILL.MATCHING.UNTIL": Range(0),
    "DISTILL.MATCHING.NUM_IMAGES": Range(1),
    "DISTILL.EXPERIMENT.ASSIGNMENT": OneOf(ASSIGNMENTS),
    "DISTILL.EXPERIMENT.ASSIGNMENT_SEED": Range(0),
    "DISTILL.EXPERIMENT.ONLINE_DECAY": Range(0, 1, open_below=True, hint="Give a number like 0.98."),
    "DISTILL.EXPERIMENT.SLOW_AFTER": Range(0),
    "DISTILL.EXPERIMENT.SLOW_PERIOD": Range(0),
    "DISTILL.EXPERIMENT.DECAY_ITER": Range(0),
}

# What this project's trainer reads beside. In a trainer of another project they mean what that one says.
RUN_VALUES: dict[str, Rule] = {
    "SOLVER.MAX_ITER": Range(1),
    "SOLVER.BASE_LR": Range(0),
    "SOLVER.WARMUP_ITERS": Range(0),
    "SOLVER.WARMUP_FACTOR": Range(0),
    "SOLVER.GAMMA": Range(0),
    "SOLVER.MOMENTUM": Range(0),
    "SOLVER.WEIGHT_DECAY": Range(0),
    "SOLVER.WEIGHT_DECAY_NORM": Range(0),
    "SOLVER.CHECKPOINT_PERIOD": Range(1),
    "TEST.EVAL_PERIOD": Range(0, hint="0 evaluates at the end alone."),
    "SOLVER.OPTIMIZER": OneOf(OPTIMIZERS, any_case=True),
    "SOLVER.LR_SCHEDULER_NAME": OneOf(SCHEDULERS),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": OneOf(CLIP_TYPES),
    "SOLVER.EMA.DECAY": Range(0, 0.99999, hint="Give a number like 0.999."),
    "TEST.BEST_MODE": OneOf(("max", "min")),
    "SOLVER.AMP.DTYPE": OneOf(tuple(DTYPES)),
}


def check_values(cfg: CfgNode) -> None:
    """Check that the values that distilling reads can work, in whatever trainer.

    Args:
        cfg: a config with this project's keys.

    Raises:
        ConfigError: for the first value that cannot.
    """
    _check_table(cfg, VALUES)
    _check_device(cfg)
    _check_decay(cfg)
    _check_backbone(cfg)


def check_run_values(cfg: CfgNode, num_processes: int = 1) -> None:
    """Check that all values that a run of this project's trainer reads can work.

    Args:
        cfg: a config with this project's keys.
        num_processes: the number of processes that share a batch.

    Raises:
        ConfigError: for the first value that cannot.
    """
    check_values(cfg)
    _check_table(cfg, RUN_VALUES)
    _check_steps(cfg)
    _check_teacher_every(cfg)
    _check_sampler(cfg)
    _check_best(cfg)
    _check_batch(cfg, num_processes)


def _check_table(cfg: CfgNode, rules: Mapping[str, Rule]) -> None:
    for key, rule in rules.items():
        try:
            value = value_of(cfg, key)
        except KeyError as error:
            remedy = "Call add_mgd_config(cfg) after the functions of other projects."
            raise ConfigError(key, None, "the config has no such key", remedy) from error
        problem = rule.problem(value)
        if problem:
            raise ConfigError(key, value, problem, rule.remedy)


def value_of(cfg: CfgNode, key: str) -> Any:
    """Returns the value of a key such as "SOLVER.BASE_LR"."""
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _check_device(cfg: CfgNode) -> None:
    try:
        usable = torch.device(cfg.MODEL.DEVICE).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        usable = False
    if not usable:
        problem, remedy = "there is no such device here", 'Set "cpu", or leave it to --num-gpus.'
        raise ConfigError("MODEL.DEVICE", cfg.MODEL.DEVICE, problem, remedy)


def _check_steps(cfg: CfgNode) -> None:
    steps = cfg.SOLVER.STEPS
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return
    if cfg.SOLVER.MAX_ITER in steps:
        problem = "a step at SOLVER.MAX_ITER, where there is no learning rate left to change"
        raise ConfigError("SOLVER.STEPS", steps, problem, "Give steps below it.")
    if not all(isinstance(step, int) and step > 0 for step in steps) or list(steps) != sorted(set(steps)):
        problem = "not iterations in ascending order"
        raise ConfigError("SOLVER.STEPS", steps, problem, "Give them like (60000, 80000).")


def _check_teacher_every(cfg: CfgNode) -> None:
    """Check that the teacher runs more than once, with a weight that is meant for all iterations together."""
    every, stop = cfg.DISTILL.TEACHER.EVERY, cfg.DISTILL.SCHEDULE.STOP_ITER
    end = min(cfg.SOLVER.MAX_ITER, stop or math.inf)
    if cfg.DISTILL.ENABLED and every > 1 and every >= end:
        problem = f"of the {end} iterations with distillation, the teacher would run in the first one alone"
        raise ConfigError("DISTILL.TEACHER.EVERY", every, problem, "Give a smaller number, such as 4.")


def _check_decay(cfg: CfgNode) -> None:
    start, stop = cfg.DISTILL.EXPERIMENT.DECAY_ITER, cfg.DISTILL.SCHEDULE.STOP_ITER
    if start and not stop > start:
        raise ConfigError(
            "DISTILL.EXPERIMENT.DECAY_ITER",
            start,
            f"the fall has no end behind it: DISTILL.SCHEDULE.STOP_ITER is {stop}",
            "Set STOP_ITER to the iteration at which the losses reach 0.",
        )


def _check_sampler(cfg: CfgNode) -> None:
    if cfg.DISTILL.EXACT_RESUME and cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(
            "DATALOADER.SAMPLER_TRAIN",
            cfg.DATALOADER.SAMPLER_TRAIN,
            "DISTILL.EXACT_RESUME has an order of its own for TrainingSampler alone",
            'Set it to "TrainingSampler", or DISTILL.EXACT_RESUME False.',
        )


def _check_backbone(cfg: CfgNode) -> None:
    name = cfg.MODEL.BACKBONE.NAME
    if cfg.MODEL.TORCHVISION.NAME and "_resnet_" in name:
        problem = f"does not use MODEL.TORCHVISION.NAME, which is {cfg.MODEL.TORCHVISION.NAME!r}"
        remedy = f'Set "{name.replace("_resnet_", "_torchvision_")}", or leave MODEL.TORCHVISION.NAME empty.'
        raise ConfigError("MODEL.BACKBONE.NAME", name, problem, remedy)


def _check_best(cfg: CfgNode) -> None:
    """Check that the metric of TEST.BEST_METRIC will come, and more than once."""
    metric, tests = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    if not metric:
        return
    problem, remedy = "", 'Give the name of a metric as in metrics.json, or "" for no best checkpoint.'
    found = metric.removeprefix("ema/")
    tested = next((name for name in tests if found.startswith(f"{name}/")), None)
    task, _, name = found.removeprefix(f"{tested}/").rpartition("/")
    if not cfg.TEST.EVAL_PERIOD:
        problem, remedy = "TEST.EVAL_PERIOD 0 evaluates at the end alone", "Set that to some iterations."
    elif not tests:
        problem, remedy = "DATASETS.TEST is empty", "Name a set to evaluate on."
    elif metric != found and not cfg.SOLVER.EMA.ENABLED:
        problem, remedy = "there is no average to evaluate", "Set SOLVER.EMA.ENABLED True."
    elif (tested is not None) != (len(tests) > 1):
        start = f'such as "{tests[0]}/bbox/AP"' if len(tests) > 1 else 'such as "bbox/AP"'
        problem, remedy = f"{len(tests)} sets are evaluated", f"Give a name {start}."
    elif task == "segm" and not cfg.MODEL.MASK_ON:
        problem = "MODEL.MASK_ON is False, and without masks there is no such metric"
    elif not task or (task in BOX_TASKS and name not in AP_METRICS and not name.startswith("AP-")):
        problem = "there is no such metric"
    if problem:
        raise ConfigError("TEST.BEST_METRIC", metric, problem, remedy)


def _check_batch(cfg: CfgNode, num_processes: int) -> None:
    # Where Detectron2 scales the batch, each process has the share that it would have had of that number.
    if cfg.SEED + num_processes > 2**32:
        problem = (
            f"each of {num_processes} processes adds its number, and NumPy takes no seeds beyond 32 bits"
        )
        raise ConfigError("SEED", cfg.SEED, problem, "Give a smaller number.")
    num_processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or num_processes
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH",
            cfg.SOLVER.IMS_PER_BATCH,
            f"does not divide among {num_processes} processes",
            "Give a multiple of the number of processes.",
        )
    if cfg.DATASETS.UNLABELED:
        check_unlabeled_share(cfg, num_processes)


def check_unlabeled_share(cfg: CfgNode, num_processes: int) -> None:
    """Refuse, with a ConfigError, a DATALOADER.UNLABELED_RATIO whose images the processes cannot share."""
    ratio, labelled = cfg.DATALOADER.UNLABELED_RATIO, cfg.SOLVER.IMS_PER_BATCH
    number = unlabeled_per_batch(cfg)
    if abs(number - ratio * labelled) > 1e-3 or number % num_processes or not number:
        problem = f"of {labelled} images gives {ratio * labelled:g}, which are not to be shared among "
        problem += f"{num_processes} processes"
        remedy = "Give a ratio that makes a multiple of their number."
        raise ConfigError("DATALOADER.UNLABELED_RATIO", ratio, problem, remedy)


def unlabeled_per_batch(cfg: CfgNode) -> int:
    """Returns the number of images of `DATASETS.UNLABELED` in a batch, over all processes."""
    return round(cfg.DATALOADER.UNLABELED_RATIO * cfg.SOLVER.IMS_PER_BATCH)
