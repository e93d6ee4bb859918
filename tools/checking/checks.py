"""The checks: training that is killed and resumed, in several processes, in mixed precision."""

from __future__ import annotations

import math
import random
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from _checkout import ROOT
from checking.jobs import PATIENCE, Job, deviation, equal_values, final, load, run, train_net, within
from commandline import Figures
from detectron2.structures import Boxes, Instances
from processes import LIMIT, Failed, Word
from torch import Tensor

from mgd_det.detectron2_types import State
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
    hits, lost = start_and_kill(folder, output, command, rng.sample((AIMS * kills)[:kills], kills), rng)
    within(PERIOD, {"most iterations lost at a kill": lost})
    start = next_start(output)
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


def start_and_kill(
    folder: Path, output: Path, command: Sequence[Word], aims: Sequence[str], rng: random.Random
) -> tuple[Counter[str], int]:
    """Start a command and kill it, once for each aim, and check each start.

    Returns what the kills hit, each with its number, and the most iterations that were lost at one of them.
    """
    hits = Counter({"while writing a checkpoint": 0, "elsewhere in training": 0, "before training": 0})
    start = lost = 0
    for number, aim in enumerate(aims, 1):
        with Job(folder / f"start_{number}.log", *command) as job:
            hits[kill(job, output, aim, rng)] += 1
        check_start(job, start)
        reached, start = max([start, *(i + 1 for i in job.saved())]), next_start(output)
        lost = max(lost, reached - start)
        for path in output.glob("model_*.pth"):
            if path < last_checkpoint(output):  # of no more use, and disks are finite
                path.unlink()
    return hits, lost


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


TOLERANCE = 1e-5  # relative, of figures that differ by the order of sums
ON_GPU_TOLERANCE = 1e-3  # relative: other algorithms of convolutions, in float32
TORCHRUN = ("-m", "torch.distributed.run")
ONE_AGENT = (*TORCHRUN, "--standalone", "--nproc_per_node")  # of so many processes


def ranks(config: Path, folder: Path) -> Figures:
    """Two processes, started by torchrun with gloo, solve the matching and compute the distillation losses
    of four images of one size, two images each. One process does the same with all four. The assignments
    must be equal. Losses, margins and gradients must be equal up to the order of sums (deviations are
    relative to the largest value of each tensor).
    """
    one, two = (of_ranks(config, folder, processes, "cpu", "gloo") for processes in (1, 2))
    return ranks_apart(two, one, TOLERANCE)


def ranks_on_gpu(config: Path, folder: Path) -> Figures:
    """The same with two processes that share one GPU, connected by gloo, and with one process on it. Both
    are compared with one process on the CPU, in float32 without TF32: the assignments must be equal, losses,
    margins and gradients must be equal up to a thousandth of the largest value.
    """
    expected = of_ranks(config, folder, 1, "cpu", "gloo")
    figures: Figures = {}
    for processes in (1, 2):
        apart = ranks_apart(of_ranks(config, folder, processes, "cuda", "gloo"), expected, ON_GPU_TOLERANCE)
        figures.update({f"{name}, of {processes}": value for name, value in apart.items()})
    return figures


def ranks_by_nccl(config: Path, folder: Path) -> Figures:
    """The same with two processes that NCCL connects, on a GPU each. NCCL refuses two processes that share
    a GPU; where there is one GPU, this refusal is what is recorded.
    """
    expected = of_ranks(config, folder, 1, "cpu", "gloo")
    try:
        found = of_ranks(config, folder, 2, "cuda", "nccl")
    except Failed:
        log = (folder / "2_cuda_nccl.log").read_text(errors="replace")
        refusal = re.search(r"Duplicate GPU detected[^\n]*", log)
        if refusal is None or torch.cuda.device_count() > 1:
            raise
        return {"GPUs": torch.cuda.device_count(), "refused by NCCL": refusal[0]}
    return {"GPUs": torch.cuda.device_count(), **ranks_apart(found, expected, ON_GPU_TOLERANCE)}


def of_ranks(config: Path, folder: Path, processes: int, device: str, backend: str) -> State:
    """Returns what so many processes found."""
    name = f"{processes}_{device}_{backend}"
    worker = (ROOT / "tools/selfcheck.py", "--worker", config, folder / f"{name}.pth", device, backend)
    run(folder / f"{name}.log", *ONE_AGENT, processes, *worker)
    return load(folder / f"{name}.pth")


def ranks_apart(found: State, expected: State, tolerance: float) -> Figures:
    shares = [(found["groups"][tap] == groups).double().mean() for tap, groups in expected["groups"].items()]
    equal = min(share.item() for share in shares)
    if equal < 1:
        raise Failed(f"at one of the taps only {equal:.1%} of the assignments are equal")
    names = ("losses", "margins", "gradients")
    apart = {f"deviation of {name}": deviation(found[name], expected[name]) for name in names}
    return {"share of equal assignments": equal, **within(tolerance, apart)}


