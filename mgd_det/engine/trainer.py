"""Detectron2's default trainer, for a distilled detector on any device."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from torch import nn

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import DTYPES, uses_teacher
from mgd_det.detectron2_compat import wrap_in_ddp
from mgd_det.detectron2_types import BatchedInputs, State
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.modeling.taps import last_norms

from .exact_resume import ExactLoader, ExactResumeHook, check_sampler, check_seed
from .mixed_precision import MixedPrecisionTrainer
from .optimizer import OPTIMIZERS, build_optimizer, carried_over, parameter_names
from .rematch import RematchHook


class Trainer(DefaultTrainer):
    """Trains a config with `mgd_det`'s keys: DefaultTrainer's loop, hooks and files.

    It differs from stock where stock Detectron2 0.6 cannot run on CPU ranks or forgets the optimiser's
    state on resume, reports what was loaded, and adds :class:`RematchHook`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        check_solver(cfg, comm.get_world_size())
        if cfg.DISTILL.EXACT_RESUME:
            check_sampler(cfg)
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
        """Returns DefaultTrainer's hooks, after those of distillation and of exact resume."""
        hooks = super().build_hooks()
        if uses_teacher(self.cfg):
            hooks.insert(0, RematchHook(self.cfg))
        if self.cfg.DISTILL.EXACT_RESUME:
            hooks.insert(0, ExactResumeHook(self.cfg))
        return hooks

    def resume_or_load(self, resume: bool = True) -> None:
        """Load as DefaultTrainer does."""
        self.resuming = resume
        super().resume_or_load(resume=resume)

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
        """Returns the stock loader, or the one of DISTILL.EXACT_RESUME."""
        return ExactLoader(cfg) if cfg.DISTILL.EXACT_RESUME else super().build_train_loader(cfg)

    def state_dict(self) -> State:
        """Returns iteration, hooks and what Detectron2 0.6 leaves out: the optimiser and the loss scale."""
        return {
            **TrainerBase.state_dict(self),
            "_trainer": self._trainer.state_dict(),
            "optimizer": self.cfg.SOLVER.OPTIMIZER,
            "parameters": parameter_names(unwrapped(self.model), self.optimizer),
        }

    def load_state_dict(self, state: State) -> None:
        TrainerBase.load_state_dict(self, state)
        if "_trainer" not in state:  # a stock trainer's state
            return
        names = parameter_names(unwrapped(self.model), self.optimizer)
        inner = state["_trainer"]
        saved_names = state.get("parameters", names)  # Detectron2's main saves none
        if saved_names == names:
            self._trainer.load_state_dict(inner)
            return
        optimizer = carried_over(inner["optimizer"], saved_names, self.optimizer, names)
        self._trainer.load_state_dict({**inner, "optimizer": optimizer})
        # The scheduler's hook has loaded the other run's learning rates, one for each of its groups.
        self.scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr

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
        """Build as stock Detectron2 does, and honour `MODEL.RESNETS.ZERO_INIT_RESIDUAL`."""
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
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Returns the optimiser of `SOLVER.OPTIMIZER`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        """Returns an evaluator of COCO box AP, and of mask AP where the model predicts masks."""
        several = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", *several)
        return COCOEvaluator(dataset_name, output_dir=folder)


def check_solver(cfg: CfgNode, world_size: int) -> None:
    """Check the solver's settings that training would trip over late.

    Raises:
        ConfigError: an unknown optimiser, precision or device, a batch that does not divide, a step of the
            learning rate at the end.
    """
    if cfg.SOLVER.OPTIMIZER not in OPTIMIZERS:
        raise ConfigError("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, "unknown", f"Choose one of {OPTIMIZERS}.")
    try:
        usable = torch.device(cfg.MODEL.DEVICE).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:
        usable = False
    if not usable:
        problem, remedy = "there is no such device here", 'Set "cpu", or leave it to --num-gpus.'
        raise ConfigError("MODEL.DEVICE", cfg.MODEL.DEVICE, problem, remedy)
    if cfg.DATALOADER.NUM_WORKERS < 0:
        key, value = "DATALOADER.NUM_WORKERS", cfg.DATALOADER.NUM_WORKERS
        raise ConfigError(key, value, "less than 0", "0 loads in the main process.")
    if cfg.SOLVER.IMS_PER_BATCH < 1:
        key, value = "SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH
        raise ConfigError(key, value, "less than 1", "Give a multiple of the number of processes.")
    if cfg.SOLVER.AMP.DTYPE not in DTYPES:
        key, choices = "SOLVER.AMP.DTYPE", " or ".join(map(repr, DTYPES))
        raise ConfigError(key, cfg.SOLVER.AMP.DTYPE, "not a precision of autocast", f"Choose {choices}.")
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and cfg.SOLVER.MAX_ITER in cfg.SOLVER.STEPS:
        problem = "a step at SOLVER.MAX_ITER, where there is no learning rate left to change"
        raise ConfigError("SOLVER.STEPS", cfg.SOLVER.STEPS, problem, "Give steps below it.")
    # Where Detectron2 scales the batch, each process has the share that it would have had of that number.
    world_size = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH",
            cfg.SOLVER.IMS_PER_BATCH,
            f"does not divide among {world_size} processes",
            "Give a multiple of the number of processes.",
        )
