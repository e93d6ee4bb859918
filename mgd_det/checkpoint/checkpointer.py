"""Checkpoints: written whole or not at all, loaded with clear errors and a report of what matched."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import IO, Any, Callable, NamedTuple

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from mgd_det.errors import ConfigError

from .torchvision_weights import (
    TORCHVISION_PREFIX,
    as_checkpoint,
    is_of_network_inside,
    is_torchvision_resnet,
    torchvision_file,
)

logger = logging.getLogger("detectron2." + __name__)

Checkpoint = dict[str, Any]  # a file's entries by name; the weights are its "model"

# What a .pkl of the model zoo is made of; anything else in a pickle could run code.
_PLAIN_GLOBALS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
}


CHECKPOINT = re.compile(r"model_(\d+|final)\.pth")  # a name; others are weights from which no run resumes


class _Refused(Exception):
    """Raised for a file that asks for more than tensors and plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _PLAIN_GLOBALS:
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)


# What reading a file raises that is damaged or no weight file.
UNREADABLE = (
    *(EOFError, RuntimeError, TypeError, ValueError, KeyError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)
BACKBONES = ("backbone.bottom_up.", "backbone.")  # prefixes of a pre-trained network, the narrower one first
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_RETRIES = 5
MOST_INFLATION = 10  # times a weight file's size that its content may have
MOST_SHAPES = 4  # the number of mismatches that a report lists


class LoadReport(NamedTuple):
    """Says which tensors of a model came from a file."""

    path: str
    loaded: int  # tensors of the model
    missing: list[str]  # names in the model that kept their initial values
    unused: list[str]  # names in the file that the model has no place for
    mismatched: list[str]  # "name shape in the file vs shape in the model"

    def __str__(self) -> str:
        total = self.loaded + len(self.missing)
        parts = [f"{self.loaded} of {total} tensors loaded from {self.path}"]
        if self.missing:
            parts.append(f"keep their initial values: {_by_prefix(self.missing)}")
        if self.mismatched:
            more = len(self.mismatched) - MOST_SHAPES
            shown = [*self.mismatched[:MOST_SHAPES], *([f"{more} more"] if more > 0 else [])]
            parts.append(f"of another shape in the file: {', '.join(shown)}")
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
        trusted: load files that hold arbitrary Python objects.
        retry_seconds: the time between two attempts to write to a full disk.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        key: str = "MODEL.WEIGHTS",
        role: str = "student",
        trusted: bool = False,
        retry_seconds: float = 60.0,
        **checkpointables: object,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.retry_seconds = retry_seconds
        self.key, self.role, self.trusted = key, role, trusted
        self.report: LoadReport | None = None
        self._path = ""
        self._damaged_remedy = (
            "It may be truncated or something else under that name: fetch or write it again."
        )

    def has_checkpoint(self) -> bool:
        """Returns True if `last_checkpoint` names one, or if there is one alone that nothing names."""
        return bool(super().has_checkpoint() or len(untagged_checkpoints(self.save_dir)) == 1)

    def get_checkpoint_file(self) -> str:
        """Returns the path of the checkpoint of :meth:`has_checkpoint`."""
        if super().has_checkpoint():
            return super().get_checkpoint_file()
        (name,) = untagged_checkpoints(self.save_dir)
        return os.path.join(self.save_dir, name)

    def resume_or_load(self, path: str, *, resume: bool = True) -> Checkpoint:
        """Load as Detectron2 does; errors of the last checkpoint name `--resume`."""
        if resume and self.has_checkpoint():
            self.key = "--resume"
            self._damaged_remedy = "Name an earlier checkpoint in OUTPUT_DIR/last_checkpoint."
        elif resume:
            logger.warning(
                "--resume: OUTPUT_DIR %s holds no checkpoint to resume from; starting from %s %r",
                self.save_dir,
                self.key,
                path,
            )
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, checkpointables: list[str] | None = None) -> Checkpoint:
        """Load a file as Detectron2 does; `report` then says what matched.

        Raises:
            ConfigError: the file is missing, cannot be had, or is no weight file.
        """
        self._path = path
        remedy = (
            f"Give {self.key} the path of a weight file, a URL, or torchvision://<name>; without a network, "
            "fetch the file elsewhere and give its path."
        )
        try:
            # As it is, since the names in it depend on the model.
            source = torchvision_file(path) if path.startswith(TORCHVISION_PREFIX) else path
            return super().load(source, checkpointables)
        except ConfigError:
            raise
        except (FileNotFoundError, IsADirectoryError, AssertionError) as error:
            raise ConfigError(self.key, path, f"no such weight file ({error})", remedy) from error
        except OSError as error:
            raise ConfigError(self.key, path, f"cannot be read ({error})", remedy) from error

    def _load_file(self, filename: str) -> Checkpoint:
        try:
            checkpoint = _read(filename, trusted=self.trusted)
            # Detectron2's main takes "?matching_heuristics=True" behind a path.
            url = getattr(self, "_parsed_url_during_load", None)
            if url is not None and url.query == "matching_heuristics=True":
                checkpoint["matching_heuristics"] = True
            if self.key == "--resume":
                _check_trainer(checkpoint)
            state = checkpoint["model"]
            if not hasattr(state, "items"):
                raise TypeError(f"its entry 'model' is a {type(state).__name__}, not a table of tensors")
            for name, value in state.items():
                if not isinstance(name, str) or not isinstance(value, (torch.Tensor, np.ndarray)):
                    raise TypeError(
                        f"its weights should be tensors by name, and {name!r} is a {type(value).__name__}"
                    )
        except _Refused as error:
            raise ConfigError(
                self.key,
                self._path,
                f"holds Python objects beyond tensors and plain values ({error}), and loading those can "
                "run any code",
                "If you trust where it comes from, set DISTILL.UNSAFE_LOADING True.",
            ) from error
        except UNREADABLE as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = reason.split(". ")[0]  # torch's advice is left out
            raise ConfigError(
                self.key,
                self._path,
                f"is not a whole weight file ({reason})",
                self._damaged_remedy,
            ) from error
        names = self.model.state_dict().keys()
        if is_torchvision_resnet(state) or is_of_network_inside(state, names):
            return as_checkpoint(state, names)
        return checkpoint

    def save(self, name: str, **kwargs: object) -> None:
        """Save as Detectron2 does; a kill at any moment leaves the old files or the new ones."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        _check_finite(data["model"], path)
        logger.info("saving checkpoint to %s", path)
        self._write_whole(path, lambda f: torch.save(data, f))
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        self._write_whole(path, lambda f: f.write(last_filename_basename.encode()))

    def _write_whole(self, path: str, write: Callable[[IO[bytes]], object]) -> None:
        if "://" in path:  # object stores make a file visible when it is closed
            with self.path_manager.open(path, "wb") as f:
                write(f)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        for attempt in range(1 + DISK_RETRIES):
            try:
                return _replace(path, write)
            except (OSError, RuntimeError) as error:
                reason = disk_full(error)
                if not reason:
                    raise
                if attempt == DISK_RETRIES:
                    problem = f"{os.path.basename(path)} cannot be written ({reason})"
                    remedy = "Make room, then go on from the last checkpoint with --resume."
                    raise ConfigError("OUTPUT_DIR", self.save_dir, problem, remedy) from error
                logger.warning(
                    "%s cannot be written (%s): trying again in %.0f s, %d more times",
                    path,
                    reason,
                    self.retry_seconds,
                    DISK_RETRIES - attempt,
                )
                time.sleep(self.retry_seconds)

    def _load_model(self, checkpoint: Checkpoint) -> _IncompatibleKeys:
        incompatible = super()._load_model(checkpoint)
        mismatched = [f"{k} {tuple(a)} vs {tuple(b)}" for k, a, b in incompatible.incorrect_shapes]
        missing = list(dict.fromkeys(filter(is_no_counter, incompatible.missing_keys)))
        loaded = sum(map(is_no_counter, self.model.state_dict())) - len(missing)
        unused = list(incompatible.unexpected_keys)
        self.report = LoadReport(self._path, loaded, missing, unused, mismatched)
        if not loaded:
            raise ConfigError(
                self.key,
                self._path,
                f"nothing in it fits the {self.role}: {self.report}",
                "Give weights of this architecture.",
            )
        if self.key == "--resume" and missing:
            raise ConfigError(
                self.key,
                self._path,
                f"it is of another {self.role}: {self.report}",
                "Resume with the MODEL keys of that run, or take its weights as MODEL.WEIGHTS of a run in "
                "another OUTPUT_DIR.",
            )
        if self.key == "MODEL.WEIGHTS":  # a teacher's are checked as a whole, and a resumed run's are its own
            self._check_backbone(missing)
        logger.log(logging.WARNING if missing else logging.INFO, "%s: %s", self.role, self.report)
        return incompatible

    def _check_backbone(self, missing: list[str]) -> None:
        """Refuse a file that fits a small part of the backbone, and warn of one that does not fit all of it.

        The usual start of a detector is a file of its whole bottom-up network, or of all its weights.
        """
        state = self.model.state_dict()
        names = [name for name in state if is_no_counter(name)]
        prefix = next((p for p in BACKBONES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            return
        backbone = [name for name in names if name.startswith(prefix)]
        lacking = [name for name in missing if name.startswith(prefix)]
        if not 0 < len(lacking) < len(backbone):
            return
        fitting = (
            f"fits {len(backbone) - len(lacking)} of {len(backbone)} tensors of the {self.role}'s backbone"
        )
        # Vectors, as those of norms, fit by accident.
        layers, unfit = (sum(state[name].dim() > 1 for name in some) for some in (backbone, lacking))
        if 2 * unfit > layers:
            raise ConfigError(
                self.key,
                self._path,
                f"{fitting}, so it is of another network: {self.report}",
                "Give weights of this depth and width, or none.",
            )
        logger.warning("%s %s; these keep their initial values: %s", self.key, fitting, ", ".join(lacking))

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        """Log nothing: the report says it all."""


class WeightsWriter(ReportingCheckpointer):
    """Writes weights from which no run resumes, so that `last_checkpoint` stays as it is."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave the name of the last checkpoint alone."""


