"""Training steps: their time and memory, and the losses of a method by themselves."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Callable

import torch
from benchmarking.timing import Job, Timing, in_turn
from commandline import Figures
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mgd_det.detectron2_types import BatchedInputs
from mgd_det.engine.automatic_weights import FIRST as AT_FIRST
from mgd_det.engine.optimizer import build_optimizer
from mgd_det.engine.schedules import UpdateSchedule, WeightSchedule
from mgd_det.modeling.step_plan import StepPlan
from mgd_det.modeling.taps import student_and_teacher_names
from mgd_det.modeling.teacher import TeacherSpec

OBJECTS = 7  # in an image; COCO's mean


class Bench:
    """A distilled detector with a teacher of random weights, and one batch.

    Args:
        cfg: of the run; its teacher's weights are left aside.
        method: the one method that distils.
        folder: for the teacher's weights.
        images: of the batch.
        size: height and width of the largest image; the others are up to a fifth smaller, as in training,
            so that there is padding.
        dtype: of autocast; None: float32 without it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        method: str,
        folder: Path,
        images: int,
        size: tuple[int, int],
        dtype: torch.dtype | None,
    ) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS, cfg.DISTILL.METHODS, cfg.DISTILL.ENABLED = "", [method], True
        cfg.SOLVER.BASE_LR = 0.0  # noise would soon drive random weights out of bounds
        self.device, self.dtype = torch.device(cfg.MODEL.DEVICE), dtype
        torch.manual_seed(0)
        weights = folder / "teacher.pth"
        if not weights.exists():
            teacher = TeacherSpec.from_config(cfg).build(torch.device("cpu"))
            torch.save({"model": teacher.model.state_dict()}, weights)
        cfg.DISTILL.TEACHER.WEIGHTS = str(weights)
        self.cfg = cfg
        self.model: Any = build_model(cfg)
        self.optimizer = build_optimizer(cfg, self.model)
        self.batch = random_batch(images, size, cfg.MODEL.RETINANET.NUM_CLASSES)
        self.model.rematch([self.batch])
        self.names = [student_and_teacher_names(tap)[1] for tap in self.model.taps]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Enter the contexts that a trainer has around a forward pass."""
        autocast = torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
        with EventStorage(), autocast:
            yield

    def student_step(self) -> None:
        """Take a step of stock training."""
        with self.running():
            losses = self.model.student(self.batch)
        self.update(losses)

    def floor_step(self) -> None:
        """Take the same step, and run as much of the teacher as the taps need."""
        with self.running():
            batch = self.model.to_device(self.batch)
            losses = self.model.student(batch)
            self.teacher_pass(batch)
        self.update(losses)

    def teacher_pass(self, batch: BatchedInputs) -> None:
        """Run the teacher as far as the taps need it, on a batch that is on the device."""
        self.model.teacher.features([x["image"] for x in batch], self.model.input_format, self.names)

    def distilled_step(self) -> None:
        with self.running():
            losses = self.model(self.batch)
        self.update(losses)

    def cycle(self) -> None:
        """Take the DISTILL.TEACHER.EVERY steps in one of which the teacher runs."""
        schedule = WeightSchedule.from_config(self.cfg)
        for iteration in range(schedule.teacher_every):
            factor, skipped = schedule.factor(iteration), schedule.skips(iteration)
            self.model.plan_step(StepPlan(loss_factor=factor, skipped=skipped))
            self.distilled_step()

    def measuring_step(self) -> None:
        """Take a distilled step that also compares the gradients of the losses with the task's."""
        self.model.plan_step(StepPlan(measure_gradients=True))
        self.distilled_step()
        self.model.take_gradient_ratios()

    @cached_property
    def features(self) -> Figures:
        """The features of all taps in a step, as the methods get them."""
        seen: list[Figures] = []
        method = next(iter(self.model.methods.values()))
        handle = method.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        with self.running():
            self.model(self.batch)
        handle.remove()
        return seen[0]

    def observing(self) -> None:
        """Do the work that the online mode adds to a step from which it takes statistics."""
        for method in self.model.matching:
            method.observe(self.features)
            method.absorb(lambda tensor: None, self.cfg.DISTILL.EXPERIMENT.ONLINE_DECAY)

    def passed_batch(self) -> None:
        """One batch of a pass over images, without the solving that ends the pass."""
        self.model.observe_pass([self.batch])

    def solving(self) -> None:
        """Solve the matching from the statistics that are there."""
        self.model.solve()

    def update(self, losses: dict[str, torch.Tensor]) -> None:
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()


