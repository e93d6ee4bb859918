"""The teacher: a frozen detector with a config and weights of its own."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Callable

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import add_mgd_config, load_config, student_config
from mgd_det.config.functions import config_with, keys_beyond
from mgd_det.config.lazy import build_lazy, image_format, is_lazy, lazy_student, load_lazy
from mgd_det.config.values import AUTO, TEACHER_DTYPES
from mgd_det.detectron2_compat import apply_to_tensors, undo_compile
from mgd_det.detectron2_types import BatchedInputs
from mgd_det.errors import ConfigError, building_from_config
from mgd_det.maths.resizing import Resizing
from mgd_det.rng import isolated_rng

from .heads import find_head
from .tapped import BackbonePass, TappedDetector, inference_inputs
from .taps import backbone_and_head_taps
from .teacher_compile import compile_between
from .teacher_ways import Way

logger = logging.getLogger("detectron2." + __name__)

CONFIG_KEY, WEIGHTS_KEY = "DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS"
OPTS_KEY = "DISTILL.TEACHER.OPTS"


def _is_zoo_name(name: str) -> bool:
    try:
        model_zoo.get_config_file(name)
    except RuntimeError:
        return False
    return True


@dataclass(frozen=True)
class TeacherSpec:
    """Says where a teacher comes from; the fields are the keys of `DISTILL.TEACHER`, and two more.

    `config_functions` names the functions of other projects that add keys to its config. `other_keys` are
    keys that none of them adds, with the values that they have where its file does not set them.
    """

    config_file: str
    weights: str = ""
    opts: Sequence[object] = ()
    allow_partial_weights: bool = False
    trusted: bool = False
    dtype: str = ""
    channels_last: bool | str | None = False
    compile: bool = False
    backbone: str = ""
    config_functions: Sequence[str] = ()
    other_keys: CfgNode | None = None
    scale: float = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TeacherSpec:
        node, functions = cfg.DISTILL.TEACHER, tuple(cfg.DISTILL.CONFIG_FUNCTIONS)
        known = config_with(functions)
        add_mgd_config(known)
        return cls(
            node.CONFIG_FILE,
            node.WEIGHTS,
            tuple(node.OPTS),
            node.ALLOW_PARTIAL_WEIGHTS,
            cfg.DISTILL.UNSAFE_LOADING,
            node.DTYPE,
            node.CHANNELS_LAST,
            node.COMPILE,
            node.BACKBONE,
            functions,
            keys_beyond(cfg, known),
            node.SCALE,
        )

    @property
    def chooses(self) -> bool:
        """True if the first batch decides in which :class:`~.teacher_ways.Way` the teacher computes."""
        return AUTO in (self.dtype, self.channels_last)

    def config(self) -> CfgNode:
        """Returns the teacher's own yaml config, without this project's keys and the student's values.

        The values of `other_keys` that the file does not set are the student's, which a line in the log says.

        Raises:
            ConfigError: no such file and no such model-zoo name, or the file is no config.
        """
        return student_config(self._read())

    def input_format(self) -> str:
        """Returns the channel order of the images that the teacher takes, such as "BGR".

        Raises:
            ConfigError: as :meth:`config`.
        """
        source = self.lazy_source()
        if source is None:
            return self.config().INPUT.FORMAT
        return image_format(load_lazy(*source, CONFIG_KEY, OPTS_KEY))

    def lazy_source(self) -> tuple[str, Sequence[str]] | None:
        """Returns the name and overrides of the teacher's LazyConfig, None if a yaml config describes it."""
        if is_lazy(self.config_file):
            return self.config_file, [str(option) for option in self.opts]
        return lazy_student(self._read())  # of an earlier run

    def _read(self) -> CfgNode:
        remedy = (
            "Give the path of a config file (of a teacher of your own: OUTPUT_DIR/config.yaml of its "
            "training), or a model-zoo name such as COCO-Detection/retinanet_R_50_FPN_3x.yaml."
        )
        path, trusted = self.config_file, self.trusted
        if not path:
            raise ConfigError(CONFIG_KEY, path, "no teacher is given", remedy)
        if not os.path.isfile(path):
            if not path.endswith(".yaml") or not _is_zoo_name(path):
                problem = "neither a file nor the name of a model-zoo config"
                raise ConfigError(CONFIG_KEY, path, problem, remedy)
            # Detectron2's own files compute RetinaNet's anchors in Python. They are as trusted as its code.
            path, trusted = model_zoo.get_config_file(path), True
        return load_config(
            path,
            self.opts,
            key=CONFIG_KEY,
            opts_key=OPTS_KEY,
            trusted=trusted,
            functions=self.config_functions,
            other_keys=self.other_keys,
        )

    def weights_path(self) -> str:
        """Returns the path or URL of the weights.

        Raises:
            ConfigError: none given beside a config that is no model-zoo name, or none in the zoo.
        """
        if not self.weights and os.path.isfile(self.config_file):
            final = os.path.join(os.path.dirname(self.config_file), "model_final.pth")
            hint = f", for example {final}" if os.path.isfile(final) else ""
            raise ConfigError(
                WEIGHTS_KEY,
                self.weights,
                f"the teacher's config {self.config_file} is a file, which names no trained weights",
                f"Give the path or URL of its weights{hint}.",
            )
        name = self.weights or self.config_file
        if os.path.exists(name) or not name.endswith((".yaml", ".py")):
            return name
        try:
            return model_zoo.get_checkpoint_url(name)
        except RuntimeError as error:
            remedy = "Give the path or URL of the weights."
            raise ConfigError(WEIGHTS_KEY, self.weights, str(error), remedy) from error

    def load(self, device: torch.device, built: Teacher | None = None) -> Teacher:
        """Load all weights of the teacher.

        Args:
            device: the device of the loaded teacher.
            built: the teacher as :meth:`build` has returned it; None builds it.

        Raises:
            ConfigError: as above; or the weights are not this architecture's.
        """
        teacher = built or self.build(device)
        teacher.model.to(device)
        weights = self.weights_path()
        checkpointer = ReportingCheckpointer(
            teacher.model, key=WEIGHTS_KEY, role="teacher", trusted=self.trusted
        )
        checkpointer.load(weights, checkpointables=[])
        report = checkpointer.report
        if report is None or (report.missing and not self.allow_partial_weights):
            raise ConfigError(
                WEIGHTS_KEY,
                weights,
                f"does not hold all weights of the teacher in {self.config_file}: {report}",
                "Give the config that these weights were trained with, its depth and number of classes, or "
                "the weights of this one. DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS True takes them as they are.",
            )
        teacher.loaded = not report.missing
        return teacher

    def build(self, device: torch.device) -> Teacher:
        """Build the teacher with random weights, without touching the global random streams.

        Raises:
            ConfigError: as :meth:`config`; or Detectron2 cannot build it.
        """
        source = self.lazy_source()
        if source is not None:
            lazy = load_lazy(*source, CONFIG_KEY, OPTS_KEY)
            with isolated_rng():
                model, input_format = build_lazy(lazy, CONFIG_KEY, source[0]).to(device), image_format(lazy)
            return self._wrapped(model, input_format)
        cfg = self.config()
        cfg.MODEL.DEVICE = str(device)
        with isolated_rng(), building_from_config(CONFIG_KEY, self.config_file):
            model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(device)
        return self._wrapped(model, cfg.INPUT.FORMAT)

    def _wrapped(self, model: nn.Module, input_format: str) -> Teacher:
        return Teacher(
            model,
            input_format,
            TEACHER_DTYPES.get(self.dtype),
            self.channels_last is True,
            self.compile,
            self.backbone,
            self.scale,
        )


