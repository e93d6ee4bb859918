"""Detectron2's default trainer, for a distilled detector on any device."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from inspect import getattr_static
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer, WeightsWriter
from mgd_det.config import DTYPES, check_run_values, uses_teacher
from mgd_det.data.readable import NamingMapper
from mgd_det.detectron2_compat import wrap_in_ddp
from mgd_det.detectron2_types import BatchedInputs, State
from mgd_det.distributed import unwrapped
from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.modeling.taps import last_norms
from mgd_det.modeling.wrapping import student_of, wrap
from mgd_det.rng import isolated_rng

from .best import BestHook
from .buffers import AgreeOnBuffers
from .ema import EMAHook
from .evaluators import build_evaluator, check_augmented_test, check_evaluators
from .exact_resume import ExactLoader, ExactResumeHook, check_seed
from .fingerprint import check_fingerprint, fingerprint
from .memory import MemoryHook
from .mixed_precision import MixedPrecisionTrainer
from .optimizer import (
    build_optimizer,
    carried_over,
    check_resumed_optimizer,
    hyperparameters,
    optimizer_name,
    parameter_names,
    restore_hyperparameters,
    warn_of_late_warm_up,
)
from .rematch import RematchHook, detector_of
from .signals import SignalHook
from .state_keys import MATCHING_STATE
from .unlabeled_loader import with_unlabeled

logger = logging.getLogger("detectron2." + __name__)

EMA_NAME = "ema"  # of the folder of its evaluations, and before the names of its metrics


class Trainer(DefaultTrainer):
    """Trains a config with `mgd_det`'s keys: DefaultTrainer's loop, hooks and files.

    It differs from stock where stock Detectron2 0.6 cannot run on CPU ranks or forgets the optimiser's
    state on resume, reports what was loaded, and adds :class:`RematchHook`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        check_run_values(cfg, comm.get_world_size())
        # A subclass may have an evaluator for any set, and augment tests of any detector.
        if _is_ours(self, "build_evaluator"):
            check_evaluators(cfg)
        if _is_ours(self, "test_with_TTA"):
            check_augmented_test(cfg)
        if cfg.DISTILL.EXACT_RESUME:
            check_seed(cfg)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        # Keep DefaultTrainer's order: each of these draws from the global random streams.
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        model = wrap_in_ddp(model, device)
        if cfg.SOLVER.AMP.ENABLED:
            dtype = DTYPES[cfg.SOLVER.AMP.DTYPE]
            self._trainer = MixedPrecisionTrainer(model, data_loader, optimizer, device=device, dtype=dtype)
        else:
            self._trainer = SimpleTrainer(model, data_loader, optimizer)
        warn_of_late_warm_up(cfg)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = ReportingCheckpointer(
            model, cfg.OUTPUT_DIR, trusted=cfg.DISTILL.UNSAFE_LOADING, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.resuming = False
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Returns DefaultTrainer's hooks with those of this project."""
        hooks = [hook for hook in super().build_hooks() if hook is not None]
        exact = ExactResumeHook(self.cfg) if self.cfg.DISTILL.EXACT_RESUME else None
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        buffers = AgreeOnBuffers(period, self.cfg.TEST.EVAL_PERIOD)
        ema = EMAHook(self.cfg, model=self.model) if self.cfg.SOLVER.EMA.ENABLED else None
        before_saving = [
            buffers.agree,
            *([ema.copy_buffers] if ema else []),
            *([exact.gather] if exact else []),
        ]
        # Before evaluations, which may take longer than the sender of a signal waits.
        evaluation = [isinstance(hook, EvalHook) for hook in hooks].index(True)
        hooks[evaluation + 1 : evaluation + 1] = self._after_evaluation(ema)
        hooks.insert(evaluation, SignalHook(self.checkpointer, period, before_saving))
        if self.cfg.TEST.AUG.ENABLED:  # after the last evaluation alone, since it takes several times as long
            augmented = EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model))
            hooks.insert(evaluation + 2, augmented)
        saving = [isinstance(hook, (PeriodicCheckpointer, SignalHook)) for hook in hooks].index(True)
        hooks[saving:saving] = [buffers, ema] if ema else [buffers]
        hooks.insert(0, MemoryHook(self.cfg.DISTILL.BACKBONE))
        if uses_teacher(self.cfg):
            hooks.insert(0, RematchHook(self.cfg))
        if exact:
            hooks.insert(0, exact)
        return hooks

    def _after_evaluation(self, ema: EMAHook | None) -> list[HookBase]:
        """Returns the hooks that evaluate the moving average, and that keep the best weights."""
        period, metric = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.BEST_METRIC
        hooks: list[HookBase] = []
        if ema:
            cfg = self.cfg.clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, EMA_NAME)
            cfg.freeze()
            model = ema.model

            def evaluate() -> dict[str, Mapping[str, Mapping[str, float]]]:
                logger.info("evaluating the moving average of SOLVER.EMA")
                with isolated_rng():
                    return {EMA_NAME: self.test(cfg, model)}

            hooks.append(EvalHook(period, evaluate))
        if metric:
            of_average = ema is not None and metric.startswith(f"{EMA_NAME}/")
            writer = WeightsWriter(ema.model if ema and of_average else self.model, self.cfg.OUTPUT_DIR)
            hooks.append(BestHook(period, writer, metric, self.cfg.TEST.BEST_MODE))
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the student's weights or the last checkpoint as DefaultTrainer does, then the teacher's.

        Raises:
            ConfigError: a file is missing or does not fit, or the two networks do not fit each other.
        """
        self.resuming = resume
        super().resume_or_load(resume=resume)
        if uses_teacher(self.cfg):
            detector = detector_of(self)
            detector.prepare()
            if self.start_iter == 0:
                detector.inherit()

    def train(self) -> Mapping[str, Mapping[str, float]] | None:
        """Train as DefaultTrainer does; DISTILL.EXACT_RESUME goes on in the data where the run was left."""
        if not self.cfg.DISTILL.EXACT_RESUME:
            return super().train()
        self.data_loader.start = self.start_iter
        # TorchScript recompiles a function after its first calls in a process, with other rounding.
        with torch.jit.optimized_execution(False):
            return super().train()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[BatchedInputs]:
        """Returns the stock loader or that of DISTILL.EXACT_RESUME, with the images of DATASETS.UNLABELED.

        Both name images that they cannot read.
        """
        mapper = NamingMapper(DatasetMapper(cfg, True), skip=cfg.DATALOADER.SKIP_UNREADABLE)
        exact = cfg.DISTILL.EXACT_RESUME
        loader = ExactLoader(cfg, mapper) if exact else build_detection_train_loader(cfg, mapper=mapper)
        return with_unlabeled(loader, cfg, mapper)

    def state_dict(self) -> State:
        """Returns iteration, hooks and what Detectron2 0.6 leaves out: the optimiser and the loss scale."""
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "optimizer": optimizer_name(self.cfg),
            "parameters": parameter_names(unwrapped(self.model), self.optimizer),
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> dict[str, object]:
        """The seed, batch size and data sets of the run, by config key, for its checkpoints."""
        return fingerprint(self.cfg)

    def build_writers(self) -> list[EventWriter]:
        """Returns DefaultTrainer's writers, whose files are opened when there is something to write."""
        return [_LateWriter(super().build_writers)]

    def load_state_dict(self, state: State) -> None:
        """Take up the state of an earlier run.

        Raises:
            ConfigError: that run had another optimiser or, unless DISTILL.RESUME_FRESH allows it, distilled
                where this one does not, or the other way round.
        """
        check_resumed_optimizer(self.cfg, state.get("optimizer", optimizer_name(self.cfg)))
        saved = state.get("fingerprint", {})
        check_fingerprint(saved, self.fingerprint, exact=self.cfg.DISTILL.EXACT_RESUME)
        self._check_resumed_hooks(state.get("hooks", {}))
        TrainerBase.load_state_dict(self, state)
        if "_trainer" not in state:  # a stock trainer's state
            return
        names = parameter_names(unwrapped(self.model), self.optimizer)
        inner = state["_trainer"]
        saved_names = state.get("parameters", names)  # Detectron2's main saves none
        given = hyperparameters(self.optimizer)
        same = saved_names == names and len(inner["optimizer"]["param_groups"]) == len(given)
        if not same:
            inner = {
                **inner,
                "optimizer": carried_over(inner["optimizer"], saved_names, self.optimizer, names),
            }
        self._trainer.load_state_dict(inner)
        if restore_hyperparameters(self.optimizer, given) or not same:
            # The scheduler's hook has loaded the other run's learning rates, one for each of its groups.
            self.scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
            for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
                group["lr"] = lr

    def _check_resumed_hooks(self, hooks: Mapping[str, object]) -> None:
        teaches = uses_teacher(self.cfg) and bool(self.cfg.DISTILL.METHODS)
        if hooks and (MATCHING_STATE in hooks) != teaches and not self.cfg.DISTILL.RESUME_FRESH:
            problem = "the checkpoint to resume is of a run that was the other way round"
            raise ConfigError("DISTILL.ENABLED", self.cfg.DISTILL.ENABLED, problem, RESUME_REMEDY)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale as DefaultTrainer does; SOLVER.REFERENCE_WORLD_SIZE scales the iterations of DISTILL, too."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if scaled is cfg:
            return cfg
        longer = cfg.SOLVER.REFERENCE_WORLD_SIZE / num_workers
        scaled.defrost()
        update, schedule, experiment = (scaled.DISTILL[key] for key in ("MATCHING", "SCHEDULE", "EXPERIMENT"))
        for node, keys in (
            (scaled.DISTILL, ("STRENGTH_UNTIL",)),
            (update, ("PERIOD", "UNTIL")),
            (schedule, schedule),
            (experiment, ("SLOW_AFTER", "SLOW_PERIOD", "DECAY_ITER")),
        ):
            for key in keys:
                # Never round down to 0, which switches off.
                node[key] = max(round(node[key] * longer), min(node[key], 1))
        update.ITERATIONS = [round(iteration * longer) for iteration in update.ITERATIONS]
        if cfg.is_frozen():
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build as stock Detectron2 does, and honour `MODEL.RESNETS.ZERO_INIT_RESIDUAL`.

        A detector of a stock meta-architecture is wrapped where the config names a teacher.
        """
        model = super().build_model(cfg)
        if cfg.MODEL.RESNETS.ZERO_INIT_RESIDUAL:
            found = [getattr(norm, "weight", None) for norm in last_norms(model.backbone)]
            weights = [weight for weight in found if isinstance(weight, nn.Parameter)]
            if not found or len(weights) < len(found):
                raise ConfigError(
                    "MODEL.RESNETS.ZERO_INIT_RESIDUAL",
                    True,
                    f"the residual blocks end in no trainable norm (MODEL.RESNETS.NORM is "
                    f"{cfg.MODEL.RESNETS.NORM!r})",
                    'Use a norm such as "BN" or "GN", or set it False.',
                )
            for weight in weights:
                nn.init.zeros_(weight)
        return wrap(model, cfg) if uses_teacher(cfg) else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimiser of `SOLVER.OPTIMIZER`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """Returns the evaluator of a data set's own kind, its `evaluator_type`."""
        several = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", *several)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate an R-CNN with the test-time augmentation of TEST.AUG; results are named `bbox_TTA` etc."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        several = len(cfg.DATASETS.TEST) > 1
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(folder, name) if several else folder)
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, student_of(model)), evaluators)
        return {f"{name}_TTA": result for name, result in results.items()}


def _is_ours(trainer: Trainer, method: str) -> bool:
    """Returns True if a trainer's class does not override a method of :class:`Trainer`."""
    return getattr_static(trainer, method) is getattr_static(Trainer, method)


class _LateWriter(EventWriter):
    """Opens other writers, and with them their files, when there is something to write.

    Args:
        open_writers: opens them.
    """

    def __init__(self, open_writers: Callable[[], list[EventWriter]]) -> None:
        self._open_writers = open_writers
        self._writers: list[EventWriter] | None = None

    def write(self) -> None:
        if self._writers is None:
            self._writers = self._open_writers()
        for writer in self._writers:
            writer.write()

    def close(self) -> None:
        for writer in self._writers or []:
            writer.close()
