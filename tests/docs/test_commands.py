"""The commands in the documents run: in a copy of the checkout, on tiny data, cut short.

Those for data that is not there (COCO, a reader's own) must get as far as that, and say so in one line.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.commands import ROOT, run_tool

from mgd_det.run.main import argument_parser, main

PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])

# Appended to commands that train on the demonstration data.
SHORT = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("TEST.AUG.MIN_SIZES", "(64, 80)"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),  # two iterations leave nothing above the usual one
    *("DISTILL.MATCHING.NUM_IMAGES", "4"),
]
# Other commands in short, by their script: what is appended. Their own tests run more of them.
SHORTER = {
    "tools/backbones.py": [],
    "tools/benchmark.py": ["--report", "performance.md"],  # measures nothing
    "tools/benchmark_start.py": ["--help"],
    "tools/compare.py": ["--report-only"],
    "tools/cut_labels.py": [],
    "tools/draw_detections.py": [],
    "tools/export.py": ["--runs", "1"],
    "tools/gpu_check.py": ["--report"],
    "tools/make_demo_data.py": ["--train", "16", "--val", "10", "--test", "10", "--size", "96", "96"],
    "tools/make_odd_data.py": [],
    "tools/matrix.py": ["--list"],
    "tools/selfcheck.py": ["--help"],
    "tools/visualize.py": ["--images", "1"],
    "docs/examples/predict.py": [],
}


def blocks(page: Path) -> list[str]:
    """Of a page, the fenced blocks that name no language."""
    parts = re.split(r"^```(.*)\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    opened = zip(parts[1::4], parts[2::4])  # language, content; a closing fence and text follow
    return [content for language, content in opened if not language]


def commands(page: Path) -> list[str]:
    """Those for a shell, without line continuations."""
    lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    starts = ("python ", "make ", "pip ", "torchrun ", "tools/", "docs/")
    return [line.strip() for line in lines if line.startswith(starts)]


def script(words: list[str]) -> str:
    return next((word for word in words if word.endswith(".py")), words[0])


@pytest.fixture(scope="module")
def checkout(demo_data, tmp_path_factory) -> Path:
    """What a reader has after `make demo`, but tiny, and in two iterations."""
    folder = tmp_path_factory.mktemp("checkout")
    # No links: tools write into the checkout that they are of.
    for name in ("configs", "docs", "mgd_det", "results", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "datasets").mkdir()
    (folder / "datasets/demo").symlink_to(demo_data)
    for name in ("teacher", "student", "student_mgd"):
        execute(f"python tools/train_net.py --config-file configs/demo/{name}.yaml", folder)
    return folder


def execute(command: str, folder: Path):
    """Run a command in a folder, cut short; what it came to."""
    words = shlex.split(command)
    words = words[words[0] == "python" :]
    more = SHORT if words[0] == "tools/train_net.py" else SHORTER[words[0]]
    return run_tool(*words, *more, cwd=folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_names_what_there_is(page):
    """Its script, or a target of make."""
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert words[1] in targets, command
        elif words[0] != "pip":
            assert (ROOT / script(words)).exists(), command
            assert script(words) == "tools/train_net.py" or script(words) in SHORTER, command


def needs_what_is_not_there(command: str) -> bool:
    return "tools/train_net.py" in command and "configs/demo/" not in command


REFUSED = [(page, c) for page in PAGES for c in commands(page) if needs_what_is_not_there(c)]
RUN = {
    page: [
        c
        for c in commands(page)
        if not (needs_what_is_not_there(c) or c.startswith(("make ", "pip ")) or "/coco_" in c)
    ]  # tests/tools/test_coco_experiments.py has the experiments on COCO
    for page in PAGES
}


# What a reader has to bring, or to train before.
MISSING = (
    r"DATASETS\.\w+ = .* does not exist\. Correct the path",
    r"DISTILL\.TEACHER\.CONFIG_FILE = .*: neither a file nor the name of a model-zoo config",
    r"(DISTILL\.TEACHER|MODEL)\.WEIGHTS = '\S+': no such weight file",
    r"DISTILL\.TEACHER\.WEIGHTS = '': Pretrained model for \S*fcos\S* is not available",
)


@pytest.mark.parametrize(("page", "command"), REFUSED, ids=lambda x: getattr(x, "name", None))
def test_training_on_data_that_is_not_there_gets_as_far_as_that(page, command, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r"--num-gpus \d+", "", command))
    words = words[words.index("tools/train_net.py") + 1 :]
    with pytest.raises(SystemExit) as exit_info:
        main(argument_parser("").parse_args(["--num-gpus", "0", *words]))
    assert exit_info.value.code == 2
    assert re.match(f"error: ({'|'.join(MISSING)})", capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["configs"]


@pytest.mark.parametrize("page", [page for page in PAGES if RUN[page]], ids=lambda path: path.name)
def test_the_commands_of_a_page_run_in_their_order(page, checkout):
    for command in RUN[page]:
        execute(command, checkout)
