#!/usr/bin/env python
"""Export the student of a run to TorchScript and ONNX, check the files against PyTorch, and time them all.

The files take one image, (3, H, W) float32 with values 0 to 255, of any size, in the channel order of the
run's INPUT.FORMAT, and return pred_boxes (N, 4) in its pixels, pred_classes (N,), scores (N,) and image_size;
of a Mask R-CNN also pred_masks (N, 1, M, M), each in its box. Normalisation, thresholds and non-maximum
suppression are in them; resizing is not. They are made for CPUs.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import _checkout
import torch
from benchmarking.timing import Timing, in_turn
from commandline import BAD_INPUT, argument_parser, output_folder, say
from exporting.formats import FORMATS, Agreement, Detector, Disagreement, Runnable, check_packages, compare
from exporting.networks import (
    Network,
    image_path,
    load_image,
    read_run,
    student_of,
    teacher_of,
)
from torch import Tensor
from torch.nn.functional import interpolate

from mgd_det.config.functions import add_config_flag
from mgd_det.errors import ConfigError

WARM_UP = 3  # runs in which TorchScript still compiles

EXAMPLES = """
examples:
  tools/export.py --run output/demo/student_mgd --out exported
  tools/export.py --run output/demo/student_mgd --format torchscript onnx --image some.jpg --out exported
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="OUTPUT_DIR of the run")
    add_config_flag(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=list(FORMATS),
        default=["torchscript"],
        help="formats to write: torchscript, onnx (default: torchscript)",
    )
    parser.add_argument(
        "--image",
        default="",
        metavar="FILE",
        help="image to compare the files on (default: the first of the run's DATASETS.TEST)",
    )
    parser.add_argument(
        "--runs", type=int, default=20, metavar="N", help="number of runs that are timed (default: 20)"
    )
    parser.add_argument("--no-teacher", action="store_true", help="do not load and time the teacher")
    args = parser.parse_args(argv)
    try:
        export(args)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except Disagreement as error:
        sys.stderr.write(f"error: the exported file is not the student: {error}\n")
        return 1
    return 0


def export(args: argparse.Namespace) -> None:
    """Do what the arguments ask for.

    Raises:
        ConfigError: it cannot be done.
        Disagreement: an exported file does not detect what PyTorch does.
    """
    check_arguments(args)
    cfg = read_run(args.run, args.config_function)
    path = image_path(cfg, args.image)
    image = load_image(cfg, path)
    student = student_of(cfg)
    teacher = None if args.no_teacher else teacher_of(cfg)
    detector = Detector(student.model, image)
    # Another size, too: a trace may hold on to that of the image which it was made with.
    images = [image, interpolate(image[None], scale_factor=(1.25, 1.5))[0]]
    expected = [detector.named(x) for x in images]
    if not len(expected[0]["scores"]):
        problem = "the student finds nothing in it, so that nothing could be compared"
        raise ConfigError("--image", path, problem, "Name one in which it does.")

    output_folder("--out", args.out)
    say(f"student: {type(student.model).__name__}, takes {student.input_format}; {path} at {size(image)}")
    programs: dict[str, Callable[[], object]] = {}
    rows: dict[str, tuple[float, int | None]] = {}
    for network in filter(None, (teacher, student)):
        name = f"{network.name}, PyTorch"
        programs[name] = eager(network, image, student.input_format)
        rows[name] = network.megabytes, network.parameters
    for name in dict.fromkeys(args.format):
        write, filename = FORMATS[name]
        file = args.out / filename
        run = write(detector, image, file)
        say(f"{file}: {agreement_in_words(agree(run, images, expected), images)}")
        programs[f"student, {name}"] = timed(run, image)
        rows[f"student, {name}"] = os.path.getsize(file) / 1e6, None
    threads = torch.get_num_threads()
    say(f"\n{args.runs} runs in turn, at {size(image)}, on {threads} thread{'s' * (threads > 1)} of a CPU")
    table(rows, in_turn(programs, args.runs, torch.device("cpu"), WARM_UP))


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for what can be told before anything is loaded."""
    check_packages(args.format)
    if args.runs < 1:
        raise ConfigError("--runs", args.runs, "less than 1", "Give a number of at least 1.")
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError("--out", str(args.out), "is a file", "Name a folder, new or not.")


def agreement_in_words(agreement: Agreement, images: Sequence[Tensor]) -> str:
    return (
        f"{agreement.detections} detections at {' and '.join(map(size, images))} as in PyTorch, "
        f"boxes within {agreement.box:.1g} px, scores within {agreement.score:.1g}"
    )


def eager(network: Network, image: Tensor, image_format: str) -> Callable[[], object]:
    """A run of Detectron2's network on the image, in the network's own channel order."""
    pixels = image if network.input_format == image_format else image.flip(0)

    def run() -> object:
        with torch.no_grad():
            return network.model([{"image": pixels}])

    return run


def timed(run: Runnable, image: Tensor) -> Callable[[], object]:
    return lambda: run(image)


def agree(run: Runnable, images: Sequence[Tensor], expected: Sequence[dict[str, Tensor]]) -> Agreement:
    """Compare what a program detects in all images with what is expected."""
    first, second = (compare(e, run(x)) for e, x in zip(expected, images))
    return first + second


def size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[1:]))


def table(rows: dict[str, tuple[float, int | None]], latencies: dict[str, Timing]) -> None:
    say(f"{'':22} {'MB':>7} {'parameters':>12} {'min ms':>8} {'median ms':>10}")
    for name, (megabytes, parameters) in rows.items():
        count = "" if parameters is None else f"{parameters:,}"
        minimum, median = (1e3 * seconds for seconds in latencies[name])
        say(f"{name:22} {megabytes:7.1f} {count:>12} {minimum:8.1f} {median:10.1f}")


if __name__ == "__main__":
    sys.exit(main())
