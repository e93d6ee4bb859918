"""Weights from torchvision's own files and names, with their names converted to Detectron2's."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import IO

import torch
import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir

TORCHVISION_PREFIX = "torchvision:"

# torchvision's ResNet names -> Detectron2's, in order.
_RESNET_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
]


def is_torchvision_resnet(state: Mapping[str, object]) -> bool:
    """Returns True if a state dict has the names of torchvision's ResNets."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def is_of_network_inside(state: Mapping[str, object], names: Collection[str]) -> bool:
    """Returns True if a state dict is that of a network which a model contains under its own names.

    This is told by the first tensor of either library's files, which belongs to the network's first layer.

    Args:
        state: tensors by name.
        names: those of the model's tensors.
    """
    first = "layer1.0.conv1.weight" if is_torchvision_resnet(state) else next(iter(state), "")
    return first not in names and any(name.endswith(f".{first}") for name in names)


def convert_torchvision_resnet(state: Mapping[str, object]) -> dict[str, object]:
    """Rename torchvision's ResNet tensors to Detectron2's `stem.*`, `res2.*` ..; the classifier is
    dropped. Values stay as they are: the weights expect RGB input in torchvision's normalisation."""
    converted = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        for pattern, replacement in _RESNET_RENAMES:
            name = re.sub(pattern, replacement, name)
        converted[name] = tensor
    return converted


class TorchvisionPathHandler(PathHandler):
    """Makes `torchvision://resnet18`, `torchvision://ResNet50_Weights.IMAGENET1K_V2` and
    `torchvision://path/of/a/file.pth` paths that any Detectron2 checkpointer can load.

    A bare model name means its IMAGENET1K_V1 weights. ResNets get Detectron2's names.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        original = torchvision_file(path)
        # Keyed by content, so that a changed file is converted anew.
        with open(original, "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()[:16]
        folder = os.path.join(get_cache_dir(), "mgd_det")
        converted = os.path.join(folder, f"torchvision-{digest}.pth")
        if force or not os.path.isfile(converted):
            state = torch.load(original, map_location="cpu", weights_only=True)
            os.makedirs(folder, exist_ok=True)
            aside = f"{converted}.{os.getpid()}"  # renamed when whole; several ranks may convert
            torch.save(as_checkpoint(state), aside)
            os.replace(aside, converted)
        return converted

    def _isfile(self, path: str, **kwargs: object) -> bool:
        return True

    def _exists(self, path: str, **kwargs: object) -> bool:
        return True

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: object) -> IO[str] | IO[bytes]:
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(TorchvisionPathHandler(), allow_override=True)


def torchvision_file(path: str) -> str:
    """Returns the local path of torchvision's own file that a path such as `torchvision://resnet18` names.

    Raises:
        FileNotFoundError: there is no such file, and no such model or weights.
    """
    # Detectron2's main passes paths through urllib, which makes ":///" of a full path ":/".
    source = path[len(TORCHVISION_PREFIX) :]
    source = source[2:] if source.startswith("//") else source
    return source if os.path.isfile(source) else PathManager.get_local_path(_url(source))


def _url(name: str) -> str:
    try:
        if "." in name:
            return torchvision.models.get_weight(name).url
        return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    except (ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{name!r} is neither a file nor the name of a torchvision model or of its weights"
        ) from error


def as_checkpoint(state: Mapping[str, object], names: Collection[str] = ()) -> dict[str, object]:
    """Returns a state dict of torchvision as a checkpoint that Detectron2 fits to its models by suffix.

    ResNets are renamed for Detectron2's, unless the model has torchvision's network inside.

    Args:
        state: tensors by name.
        names: those of the model's tensors, where they are known.
    """
    if is_torchvision_resnet(state) and not is_of_network_inside(state, names):
        model = convert_torchvision_resnet(state)
    else:
        model = {n: tensor for n, tensor in state.items() if not n.endswith("num_batches_tracked")}
    return {"model": model, "__author__": "torchvision", "matching_heuristics": True}
