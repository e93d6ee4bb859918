"""Parts of a step by themselves: the pooled loss, the solver, the teacher's pass, the data loader."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import torch
from benchmarking.steps import OBJECTS, Bench, random_batch
from benchmarking.timing import Job, in_turn
from commandline import Figures
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.trainer import Trainer
from mgd_det.maths import kernels
from mgd_det.maths.kernels import eager
from mgd_det.maths.losses import partial_l2, pooled_partial_l2
from mgd_det.maths.matching import assign_groups, channel_cost
from mgd_det.maths.reducers import absolute_max
from mgd_det.modeling.tapped import inference_inputs
from mgd_det.modeling.taps import evaluating, student_and_teacher_names
from mgd_det.modeling.teacher import TeacherSpec


class Size(NamedTuple):
    """The size of a tap's features."""

    images: int
    student: int
    teacher: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"({self.images}, {self.student} from {self.teacher}, {self.height}, {self.width})"


CPU_SIZE, GPU_SIZE = Size(2, 64, 256, 100, 152), Size(16, 64, 256, 200, 304)


def pooled_loss(
    device: torch.device, runs: int, dtype: torch.dtype | None = None, compiled: bool = False
) -> list[Figures]:
    """Time the forward and backward pass of absolute max pooling with the partial L2 loss, at several sizes.

    The limit is what a copy's bandwidth allows for the bytes that must move: teacher and student are read,
    the distances written and read again, the gradient written.

    Args:
        dtype: of the features; None: float32.
        compiled: also time what torch.compile makes of plain torch, which takes some seconds a size.
    """
    base = GPU_SIZE if device.type == "cuda" else CPU_SIZE
    half = base._replace(height=base.height // 2)
    sizes = {
        "": base,
        "half the positions": half,
        "half the images": base._replace(images=base.images // 2),
        "half the student's channels": base._replace(student=base.student // 2),
        "half of both sides' channels": base._replace(student=base.student // 2, teacher=base.teacher // 2),
    }
    return [
        {"what": what, "size": str(size), **one_size(size, device, runs, dtype or torch.float32, compiled)}
        for what, size in sizes.items()
    ]


def one_size(
    size: Size,
    device: torch.device,
    runs: int,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Figures:
    """Time the loss at one size, as ratios to a copy of the teacher's features."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    student = normal(size.images, size.student, size.height, size.width).requires_grad_()
    teacher = normal(size.images, size.teacher, size.height, size.width)
    groups = torch.randperm(size.teacher, generator=torch.Generator().manual_seed(0)).to(device)
    groups = groups.reshape(size.student, -1)
    jobs = loss_jobs(student, teacher, groups, -normal(size.student).abs(), compiled)
    seconds = in_turn(jobs, runs, device, warm=True)
    distances = student.numel() * torch.float32.itemsize
    must_move = teacher.nbytes + 2 * student.nbytes + 2 * distances
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "ratios": {name: timing.over(seconds["copy"])._asdict() for name, timing in seconds.items()},
        "copy_seconds": seconds["copy"].minimum,
        "limit": must_move / (2 * teacher.nbytes),  # a copy reads and writes
    }


def loss_jobs(
    student: Tensor, teacher: Tensor, groups: Tensor, margin: Tensor, compiled: bool
) -> dict[str, Job]:
    """Returns the loss in each way to compute it, with its gradient, and a copy of the teacher's features.

    Args:
        student: (N, C, H, W), with `requires_grad`.
        teacher: (N, D, H, W), in the same dtype.
        groups: (C, K) int64.
        margin: (C,).
        compiled: whether to add what torch.compile makes of the two ways in plain torch.
    """
    buffer = torch.empty_like(teacher)

    def step(loss: Callable[[], Tensor]) -> Job:
        def job() -> None:
            student.grad = None
            loss().backward()

        return job

    def sequence(student: Tensor, teacher: Tensor) -> Tensor:
        return partial_l2(student, absolute_max(teacher, groups), margin, "mean")

    def plain(student: Tensor, teacher: Tensor) -> Tensor:
        _, difference = eager.pooled_difference(student.float(), teacher, groups, margin.float(), None, True)
        assert difference is not None
        # This is the backward pass.
        return (difference * (2 / student.numel())).to(student.dtype)

    jobs: dict[str, Job] = {
        "copy": lambda: buffer.copy_(teacher),
        "plain torch": lambda: plain(student.detach(), teacher),
        "in sequence": step(lambda: sequence(student, teacher)),
    }
    if student.device.type == "cuda" and kernels.triton_kernel(torch.float32, teacher.dtype):
        jobs["fused"] = step(lambda: pooled_partial_l2(student, teacher, groups, margin, "mean"))
    if compiled:
        torch.compiler.reset()  # else the sizes before count towards the limit of compilations
        plain_compiled = torch.compile(plain, dynamic=False)
        sequence_compiled = torch.compile(sequence, dynamic=False)
        jobs["plain, compiled"] = lambda: plain_compiled(student.detach(), teacher)
        jobs["sequence, compiled"] = step(lambda: sequence_compiled(student, teacher))
    return jobs


def feature_costs(cfg: CfgNode, folder: Path, trained: bool) -> dict[str, Tensor]:
    """Returns the matching costs of `mgd` at its taps, (Cs, Ct) each, from features of photographs.

    How long a solver takes depends on the costs, and those of features are unlike random matrices.

    Args:
        cfg: of the run.
        folder: for random weights of the teacher.
        trained: take the weights that the config names; otherwise both networks have random ones.
    """
    from sklearn.datasets import load_sample_images  # no part of what this package needs

    photos = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    if trained:
        cfg = cfg.clone()
        cfg.DISTILL.ENABLED, cfg.DISTILL.METHODS = True, ["mgd"]
        model: Any = build_model(cfg)
        ReportingCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        model = Bench(cfg, "mgd", folder, 1, (64, 64), None).model
    batch = model.to_device(inference_inputs(photos))
    names = [student_and_teacher_names(tap)[0] for tap in model.taps]
    with torch.no_grad(), evaluating(model.student):
        features = model.pair(model.tapped.features(batch, names), batch)
    return {tap: channel_cost(maps.student, maps.teacher, maps.mask).cpu() for tap, maps in features.items()}


def re_solve(costs: Mapping[str, Tensor], runs: int) -> list[Figures]:
    """Time assign_groups beside scipy's solver alone, on the square matrix that it is given.

    Args:
        costs: (Cs, Ct) by tap, where Cs divides Ct or Ct divides Cs.
        runs: of everything; a fifth of them is made.
    """
    rows = []
    for tap, cost in costs.items():
        students, teachers = cost.shape
        repeats = (max(teachers // students, 1), max(students // teachers, 1))
        square = np.tile(cost.double().numpy(), repeats)
        jobs: dict[str, Job] = {
            "solver": lambda square=square: linear_sum_assignment(square),  # type: ignore[misc]
            "re-solve": lambda cost=cost: assign_groups(cost),  # type: ignore[misc]
        }
        seconds = in_turn(jobs, max(runs // 5, 3), torch.device("cpu"), warm_up=1)
        rows.append(
            {
                "tap": tap,
                "matrix": [students, teachers],
                "solver_seconds": seconds["solver"].minimum,
                "ratio": seconds["re-solve"].over(seconds["solver"])._asdict(),
            }
        )
    return rows


AS_IS = "as the training"
WAYS: dict[str, Figures] = {
    AS_IS: {},
    "CHANNELS_LAST True": {"channels_last": True},
    "DTYPE bfloat16": {"dtype": "bfloat16"},
    "COMPILE True": {"compile": True},
    "CHANNELS_LAST True, DTYPE bfloat16": {"channels_last": True, "dtype": "bfloat16"},
}


def teacher_ways(
    cfg: CfgNode, images: int, size: tuple[int, int], dtype: torch.dtype | None, runs: int
) -> list[Figures]:
    """Seconds of a pass for the taps of `mgd`, by the keys of DISTILL.TEACHER.

    Args:
        images, size, dtype: as :class:`benchmarking.steps.Bench`'s.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    plain = replace(TeacherSpec.from_config(cfg), dtype="", channels_last=False, compile=False)
    batch = [x["image"].to(device) for x in random_batch(images, size, classes=1)]
    names = [student_and_teacher_names(tap)[1] for tap in cfg.DISTILL.MGD.TAPS]
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    jobs = {}
    for way, changes in WAYS.items():
        torch.manual_seed(0)
        teacher = replace(plain, **changes).build(device)
        jobs[way] = autocast(partial(teacher.features, batch, teacher.input_format, names))
    seconds = in_turn(jobs, runs, device)
    return [
        {"way": way, "seconds": timing._asdict(), "ratio": timing.over(seconds[AS_IS])._asdict()}
        for way, timing in seconds.items()
    ]


PHOTOS, COPIES = "benchmark_photos", 64


def use_photos(cfg: CfgNode, folder: Path) -> None:
    """Train on scikit-learn's two sample photographs, JPEG files of 427 x 640: as large as COCO's."""
    from sklearn.datasets import load_sample_images  # no part of what this package needs

    files = [Path(name) for name in load_sample_images().filenames]
    images: list[Figures] = []
    annotations: list[Figures] = []
    for index in range(COPIES):
        file = files[index % len(files)]
        shutil.copy(file, folder / f"{index}.jpg")
        with Image.open(file) as image:
            width, height = image.size
        images.append({"id": index, "file_name": f"{index}.jpg", "width": width, "height": height})
        for number in range(OBJECTS):
            box = [20 * number, 10 * number, 200, 150]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": index, "category_id": 1, "iscrowd": 0},
                    **{"bbox": box, "area": box[2] * box[3]},
                }
            )
    categories = [{"id": i + 1, "name": str(i)} for i in range(cfg.MODEL.RETINANET.NUM_CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "photos.json").write_text(json.dumps(content))
    cfg.DATASETS.REGISTER = [[PHOTOS, str(folder / "photos.json"), str(folder)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (PHOTOS,)
    register_datasets(cfg)


def loader_share(cfg: CfgNode, images: int, batches: int, step: float) -> Figures:
    """Seconds that the loader takes for a batch, beside those of a step, and what it makes of a second."""
    cfg = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = images
    loader = iter(Trainer.build_train_loader(cfg))
    for _ in range(3):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    seconds = (time.perf_counter() - start) / batches
    return {
        "seconds": seconds,
        "of a step": seconds / step,
        "images a second": images / seconds,
        "workers": cfg.DATALOADER.NUM_WORKERS,
    }