def ranks_worker(config: str, out: str, device: str, backend: str) -> None:
    """One of the processes of `ranks`; the first of them writes what all of them found.

    On GPUs the processes take one each, as far as there are as many.
    """
    import torch.distributed as dist
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage
    from torch.nn.parallel import DistributedDataParallel

    from mgd_det.config import load_config
    from mgd_det.distributed import sum_over_ranks
    from mgd_det.engine.automatic_weights import AutomaticWeights
    from mgd_det.modeling.detector import DistilledDetector
    from mgd_det.modeling.step_plan import StepPlan

    dist.init_process_group(backend)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    # Statistics of a rank's own batch, in the student's norms, are stock Detectron2's business.
    norms = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "MODEL.RETINANET.NORM", "")
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
        torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    detector = build_model(load_config(config, norms, device=device))
    assert isinstance(detector, DistilledDetector)
    share = four_images()[rank::world_size]
    detector.rematch([share], sum_over_ranks)
    model = DistributedDataParallel(detector)
    detector.plan_step(StepPlan(measure_gradients=True))
    with EventStorage():
        every = model(share)
    losses = {name: loss for name, loss in every.items() if "mgd" in name}
    # The task losses take part with weight 0, since DDP waits for all parameters.
    sum(loss * (name in losses) for name, loss in every.items()).backward()
    # The weights of DISTILL.STRENGTH are numbers on the CPU, which a backend has to send as well.
    AutomaticWeights(1.0).take(detector.take_gradient_ratios(), detector.losses)
    for loss in losses.values():
        dist.all_reduce(loss.detach())
    if rank == 0:
        matchings = detector.distill_state()["mgd"]["_extra_state"]["matchings"]
        found = {
            "losses": {name: loss.item() / world_size for name, loss in losses.items()},
            "groups": {tap: matching["groups"].cpu() for tap, matching in matchings.items()},
            "margins": {tap: matching["margin"].cpu() for tap, matching in matchings.items()},
            "gradients": {n: p.grad.cpu() for n, p in detector.named_parameters() if p.grad is not None},
        }
        torch.save(found, out)
    dist.barrier()  # nobody leaves, and takes the connections down, before all have finished
    del model
    dist.destroy_process_group()


def four_images() -> list[dict[str, Tensor | Instances]]:
    """Returns images of noise with a box each, as Detectron2's data loaders do."""
    generator = torch.Generator().manual_seed(1)
    images: list[dict[str, Tensor | Instances]] = []
    for _ in range(4):
        image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
        boxes, classes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]])), torch.tensor([1])
        images.append({"image": image, "instances": Instances((64, 96), gt_boxes=boxes, gt_classes=classes)})
    return images