def random_batch(images: int, size: tuple[int, int], classes: int) -> BatchedInputs:
    """Returns noise with boxes, in the form of Detectron2's data loaders."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for index in range(images):
        smaller = 1 - 0.2 * index / max(images - 1, 1)
        height, width = round(size[0] * smaller), size[1]
        corner = torch.rand(OBJECTS, 2, generator=generator) * 0.7
        extent = 0.05 + torch.rand(OBJECTS, 2, generator=generator) * 0.25
        boxes = torch.cat([corner, corner + extent], 1) * torch.tensor([width, height, width, height])
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(classes, (OBJECTS,), generator=generator)
        pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)
        batch.append({"image": pixels, "instances": instances, "height": height, "width": width})
    return batch


def method_steps(bench: Bench, runs: int) -> Figures:
    """Seconds of each kind of step, and what they come to."""
    jobs: dict[str, Job] = {
        "student": bench.student_step,
        "floor": bench.floor_step,
        "distilled": bench.distilled_step,
        "measuring": bench.measuring_step,
    }
    matches = bool(bench.model.matching)
    if matches:
        jobs |= {"observe": bench.observing, "pass": bench.passed_batch, "solve": bench.solving}
    seconds = in_turn(jobs, runs, bench.device)
    kinds = ("student", "floor", "distilled")
    found: Figures = {
        "seconds": {name: timing._asdict() for name, timing in seconds.items()},
        "over the floor": seconds["distilled"].over(seconds["floor"])._asdict(),
        "over the student": seconds["distilled"].over(seconds["student"])._asdict(),
        "flops": {kind: count_flops(jobs[kind]) for kind in kinds},
        "gradients": gradient_share(bench.cfg, seconds["measuring"].over(seconds["distilled"]).median),
    }
    if matches:
        found["schedule"] = schedule_of(bench.cfg)
        medians = {name: timing.median for name, timing in seconds.items()}
        found["shares"] = matching_shares(medians, len(bench.batch), found["schedule"])
    return found


def matching_shares(
    seconds: Mapping[str, float], images: int, schedule: Mapping[str, int]
) -> dict[str, float]:
    """Returns what share of the training time matching takes: by pass, online, and a first pass alone.

    Images are taken to cost the same in batches of any size, and solving, which does not depend on them, is
    counted once for each matching.

    Args:
        seconds: of a distilled step, of taking statistics in one, of a batch of a pass, and of a solving.
        images: of the batch that was measured.
        schedule: as :func:`schedule_of`'s.
    """
    training = schedule["iterations"] * schedule["batch"] / images * seconds["distilled"]
    one_pass = schedule["images of a pass"] / images * seconds["pass"]
    solving = schedule["passes"] * seconds["solve"]
    observed = seconds["observe"] / seconds["distilled"] / schedule["online every"]
    return {
        "online": observed + solving / training,
        "first pass": one_pass / training,
        "pass": (schedule["passes"] * one_pass + solving) / training,
    }


def gradient_share(cfg: CfgNode, ratio: float) -> Figures:
    """Returns what share of the training time it takes to compare gradients under DISTILL.STRENGTH.

    Args:
        cfg: of the run.
        ratio: of the time of a distilled step that compares them to that of one that does not.
    """
    period, iterations = cfg.DISTILL.GRADIENT_PERIOD, cfg.SOLVER.MAX_ITER
    times = AT_FIRST + (iterations / period if period else 0)
    return {
        "ratio": ratio,
        "period": period,
        "iterations": iterations,
        "share": (ratio - 1) * times / iterations,
    }


def count_flops(step: Job) -> int:
    """Multiplications and additions of a step's convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def tap_growth(cfg: CfgNode, method: str, arguments: tuple[Any, ...], runs: int) -> list[Figures]:
    """Steps with the method's first tap alone, with its first two, and so on.

    Args:
        arguments: of :class:`Bench`, behind the method.
    """
    rows = []
    for number in range(1, len(cfg.DISTILL[method.upper()].TAPS) + 1):
        fewer = cfg.clone()
        node = fewer.DISTILL[method.upper()]
        node.TAPS = node.TAPS[:number]
        node.LOSS_WEIGHTS = node.LOSS_WEIGHTS[:number]  # one for all, or one for each
        steps = method_steps(Bench(fewer, method, *arguments), runs)
        rows.append({"taps": list(node.TAPS), **steps})
    return rows


CHEAPER: dict[str, Figures] = {
    "as the training": {},
    "DTYPE auto, CHANNELS_LAST auto": {"DTYPE": "auto", "CHANNELS_LAST": "auto"},
    "SCALE 0.5": {"SCALE": 0.5},
    "EVERY 2": {"EVERY": 2},
    "EVERY 2, DTYPE auto, CHANNELS_LAST auto": {"EVERY": 2, "DTYPE": "auto", "CHANNELS_LAST": "auto"},
    "EVERY 4": {"EVERY": 4},
}


