"""Parsers, output and errors of the commands, and the circumstances that their records hold."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, TypedDict

import torch
from _checkout import ROOT
from detectron2 import __version__ as detectron2_version

from mgd_det.errors import ConfigError

BAD_INPUT = 2  # exit code

Figures = dict[str, Any]  # what was measured, as JSON has it
Record = Mapping[str, Any]  # the same, to be read only


def argument_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """Returns a parser whose help keeps the line breaks of both texts."""
    return argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def say(text: str) -> None:
    """Print a text at once, also into a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def output_folder(flag: str, path: Path) -> Path:
    """Make a folder to write to, unless it is there; returns its absolute path.

    Raises:
        ConfigError: it cannot be made, or nothing can be written to it; the message names the flag.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the folder cannot be made ({error.strerror})"
        raise ConfigError(flag, str(path), problem, "Name another.") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(flag, str(path), "nothing can be written to the folder", "Name another.")
    return path.absolute()


def output_file(flag: str, path: Path) -> Path:
    """Make the folder of a file to write; returns the file's absolute path.

    Commands call this first of all: a path that cannot be written to is found before the work and not after
    it, and a later change of the working directory does not move the file.

    Raises:
        ConfigError: it cannot be written; the message names the flag.
    """
    if path.is_dir():
        raise ConfigError(flag, str(path), "is a folder", "Name a file.")
    return output_folder(flag, path.parent) / path.name


def new_file(flag: str, path: Path) -> Path:
    """Make the folder of a file to write that must not be there yet; returns the file's absolute path.

    Raises:
        ConfigError: it is there, or cannot be written; the message names the flag.
    """
    if path.exists():
        raise ConfigError(flag, str(path), "is there already", "Name another, or remove it.")
    return output_file(flag, path)


def write_json(path: Path, content: object) -> None:
    """Write a file of figures, in a folder that is made for it; an interruption leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(path)


@contextmanager
def bad_input_in_one_line() -> Iterator[None]:
    """Turn a ConfigError into one line on stderr and exit code 2."""
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)


class Circumstances(TypedDict):
    date: str
    machine: str
    versions: dict[str, str]


def circumstances(*also: str, gpus: int | None = None) -> Circumstances:
    """Returns what every record of figures holds.

    Args:
        also: further facts of the machine.
        gpus: number of GPUs that were used; None if the command does not choose.
    """
    if gpus == 0:
        gpu = "no GPU used"
    elif torch.cuda.is_available():
        gpu = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else torch.cuda.get_device_name()
    else:
        gpu = "no GPU"
    versions = {"torch": torch.__version__, "detectron2": detectron2_version}
    return {
        "date": date.today().isoformat(),
        "machine": ", ".join([platform.machine(), f"{os.cpu_count()} CPU cores", *also, gpu]),
        "versions": {"python": platform.python_version(), **versions},
    }


def circumstances_in_words(*also: str, gpus: int | None = None) -> dict[str, str]:
    """Returns the same, with the versions as text."""
    found = circumstances(*also, gpus=gpus)
    return {
        "date": found["date"],
        "machine": found["machine"],
        "versions": versions_in_words(found["versions"]),
    }


def versions_in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def commit() -> str:
    """Returns the repository's commit, and if its code differs from it; "unknown" outside of git."""

    def git(*command: str) -> str:
        words = ["git", "-C", str(ROOT), *command]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return f"{head} and changes" if git("status", "--porcelain", "mgd_det", "tools") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
