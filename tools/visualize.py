#!/usr/bin/env python
"""Show what a training run has learnt: one HTML page, and its pictures beside it as PNG files.

The matching of channels, features of teacher and student, detections on the same images, and curves; of a
finished run, or of one that is still going. Runs on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import _checkout
from commandline import argument_parser, bad_input_in_one_line, say
from visualizing.report import gather, write_report
from visualizing.runs import open_runs

from mgd_det.config.functions import add_config_flag
from mgd_det.errors import ConfigError

MOST_IMAGES = 12  # with more the page grows too heavy for a phone

EXAMPLES = """
examples:
  tools/visualize.py --run output/demo/student_mgd
  tools/visualize.py --run output/demo/student_mgd --baseline output/demo/student
  tools/visualize.py --run output/a --compare output/b output/c --out output/comparison  (curves of all three)
  tools/visualize.py --run output/demo/student_mgd --checkpoint model_0000499.pth        (in mid-training)

The page is DIR/report.html; it holds its pictures, so that it can be sent as one file. Paths in the run's
config start at the working directory, as they did in training.
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN", help="OUTPUT_DIR of a training run")
    add_config_flag(parser)
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN", help="run of the same student without a teacher"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs, whose curves are shown as well",
    )
    parser.add_argument(
        "--images", type=int, default=4, metavar="N", help="number of images that are shown (default: 4)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: RUN/report)")
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="checkpoint in the run's folder (default: the last one)"
    )
    args = parser.parse_args(argv)
    with bad_input_in_one_line():
        say(f"report: {visualize(args)}")


def visualize(args: argparse.Namespace) -> Path:
    """Check the arguments, load, draw and write; the page."""
    if not 1 <= args.images <= MOST_IMAGES:
        remedy = f"Give a number from 1 to {MOST_IMAGES}."
        raise ConfigError("--images", args.images, "too few or too many to show", remedy)
    out = args.out or args.run / "report"
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise ConfigError("--out", str(out), "is, or lies in, a file", "Name a folder.")
    folders = [("--run", args.run)]
    folders += [("--baseline", args.baseline)] if args.baseline else []
    folders += [("--compare", folder) for folder in args.compare]
    run, *others = open_runs(folders, args.checkpoint, args.config_function)
    material = gather(run, others[0] if args.baseline else None, args.images)
    return write_report(material, others, out)


if __name__ == "__main__":
    main()