def cheaper_teachers(cfg: CfgNode, method: str, arguments: tuple[Any, ...], runs: int) -> list[Figures]:
    """Steps whose teacher is made cheaper by keys of DISTILL.TEACHER, over the student's own step.

    With EVERY it is the mean of the steps with and without the teacher.

    Args:
        arguments: of :class:`Bench`, behind the method.
    """
    jobs: dict[str, Job] = {"student": Bench(cfg, method, *arguments).student_step}
    for way, changes in CHEAPER.items():
        changed = cfg.clone()
        changed.DISTILL.TEACHER.update(changes)
        jobs[way] = Bench(changed, method, *arguments).cycle
    seconds = in_turn(jobs, runs, torch.device(cfg.MODEL.DEVICE))
    rows = []
    for way, changes in CHEAPER.items():
        step = Timing(*(taken / changes.get("EVERY", 1) for taken in seconds[way]))
        ratio = step.over(seconds["student"])
        rows.append({"way": way, "seconds": step._asdict(), "over the student": ratio._asdict()})
    return rows


def schedule_of(cfg: CfgNode) -> dict[str, int]:
    """Returns how often a run of this config solves its matching, and from how many images."""
    updates, last = UpdateSchedule.from_config(cfg), cfg.SOLVER.MAX_ITER
    return {
        "passes": 1 + sum(updates.due(i) for i in range(1, last)),
        "images of a pass": cfg.DISTILL.MATCHING.NUM_IMAGES,
        "online every": cfg.DISTILL.MATCHING.ONLINE_EVERY,
        "iterations": last,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
    }


def method_losses(bench: Bench, runs: int) -> Figures:
    """Forward and backward of all losses down to the student's features, with norms and adapters."""
    method = next(iter(bench.model.methods.values()))
    features = {tap: detached(entry) for tap, entry in bench.features.items()}
    leaves = [leaf for entry in features.values() for leaf in tensors(entry, "student")]
    copied = [teacher for entry in features.values() for teacher in tensors(entry, "teacher")]
    buffers = [torch.empty_like(teacher) for teacher in copied]

    def copy() -> None:
        for teacher, buffer in zip(copied, buffers):
            buffer.copy_(teacher)

    def losses() -> None:
        for tensor in (*leaves, *method.parameters()):
            tensor.grad = None
        with bench.running():
            total = torch.stack(list(method(features).values())).sum()
        total.backward()

    jobs: dict[str, Job] = {"copy": copy, "losses": losses}
    if method.matches:
        jobs["observe"] = bench.observing
    seconds = in_turn(jobs, runs, bench.device, warm=True)
    return {
        "copy_seconds": seconds["copy"].median,
        "mebibytes": sum(teacher.nbytes for teacher in copied) / 2**20,
        "ratios": {kind: seconds[kind].over(seconds["copy"])._asdict() for kind in jobs if kind != "copy"},
    }


def detached(entry: Any) -> Any:
    """Features of a tap, of all levels of a head or of predictions, cut off the student's graph."""
    if isinstance(entry, list):
        return [detached(level) for level in entry]
    return entry._replace(student=mapped(lambda tensor: tensor.detach().requires_grad_(), entry.student))


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A tensor, or a named tuple of some, changed."""
    if isinstance(value, Tensor) or value is None:
        return None if value is None else change(value)
    return type(value)(*(mapped(change, part) for part in value))


def tensors(entry: Any, side: str) -> Iterator[Tensor]:
    """Those of one network."""
    if isinstance(entry, list):
        for level in entry:
            yield from tensors(level, side)
        return
    value = getattr(entry, side)
    yield from ([value] if isinstance(value, Tensor) else (part for part in value if part is not None))


PROCESSES, STEPS = 3, 3
# What is freed goes back to the system: else glibc keeps some of it, how much depends on what lay where.
# Read when a process starts; other C libraries pass over them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


KINDS = ("student", "floor", "distilled")


def peak_memory(processes: int, *arguments: Any) -> dict[str, float]:
    """MiB at the peak of student, floor and distilled steps; on the CPU the least of several processes.

    Args:
        processes: for each kind.
        arguments: of Bench. On the CPU what the process held before it built anything is left out.
    """
    if torch.device(arguments[0].MODEL.DEVICE).type == "cuda":
        return _allocated(Bench(*arguments))
    return {kind: min(_in_process(kind, arguments) for _ in range(processes)) for kind in KINDS}


def _allocated(bench: Bench) -> dict[str, float]:
    """MiB that torch has allocated on the GPU at the peak, which it counts: one process is enough."""
    found = {}
    for kind in KINDS:
        bench.optimizer.zero_grad()
        gc.collect()  # of what was measured before
        torch.cuda.reset_peak_memory_stats()
        for _ in range(STEPS):
            getattr(bench, f"{kind}_step")()
        found[kind] = torch.cuda.max_memory_allocated() / 2**20
    return found


def _in_process(kind: str, arguments: tuple[Any, ...]) -> float:
    with _environment(ALLOCATOR), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (kind, arguments))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _peak(kind: str, arguments: tuple[Any, ...]) -> float:
    before = _resident()
    bench = Bench(*arguments)
    with suppress(OSError):  # not every container has it
        Path("/proc/self/clear_refs").write_text("5")  # building them took more than they hold
    for _ in range(STEPS):
        getattr(bench, f"{kind}_step")()
    return _resident() - before


def _resident() -> float:
    """The largest resident size so far, in MiB; getrusage's would be the parent's, where that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