def _replace(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside a path and put it in that place; after an error nothing is left."""
    aside = f"{path}.partial"
    try:
        with open(aside, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except BaseException:
        if os.path.exists(aside):
            os.remove(aside)
        raise


def disk_full(error: BaseException | None) -> str:
    """Returns in words that a disk is full, where that is what an error is of or has come from; else ""."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return os.strerror(error.errno)
        error = error.__context__  # torch.save raises another error while it closes the file
    return ""


def _check_finite(state: Mapping[str, torch.Tensor], path: str) -> None:
    """Raise a FloatingPointError rather than write weights from which no run can go on."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"{name} is not finite, so {os.path.basename(path)} is not written")


def untagged_checkpoints(folder: str) -> list[str]:
    """Returns the names of the checkpoints in a folder without a file `last_checkpoint`.

    There is one if a run was killed between writing its first checkpoint and that file.
    """
    if not os.path.isdir(folder) or os.path.lexists(os.path.join(folder, "last_checkpoint")):
        return []
    return sorted(filter(CHECKPOINT.fullmatch, os.listdir(folder)))


def last_checkpoint(cfg: CfgNode, *, resume: bool) -> str:
    """Returns the path of the checkpoint that a run resumes from, "" where it starts anew.

    Raises:
        ConfigError: OUTPUT_DIR/last_checkpoint is no text, or does not name a file beside it; or it is
            missing where there are several checkpoints.
    """
    folder = cfg.OUTPUT_DIR
    tag = os.path.join(folder, "last_checkpoint")
    if not resume:
        return ""
    remedy = "Write the name of a checkpoint that is there into it, or start anew without --resume."
    if not os.path.lexists(tag):
        untagged = untagged_checkpoints(folder)
        if len(untagged) > 1:
            problem = f"it holds {', '.join(untagged)}, and no file last_checkpoint that names one of them"
            raise ConfigError("OUTPUT_DIR", folder, problem, remedy)
        return os.path.join(folder, untagged[0]) if untagged else ""
    try:
        with open(tag, encoding="utf-8") as f:
            name = f.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"its file last_checkpoint cannot be read ({type(error).__name__})"
        raise ConfigError("OUTPUT_DIR", folder, problem, remedy) from error
    path = os.path.join(folder, name)
    if os.path.basename(name) != name or not os.path.isfile(path):
        why = "is not there" if os.path.basename(name) == name else "is not a name in this folder"
        problem = f"its file last_checkpoint names {name[:100]!r}, which {why}"
        raise ConfigError("OUTPUT_DIR", folder, problem, remedy)
    return path


def trainer_state(cfg: CfgNode, *, resume: bool) -> Checkpoint:
    """Returns the trainer's part of the checkpoint that a run resumes from, {} where it starts anew.

    Raises:
        ConfigError: the checkpoint is missing or cannot be read.
    """
    path = last_checkpoint(cfg, resume=resume)
    if not path:
        return {}
    try:
        checkpoint = _read(path, trusted=cfg.DISTILL.UNSAFE_LOADING)
        _check_trainer(checkpoint)
        return checkpoint.get("trainer", {})
    except (_Refused, *UNREADABLE) as error:
        remedy = (
            "Name an earlier checkpoint in OUTPUT_DIR/last_checkpoint; or, if it holds Python objects of a "
            "hook of yours, set DISTILL.UNSAFE_LOADING True."
        )
        raise ConfigError("--resume", path, f"cannot be read ({type(error).__name__})", remedy) from error


def _check_trainer(checkpoint: Checkpoint) -> None:
    """Check the types of what a resumed trainer takes from a checkpoint; raises TypeError."""
    trainer = checkpoint.get("trainer", {})
    if not isinstance(trainer, dict):
        raise TypeError(f"its entry 'trainer' is a {type(trainer).__name__}, not a table")
    for name, expected in (("iteration", int), ("hooks", dict), ("_trainer", dict)):
        if not isinstance(trainer.get(name, expected()), expected):
            raise TypeError(f"in its entry 'trainer', {name!r} is a {type(trainer[name]).__name__}")


def is_no_counter(name: str) -> bool:
    """Returns False for the counters of batch norms, which torch fills in by itself."""
    return not name.endswith("num_batches_tracked")


def _read(filename: str, *, trusted: bool) -> Checkpoint:
    """Returns a file's content as Detectron2's checkpointer does, with the weights under "model".

    Raises:
        _Refused: loading the file would build anything but tensors and plain values, and it is not trusted.
    """
    if filename.endswith(".pkl"):
        with open(filename, "rb") as f:
            unpickler = pickle.Unpickler if trusted else _PlainUnpickler
            return _from_pickle(unpickler(f, encoding="latin1").load())
    _check_declared_size(filename)
    try:
        content = torch.load(filename, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            raise _Refused(foreign[1]) from error
        raise
    if filename.endswith(".pyth"):  # pycls's
        state = {name: value for name, value in content["model_state"].items() if is_no_counter(name)}
        return {"model": state, "__author__": "pycls", "matching_heuristics": True}
    return content if "model" in content else {"model": content}


def _check_declared_size(filename: str) -> None:
    """Raise a ValueError for a zip file that says it inflates to far more than it holds."""
    if not zipfile.is_zipfile(filename):
        return
    with zipfile.ZipFile(filename) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > MOST_INFLATION * os.path.getsize(filename):
        raise ValueError(
            f"it would inflate from {os.path.getsize(filename)} to {declared} bytes, but torch packs nothing"
        )


def _from_pickle(content: Checkpoint) -> Checkpoint:
    """Returns a file of Detectron2's model zoo as it is, and one of Caffe2's with what tells it apart."""
    if "model" in content and "__author__" in content:
        return content
    state = content.get("blobs", content)
    state = {name: value for name, value in state.items() if not name.endswith("_momentum")}
    return {"model": state, "__author__": "Caffe2", "matching_heuristics": True}
