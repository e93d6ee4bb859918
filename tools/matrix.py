#!/usr/bin/env python
"""Which detectors teach which: short runs of many pairs, from training to loading in stock Detectron2.

For each pair, in processes of their own: tools/train_net.py distils a small student on 64 px images for
some steps and leaves a checkpoint, evaluates that, and resumes from it for some more; then stock Detectron2
alone loads the last checkpoint, with no key missing and none unexpected. Teachers have random weights: this
is about networks and methods that fit together, not about AP. The exit code is 1 if any pair fails.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch
from _checkout import ROOT
from commandline import (
    argument_parser,
    bad_input_in_one_line,
    circumstances_in_words,
    output_file,
    say,
)
from matrix_pairs import ALL, PAIRS, network_config
from processes import ONE_THREAD, Failed, Word, call

from mgd_det.engine.trainer import Trainer
from mgd_det.rng import isolated_rng
from mgd_det.run.metrics import read_metrics

IMAGES = ("--train", 8, "--val", 6, "--test", 6)
STEPS, MORE_STEPS = 5, 3  # before and after resuming

# A process that knows nothing of this project loads the runs in these folders. Only backbones from
# torchvision need this project's code.
STOCK = """
import sys, torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

for folder in sys.argv[1:]:
    path = folder + "/student_config.yaml"
    text = open(path).read()
    if "_target_:" in text:
        model = instantiate(LazyConfig.load(path).model)
    else:
        cfg = get_cfg()
        if "TORCHVISION:" in text:
            from mgd_det import add_mgd_config
            add_mgd_config(cfg)
        cfg.merge_from_file(path)
        model = build_model(cfg)
    saved = torch.load(folder + "/model_final.pth", weights_only=True)
    model.load_state_dict(saved["model"], strict=True)
    assert "TORCHVISION:" in text or not [name for name in sys.modules if name.startswith("mgd_det")]
"""

Run = Callable[[Sequence[Word]], "tuple[int, str]"]  # of Python's arguments: exit code and output


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and what is learnt from the one by the other."""

    teacher: str
    student: str
    methods: str

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}: {self.methods}"

    def options(self) -> list[Any]:
        """Its DISTILL keys."""
        options: list[Any] = []
        methods = []
        for word in re.sub(r"\ball\b", ALL, self.methods).split():
            name, _, given = word.partition(":")
            if name == "inherit":
                options += ["DISTILL.INHERIT", given.split(",")]
                continue
            methods.append(name)
            if given:
                options += [f"DISTILL.{name.upper()}.TAPS", given.split(",")]
        return [*options, "DISTILL.METHODS", list(dict.fromkeys(methods))]


def pairs() -> list[Pair]:
    """Returns all of PAIRS."""
    rows = [line.split(maxsplit=2) for line in PAIRS.splitlines() if line.strip()]
    return [Pair(a, b, " ".join(methods.split())) for a, b, each in rows for methods in each.split("|")]


