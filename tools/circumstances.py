"""When, on what machine and with what versions something was measured."""

from __future__ import annotations

import os
import platform
from datetime import date

import torch
from detectron2 import __version__ as detectron2_version


def circumstances(*also: str) -> dict[str, str]:
    """The facts that a report names; `also` are further ones of the machine."""
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "Detectron2": detectron2_version,
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{os.cpu_count()} CPU cores"
    return {
        "date": date.today().isoformat(),
        "machine": ", ".join([platform.system(), platform.machine(), cores, *also, gpu]),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