class Teacher:
    """Computes the features of a frozen detector in eval mode.

    Deliberately not an `nn.Module`: an attribute of a module that is none stays out of `parameters()`,
    `state_dict()`, `train()`, DDP and checkpoints. A copy of the distiller starts without a teacher.

    Args:
        model: a Detectron2 detector.
        input_format: the channel order that it expects, `INPUT.FORMAT` of its config.
        dtype: the precision of its own autocast, float32 for none; None leaves it to the training.
        channels_last: if True, its weights and features are in channels_last memory order.
        compile: if True, `torch.compile` translates the layers between the taps when these are first asked
            for. If that fails, the network goes on as it is, with one warning.
        backbone: path of the backbone in it, as :class:`~mgd_det.modeling.tapped.TappedDetector` takes it.
        scale: factor on the sides of the images that it computes features of.
    """

    def __init__(
        self,
        model: nn.Module,
        input_format: str,
        dtype: torch.dtype | None = None,
        channels_last: bool = False,
        compile: bool = False,
        backbone: str = "",
        scale: float = 1.0,
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.tapped = TappedDetector(self.model, backbone)
        self.input_format = input_format
        self.dtype = dtype
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.compile = compile
        self.scale = scale
        self.loaded = False  # True once all its weights have been loaded
        self._compiled_for: set[str] | None = None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:  # copied and pickled as None
        return type(None), ()

    @cached_property
    def digest(self) -> str | None:
        """The SHA-256 of its weights, None unless all of them were loaded; computed when first asked for."""
        return _digest(self.model) if self.loaded else None

    @property
    def preprocessing(self) -> list[object]:
        """Its channel order, and the means and deviations by which it normalises, as far as it has them."""
        found = [getattr(self.model, name, None) for name in ("pixel_mean", "pixel_std")]
        return [self.input_format, *(x.flatten().tolist() for x in found if isinstance(x, Tensor))]

    def follow(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Apply to its tensors what `.to()`, `.cuda()`, `.half()` ... apply to the student's."""
        apply_to_tensors(self.model, fn)

    def use(self, way: Way) -> None:
        """Compute in this way from now on, exactly as if the teacher had been loaded with it."""
        self.dtype = TEACHER_DTYPES[way.dtype]
        self.memory_format = torch.channels_last if way.channels_last else torch.contiguous_format
        # Those of 1x1 convolutions count as contiguous in either order, and would keep what they have.
        apply_to_tensors(self.model, lambda x: x.clone(memory_format=torch.contiguous_format))
        self.model.to(memory_format=self.memory_format)

    def inputs(self, images: Sequence[Tensor], image_format: str) -> BatchedInputs:
        """Returns images as its forward pass takes them: in its channel order, and with their sizes.

        Args:
            images: (C, H, W) each, as the student gets them.
            image_format: their channel order.
        """
        if image_format != self.input_format:
            images = [image.flip(0) for image in images]
        return inference_inputs(images)

    def resizing(self, images: Sequence[Tensor]) -> Resizing | None:
        """Returns how it sees images, (C, H, W) each; None where it sees them in their own size."""
        return None if self.scale == 1 else Resizing.by(images, self.scale)

    @torch.no_grad()
    def features(
        self, images: Sequence[Tensor], image_format: str, names: Sequence[str], student: Any = None
    ) -> dict[str, Any]:
        """Returns the features at the taps; layers behind the last of them are not run.

        Args:
            images: (C, H, W) each, as the student gets them.
            image_format: their channel order.
            names: of the taps.
            student: what the student gave at its taps, if one in the head is among them.

        Returns:
            name -> (N, Ct, H, W), at the teacher's own normalisation, padding and size of images, see
            :meth:`resizing`; of taps in the head what `heads.py` says.
        """
        resizing = self.resizing(images)
        inputs = self.inputs(images if resizing is None else resizing.images(images), image_format)
        names, head_names = backbone_and_head_taps(names)
        with self._autocast(images[0].device.type):
            run = self._run(inputs, names, whole=bool(head_names))
            if head_names:
                run.features.update(find_head(self.model).run(run.outputs, head_names, student, resizing))
        return run.features

    def _run(self, inputs: BatchedInputs, names: list[str], *, whole: bool) -> BackbonePass:
        if self.compile:
            backbone = self.tapped.backbone
            try:
                # Parts that were compiled between more taps serve fewer ones, too.
                if self._compiled_for is None or not self._compiled_for.issuperset(names):
                    self._compiled_for = {*(self._compiled_for or ()), *names}
                    undo_compile(backbone)
                    compile_between(backbone, sorted(self._compiled_for))
                return self.tapped.run(inputs, names, whole=whole, memory_format=self.memory_format)
            except torch.cuda.OutOfMemoryError:  # would come without the compiler, too
                raise
            except RuntimeError as error:  # which all errors of torch.compile are
                logger.warning(
                    "the teacher runs without torch.compile: %s", str(error).strip().split("\n")[0]
                )
            # Not in the handler, where the error still holds the tensors of the pass that failed.
            self.compile = False
            undo_compile(backbone)
        return self.tapped.run(inputs, names, whole=whole, memory_format=self.memory_format)

    def _autocast(self, device: str) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not torch.float32)


def _digest(model: nn.Module) -> str:
    """Returns the SHA-256 of the names and values of all tensors, the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
