"""Training in several processes: by two ranks, by two agents, and with a rank that dies."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from _checkout import ROOT
from checking.jobs import PATIENCE, Job, run
from checking.states import Figures, deviation, final, load, within
from checking.tiny import train_net
from processes import LIMIT, Failed

TOLERANCE = 1e-5  # relative, of figures that differ by the order of sums
TORCHRUN = ("-m", "torch.distributed.run")
ONE_AGENT = (*TORCHRUN, "--standalone", "--nproc_per_node")  # of so many processes


def ranks(config: Path, folder: Path) -> Figures:
    """Two processes, started by torchrun with gloo, solve the matching and compute the distillation losses
    of four images of one size, two images each. One process does the same with all four. The assignments
    must be equal. Losses, margins and gradients must be equal up to the order of sums (deviations are
    relative to the largest value of each tensor).
    """
    results = []
    for processes in (1, 2):
        out = folder / f"{processes}.pth"
        worker = (ROOT / "tools/selfcheck.py", "--worker", config, out)
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
    from mgd_det.distributed import sum_over_ranks
    from mgd_det.modeling.detector import DistilledDetector

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
