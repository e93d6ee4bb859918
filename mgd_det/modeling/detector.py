"""The meta-architecture: a stock student with a teacher beside it while it trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn

from mgd_det.config import check_values
from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.maths.gradient_ratios import GradientPoint, GradientRatios
from mgd_det.methods import HEAD_TAPS, LossInfo, MatchReport, Method
from mgd_det.rng import isolated_rng

from .build import build_methods, build_student, check_taps, inspect_student, inspect_teacher
from .first_batch import look_at_first_batch
from .heads import find_head
from .inherit import inherit
from .pairing import pair_maps
from .taps import capture, evaluating, sides, split
from .teacher import Teacher, TeacherSpec

logger = logging.getLogger("detectron2." + __name__)

REVERSIBLE_FORMATS = ("RGB", "BGR")
TEACHER = "teacher"  # in the state, beside the methods' names


class NotMatchedError(RuntimeError):
    """A distiller was trained before its first matching was solved."""


@META_ARCH_REGISTRY.register()
class DistilledDetector(nn.Module):
    """Trains a stock detector with the losses of distillation methods added to its own.

    In eval mode it is the student and nothing else. Its `state_dict` is the student's, so that every
    checkpoint is one of the stock student. The teacher is loaded when training begins (:meth:`prepare`)
    and never before.

    Args:
        student: a Detectron2 detector with `backbone` and `preprocess_image`; attribute `student`.
        methods: distillation methods by name; none trains the student alone.
        teacher: where the teacher comes from.
        built_teacher: the teacher with random weights if it has been built already.
        input_format: channel order of the images that the student is given.
        inherits: parts of the student that start as the teacher's, for :meth:`inherit`.
        resume_fresh: methods that an earlier run's state does not fit start afresh, all with another teacher.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        methods: Mapping[str, Method],
        teacher: TeacherSpec,
        built_teacher: Teacher | None = None,
        input_format: str,
        inherits: Sequence[str] = (),
        resume_fresh: bool = False,
    ) -> None:
        super().__init__()
        self.student: Any = student
        self.methods: Any = nn.ModuleDict(methods)  # a Mapping[str, Method]
        self.teacher_spec = teacher
        self.input_format = input_format
        self.inherits, self.resume_fresh = list(inherits), resume_fresh
        self._built_teacher = built_teacher
        self.teacher: Any = None  # a Teacher, once `prepare` has loaded it
        # Set by the hook: a factor on the methods' losses; and of the next training step, whether its
        # features go into the statistics that the matching is solved from, and its gradients are measured.
        self.loss_factor = 1.0
        self.observe_next = False
        self.measure_next = False
        self.measured: GradientRatios | None = None  # in the latest training step
        self._seen_a_batch = False
        self._inherited = False
        # Of the student's taps, filled by `prepare`.
        self._strides: dict[str, int] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_values(cfg)
        # Move to the device first: building a method may run GPU-only operators.
        student = build_student(cfg).to(torch.device(cfg.MODEL.DEVICE))
        methods, built_teacher = build_methods(cfg, student) if cfg.DISTILL.ENABLED else ({}, None)
        return {
            "student": student,
            "methods": methods,
            "teacher": TeacherSpec.from_config(cfg),
            "built_teacher": built_teacher,
            "input_format": cfg.INPUT.FORMAT,
            "inherits": cfg.DISTILL.INHERIT if cfg.DISTILL.ENABLED else [],
            "resume_fresh": cfg.DISTILL.RESUME_FRESH,
        }

    @property
    def taps(self) -> list[str]:
        """Names of all taps that the methods need, each once."""
        return list(dict.fromkeys(tap for method in self.methods.values() for tap in method.taps))

    @property
    def matching(self) -> list[Method]:
        """The methods that have a matching to solve."""
        return [method for method in self.methods.values() if method.matches]

    @property
    def losses(self) -> dict[str, LossInfo]:
        """What is known of the methods' losses, by name."""
        return {name: info for method in self.methods.values() for name, info in method.losses.items()}

    def prepare(self) -> None:
        """Load the teacher, unless it is there, and check that the two networks fit.

        Raises:
            ConfigError: anything about the teacher or the taps that would not work.
        """
        if not self.methods or self.teacher is not None:
            return
        student = inspect_student(self.student, self.taps, "DISTILL.METHODS")
        teacher = self.teacher_spec.load(self.device, self._built_teacher)
        self._built_teacher = None
        self._check_formats(teacher)
        infos = inspect_teacher(teacher.model, self.taps, self.teacher_spec.config_file)
        check_taps(self.methods, student, infos)
        for method in self.methods.values():
            method.attach(student, infos)
            method.num_ranks, method.rank = comm.get_world_size(), comm.get_rank()
        self._strides = {tap: info.stride for tap, info in student.items()}
        self.teacher = teacher

    @torch.no_grad()
    def inherit(self) -> None:
        """Copy what `inherits` names from the teacher into the student, once, at the start of a new run.

        Raises:
            ConfigError: the teacher cannot be loaded, or has nothing of that name and shape.
        """
        if self.inherits and not self._inherited:
            self._inherited = True
            teacher = self.teacher or self.teacher_spec.load(self.device)
            inherit(self.student, teacher.model, self.inherits)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As the student; in training the methods' losses join the student's."""
        if not (self.training and self.methods):
            return self.student(batched_inputs)
        if self.loss_factor == 0:
            return {**self.student(batched_inputs), **self._stopped_losses()}
        self.prepare()
        if not all(method.ready for method in self.methods.values()):
            raise NotMatchedError(
                "DistilledDetector is being trained, but no matching has been solved: register "
                "mgd_det.RematchHook(cfg) with the trainer, or call rematch() with batches of images"
            )
        batched_inputs = self.to_device(batched_inputs)
        points: dict[str, GradientPoint] | None = {} if self.measure_next else None
        names, head_names = split([sides(tap)[0] for tap in self.taps])
        head: Any = find_head(self.student).capture(head_names) if head_names else nullcontext({})
        with capture(self.student.backbone, names, points=points) as student, head as student_head:
            losses = self.student(batched_inputs)

        def pair() -> dict[str, Any]:
            return self._pair(self.taps, {**student, **student_head}, batched_inputs)

        if not self._seen_a_batch:
            self._seen_a_batch = True
            look_at_first_batch(self, batched_inputs, pair)
        features = pair()
        distilled = {}
        for method in self.methods.values():
            if self.observe_next and method.matches:
                method.observe(features)
            for name, loss in method(features).items():
                distilled[name] = loss * self.loss_factor
        self.measured = None if points is None else self._measure(distilled, points)
        self.observe_next = self.measure_next = False
        return {**losses, **distilled}

    def _measure(
        self, losses: Mapping[str, Tensor], points: Mapping[str, GradientPoint]
    ) -> GradientRatios | None:
        """Of the losses that act in the backbone."""
        acting = {name: points.get(sides(info.tap)[0]) for name, info in self.losses.items()}
        at = {name: (losses[name], point) for name, point in acting.items() if point is not None}
        elsewhere = [losses[name] for name, point in acting.items() if point is None]
        return GradientRatios(at, elsewhere) if at else None

    def _stopped_losses(self) -> dict[str, Tensor]:
        """Zeros under the methods' loss names that still reach all their parameters, as DDP wants."""
        losses = {}
        for method in self.methods.values():
            zero = sum((p.sum() * 0 for p in method.parameters()), torch.zeros((), device=self.device))
            losses.update(dict.fromkeys(method.losses, zero))
        return losses

    def rematch(
        self,
        batches: Iterable[list[dict[str, Any]]],
        sum_over_ranks: Callable[[Tensor], None] = lambda tensor: None,
    ) -> list[MatchReport]:
        """Solve the matchings of all methods from a pass over images, with both networks fixed.

        Modes, batch-norm statistics and random streams are afterwards as they were.

        Args:
            batches: lists of dicts with "image", (C, H, W), as in training; no instances needed.
            sum_over_ranks: replaces a tensor, in place, by its sum over all processes.
        """
        self.observe_pass(batches, sum_over_ranks)
        return self.solve()

    @torch.no_grad()
    def observe_pass(
        self,
        batches: Iterable[list[dict[str, Any]]],
        sum_over_ranks: Callable[[Tensor], None] = lambda tensor: None,
    ) -> None:
        """Replace the statistics that the matchings are solved from by those of a pass over images.

        Args:
            batches, sum_over_ranks: as :meth:`rematch`'s.
        """
        self.prepare()
        taps = list(dict.fromkeys(tap for method in self.matching for tap in method.taps))
        names, _ = split([sides(tap)[0] for tap in taps])
        seen = 0
        with isolated_rng(), evaluating(self.student):
            for batch in batches:
                seen += len(batch)
                batch = self.to_device(batch)
                pixels = self.student.preprocess_image(batch).tensor
                with capture(self.student.backbone, names, stop=True) as student:
                    self.student.backbone(pixels)
                features = self._pair(taps, student, batch)
                for method in self.matching:
                    method.observe(features)
        if not seen:
            raise ValueError("there are no images to solve the matching from")
        for method in self.matching:
            method.absorb(sum_over_ranks, decay=0)

    @torch.no_grad()
    def solve(self) -> list[MatchReport]:
        """Solve the matchings of all methods from the statistics that they have."""
        return [report for method in self.methods.values() for report in method.solve()]

    def distill_state(self) -> dict[str, Any]:
        """What the methods have learnt beside the student, on the CPU, and from which teacher."""
        state: dict[str, Any] = {name: _to_cpu(method.state_dict()) for name, method in self.methods.items()}
        if self.teacher is not None:
            state[TEACHER] = self.teacher.digest
        return state

    def load_distill_state(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an earlier run.

        Raises:
            ConfigError: that run had another teacher, other methods, taps or widths, and `resume_fresh` is
                not set.
        """
        self.prepare()  # a matching is to the channels of one teacher
        state = dict(state)
        then, now = state.pop(TEACHER, None), getattr(self.teacher, "digest", None)
        another = bool(then and now and then != now)
        if another and not self.resume_fresh:
            key, problem = "DISTILL.TEACHER.WEIGHTS", "not those of the teacher that the checkpoint is of"
            raise ConfigError(key, self.teacher_spec.weights_path(), problem, RESUME_REMEDY)
        if not self.resume_fresh and set(state) != set(self.methods):
            raise ConfigError(
                "DISTILL.METHODS",
                list(self.methods),
                f"the checkpoint was trained with {list(state)}",
                RESUME_REMEDY,
            )
        for name, method in self.methods.items():
            fresh = copy.deepcopy(method.state_dict())
            try:
                if name not in state:
                    raise RuntimeError("the checkpoint is of a run without it")
                if another:
                    raise RuntimeError("the checkpoint is of a run with another teacher")
                method.load_state_dict(state[name])
            except (ConfigError, RuntimeError) as error:
                method.load_state_dict(fresh)  # nothing stays half loaded
                if self.resume_fresh:
                    logger.warning("DISTILL.RESUME_FRESH: %s starts afresh: %s", name, error)
                elif isinstance(error, ConfigError):
                    raise
                else:
                    key, problem = (
                        f"DISTILL.{name.upper()}",
                        f"its state in the checkpoint is another ({error})",
                    )
                    raise ConfigError(key, method.taps, problem, RESUME_REMEDY) from error

    def to_device(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Move the images once, for both networks."""
        return [{**x, "image": x["image"].to(self.device)} for x in batched_inputs]

    def _pair(
        self,
        taps: Sequence[str],
        student: Mapping[str, Any],
        batched_inputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Run the teacher on the same images and line up the two networks' features."""
        images = [x["image"] for x in batched_inputs]
        names = [sides(tap)[1] for tap in taps]
        teacher = self.teacher.features(images, self.input_format, names, student)
        boxes = None
        wanted = any(method.wants_foreground for method in self.methods.values())
        if wanted and "instances" in batched_inputs[0]:  # which a matching pass has not
            boxes = [x["instances"].gt_boxes.tensor.to(self.device) for x in batched_inputs]
        paired: dict[str, Any] = {}
        for tap in taps:
            if tap in HEAD_TAPS:
                paired[tap] = find_head(self.student).pair(tap, student, teacher, batched_inputs)
            else:
                s, t = (side[name] for side, name in zip((student, teacher), sides(tap)))
                paired[tap] = pair_maps(s, t, images, self._strides[tap], boxes=boxes)
        return paired

    def _check_formats(self, teacher: Teacher) -> None:
        formats = (self.input_format, teacher.input_format)
        if formats[0] != formats[1] and not set(formats) <= set(REVERSIBLE_FORMATS):
            raise ConfigError(
                "INPUT.FORMAT",
                self.input_format,
                f"the teacher takes {teacher.input_format!r} images, and no exact conversion is known",
                "Give the student the teacher's format.",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> DistilledDetector:
        if self.teacher is not None:  # follows `.to()`, `.cuda()` ..
            self.teacher.follow(fn)
        return super()._apply(fn, *args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's, under its stock names."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The student's."""
        return self.student.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Detectron2's tools look for `backbone`, `device`, `roi_heads` .. on the model that they hold.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    return value
