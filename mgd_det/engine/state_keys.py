"""Names of the hooks' states in a checkpoint.

Detectron2's trainers save and find a hook's state under the `__qualname__` of its class. Our hooks set theirs
to these constants, so that a renamed class still reads older checkpoints. LazyConfig imports a class by its
`__qualname__`, so each constant is also a name under which the class can be imported.
"""

from __future__ import annotations

MATCHING_STATE = "RematchHook"
EXACT_RESUME_STATE = "ExactResumeHook"
EMA_STATE = "EMAHook"
