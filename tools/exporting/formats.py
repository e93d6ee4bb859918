"""A detector as a file that runs without Detectron2: TorchScript and ONNX, both by tracing.

Why tracing: scripting, Detectron2's other way, does not compile a RetinaNet head with batch norm, which picks
its layers by a counter, nor what LazyConfigs build. Why the older of torch's two ONNX exporters: the newer,
by `torch.export`, stops at sizes that depend on the image: the padding in Detectron2 0.6, the number of boxes
on its main branch. And Detectron2's `Caffe2Tracer` needs caffe2, which torch no longer brings.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import detectron2
import torch
from detectron2.modeling import GeneralizedRCNN
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mgd_det.errors import ConfigError

OPSET = 17  # from 16 on RoiAlign has what Detectron2's pooling does

Runnable = Callable[[Tensor], "dict[str, Tensor]"]


def check_packages(formats: Sequence[str]) -> None:
    """Raise a ConfigError where a format needs a package that is not installed."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        problem = (
            f"writing and checking ONNX takes the Python packages onnx and onnxruntime; not found: {missing}"
        )
        raise ConfigError("--format", "onnx", problem, "Install them with pip, or export torchscript alone.")


def _detectron2_export(name: str) -> Any:
    """A module of `detectron2.export`.

    That package of 0.6 imports caffe2 on top, which torch no longer brings, so that nothing in it can be
    imported. The modules used here do not need it, and are imported below an empty package of that name.
    """
    try:
        importlib.import_module("detectron2.export")
    except ImportError:
        package = types.ModuleType("detectron2.export")
        package.__path__ = [os.path.join(os.path.dirname(detectron2.__file__), "export")]
        sys.modules["detectron2.export"] = package
    return importlib.import_module(f"detectron2.export.{name}")


class Detector(nn.Module):
    """A detector that takes an image and returns tensors, and so can be traced.

    Args:
        model: a Detectron2 detector in eval mode.
        image: (3, H, W) float32, an example.

    Attributes:
        names: of the tensors that it returns: pred_boxes, pred_classes, pred_masks of a Mask R-CNN, scores,
            and image_size, the (H, W) that the boxes are in.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        inference = _raw_instances if isinstance(model, GeneralizedRCNN) else None
        adapter = _detectron2_export("flatten").TracingAdapter
        self.adapter = adapter(model, [{"image": image}], inference)
        self.eval()
        self.adapter(image)  # which finds out what it returns
        (output,) = self.adapter.outputs_schema.schemas
        (instances,) = output.schemas
        self.names = [*instances.keys, "image_size"]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.adapter(image)

    def named(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the outputs for an image by name."""
        return dict(zip(self.names, self(image)))


def _raw_instances(model: Any, inputs: Any) -> list[dict[str, Any]]:
    # Masks stay in their boxes: pasting them into the image cannot be traced.
    (instances,) = model.inference(inputs, do_postprocess=False)
    return [{"instances": instances}]


def write_torchscript(detector: Detector, image: Tensor, path: Path) -> Runnable:
    """Write the file, read it back, and return what runs it."""
    with warnings.catch_warnings():
        # Of sizes that tracing may freeze, which the comparison at two of them tells better; of its future.
        warnings.simplefilter("ignore")
        torch.jit.trace(detector, (image,), check_trace=False).save(str(path))
        loaded = torch.jit.load(str(path))

    def run(image: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(detector.names, loaded(image)))

    return run


def write_onnx(detector: Detector, image: Tensor, path: Path) -> Runnable:
    """Write the file, read it back with ONNX Runtime, and return what runs it."""
    import onnxruntime

    sizes: dict[str, dict[int, str]] = {name: {0: "detections"} for name in detector.names[:-1]}
    # Versions of torch that have but the older exporter do not know its name.
    older: dict[str, Any] = (
        {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        torch.onnx.export(
            detector,
            (image,),
            str(path),
            opset_version=OPSET,
            input_names=["image"],
            output_names=detector.names,
            dynamic_axes={"image": {1: "height", 2: "width"}, **sizes},
            **older,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the others are timed with
    options.log_severity_level = 3  # errors; its warnings are of constants that it folds
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> dict[str, Tensor]:
        outputs = session.run(detector.names, {"image": image.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(detector.names, outputs)}

    return run


FORMATS = {"torchscript": (write_torchscript, "student.ts"), "onnx": (write_onnx, "student.onnx")}


BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3  # of scores, and of the probabilities of masks


class Disagreement(Exception):
    """An exported network detects something else than PyTorch; the text says what."""


class Agreement(NamedTuple):
    """The largest differences between the detections of two programs."""

    detections: int
    box: float  # pixels
    score: float

    def __add__(self, other: object) -> Agreement:
        assert isinstance(other, Agreement)
        box, score = max(self.box, other.box), max(self.score, other.score)
        return Agreement(self.detections + other.detections, box, score)


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Agreement:
    """Compare detections, in any order: those of nearly the same score may change places.

    Args:
        expected, found: pred_boxes (N, 4), pred_classes (N,), scores (N,), pred_masks (N, 1, M, M) or not.

    Raises:
        Disagreement: their number or classes differ, or anything else by more than the tolerance.
    """
    ours, theirs = len(expected["scores"]), len(found["scores"])
    if ours != theirs:
        raise Disagreement(f"it finds {theirs} objects where PyTorch finds {ours}")
    if not ours:
        return Agreement(0, 0.0, 0.0)
    if not all(found[name].isfinite().all() for name in ("pred_boxes", "scores")):
        raise Disagreement("its boxes or scores are not finite")
    boxes = torch.cdist(expected["pred_boxes"].double(), found["pred_boxes"].double(), p=float("inf"))
    scores = (expected["scores"][:, None] - found["scores"]).abs().double()
    other_class = expected["pred_classes"][:, None] != found["pred_classes"]
    rows, columns = linear_sum_assignment((boxes + scores + 1e6 * other_class).numpy())
    if other_class[rows, columns].any():
        raise Disagreement("it finds objects of other classes than PyTorch")
    box, score = boxes[rows, columns].max().item(), scores[rows, columns].max().item()
    if "pred_masks" in expected:
        masks = (expected["pred_masks"][rows] - found["pred_masks"][columns]).abs().max().item()
        score = max(score, masks)
    if not (box <= BOX_TOLERANCE and score <= SCORE_TOLERANCE):
        raise Disagreement(f"boxes differ by up to {box:.3g} px from PyTorch's, scores by up to {score:.3g}")
    return Agreement(ours, box, score)
