"""The config keys of this project, loading configs with them, and the student's config without them."""

from .keys import DISTILLER, add_mgd_config, uses_teacher
from .loading import load_config
from .student import save_student_config, student_config
from .values import DTYPES, check_run_values, check_unlabeled_share, check_values, unlabeled_per_batch

__all__ = [
    "DISTILLER",
    "DTYPES",
    "add_mgd_config",
    "check_run_values",
    "check_unlabeled_share",
    "check_values",
    "load_config",
    "save_student_config",
    "student_config",
    "unlabeled_per_batch",
    "uses_teacher",
]
