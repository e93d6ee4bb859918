"""Lets the commands run from a checkout; each of them imports this module before the package.

A command is started as `python tools/NAME.py`, which puts tools/ on Python's path and not the folder above
it. In a checkout that is not installed the package would not be found.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("mgd_det") is None:
    sys.path.append(str(ROOT))

# fvcore and Detectron2's main branch raise these whenever they are imported. Users can do nothing about them.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