def two_agents(config: Path, folder: Path, *, iterations: int = 6) -> Figures:
    """A run over two machines is simulated on one: two torchrun agents with a process each, connected
    through 127.0.0.1, are compared with one agent with two processes. Both train the same iterations with
    the same seed; the student's weights must be equal (deviations as for `ranks`).
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
    """One of the two processes of a training run is killed (SIGKILL). The whole job must end by itself and
    with an error, name the signal in its output, and soon leave no process behind (the processes that load
    data for a rank notice its death within five seconds).
    """
    endless = ("SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 100000, "SOLVER.IMS_PER_BATCH", 4)
    with Job(folder / "job.log", *ONE_AGENT, 2, *train_net(config, folder / "run", *endless)) as job:
        job.until(lambda: "eta:" in job.output(), "training was under way")
        min(job.processes(RANK="1"), key=lambda process: process.pid).kill()
        killed = time.monotonic()
        code, seconds = job.process.wait(LIMIT), [time.monotonic() - killed]
        while job.processes() and time.monotonic() < killed + PATIENCE:
            time.sleep(0.1)
        seconds.append(time.monotonic() - killed)
        left = len(job.processes())
    if code == 0 or left or "SIGKILL" not in job.output():
        raise job.failed(f"exit code {code}, {left} processes left, or the signal not named")
    ended = dict(zip(("seconds until it ended", "until no process was left"), seconds))
    return {"exit code": code, "processes left": left, **ended}


PRECISION = {"float16": 0.01, "bfloat16": 0.05}  # relative, of the first distillation losses
RESUMED = 1e-3  # relative, of the losses right after a resume; on a CPU they are equal


def mixed_precision(config: Path, folder: Path, *, gpus: int = 0, iterations: int = 10) -> Figures:
    """A run trains under autocast (SOLVER.AMP) in float16 and bfloat16: every loss of every iteration must
    be finite. The figure is the largest relative deviation of a distillation loss in the first iteration
    from a float32 run with the same seed. The images are 120 to 160 pixels wide, because those of up
    to 64 pixels have a map of one pixel before p7, on which torch's CPU kernel for weight gradients of a
    strided convolution in bfloat16 gives wrong values or NaN.
    """
    first: dict[str, dict[str, float]] = {}
    for dtype in ("float32", *PRECISION):
        run(folder / f"{dtype}.log", *precise(config, folder / dtype, dtype, iterations, gpus))
        first[dtype] = {
            name: values[0]
            for name, values in finite_losses(folder / dtype, iterations).items()
            if name.startswith("loss_mgd")
        }
    figures: Figures = {"iterations": iterations}
    for dtype, limit in PRECISION.items():
        apart = largest_change(first[dtype], first["float32"])
        figures.update(within(limit, {f"deviation of {dtype} losses": apart}))
    return figures


def resumed_precision(
    config: Path,
    folder: Path,
    *,
    gpus: int = 0,
    iterations: int = 6,
    dtypes: Sequence[str] = ("float32", *PRECISION),
) -> Figures:
    """A run with DISTILL.EXACT_RESUME trains in float32, float16 and bfloat16, and trains its second half
    again from the checkpoint of its middle. The figure is the largest relative deviation of a loss in the
    first iteration after the resume from the same iteration before.
    """
    half = iterations // 2
    figures: Figures = {"iterations": iterations}
    for dtype in dtypes:
        output = folder / dtype
        keys = ("--resume", "SOLVER.CHECKPOINT_PERIOD", half)
        command = precise(config, output, dtype, iterations, gpus, *keys)
        run(folder / f"{dtype}.log", *command)
        before = finite_losses(output, iterations)
        middle = f"model_{half - 1:07d}.pth"
        (output / "last_checkpoint").write_text(middle)
        check_start(run(folder / f"{dtype}_resumed.log", *command), half)
        after = finite_losses(output, iterations)
        apart = largest_change(*({name: v[half] for name, v in losses.items()} for losses in (after, before)))
        figures.update(within(RESUMED, {f"deviation of {dtype} losses": apart}))
    return figures


def precise(
    config: Path, output: Path, dtype: str, iterations: int, gpus: int, *arguments: Word
) -> list[Word]:
    """The command that trains in a precision."""
    keys = ("DISTILL.EXACT_RESUME", True, "SOLVER.MAX_ITER", iterations, "INPUT.MIN_SIZE_TRAIN", (128,))
    precision = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype) if dtype in PRECISION else ()
    return train_net(config, output, *arguments, *keys, *precision, gpus=gpus)


def finite_losses(output: Path, iterations: int) -> dict[str, list[float]]:
    """Returns every loss of a finished run by iteration, all of which must be finite."""
    scalars = final(output)["trainer"]["hooks"]["ExactResumeHook"]["scalars"]
    losses = {name: [v for v, _ in s["data"]] for name, s in scalars.items() if "loss" in name}
    if not all(len(v) == iterations and all(map(math.isfinite, v)) for v in losses.values()):
        raise Failed(f"in {output.name} not every loss of every iteration is finite")
    return losses


def largest_change(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    return max(abs(found[name] - value) / max(abs(value), 1e-12) for name, value in expected.items())


def tools(config: Path, folder: Path, *, gpus: int = 0, iterations: int = 6) -> Figures:
    """A short training is followed by the tools that read what it left: weights are suggested from another
    one, the student is exported to TorchScript and compared with PyTorch, and the page that shows the run
    is made.
    """
    output = folder / "run"
    everything = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20)
    keys = (*everything, "SOLVER.MAX_ITER", iterations, "DATASETS.TEST", ("selfcheck",))
    run(folder / "run.log", *train_net(config, output, *keys, gpus=gpus))
    suggesting = train_net(config, folder / "suggested", "--suggest-weights", iterations, *keys, gpus=gpus)
    suggested = run(folder / "suggest.log", *suggesting).output()
    exporting = (ROOT / "tools/export.py", "--run", output, "--out", folder / "exported", "--runs", 1)
    exported = run(folder / "export.log", *exporting).output()
    page = folder / "report"
    run(folder / "page.log", ROOT / "tools/visualize.py", "--run", output, "--out", page, "--images", 1)
    weights = re.search(r"DISTILL.MGD.LOSS_WEIGHTS \"(\[.*\])\"", suggested)
    same = re.search(r"(\d+) detections at .* as in PyTorch", exported)
    if not (weights and same and (page / "report.html").stat().st_size):
        raise Failed(f"no weights were suggested, or no detections compared: {folder}")
    return {"suggested weights": weights[1], "detections as in PyTorch": int(same[1])}
