"""Loading weights: from torchvision, with clear errors, and with a report of what matched."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, get_cache_dir
from torch import nn

from .errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)

TORCHVISION_PREFIX = "torchvision:"

# torchvision's ResNet names -> Detectron2's, in order.
_RESNET_RENAMES: list[tuple[str, Any]] = [
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
]


def is_torchvision_resnet(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has the names of torchvision's ResNets."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def convert_torchvision_resnet(state: Mapping[str, Any]) -> dict[str, Any]:
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

    A bare model name means its IMAGENET1K_V1 weights.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # Detectron2's main passes paths through urllib, which makes ":///" of a full path ":/".
        source = path[len(TORCHVISION_PREFIX) :]
        source = source[2:] if source.startswith("//") else source
        original = source if os.path.isfile(source) else PathManager.get_local_path(_url(source))
        # Keyed by content, so that a changed file is converted anew.
        with open(original, "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()[:16]
        folder = os.path.join(get_cache_dir(), "mgd_det")
        converted = os.path.join(folder, f"torchvision-{digest}.pth")
        if force or not os.path.isfile(converted):
            state = torch.load(original, map_location="cpu", weights_only=True)
            os.makedirs(folder, exist_ok=True)
            aside = f"{converted}.{os.getpid()}"  # renamed when whole; several ranks may convert
            torch.save(_checkpoint(state), aside)
            os.replace(aside, converted)
        return converted

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return True

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return True

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(TorchvisionPathHandler(), allow_override=True)


def _url(name: str) -> str:
    try:
        if "." in name:
            return torchvision.models.get_weight(name).url
        return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    except (ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{name!r} is neither a file nor the name of a torchvision model or of its weights"
        ) from error


def _checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict of torchvision's as a checkpoint that Detectron2 fits to its models by suffix."""
    return {
        "model": convert_torchvision_resnet(state),
        "__author__": "torchvision",
        "matching_heuristics": True,
    }


class LoadReport(NamedTuple):
    """What of a model came from a file."""

    path: str
    loaded: int  # tensors of the model
    missing: list[str]  # names in the model that kept their initial values
    unused: list[str]  # names in the file that the model has no place for
    mismatched: list[str]  # "name (shape in the file, shape in the model)"

    def __str__(self) -> str:
        total = self.loaded + len(self.missing)
        parts = [f"{self.loaded} of {total} tensors loaded from {self.path}"]
        if self.missing:
            parts.append(f"keep their initial values: {_by_prefix(self.missing)}")
        if self.mismatched:
            parts.append(f"of another shape in the file: {', '.join(self.mismatched)}")
        if self.unused:
            parts.append(f"in the file, but not in the model: {_by_prefix(self.unused)}")
        return "; ".join(parts)


def _by_prefix(names: list[str]) -> str:
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{prefix}.* ({count})" for prefix, count in groups.items())


class ReportingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with clear errors, torchvision's own files, and a load report.

    Args:
        model, save_dir, checkpointables: as in Detectron2.
        key: the config key that weights come from, for messages.
        role: what the model is called in the log.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        key: str = "MODEL.WEIGHTS",
        role: str = "student",
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.key, self.role = key, role
        self.report: LoadReport | None = None
        self._path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in Detectron2; `report` then says what matched.

        Raises:
            ConfigError: the file is missing, cannot be had, or is no weight file.
        """
        self._path = path
        remedy = f"Give {self.key} the path of a weight file, a URL, or torchvision://<name>."
        try:
            return super().load(path, *args, **kwargs)
        except ConfigError:
            raise
        except (FileNotFoundError, IsADirectoryError, AssertionError) as error:
            raise ConfigError(self.key, path, f"no such weight file ({error})", remedy) from error
        except OSError as error:
            raise ConfigError(self.key, path, f"cannot be read ({error})", remedy) from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            checkpoint = super()._load_file(filename)
            state = checkpoint["model"]
            if not hasattr(state, "items"):
                raise TypeError(f"its entry 'model' is a {type(state).__name__}, not a table of tensors")
        except (EOFError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise self._unreadable(error) from error
        except pickle.UnpicklingError as error:
            raise self._unreadable(error) from error
        return _checkpoint(state) if is_torchvision_resnet(state) else checkpoint

    def _unreadable(self, error: Exception) -> ConfigError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ConfigError(
            self.key,
            self._path,
            f"is not a whole weight file ({reason})",
            "It may be truncated or something else under that name: fetch or write it again.",
        )

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        mismatched = [f"{k} {tuple(a)} vs {tuple(b)}" for k, a, b in incompatible.incorrect_shapes]
        missing = list(dict.fromkeys(incompatible.missing_keys))
        loaded = len(self.model.state_dict()) - len(missing)
        unused = list(incompatible.unexpected_keys)
        self.report = LoadReport(self._path, loaded, missing, unused, mismatched)
        logger.log(logging.WARNING if missing else logging.INFO, "%s: %s", self.role, self.report)
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """The report says it all."""
