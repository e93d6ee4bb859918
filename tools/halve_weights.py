#!/usr/bin/env python
"""Write a trained detector's weights in half the size, to hand them on: float16, without the trainer's state.

Running statistics of norms stay as they are, because float16 may not hold them. Detectron2 loads the file
like any other, into float32. Detections differ by the rounding: `tools/train_net.py --eval-only` measures it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from commandline import argument_parser, bad_input_in_one_line, new_file, say
from torch import Tensor

from mgd_det.errors import ConfigError

EXAMPLES = """
examples:
  tools/halve_weights.py output/studies/shapes/teacher/model_final.pth output/studies/shapes/teacher.pth
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("weights", type=Path, metavar="FILE.pth", help="checkpoint of a run")
    parser.add_argument("out", type=Path, metavar="OUT.pth", help="file to write, which must not exist yet")
    args = parser.parse_args(argv)
    with bad_input_in_one_line():
        write(args)


def write(args: argparse.Namespace) -> None:
    """Write the file.

    Raises:
        ConfigError: there is no model in the one, or the other is there already or cannot be written.
    """
    new_file("OUT.pth", args.out)
    try:
        found = torch.load(args.weights, map_location="cpu", weights_only=True)["model"]
    except Exception as error:  # torch raises errors of many kinds for files that are none of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Give a checkpoint of a run, such as its model_final.pth."
        raise ConfigError(
            "FILE.pth", str(args.weights), f"has no readable model ({reason})", remedy
        ) from error
    torch.save({"model": halved(found)}, args.out)
    say(f"{args.out}: {len(found)} tensors, {args.out.stat().st_size / 2**20:.1f} MiB")


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the float32 tensors as float16 unless they are running statistics or too large for it."""
    return {
        name: value.half()
        if value.dtype is torch.float32 and ".running_" not in name and value.half().isfinite().all()
        else value
        for name, value in weights.items()
    }


if __name__ == "__main__":
    main()