def save_teacher(name: str, folder: Path, data: Path) -> tuple[str, str]:
    """Returns the config file and weights of an untrained teacher, which are made once."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = folder / f"{name}.yaml", folder / f"{name}.pth"
    if not weights.exists():
        cfg = network_config(name, folder, data)
        config.write_text(cfg.dump())
        with isolated_rng():
            torch.manual_seed(0)
            torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    lazy = folder / f"{name}.py"
    return str(lazy if lazy.exists() else config), str(weights)


def check_pair(pair: Pair, folder: Path, data: Path, run: Run, steps: int = STEPS) -> None:
    """Train, evaluate and resume a pair in `folder`/run.

    Raises:
        Failed: it does not work.
    """
    folder.mkdir(parents=True)
    output = folder / "run"
    cfg = network_config(pair.student, folder, data)
    cfg.DISTILL.ENABLED, cfg.OUTPUT_DIR = True, str(output)
    teacher = save_teacher(pair.teacher, folder.parent / "teachers", data)
    cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS = teacher
    cfg.merge_from_list(pair.options())
    config = folder / "config.yaml"
    config.write_text(cfg.dump())

    def train_net(what: str, *arguments: Word) -> None:
        command = [ROOT / "tools/train_net.py", "--config-file", config, "--num-gpus", 0, *arguments]
        must_run(what, run, command)

    end, untested = steps + MORE_STEPS, ("DATASETS.TEST", ())
    train_net("train", *untested, "SOLVER.MAX_ITER", steps)
    check_metrics(output, steps, cfg.DISTILL.METHODS)
    train_net("evaluate", "--eval-only", "MODEL.WEIGHTS", output / "model_final.pth")
    if not json.loads((output / "inference/coco_instances_results.json").read_text()):
        raise Failed("evaluate: nothing was detected")
    train_net("resume", "--resume", *untested, "SOLVER.MAX_ITER", end)
    check_metrics(output, end, cfg.DISTILL.METHODS)
    if f"Starting training from iteration {steps}" not in (output / "log.txt").read_text():
        raise Failed("resume: it started anew")


def must_run(what: str, run: Run, command: Sequence[Word]) -> None:
    code, output = run(command)
    if code:
        lines = [line for line in output.splitlines() if line.strip()]
        said = [line for line in lines if re.match(r"(error|\w*(Error|Exception)): ", line)]
        raise Failed(f"{what}: exit code {code}, {(said or lines or ['no output'])[-1]}")


def check_metrics(output: Path, steps: int, methods: Sequence[str]) -> None:
    """Check the last step: all losses are finite, and each method has one above 0."""
    lines = read_metrics(output / "metrics.json")
    last = [line for line in lines if line["iteration"] == steps - 1]
    losses = {name: value for line in last for name, value in line.items() if "loss" in name}
    if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
        raise Failed(f"not finite: {', '.join(bad)}")
    for method in methods:
        if not any(value > 0 for name, value in losses.items() if name.startswith(f"loss_{method}_")):
            raise Failed(f"no loss of {method} is over 0")


def in_a_process(command: Sequence[Word]) -> tuple[int, str]:
    """Run a Python command; returns its exit code and output."""
    return call(*command, environment=ONE_THREAD, capture=True)


def load_in_stock(run: Run, *folders: Path) -> None:
    """Load finished runs in stock Detectron2.

    Raises:
        Failed: it cannot.
    """
    must_run("stock Detectron2", run, ["-c", STOCK, *folders])


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    chosen = [pair for pair in pairs() if fnmatch.fnmatch(str(pair), f"*{args.only}*")]
    if not chosen:
        say(f"error: --only {args.only!r} is part of no pair; --list shows them")
        return 2
    if args.list:
        say("\n".join(map(str, chosen)))
        return 0
    with bad_input_in_one_line():
        document_file = args.markdown and output_file("--markdown", args.markdown)
    rows, width = [], max(len(str(pair)) for pair in chosen)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(args.work or temporary).resolve()
        data = work / "data"
        must_run("data", in_a_process, [ROOT / "tools/make_demo_data.py", "--out", data, *IMAGES])
        for number, pair in enumerate(chosen, 1):
            folder, start, failure = work / f"pair_{number}", time.monotonic(), ""
            try:
                check_pair(pair, folder, data, in_a_process, args.steps)
                load_in_stock(in_a_process, folder / "run")
                shutil.rmtree(folder)  # some hundred megabytes
            except Failed as error:
                failure = str(error).replace(f"{work}/", "").replace(f"{ROOT}/", "")
            seconds = time.monotonic() - start
            rows.append((pair, seconds, failure))
            verdict = "FAILED" if failure else "ok"
            say(f"{verdict:6}  {pair!s:{width}}  {seconds:4.0f} s  {failure}".rstrip())
    failed = sum(bool(failure) for *_, failure in rows)
    say(f"{len(rows) - failed} of {len(rows)} pairs work")
    if document_file:
        command = ["tools/matrix.py", *(sys.argv[1:] if arguments is None else arguments)]
        document_file.write_text(document(command, rows, args.steps), encoding="utf-8")
    return int(failed > 0)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser(
        __doc__,
        "examples:\n  tools/matrix.py --list\n  tools/matrix.py --only 'fcos* -> retinanet'\n"
        "  tools/matrix.py --only regnet --work output/matrix   (what failed can be looked at there)\n"
        "  tools/matrix.py --markdown docs/matrix.md",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="",
        help="try the pairs of --list whose line holds this; * and ? are wildcards",
    )
    parser.add_argument("--list", action="store_true", help="print the pairs and stop")
    steps = "number of training steps (default: %(default)s)"
    parser.add_argument("--steps", type=int, default=STEPS, help=steps)
    work = "a new folder to work in, and to keep what failed"
    parser.add_argument("--work", type=Path, metavar="DIR", help=work)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="Markdown file to write a table to")
    args = parser.parse_args(arguments)
    if args.work and args.work.exists():
        parser.error(f"--work {args.work}: it exists already; name a new folder")
    return args


DOCUMENT = """# Which detectors teach which

Each row stands for a student that was trained with Matching Guided Distillation (MGD) or another method for
{steps} steps on images of 64 px, evaluated, resumed for {more} more steps, and loaded by stock Detectron2.
The teachers have random weights, so the table shows what fits together and not what is gained. It was made by

```
{command}
```

with {versions} ({machine}): {works} of {count} pairs work.

- *r18*, *r34*, *r50* and *r101* are ResNets. Those of bottlenecks are narrowed to WIDTH_PER_GROUP 16 and
  RES2_OUT_CHANNELS 128, except in FCOS. *x50* is ResNeXt-50 32x8d; *regnet* and *regnet_small* are
  RegNetX-800MF and -200MF. Other names are torchvision's; stock Detectron2 loads these students after
  `add_mgd_config(cfg)`.
- *faster*, *mask* and *cascade* are Faster, Mask and Cascade R-CNN with an FPN, *c4* is Faster R-CNN without
  one. FCOS, *regnet* and *regnet_small* are described
  by LazyConfigs.
- *mgd* compares res3 to res5, *lsh*, *logits* and *crosskd* compare the heads, and all others p3 to p5,
  unless taps follow. `a=b` compares the student's a with the teacher's b. *inherit* stands for
  `DISTILL.INHERIT`.
- *all* stands for {all}.
- Proposal networks, semantic segmentors, Panoptic FPN, Keypoint R-CNN, ViTDet and detectors that are not
  Detectron2's are taken through the same in a stock trainer by `pytest tests/engine/test_pipelines.py`.
- *seconds* are those of four processes, with their start-up; the machine may have had other work.

| teacher | student | methods | seconds | result |
|---|---|---|---|---|
{rows}
"""


def document(command: Sequence[str], rows: Sequence[tuple[Pair, float, str]], steps: int) -> str:
    """Returns the results as Markdown."""
    cells = [
        (
            pair.teacher,
            pair.student,
            pair.methods,
            f"{seconds:.0f}",
            f"FAILED: {failure}" if failure else "ok",
        )
        for pair, seconds, failure in rows
    ]
    return DOCUMENT.format(
        command=shlex.join(command),
        steps=steps,
        more=MORE_STEPS,
        **circumstances_in_words(gpus=0),
        works=sum(not failure for *_, failure in rows),
        count=len(rows),
        all=ALL,
        rows="\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells),
    )


if __name__ == "__main__":
    sys.exit(main())
