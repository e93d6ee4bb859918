"""The config keys of this project, and loading configs with them."""

from .keys import DISTILLER, add_mgd_config, uses_teacher
from .loading import load_config, student_config
from .values import DTYPES, check_values

__all__ = [
    "DISTILLER",
    "DTYPES",
    "add_mgd_config",
    "check_values",
    "load_config",
    "student_config",
    "uses_teacher",
]
