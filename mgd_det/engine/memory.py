"""A look at the memory that a batch will take, before the first step takes it."""

from __future__ import annotations

import logging

import psutil
import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from mgd_det.detectron2_types import BatchedInputs
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.modeling.tapped import TappedDetector, inference_inputs
from mgd_det.modeling.taps import evaluating
from mgd_det.modeling.wrapping import student_of
from mgd_det.rng import isolated_rng

logger = logging.getLogger("detectron2." + __name__)


class MemoryHook(HookBase):
    """Ends a training before its first step if the batch cannot fit into the memory of its device.

    What the student's backbone keeps for the backward pass is measured on the largest image of the batch.
    The head, the teacher and the optimiser come on top, so that a batch that passes may still be too large.

    Args:
        backbone_path: as :class:`~mgd_det.modeling.tapped.TappedDetector` takes it.
    """

    def __init__(self, backbone_path: str = "") -> None:
        self.backbone_path = backbone_path

    def before_train(self) -> None:
        model = unwrapped(self.trainer.model)

        def look(module: nn.Module, args: tuple[BatchedInputs]) -> None:
            handle.remove()
            if module.training:
                check_memory(TappedDetector(student_of(module), self.backbone_path), args[0])

        handle = model.register_forward_pre_hook(look)


def check_memory(detector: TappedDetector, batched_inputs: BatchedInputs) -> None:
    """Check that what a backbone keeps of a batch fits into free memory.

    Raises:
        ConfigError: it does not.
    """
    device = next(detector.detector.parameters()).device
    largest = max((x["image"] for x in batched_inputs), key=lambda image: image.numel())
    try:
        needed = bytes_of_batch(detector, largest.to(device), len(batched_inputs))
    except Exception as error:  # code of other projects can raise anything, and training does without
        logger.info("the memory of a batch is not estimated (%s: %s)", type(error).__name__, error)
        return
    free = free_bytes(device)
    if needed > free:
        raise ConfigError(
            "SOLVER.IMS_PER_BATCH",
            f"{len(batched_inputs)} for each process",
            f"the student's backbone keeps about {needed / 1e9:.1f} GB of these images for the backward "
            f"pass, and {free / 1e9:.1f} GB are free",
            "Lower it, or INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN.",
        )


def bytes_of_batch(detector: TappedDetector, image: Tensor, number: int) -> int:
    """Returns how many bytes a detector's backbone keeps of so many images, (C, H, W), for the backward pass.

    What it keeps once, whatever their number, is told apart by two images: autocast's copies of weights.
    """
    one = kept_bytes(detector, [image])
    if number == 1:
        return one
    return one + (number - 1) * (kept_bytes(detector, [image, image]) - one)


def kept_bytes(detector: TappedDetector, images: list[Tensor]) -> int:
    """Returns how many bytes a detector's backbone keeps of images, (C, H, W), for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with isolated_rng(), evaluating(detector.detector), torch.enable_grad(), hooks:
        run = detector.run(inference_inputs(images), (), whole=True)  # which the counted tensors live in
    del run
    return sum(kept.values())


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available
