"""Runs that are killed and resumed."""

from __future__ import annotations

import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from checking.jobs import Job, run
from checking.states import Figures, equal_values, final, load, within
from checking.tiny import train_net
from processes import LIMIT, Failed

from mgd_det.run.metrics import read_metrics

PERIOD = 4  # iterations between two checkpoints of a run that is killed
AIMS = ("writing", "training", "start-up", "training")  # of kills: over and over, shuffled


def kill_and_resume(config: Path, folder: Path, *, mode: str, kills: int, seed: int) -> Figures:
    """A run with DISTILL.EXACT_RESUME is killed (SIGKILL) at random moments, some of them aimed at the
    writing of a checkpoint, and started again each time by the same command. After every kill the file that
    `last_checkpoint` names must load completely, and the next start must begin there. The iterations since
    then are lost; they are counted up to the last checkpoint whose writing had begun. In the end, the run
    must equal an undisturbed run with the same seed, bit for bit: in everything that its last checkpoint
    holds (student, optimiser, matching, statistics, adapters, the metrics of the last 200 iterations) and
    in metrics.json, except for times.
    """
    rng = random.Random(f"{seed} {mode}")
    output, iterations = folder / "killed", 5 * PERIOD * kills
    steps = ("SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", (iterations // 2, iterations - PERIOD))
    keys = ("DISTILL.EXACT_RESUME", True, "DISTILL.MATCHING.MODE", mode, *steps)
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
        runs.append({**final(path), "metrics": read_metrics(path / "metrics.json")})
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
    """A run without DISTILL.EXACT_RESUME, with Detectron2's own data loading, is killed and started again.
    The second start has its distillation losses switched off, so that matching, statistics and adapters do
    not change: they must afterwards equal those of the checkpoint that it resumed from, bit for bit.
    """
    output = folder / "run"
    still = ("SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
    keys = (*still, "SOLVER.CHECKPOINT_PERIOD", PERIOD, "DISTILL.MATCHING.MODE", "online")
    with Job(folder / "killed.log", *train_net(config, output, *keys)) as job:
        job.until(lambda: len(job.saved()) > 2, "it was killed")
    start = next_start(output)
    before = load(last_checkpoint(output))["trainer"]["hooks"]["RematchHook"]
    stopped = ("DISTILL.SCHEDULE.STOP_ITER", start, "SOLVER.MAX_ITER", start + 2)
    check_start(run(folder / "resumed.log", *train_net(config, output, "--resume", *keys, *stopped)), start)
    after = final(output)["trainer"]["hooks"]["RematchHook"]
    return {"resumed at iteration": start, "values equal bit for bit": equal_values(after, before)}


def kill(job: Job, output: Path, aim: str, rng: random.Random) -> str:
    """Let a run get to a random moment, send it SIGKILL, and return what that hit."""
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


def being_written(job: Job, output: Path) -> bool:
    """Returns True if this start left a checkpoint that is partial, or not yet named as the last."""
    unnamed = [path for path in output.glob("model_*.pth") if path > last_checkpoint(output)]
    for path in [*unnamed, *output.glob("*.partial")]:
        with suppress(FileNotFoundError):  # renamed just now
            if path.stat().st_mtime > job.started:
                return True
    return False


def last_checkpoint(output: Path) -> Path:
    """Returns the file that the next start will resume from, the folder itself if there is none."""
    tag = output / "last_checkpoint"
    return output / (tag.read_text() if tag.exists() else "")


def next_start(output: Path) -> int:
    """Returns the iteration that the next start must begin at. The last checkpoint must load whole."""
    path = last_checkpoint(output)
    try:
        return 0 if path == output else load(path)["iteration"] + 1
    except Exception as error:  # whatever it is, the run cannot go on
        raise Failed(f"unresumable: {path} does not load: {error}") from error


def check_start(job: Job, expected: int) -> None:
    if job.began_at() not in (None, expected):
        raise Failed(f"{job.log.stem} began at iteration {job.began_at()}, not at {expected}")
