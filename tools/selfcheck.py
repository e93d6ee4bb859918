#!/usr/bin/env python
"""Checks to run before weeks of training are trusted to this code: kills, resumes, ranks, precisions.

Each starts the real commands, in processes of their own, on tiny networks and images in a temporary folder,
and prints one line with its verdict and its figures. The exit code is 1 if any of them fails.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LIMIT = 600  # seconds that any process may take
PATIENCE = 30  # seconds that what a job started may outlive it
PERIOD = 4  # iterations between two checkpoints of a run that is killed
AIMS = ("writing", "training", "start-up", "training")  # of kills: over and over, shuffled
TOLERANCE = 1e-5  # relative, of figures that differ by the order of sums
PRECISION = {"float16": 0.01, "bfloat16": 0.05}  # relative, of the first distillation losses
ON_GPU = "mixed-precision-gpu"  # the check that needs one
TORCHRUN = ("-m", "torch.distributed.run")
ONE_AGENT = (*TORCHRUN, "--standalone", "--nproc_per_node")  # of so many processes

Figures = dict[str, Any]  # what a check measured, by what its line calls it


class Failed(Exception):
    """A check found what must not be; its text says what."""


class Job:
    """A Python command, its output in a file. Leaving the `with` block kills it and all that it started."""

    def __init__(self, log: Path, *command: Any) -> None:
        self.log, self.started, token = log, time.time(), uuid.uuid4().hex
        self.mark = f"SELFCHECK={token}"  # in the environment of all its processes
        # Threads that wait by spinning would starve the other processes.
        ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "SELFCHECK": token}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **ours},
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        deadline = time.monotonic() + PATIENCE
        while (left := self.pids()) and time.monotonic() < deadline:  # again, for those just being started
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def pids(self, *marks: str) -> list[int]:
        """Its live processes, orphans included; with `marks`, those that have them in their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if {self.mark, *marks} <= set(path.read_text(errors="replace").split("\0")):
                    found.append(int(path.parent.name))
        return found

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def began_at(self) -> int | None:
        """The iteration that its training began at; None while it has not."""
        found = re.search(r"Starting training from iteration (\d+)", self.output())
        return int(found[1]) if found else None

    def saved(self) -> list[int]:
        """The iterations at whose end it began to write a checkpoint."""
        return [int(i) for i in re.findall(r"saving checkpoint to \S+_(\d+)\.pth", self.output())]

    def failed(self, what: str) -> Failed:
        return Failed(f"{what}; {self.log} ends in: " + " / ".join(self.output().splitlines()[-3:]))

    def until(self, ready: Callable[[], Any], what: str) -> None:
        """Wait for what must happen before the command ends."""
        deadline = time.monotonic() + LIMIT
        while not ready():
            if self.process.poll() is not None:
                raise self.failed(f"ended with exit code {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.failed(f"{LIMIT} s went by before {what}")
            time.sleep(0.002)

    def finish(self) -> Job:
        """Wait for its end, which must be a good one."""
        if code := self.process.wait(LIMIT):
            raise self.failed(f"exit code {code}")
        return self


def run(log: Path, *command: Any) -> Job:
    with Job(log, *command) as job:
        return job.finish()


def train_net(config: Path, output: Path, *arguments: Any, gpus: int = 0) -> list[Any]:
    """The command that trains a config."""
    command = [ROOT / "tools/train_net.py", "--config-file", config, "--num-gpus", gpus]
    return [*command, *arguments, "OUTPUT_DIR", output]


def make_config(folder: Path, data: Path, teacher: Path) -> Path:
    """The config file of the tiny distiller that all checks train."""
    resnets = {"DEPTH": 50, "STEM_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 64}
    config = {
        "_BASE_": str(ROOT / "configs/demo/student_mgd.yaml"),
        "MODEL": {"RESNETS": resnets, "FPN": {"OUT_CHANNELS": 16}, "RETINANET": {"NUM_CONVS": 1}},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "DATASETS": {
            "REGISTER": [["selfcheck", f"{data}/annotations/train.json", f"{data}/train"]],
            "TRAIN": ["selfcheck"],
            "TEST": [],
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "WARMUP_ITERS": 5, "STEPS": []},
        "DISTILL": {
            "TEACHER": {"CONFIG_FILE": f"{teacher}/config.yaml", "WEIGHTS": f"{teacher}/model_final.pth"},
            "MGD": {"UPDATE": {"NUM_IMAGES": 4, "PERIOD": 5, "ONLINE_EVERY": 2}},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def prepare(folder: Path) -> Path:
    """Make data, train a teacher for a few iterations, and return the config of its student."""
    counts = ("--train", 16, "--val", 6, "--test", 6)
    run(folder / "data.log", ROOT / "tools/make_demo_data.py", "--out", folder / "data", *counts)
    config = make_config(folder, folder / "data", folder / "teacher")
    wider = ("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 128)
    keys = (*wider, "DISTILL.ENABLED", False, "SOLVER.MAX_ITER", 5)
    run(folder / "teacher.log", *train_net(config, folder / "teacher", *keys))
    return config


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def final(output: Path) -> dict[str, Any]:
    return load(output / "model_final.pth")


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of all that nested tables and lists hold, times left out."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    elif "time" not in name and "seconds" not in name:
        yield name, value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return type(a) is type(b) and a == b


def equal_values(found: Any, expected: Any) -> int:
    """How many values two states hold, which must be the same in both, bit for bit."""
    a, b = dict(leaves(found)), dict(leaves(expected))
    names = a.keys() | b.keys()
    if differing := sorted(name for name in names if not same(a.get(name), b.get(name))):
        raise Failed(f"{len(differing)} of {len(names)} values differ, such as {', '.join(differing[:3])}")
    return len(names)


def deviation(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference in any tensor, relative to the largest value of that tensor."""
    if list(found) != list(expected):
        raise Failed("the two runs name different tensors")
    pairs = [(torch.as_tensor(found[n]).double(), torch.as_tensor(v).double()) for n, v in expected.items()]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs)


def within(limit: float, figures: Figures) -> Figures:
    for name, value in figures.items():
        if not value <= limit:
            raise Failed(f"{name} {value:.3g}, more than {limit:g}")
    return figures


def last_checkpoint(output: Path) -> Path:
    """What the next start will resume from; the folder itself where that is nothing."""
    tag = output / "last_checkpoint"
    return output / (tag.read_text() if tag.exists() else "")


def next_start(output: Path) -> int:
    """The iteration that the next start must begin at, behind the last checkpoint, which must load whole."""
    path = last_checkpoint(output)
    try:
        return 0 if path == output else load(path)["iteration"] + 1
    except Exception as error:  # whatever it is, the run cannot go on
        raise Failed(f"unresumable: {path} does not load: {error}") from error


def check_start(job: Job, expected: int) -> None:
    if job.began_at() not in (None, expected):
        raise Failed(f"{job.log.stem} began at iteration {job.began_at()}, not at {expected}")


def being_written(job: Job, output: Path) -> bool:
    """Whether this start, and no earlier one, left a checkpoint partial, or whole and not yet the last."""
    unnamed = [path for path in output.glob("model_*.pth") if path > last_checkpoint(output)]
    for path in [*unnamed, *output.glob("*.partial")]:
        with suppress(FileNotFoundError):  # renamed just now
            if path.stat().st_mtime > job.started:
                return True
    return False


def kill(job: Job, output: Path, aim: str, rng: random.Random) -> str:
    """Let a run get to a random moment, SIGKILL it, and say what that hit."""
    checkpoints, share = rng.randrange(3), rng.random()
    if aim == "start-up":
        job.until(lambda: time.time() > job.started + 6 * share, "it was killed")
    elif aim == "training":
        job.until(lambda: job.began_at() is not None and len(job.saved()) >= checkpoints, "it was killed")
        time.sleep(0.3 * share)
    else:
        job.until(lambda: len(job.saved()) > checkpoints and being_written(job, output), "it was killed")
        time.sleep(0.05 * share)
    job.process.kill()
    if (code := job.process.wait(LIMIT)) != -signal.SIGKILL:
        raise job.failed(f"ended with exit code {code} before it was killed")
    if being_written(job, output):
        return "while writing a checkpoint"
    return "before training" if job.began_at() is None else "elsewhere in training"


def kill_and_resume(config: Path, folder: Path, *, mode: str, kills: int, seed: int) -> Figures:
    """A run with DISTILL.EXACT_RESUME is killed (SIGKILL) at random moments, some of them aimed at the
    writing of a checkpoint, and started again each time by the same command. After every kill the file that
    `last_checkpoint` names must load whole, and the next start must begin there. What is lost are the
    iterations since, which are counted up to the last checkpoint that had been begun. The run that got
    through all this must equal one that was left alone with the same seed, bit for bit: in all that its last
    checkpoint holds (student, optimiser, matching, statistics, adapters, the metrics of the last 200
    iterations) and in metrics.json, times left out.
    """
    rng = random.Random(f"{seed} {mode}")
    output, iterations = folder / "killed", 5 * PERIOD * kills
    steps = ("SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", (iterations // 2, iterations - PERIOD))
    keys = ("DISTILL.EXACT_RESUME", True, "DISTILL.MGD.UPDATE.MODE", mode, *steps)
    checkpoints = ("SOLVER.CHECKPOINT_PERIOD", PERIOD)
    command = train_net(config, output, "--resume", *keys, *checkpoints, "SEED", -1)
    hits = Counter({"while writing a checkpoint": 0, "elsewhere in training": 0, "before training": 0})
    start = lost = 0
    for number, aim in enumerate(rng.sample((AIMS * kills)[:kills], kills), 1):
        with Job(folder / f"start_{number}.log", *command) as job:
            hits[kill(job, output, aim, rng)] += 1
        check_start(job, start)
        reached, start = max([start, *(i + 1 for i in job.saved())]), next_start(output)
        lost = max(lost, reached - start)
        for path in output.glob("model_*.pth"):
            if path < last_checkpoint(output):  # of no more use, and disks are finite
                path.unlink()
    within(PERIOD, {"most iterations lost at a kill": lost})
    check_start(run(folder / "last_start.log", *command), start)
    if left := list(output.glob("*.partial")):
        raise Failed(f"the finished run left {left[0].name}")

    seeds = re.findall(r"^SEED: (\d+)$", (output / "config.yaml").read_text(), re.M)  # the one that was drawn
    run(folder / "alone.log", *train_net(config, folder / "alone", *keys, "SEED", *seeds))
    runs = []
    for path in (output, folder / "alone"):
        metrics = (path / "metrics.json").read_text().splitlines()
        runs.append({**final(path), "metrics": [json.loads(line) for line in metrics]})
    return {
        "kills": kills,
        **hits,
        "unresumable states": 0,
        "most iterations lost at a kill": lost,
        "checkpoint period": PERIOD,
        "iterations": iterations,
        "values equal bit for bit": equal_values(*runs),
    }


def stock_resume(config: Path, folder: Path) -> Figures:
    """Without DISTILL.EXACT_RESUME, a run with Detectron2's own data loading is killed and started again. So
    that nothing moves them, the second start has its distillation losses switched off: matching, statistics
    and adapters must afterwards be those of the checkpoint that it resumed from, bit for bit.
    """
    output = folder / "run"
    still = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
    keys = (*still, "SOLVER.CHECKPOINT_PERIOD", PERIOD, "DISTILL.MGD.UPDATE.MODE", "online")
    with Job(folder / "killed.log", *train_net(config, output, *keys)) as job:
        job.until(lambda: len(job.saved()) > 2, "it was killed")
    start = next_start(output)
    before = load(last_checkpoint(output))["trainer"]["hooks"]["RematchHook"]
    stopped = ("DISTILL.SCHEDULE.STOP_ITER", start, "SOLVER.MAX_ITER", start + 2)
    check_start(run(folder / "resumed.log", *train_net(config, output, "--resume", *keys, *stopped)), start)
    after = final(output)["trainer"]["hooks"]["RematchHook"]
    return {"resumed at iteration": start, "values equal bit for bit": equal_values(after, before)}


def ranks(config: Path, folder: Path) -> Figures:
    """Two processes, by torchrun and gloo, solve the matching and compute the distillation losses of four
    images of one size, two of them each; one process does so with all four. The assignments must be the
    same, and losses, margins and gradients too, up to the order of sums (deviations are relative to the
    largest value of each tensor).
    """
    results = []
    for processes in (1, 2):
        out = folder / f"{processes}.pth"
        worker = (Path(__file__).resolve(), "--worker", config, out)
        run(folder / f"{processes}.log", *ONE_AGENT, processes, *worker)
        results.append(load(out))
    one, two = results
    equal = min((two["groups"][tap] == one["groups"][tap]).double().mean().item() for tap in one["groups"])
    if equal < 1:
        raise Failed(f"at one of the taps only {equal:.1%} of the assignments are equal")
    names = ("losses", "margins", "gradients")
    apart = {f"deviation of {name}": deviation(two[name], one[name]) for name in names}
    return {"share of equal assignments": equal, **within(TOLERANCE, apart)}


def ranks_worker(config: str, out: str) -> None:
    """One of the processes of `ranks`; the first of them writes what all of them found."""
    import torch.distributed as dist
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage
    from torch.nn.parallel import DistributedDataParallel

    from mgd_det.config import load_config
    from mgd_det.detector import DistilledDetector
    from mgd_det.rematch import sum_over_ranks

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # Statistics of a rank's own batch, in the student's norms, are stock Detectron2's business.
    norms = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", "")
    torch.manual_seed(0)
    detector = build_model(load_config(config, norms, device="cpu"))
    assert isinstance(detector, DistilledDetector)
    generator, images = torch.Generator().manual_seed(1), []
    for _ in range(4):
        image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
        boxes, classes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])), torch.tensor([1])
        images.append({"image": image, "instances": Instances((64, 96), gt_boxes=boxes, gt_classes=classes)})
    share = images[rank::world_size]
    detector.rematch([share], sum_over_ranks)
    model = DistributedDataParallel(detector)
    with EventStorage():
        every = model(share)
    losses = {name: loss for name, loss in every.items() if "mgd" in name}
    # The task losses take part with weight 0, since DDP waits for all parameters.
    sum(loss * (name in losses) for name, loss in every.items()).backward()
    for loss in losses.values():
        dist.all_reduce(loss.detach())
    if rank == 0:
        matchings = detector.distill_state()["mgd"]["_extra_state"]["matchings"]
        found = {
            "losses": {name: loss.item() / world_size for name, loss in losses.items()},
            "groups": {tap: matching["groups"] for tap, matching in matchings.items()},
            "margins": {tap: matching["margin"] for tap, matching in matchings.items()},
            "gradients": {n: p.grad for n, p in detector.named_parameters() if p.grad is not None},
        }
        torch.save(found, out)
    dist.barrier()  # nobody leaves, and takes the connections down, before all have finished
    del model
    dist.destroy_process_group()


def two_agents(config: Path, folder: Path, *, iterations: int = 6) -> Figures:
    """A run over two machines, as far as one machine can play both: two torchrun agents with a process each,
    connected through 127.0.0.1, against one agent with two processes. Both train the same iterations with
    the same seed; the student's weights must be the same (deviations as for `ranks`).
    """
    keys = ("DISTILL.EXACT_RESUME", True, "SOLVER.MAX_ITER", iterations, "SOLVER.IMS_PER_BATCH", 4)
    one, two = folder / "one_agent", folder / "two_agents"
    run(folder / "one_agent.log", *ONE_AGENT, 2, *train_net(config, one, *keys))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = ("--master_addr", "127.0.0.1", "--master_port", free.getsockname()[1])
    with ExitStack() as stack:
        agents = []
        for node in (0, 1):
            agent = (*TORCHRUN, "--nnodes", 2, "--nproc_per_node", 1, "--node_rank", node, *address)
            job = Job(folder / f"agent_{node}.log", *agent, *train_net(config, two, *keys))
            agents.append(stack.enter_context(job))
        for job in agents:
            job.finish()
    apart = deviation(final(two)["model"], final(one)["model"])
    return {"iterations": iterations, **within(TOLERANCE, {"deviation of weights": apart})}


def dead_rank(config: Path, folder: Path) -> Figures:
    """One of the two processes of a training run is killed (SIGKILL): the whole job must end by itself and
    with an error, name the signal in its output, and soon leave no process behind (the processes that load
    data for a rank notice its death within five seconds).
    """
    endless = ("SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 100000, "SOLVER.IMS_PER_BATCH", 4)
    with Job(folder / "job.log", *ONE_AGENT, 2, *train_net(config, folder / "run", *endless)) as job:
        job.until(lambda: "eta:" in job.output(), "training was under way")
        os.kill(min(job.pids("RANK=1")), signal.SIGKILL)
        killed = time.monotonic()
        code, seconds = job.process.wait(LIMIT), [time.monotonic() - killed]
        while job.pids() and time.monotonic() < killed + PATIENCE:
            time.sleep(0.1)
        seconds.append(time.monotonic() - killed)
        left = len(job.pids())
    if code == 0 or left or "SIGKILL" not in job.output():
        raise job.failed(f"exit code {code}, {left} processes left, or the signal not named")
    ended = dict(zip(("seconds until it ended", "until no process was left"), seconds))
    return {"exit code": code, "processes left": left, **ended}


def mixed_precision(config: Path, folder: Path, *, gpus: int = 0, iterations: int = 10) -> Figures:
    """Training under autocast (SOLVER.AMP) in float16 and bfloat16: every loss of every iteration must be
    finite. Measured is the largest relative deviation of a distillation loss in the first iteration from a
    float32 run with the same seed. The images are 120 to 160 pixels wide: on feature maps one pixel wide,
    which smaller ones lead to, torch's CPU kernel for weight gradients in bfloat16 gives wrong values or NaN.
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


def all_checks(kills: int, seed: int) -> dict[str, partial[Figures]]:
    """The checks by name; each wants the config and an empty folder."""
    return {
        "kill-pass": partial(kill_and_resume, mode="pass", kills=kills, seed=seed),
        "kill-online": partial(kill_and_resume, mode="online", kills=kills, seed=seed),
        "stock-resume": partial(stock_resume),
        "ranks": partial(ranks),
        "two-agents": partial(two_agents),
        "dead-rank": partial(dead_rank),
        "mixed-precision": partial(mixed_precision),
        ON_GPU: partial(mixed_precision, gpus=1),
    }


def result_of(check: Callable[[Path, Path], Figures], config: Path, folder: Path) -> dict[str, Any]:
    """The verdict and the figures of a check."""
    folder.mkdir()
    start, figures, failure = time.monotonic(), {}, ""
    try:
        figures = check(config, folder)
    except Exception as error:  # the other checks are to be run all the same
        failure = " ".join((str(error) if isinstance(error, Failed) else repr(error)).split())
    seconds = round(time.monotonic() - start)
    return {"passed": not failure, "seconds": seconds, "figures": figures, "failure": failure}


def line(name: str, result: dict[str, Any]) -> str:
    """What is printed for a check."""
    figures = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result["figures"].items())
    found = ", ".join(figures) or result["failure"]
    return f"{'PASS' if result['passed'] else 'FAIL'} {name}: {found} ({result['seconds']} s)"


REPORT = """# Reliability

What a long run of Matching Guided Distillation has to withstand, done to short ones on purpose: real
commands in processes of their own, killed, resumed, spread over ranks and compared. The networks and images
are tiny, so that it takes minutes; the code is what a full run goes through. To be run, before a long run,
on the machine that this is meant for; `python tools/selfcheck.py --help` tells more.

On {date}, with seed {seed}, {versions} ({machine}),

```
{command}
```

printed, and wrote into this file:

```
{lines}
```

## What the lines mean

{meanings}

## What has not been run

{not_run}- Several GPUs, and NCCL, which connects them.
- Two machines: in two-agents one machine plays both.
- Resuming a run of several processes, and kills during an evaluation.
- The loss of a machine: what a killed process has written is safe with the kernel, which a power cut ends.
- Network file systems and object stores.
"""


def report(record: dict[str, Any]) -> str:
    """docs/reliability.md."""
    results = record["results"]
    meanings: dict[str, list[str]] = {}  # of checks by the same function there is one
    for name, check in all_checks(0, 0).items():
        if name in results:
            meanings.setdefault(" ".join(str(check.func.__doc__).split()), []).append(f"**{name}**")
    return REPORT.format(
        **record,
        lines="\n".join(line(name, result) for name, result in results.items()),
        meanings="\n".join(
            textwrap.fill(
                f"- {', '.join(names)}: {meaning}", 110, subsequent_indent="  ", break_on_hyphens=False
            )
            for meaning, names in meanings.items()
        ),
        not_run="" if ON_GPU in results else "- GPUs: this machine has none.\n",
    )


def stop(*signal_and_frame: Any) -> None:
    """Leave the `with` blocks, undisturbed by another signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  tools/selfcheck.py\n"
        "  tools/selfcheck.py --only two-agents dead-rank\n"
        "  tools/selfcheck.py --only kill-pass --kills 100 --seed 7 --work /scratch/selfcheck\n"
        "  tools/selfcheck.py --report docs/reliability.md --json results/selfcheck.json",
    )
    every = list(all_checks(0, 0))
    here = [name for name in every if name != ON_GPU or torch.cuda.is_available()]
    parser.add_argument(
        "--only", nargs="+", choices=every, default=here, metavar="CHECK", help=f"of {', '.join(every)}"
    )
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="per update mode (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder to work in, and to keep")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="explain them there, in Markdown")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)  # a process of the check "ranks"
    args = parser.parse_args(argv)
    if args.worker:
        ranks_worker(*args.worker)
        return 0
    if args.kills < 1 or (args.work and args.work.exists()) or not os.path.exists("/proc/self/environ"):
        parser.error("--kills must be 1 or more, --work new, and the system one with /proc, such as Linux")
    signal.signal(signal.SIGTERM, stop)
    results = {}
    with tempfile.TemporaryDirectory(prefix="selfcheck_") as temporary:
        work = (args.work or Path(temporary, "work")).resolve()
        work.mkdir(parents=True)
        config = prepare(work)
        for name, check in all_checks(args.kills, args.seed).items():
            if name in args.only:
                results[name] = result_of(check, config, work / name)
                sys.stdout.write(line(name, results[name]) + "\n")
                sys.stdout.flush()
    from detectron2 import __version__ as detectron2_version

    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "Detectron2": detectron2_version,
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    record = {
        "command": shlex.join(["tools/selfcheck.py", *argv]),
        "seed": args.seed,
        "date": date.today().isoformat(),
        "machine": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} CPU cores, {gpu}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "results": results,
    }
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    if args.report:
        args.report.write_text(report(record))
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
