"""The config keys of this project, and loading configs with them."""

from .keys import DISTILLER, DTYPES, add_mgd_config, uses_teacher
from .loading import load_config, student_config

__all__ = ["DISTILLER", "DTYPES", "add_mgd_config", "load_config", "student_config", "uses_teacher"]
