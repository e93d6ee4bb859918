"""The meta-architecture: a stock student, with a teacher beside it while it trains."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Callable, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mgd_det.config import check_values
from mgd_det.detectron2_types import UNLABELED, BatchedInputs, State
from mgd_det.distributed import from_first_rank, keep_own_share, rank
from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.maths.gradient_ratios import GradientPoint, GradientRatios
from mgd_det.methods import (
    CONFIDENCE,
    HEAD_TAPS,
    Features,
    FeaturesOfTap,
    LossInfo,
    MatchReport,
    Method,
    TapInfo,
)
from mgd_det.modules import ModuleWithProperties
from mgd_det.rng import isolated_rng

from .build import (
    build_methods,
    build_student,
    check_taps,
    check_teacher_scale,
    check_unlabeled,
    inspect_student,
    inspect_teacher,
    learn_without_labels,
)
from .heads import Captured, find_head
from .inherit import inherit
from .pairing import pair_maps
from .step_plan import StepPlan
from .tapped import TappedDetector, channels_first
from .taps import backbone_and_head_taps, evaluating, student_and_teacher_names
from .teacher import Teacher, TeacherSpec
from .teacher_ways import Way, fastest, ways

logger = logging.getLogger("detectron2." + __name__)

REVERSIBLE_FORMATS = ("RGB", "BGR")
# Keys of the teacher's digest, preprocessing and way to compute in the state, beside the methods' names.
TEACHER_KEY, PREPROCESSING_KEY, WAY_KEY = "teacher", "teacher_preprocessing", "teacher_way"

# Attributes of the student that Detectron2's tools (test-time augmentation, exporters, predictors, training
# visualisation) read on the model that they hold.
FORWARDED = frozenset(
    {
        *("backbone", "preprocess_image", "inference", "pixel_mean", "pixel_std", "num_classes"),
        *("head", "head_in_features", "anchor_generator", "box2box_transform", "anchor_matcher"),
        *("proposal_generator", "roi_heads", "sem_seg_head"),
        *("vis_period", "visualize_training", "test_score_thresh", "test_nms_thresh"),
        *("test_topk_candidates", "max_detections_per_image"),
    }
)


class NotMatchedError(RuntimeError):
    """A distiller was trained before its first matching was solved."""


@META_ARCH_REGISTRY.register()
class DistilledDetector(ModuleWithProperties):
    """Trains a stock detector with the losses of distillation methods added to its own.

    In eval mode it is the student and nothing else. Its `state_dict` is the student's, so that every
    checkpoint is one of the stock student. The teacher is loaded when training begins (:meth:`prepare`)
    and never before.

    Args:
        student: any Detectron2 detector; attribute `student`.
        methods: distillation methods by name; none trains the student alone.
        teacher: names the teacher's config and weights.
        built_teacher: the teacher with random weights, if it has been built already.
        backbone: path of the backbone in the student, as
            :class:`~mgd_det.modeling.tapped.TappedDetector` takes it.
        input_format: channel order of the images that the student is given.
        inherits: parts of the student that start as the teacher's, for :meth:`inherit`.
        resume_fresh: start methods afresh that an earlier run's state does not fit; all of them with another
            teacher.
    """

    @configurable
    def __init__(
        self,
        *,
        student: nn.Module,
        methods: Mapping[str, Method],
        teacher: TeacherSpec,
        built_teacher: Teacher | None = None,
        backbone: str = "",
        input_format: str,
        inherits: Sequence[str] = (),
        resume_fresh: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.tapped = TappedDetector(student, backbone)
        self.methods = cast("Mapping[str, Method]", nn.ModuleDict(methods))
        self.teacher_spec = teacher
        self.input_format = input_format
        self.inherits, self.resume_fresh = list(inherits), resume_fresh
        self._built_teacher = built_teacher
        self.teacher: Teacher | None = None  # until `prepare` has loaded it
        self._inherited = False
        self._way: Way | None = None  # in which the teacher computes, once one has been chosen
        self._plan = StepPlan()
        self._gradients: GradientRatios | None = None  # of the latest step that measured them
        self._taps: Mapping[str, TapInfo] = {}  # of the student, and of the teacher; filled by `prepare`
        self._teacher_taps: Mapping[str, TapInfo] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, student: nn.Module | None = None) -> dict[str, object]:
        """Reads DISTILL; a student that is given is taken as it is, whatever MODEL.META_ARCHITECTURE says."""
        check_values(cfg)
        # Move to the device first: building a method may run GPU-only operators.
        student = (build_student(cfg) if student is None else student).to(torch.device(cfg.MODEL.DEVICE))
        if cfg.DISTILL.CHANNELS_LAST:
            student.to(memory_format=torch.channels_last)
        tapped = TappedDetector(student, cfg.DISTILL.BACKBONE)
        methods, built_teacher = build_methods(cfg, tapped) if cfg.DISTILL.ENABLED else ({}, None)
        check_unlabeled(cfg, student, methods)
        check_teacher_scale(cfg, student, methods)
        return {
            "student": student,
            "methods": methods,
            "teacher": TeacherSpec.from_config(cfg),
            "built_teacher": built_teacher,
            "backbone": cfg.DISTILL.BACKBONE,
            "input_format": cfg.INPUT.FORMAT,
            "inherits": cfg.DISTILL.INHERIT if cfg.DISTILL.ENABLED else [],
            "resume_fresh": cfg.DISTILL.RESUME_FRESH,
        }

    @property
    def device(self) -> torch.device:
        """The device of the student."""
        return next(self.student.parameters()).device

    @property
    def taps(self) -> list[str]:
        """Names of all taps that the methods need, each once."""
        return list(dict.fromkeys(tap for method in self.methods.values() for tap in method.taps))

    @property
    def matching(self) -> list[Method]:
        """The methods that have a matching to solve."""
        return [method for method in self.methods.values() if method.matches]

    @property
    def ready(self) -> bool:
        """True once no method waits for its first matching."""
        return all(method.ready for method in self.methods.values())

    @property
    def losses(self) -> dict[str, LossInfo]:
        """Tap and weight of each of the methods' losses, by name."""
        return {name: info for method in self.methods.values() for name, info in method.losses.items()}

    def prepare(self) -> None:
        """Load the teacher, unless it is there, and check that the two networks fit.

        Raises:
            ConfigError: anything about the teacher or the taps that would not work.
        """
        if not self.methods or self.teacher is not None:
            return
        student = inspect_student(self.tapped, self.taps, "DISTILL.METHODS")
        teacher = self.teacher_spec.load(self.device, self._built_teacher)
        self._built_teacher = None
        self._check_formats(teacher)
        infos = inspect_teacher(teacher.tapped, self.taps, self.teacher_spec.config_file)
        check_taps(self.methods, student, infos, teacher.scale)
        for method in self.methods.values():
            method.attach(student, infos)
        self._taps, self._teacher_taps, self.teacher = student, infos, teacher

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

    @property
    def plan(self) -> StepPlan:
        """The plan that the next training forward pass follows."""
        return self._plan

    def plan_step(self, plan: StepPlan) -> None:
        """Set the plan of the next training step.

        Features and gradients are taken in the first training forward pass alone; the factor holds until
        another plan is set. A detector without a plan trains with the factor 1.
        """
        self._plan = plan

    def take_gradient_ratios(self) -> dict[str, float]:
        """Returns, after the backward pass of a step that measured gradients, how they compare; once.

        Returns:
            Name of a loss -> norm of its gradient, before the factors of the step's plan, over the norm of
            the task losses' gradient: at its tap in the backbone, or for one in the head at the backbone's
            outputs that the head is given. Empty where nothing was measured since the last call.
        """
        gradients, self._gradients = self._gradients, None  # lets go of the step's graph
        return {} if gradients is None else gradients.ratios()

    def forward(self, batched_inputs: BatchedInputs, *args: Any, **kwargs: Any) -> Any:
        """Runs the student; in training the methods' losses join its own.

        Images without labels, which have True under "unlabeled", do not change the student's own losses. It
        runs on them, in training mode, in a pass of their own, only as far as the methods need it. A loss
        of a method that needs no labels is then the mean over all images.

        Args:
            batched_inputs: the images, with the student's labels in training.
            *args, **kwargs: for the student.

        Returns:
            The student's outputs. In training they are a dict of losses, or a tuple that begins with one, to
            which the methods' losses are added.

        Raises:
            NotMatchedError: a method's matching has not been solved yet.
            ConfigError: the teacher is loaded now, and does not fit.
        """
        if not self.training:
            return self.student(batched_inputs, *args, **kwargs)
        unlabeled = [x for x in batched_inputs if x.get(UNLABELED)]
        if unlabeled:
            batched_inputs = [x for x in batched_inputs if not x.get(UNLABELED)]
        if not self.methods:
            return self.student(batched_inputs, *args, **kwargs)
        plan, self._plan = self._plan, self._plan.after_forward()
        if plan.loss_factor == 0:
            outputs = self.student(batched_inputs, *args, **kwargs)
            idle = self._skipped_losses(outputs) if plan.skipped else self._stopped_losses()
            return self._joined(outputs, idle)
        self.prepare()
        if not self.ready:
            raise NotMatchedError(
                "DistilledDetector is being trained, but no matching has been solved: register "
                "mgd_det.RematchHook(cfg) with the trainer, or call rematch() with batches of images"
            )
        batched_inputs = self.to_device(batched_inputs)
        points: dict[str, GradientPoint] | None = {} if plan.measure_gradients else None
        with self.capture_student(points) as student:
            outputs = self.student(batched_inputs, *args, **kwargs)
        self._choose_way(student, batched_inputs)
        features = self.pair(student, batched_inputs)
        losses = {}
        for method in self.methods.values():
            if plan.collect_statistics and method.matches:
                method.observe(features)
            losses.update(method(features))
        # Gradients are compared on the images from which the task learns.
        combined = self._with_unlabeled(losses, len(batched_inputs), self.to_device(unlabeled))
        distilled = {name: loss * plan.factor_of(name) for name, loss in combined.items()}
        if points is not None:
            self._gradients = self._compare(losses, distilled, points)
        return self._joined(outputs, distilled)

    def _with_unlabeled(
        self, losses: Mapping[str, Tensor], num_labeled: int, unlabeled: BatchedInputs
    ) -> Mapping[str, Tensor]:
        """Returns losses on images with labels, averaged with those on images without."""
        if not unlabeled:
            return losses
        methods = list(learn_without_labels(self.student, self.methods).values())
        taps = list(dict.fromkeys(tap for method in methods for tap in method.taps))
        names = [student_and_teacher_names(tap)[0] for tap in taps]
        features = self.pair(self.tapped.features(unlabeled, names), unlabeled, taps)
        share = len(unlabeled) / (num_labeled + len(unlabeled))
        combined = dict(losses)
        for method in methods:
            for name, loss in method(features).items():
                combined[name] = losses[name] * (1 - share) + loss * share
        return combined

    def _joined(self, outputs: Any, losses: Mapping[str, Tensor]) -> Any:
        """Returns a student's outputs in training with losses beside its own, or in place of them."""
        joined = {**self._own_losses(outputs), **losses}
        return (joined, *outputs[1:]) if isinstance(outputs, tuple) else joined

    def _own_losses(self, outputs: Any) -> Mapping[str, Tensor]:
        """Returns the losses among a student's outputs in training."""
        own = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
        if not isinstance(own, Mapping):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE",
                type(self.student).__name__,
                f"in training it returns a {type(own).__name__}, to which no losses can be added",
                "Have its forward return a dict of losses, or a tuple that begins with one.",
            )
        return own

    def capture_student(
        self, points: dict[str, GradientPoint] | None = None
    ) -> AbstractContextManager[Captured]:
        """While active, a forward pass of the student fills the yielded mapping: tap -> what it gives.

        Args:
            points: filled, by tap, with the places at which gradients can be looked at.
        """
        return self.tapped.capture([student_and_teacher_names(tap)[0] for tap in self.taps], points)

    def pair(
        self, student: Captured, batched_inputs: BatchedInputs, taps: Sequence[str] | None = None
    ) -> Features:
        """Runs the teacher on the student's images and lines up the two networks' features.

        Args:
            student: what the student gave at its taps for these images, see :meth:`capture_student`.
            batched_inputs: on the student's device, see :meth:`to_device`.
            taps: those to pair; None: all.

        Returns:
            Features by tap, as a method's `forward` takes them.
        """
        self.prepare()
        assert self.teacher is not None  # only a detector without methods has no teacher
        taps = self.taps if taps is None else taps
        images = [x["image"] for x in batched_inputs]
        teacher = self.teacher.features(images, self.input_format, self._teacher_names(taps), student)
        resizing = self.teacher.resizing(images)
        boxes = None
        wanted = any(method.wants_foreground for method in self.methods.values())
        if wanted and "instances" in batched_inputs[0]:  # a matching pass has none
            boxes = [x["instances"].gt_boxes.tensor.to(self.device) for x in batched_inputs]
        paired: dict[str, FeaturesOfTap] = {}
        for tap in taps:
            if tap in HEAD_TAPS:
                paired[tap] = find_head(self.student).pair(tap, student, teacher, batched_inputs)
            else:
                ours, theirs = student_and_teacher_names(tap)
                info = self._taps[tap]
                assert isinstance(info.stride, int)  # as of all taps in a backbone
                features = channels_first(teacher[theirs], self._teacher_taps[tap])
                confidence: Mapping[int, Tensor] | None = teacher.get(CONFIDENCE)
                if resizing is not None:
                    its_stride = self._teacher_taps[tap].stride
                    assert isinstance(its_stride, int)
                    features = resizing.features(features, its_stride, info.stride)
                    if confidence is not None:
                        confidence = resizing.levels(confidence, info.stride // its_stride)
                paired[tap] = pair_maps(
                    channels_first(student[ours], info),
                    features,
                    images,
                    info.stride,
                    boxes=boxes,
                    confidence=confidence,
                )
        return paired

    def _teacher_names(self, taps: Sequence[str]) -> list[str]:
        """Returns what the teacher is asked for where these taps are paired."""
        names = [student_and_teacher_names(tap)[1] for tap in taps]
        if any(m.wants_confidence and not set(taps).isdisjoint(m.taps) for m in self.methods.values()):
            names.append(CONFIDENCE)
        return names

    def _choose_way(self, student: Captured, batched_inputs: BatchedInputs) -> None:
        """Choose the teacher's precision and memory order on its first batch, where that is wanted.

        Process 0 chooses for all.
        """
        teacher, spec = self.teacher, self.teacher_spec
        if teacher is None or self._way is not None or not spec.chooses:
            return
        images, names = [x["image"] for x in batched_inputs], self._teacher_names(self.taps)

        def run(way: Way) -> Callable[[], object]:
            teacher.use(way)
            return lambda: teacher.features(images, self.input_format, names, student)

        choices = ways(spec.dtype, spec.channels_last, self.device)
        best = choices.index(fastest(choices, run)) if rank() == 0 else 0
        self._use_way(choices[from_first_rank(best)])

    def _use_way(self, way: Way) -> None:
        assert self.teacher is not None
        self.teacher.use(way)
        self._way = way

    def _compare(
        self,
        losses: Mapping[str, Tensor],
        entered: Mapping[str, Tensor],
        points: Mapping[str, GradientPoint],
    ) -> GradientRatios | None:
        """Begins a measurement of the losses that have a point; None where none has."""
        acting = {
            name: points.get(student_and_teacher_names(info.tap)[0]) for name, info in self.losses.items()
        }
        at = {name: (losses[name], point) for name, point in acting.items() if point is not None}
        return GradientRatios(at, list(entered.values())) if at else None

    def _stopped_losses(self) -> dict[str, Tensor]:
        """Zeros under the methods' loss names that still reach all their parameters, as DDP wants."""
        losses = {}
        for method in self.methods.values():
            losses.update(dict.fromkeys(method.losses, self._zero_of([method])))
        return losses

    def _skipped_losses(self, outputs: Any) -> dict[str, Tensor]:
        """One of the student's own losses, which reaches all parameters of the methods, as DDP wants."""
        name, loss = next(iter(self._own_losses(outputs).items()))
        return {name: loss + self._zero_of(self.methods.values())}

    def _zero_of(self, methods: Iterable[Method]) -> Tensor:
        """Returns a zero whose gradient with respect to all parameters of some methods is zero."""
        parameters = (p for method in methods for p in method.parameters())
        return sum((p.sum() * 0 for p in parameters), torch.zeros((), device=self.device))

    def rematch(
        self, batches: Iterable[BatchedInputs], sum_over_ranks: Callable[[Tensor], None] = keep_own_share
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
        self, batches: Iterable[BatchedInputs], sum_over_ranks: Callable[[Tensor], None] = keep_own_share
    ) -> None:
        """Replace the statistics that the matchings are solved from by those of a pass over images.

        Args:
            batches, sum_over_ranks: as :meth:`rematch`'s.

        Raises:
            ValueError: a process has no images; in all of them.
        """
        self.prepare()
        taps = list(dict.fromkeys(tap for method in self.matching for tap in method.taps))
        names, _ = backbone_and_head_taps([student_and_teacher_names(tap)[0] for tap in taps])
        seen = 0
        with isolated_rng(), evaluating(self.student):
            for batch in batches:
                seen += len(batch)
                batch = self.to_device(batch)
                features = self.pair(self.tapped.run(batch, names).features, batch, taps)
                for method in self.matching:
                    method.observe(features)
        without = torch.tensor(float(not seen))
        sum_over_ranks(without)
        if without:
            number = int(without)
            raise ValueError(f"there are no images to solve the matching from in {number} of the processes")
        for method in self.matching:
            method.absorb(sum_over_ranks, decay=0)

    @torch.no_grad()
    def solve(self) -> list[MatchReport]:
        """Solve the matchings of all methods from the statistics that they have."""
        return [report for method in self.methods.values() for report in method.solve()]

    def distill_state(self) -> State:
        """Returns the methods' state dicts by name, on the CPU, and the digest of their teacher."""
        state: State = {name: _to_cpu(method.state_dict()) for name, method in self.methods.items()}
        if self.teacher is not None:
            state[TEACHER_KEY] = self.teacher.digest
            state[PREPROCESSING_KEY] = self.teacher.preprocessing
        if self._way is not None:
            state[WAY_KEY] = self._way._asdict()
        return state

    def load_distill_state(self, state: State) -> list[str]:
        """Take up the state of an earlier run.

        Returns:
            The names of the methods that go on; with `resume_fresh` others may start afresh.

        Raises:
            ConfigError: that run had another teacher, other methods, taps or widths, and `resume_fresh` is
                not set.
        """
        self.prepare()  # a state is checked against the teacher
        state = dict(state)
        self._check_preprocessing(state.pop(PREPROCESSING_KEY, None))
        then, now = state.pop(TEACHER_KEY, None), None if self.teacher is None else self.teacher.digest
        another_teacher = bool(then and now and then != now)
        way, spec = state.pop(WAY_KEY, None), self.teacher_spec
        if way and spec.chooses and not another_teacher:
            chosen = Way(**way)
            if chosen in ways(spec.dtype, spec.channels_last, self.device):
                self._use_way(chosen)
        if not self.resume_fresh:
            if another_teacher:
                key, value = "DISTILL.TEACHER.WEIGHTS", self.teacher_spec.weights_path()
                problem = "not those of the teacher that the checkpoint is of"
                raise ConfigError(key, value, problem, RESUME_REMEDY)
            if set(state) != set(self.methods):
                problem = f"the checkpoint was trained with {list(state)}"
                raise ConfigError("DISTILL.METHODS", list(self.methods), problem, RESUME_REMEDY)
        kept = []
        for name, method in self.methods.items():
            if another_teacher:
                self._start_afresh(name, "the checkpoint is of a run with another teacher")
            elif name not in state:
                self._start_afresh(name, "the checkpoint is of a run without it")
            elif self._load_method_state(name, method, state[name]):
                kept.append(name)
        return kept

    def _check_preprocessing(self, saved: list[object] | None) -> None:
        now = None if self.teacher is None else self.teacher.preprocessing
        if saved and now and saved != now and not self.resume_fresh:
            problem = (
                f"its images are prepared by {now}, and those of the run that is resumed were by {saved}"
            )
            raise ConfigError(
                "DISTILL.TEACHER.CONFIG_FILE", self.teacher_spec.config_file, problem, RESUME_REMEDY
            )

    def _load_method_state(self, name: str, method: Method, state: State) -> bool:
        """Returns True if the method goes on from the state, and False if it starts afresh."""
        fresh = copy.deepcopy(method.state_dict())
        try:
            method.load_state_dict(state)
            return True
        except (ConfigError, RuntimeError) as error:
            method.load_state_dict(fresh)  # nothing stays half loaded
            if self.resume_fresh:
                self._start_afresh(name, error)
                return False
            if isinstance(error, ConfigError):
                raise
            key, problem = f"DISTILL.{name.upper()}", f"its state in the checkpoint is another ({error})"
            raise ConfigError(key, method.taps, problem, RESUME_REMEDY) from error

    def _start_afresh(self, name: str, reason: object) -> None:
        logger.warning("DISTILL.RESUME_FRESH: %s starts afresh: %s", name, reason)

    def to_device(self, batched_inputs: BatchedInputs) -> BatchedInputs:
        """Move the images once, for both networks."""
        return [{**x, "image": x["image"].to(self.device)} for x in batched_inputs]

    def _check_formats(self, teacher: Teacher) -> None:
        formats = (self.input_format, teacher.input_format)
        if formats[0] != formats[1] and not set(formats) <= set(REVERSIBLE_FORMATS):
            raise ConfigError(
                "INPUT.FORMAT",
                self.input_format,
                f"the teacher takes {teacher.input_format!r} images, and no exact conversion is known",
                "Give the student the teacher's format.",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DistilledDetector:
        if self.teacher is not None:  # it follows `.to()`, `.cuda()` and `.half()`
            self.teacher.follow(fn)
        return super()._apply(fn, recurse)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yields the student's modules under their stock names, and the methods' under `methods`.

        `named_parameters` and `named_buffers` go by it. So what chooses parameters by name, such as learning
        rates that fall from layer to layer, finds the student's as it would find them without a teacher.
        """
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            yield from self.student.named_modules(memo, prefix, remove_duplicate)
            methods = cast(nn.Module, self.methods)
            yield from methods.named_modules(memo, f"{prefix}.methods".lstrip("."), remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the student's, under its stock names."""
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Loads the student's."""
        return self.student.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state: State, prefix: str, *args: Any) -> None:
        """Loads the student alone, where the detector is a part of another module."""
        for name in [name for name in state if name.startswith(prefix)]:
            state[f"{prefix}student.{name.removeprefix(prefix)}"] = state.pop(name)
        cast(nn.Module, self.methods).state_dict(destination=state, prefix=f"{prefix}methods.")
        super()._load_from_state_dict(state, prefix, *args)

    def __getattr__(self, name: str) -> Any:
        # fvcore looks modules up by the names in the state dict, which are the student's.
        if name in FORWARDED or (name != "student" and name in dict(self.student.named_children())):
            return getattr(self.student, name)
        return super().__getattr__(name)


def _to_cpu(value: object) -> object:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _to_cpu(item) for key, item in value.items()}
    return value
