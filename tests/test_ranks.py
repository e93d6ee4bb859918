"""Two gloo processes against one: the same losses, gradients and matching; and a rank that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import torch
from conftest import ROOT, run_tool, small_config

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# Four images of one size; each process takes its share of the batch and of the matching pass.
WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
import mgd_det
from mgd_det.config import load_config
from mgd_det.rematch import sum_over_ranks

config, out = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
mgd_det.DistilledDetector
torch.manual_seed(0)
detector = build_model(load_config(config))
generator = torch.Generator().manual_seed(1)
images = []
for _ in range(4):
    image = torch.randint(0, 256, (3, 64, 96), generator=generator, dtype=torch.uint8)
    instances = Instances((64, 96))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
    instances.gt_classes = torch.tensor([1])
    images.append({"image": image, "instances": instances})
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
    mgd = detector.methods["mgd"]
    torch.save(
        {
            "losses": {name: loss.item() / world_size for name, loss in losses.items()},
            "groups": {tap: m.groups for tap, m in mgd._matchings.items()},
            "margins": {tap: m.margin for tap, m in mgd._matchings.items()},
            "gradients": {n: p.grad for n, p in detector.named_parameters() if p.grad is not None},
        },
        out,
    )
dist.barrier()  # nobody leaves, and takes the connections down, before all have finished
del model
dist.destroy_process_group()
"""


def test_two_ranks_equal_one_on_the_whole_batch(demo_data, teacher_run, tmp_path):
    cfg = small_config(demo_data, tmp_path / "run")
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    # Statistics of a rank's own batch, in the student's norms, are stock Detectron2's business.
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM, cfg.MODEL.RETINANET.NORM = "FrozenBN", "", ""
    (tmp_path / "run.yaml").write_text(cfg.dump())
    (tmp_path / "worker.py").write_text(WORKER)
    results = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pth"
        launcher = [*LAUNCHER[:-1], processes]
        run_tool(*launcher, tmp_path / "worker.py", tmp_path / "run.yaml", out)
        results.append(torch.load(out))
    one, two = results
    for tap, groups in one["groups"].items():
        assert torch.equal(two["groups"][tap], groups)
        assert torch.allclose(two["margins"][tap], one["margins"][tap], rtol=1e-6, atol=0)
    for name, loss in one["losses"].items():
        assert abs(two["losses"][name] - loss) <= 1e-5 * loss
    assert list(one["gradients"]) == list(two["gradients"])
    for name, gradient in one["gradients"].items():
        scale = gradient.abs().max().clamp_min(1e-12)
        assert ((two["gradients"][name] - gradient).abs().max() / scale).item() <= 1e-5, name


def test_a_rank_that_dies_ends_the_job(demo_data, teacher_run, tmp_path):
    cfg = small_config(demo_data, tmp_path / "run", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 100000)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.CHECKPOINT_PERIOD = 4, 100000
    (tmp_path / "run.yaml").write_text(cfg.dump())
    train_net = [str(ROOT / "tools/train_net.py"), "--config-file", str(tmp_path / "run.yaml")]
    process = subprocess.Popen(
        [sys.executable, *LAUNCHER, *train_net, "--num-gpus", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    output = []
    for line in process.stdout:
        output.append(line)
        if "eta:" in line and len(ranks := children(process.pid)) == 2:
            os.kill(ranks[1], signal.SIGKILL)
            break
    output.append(process.stdout.read())
    assert process.wait() != 0
    assert "SIGKILL" in "".join(output)
    assert children(process.pid) == []


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in listing.stdout.split()]
