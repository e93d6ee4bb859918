"""Training in mixed precision, against float32."""

from __future__ import annotations

import math
from pathlib import Path

from checking.jobs import run
from checking.states import Figures, final, within
from checking.tiny import train_net
from processes import Failed

PRECISION = {"float16": 0.01, "bfloat16": 0.05}  # relative, of the first distillation losses
ON_GPU = "mixed-precision-gpu"  # the check that needs one


def mixed_precision(config: Path, folder: Path, *, gpus: int = 0, iterations: int = 10) -> Figures:
    """A run trains under autocast (SOLVER.AMP) in float16 and bfloat16: every loss of every iteration must
    be finite. The figure is the largest relative deviation of a distillation loss in the first iteration
    from a float32 run with the same seed. The images are 120 to 160 pixels wide, because smaller ones lead
    to feature maps one pixel wide, on which torch's CPU kernel for weight gradients in bfloat16 gives wrong
    values or NaN.
    """
    keys = ("DISTILL.EXACT_RESUME", True, "SOLVER.MAX_ITER", iterations, "INPUT.MIN_SIZE_TRAIN", (128,))
    first: dict[str, dict[str, float]] = {}
    for dtype in ("float32", *PRECISION):
        precision = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype) if dtype in PRECISION else ()
        run(folder / f"{dtype}.log", *train_net(config, folder / dtype, *keys, *precision, gpus=gpus))
        scalars = final(folder / dtype)["trainer"]["hooks"]["ExactResumeHook"]["scalars"]
        losses = {name: [v for v, _ in s["data"]] for name, s in scalars.items() if "loss" in name}
        if not all(len(v) == iterations and all(map(math.isfinite, v)) for v in losses.values()):
            raise Failed(f"in {dtype} not every loss of every iteration is finite")
        first[dtype] = {name: values[0] for name, values in losses.items() if name.startswith("loss_mgd")}
    figures: Figures = {"iterations": iterations}
    for dtype, limit in PRECISION.items():
        apart = max(abs(first[dtype][name] / value - 1) for name, value in first["float32"].items())
        figures.update(within(limit, {f"deviation of {dtype} losses": apart}))
    return figures
