"""Finding the files of a run, and checking them before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode
from visualizing.metrics import Series, read_series

from mgd_det.config import DISTILLER, load_config
from mgd_det.errors import ConfigError

REMEDY = "Give the OUTPUT_DIR of a run of tools/train_net.py."


class Run(NamedTuple):
    """The files that a training run has left so far."""

    name: str
    folder: Path
    cfg: CfgNode
    checkpoint: Path | None  # None where none is written yet
    metrics: Series

    @property
    def methods(self) -> list[str]:
        """Its methods of distillation; [] where the student is trained alone."""
        distils = self.cfg.MODEL.META_ARCHITECTURE == DISTILLER and self.cfg.DISTILL.ENABLED
        return list(self.cfg.DISTILL.METHODS) if distils else []


def open_runs(folders: Sequence[tuple[str, Path]], checkpoint: str | None) -> list[Run]:
    """Read the configs and metrics of runs.

    Args:
        folders: (flag, OUTPUT_DIR) each; the first is the run that the report is of.
        checkpoint: the file of the first run to look at; None: its last one, as for all the others.

    Raises:
        ConfigError: one of them is no run, or is given twice, or has no such checkpoint.
    """
    seen: set[Path] = set()
    for key, folder in folders:
        if not folder.is_dir():
            raise ConfigError(key, str(folder), "there is no such folder", REMEDY)
        if folder.resolve() in seen:
            raise ConfigError(key, str(folder), "this run is given twice", "Name every run once.")
        seen.add(folder.resolve())
    names = distinct_names([folder.resolve() for _, folder in folders])
    runs = []
    for index, (name, (key, folder)) in enumerate(zip(names, folders)):
        if not (folder / "config.yaml").is_file():
            raise ConfigError(key, str(folder), "holds no config.yaml, which every run writes", REMEDY)
        # On the CPU, where a few images take seconds: a GPU may be busy with the training itself.
        cfg = load_config(str(folder / "config.yaml"), device="cpu", key=key)
        path = find_checkpoint(folder, None if index else checkpoint)
        metrics = read_series(folder / "metrics.json")
        if path is None and not metrics:
            problem = "has neither a checkpoint nor metrics yet"
            raise ConfigError(key, str(folder), problem, "Wait until the run has logged something.")
        runs.append(Run(name, folder, cfg, path, metrics))
    return runs


def find_checkpoint(folder: Path, name: str | None) -> Path | None:
    """The checkpoint of that name in a run's folder, or its last one, None where it has none.

    Raises:
        ConfigError: there is none of the name.
    """
    if name is not None:
        if not (folder / name).is_file():
            there = sorted(path.name for path in folder.glob("*.pth"))
            remedy = f"Choose among {there}." if there else "Leave it out: the run has written none yet."
            raise ConfigError("--checkpoint", name, f"there is no such file in {folder}", remedy)
        return folder / name
    last = folder / "last_checkpoint"
    if last.is_file():
        path = folder / last.read_text().strip()
        if path.is_file():
            return path
    return folder / "model_final.pth" if (folder / "model_final.pth").is_file() else None


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of different paths, as many as tell them apart."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        count = 1
        while any(other[-count:] == folder.parts[-count:] for other in others):
            count += 1
        names.append("/".join(folder.parts[-count:]))
    return names
