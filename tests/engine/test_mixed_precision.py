"""Training under autocast, on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from mgd_det.data.datasets import register_datasets
from mgd_det.engine.mixed_precision import MixedPrecisionTrainer
from mgd_det.engine.trainer import Trainer
from mgd_det.maths.matching import assignment_cost


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_run_trains_and_resumes(dtype, mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    # oneDNN's strided convolution in bfloat16 is wrong on a map of one pixel, which 64 px images have.
    mgd_cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    mgd_cfg.SOLVER.AMP.ENABLED, mgd_cfg.SOLVER.AMP.DTYPE = True, dtype
    for iterations in (2, 4):  # 2 from the start, then resumed
        mgd_cfg.SOLVER.MAX_ITER = iterations
        default_setup(mgd_cfg, None)
        trainer = Trainer(mgd_cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    assert trainer.start_iter == 2
    names = ("loss_cls", "loss_mgd_res3", "loss_mgd_res4", "loss_mgd_res5")
    values = [v for name in names for v, _ in trainer.storage.history(name).values()]
    assert all(math.isfinite(v) and v > 0 for v in values)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_a_detector_may_return_its_loss_alone_and_has_to_be_in_training_mode():
    """The step takes and refuses the same models as those of Detectron2's own trainers."""

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, number):
            return number * self.weight

    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer = MixedPrecisionTrainer(
        model, [2.0, 2.0], optimizer, device=torch.device("cpu"), dtype=torch.bfloat16
    )
    with EventStorage() as storage:
        trainer.run_step()
    assert model.weight.item() == 1 - 0.25 * 2
    assert storage.latest()["total_loss"][0] == 2.0
    model.eval()
    with pytest.raises(AssertionError, match="the model is in eval mode"):
        trainer.run_step()


def test_statistics_are_gathered_in_full_precision_whatever_surrounds_them(mgd_cfg, images):
    """A matching from features in bfloat16 costs, in full precision, what the best one costs."""
    model = build_model(mgd_cfg)
    exact = {r.name: r.cost for r in model.rematch([images])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reports = model.rematch([images])
    for report in reports:
        assert report.cost == pytest.approx(exact[report.name], rel=0.01)
    statistics = model.methods["mgd"]._statistics["res3"]
    assert statistics.similarity.dtype == torch.float64
    groups = model.methods["mgd"]._matchings["res3"].groups
    assert assignment_cost(statistics.cost(), groups) == pytest.approx(reports[0].cost)


def test_the_loss_is_computed_in_float32_under_autocast(mgd_cfg, images):
    from mgd_det.methods import TapFeatures

    model = build_model(mgd_cfg)
    model.rematch([images])
    mgd = model.methods["mgd"]
    half = {
        tap: TapFeatures(
            torch.randn(2, c, 8, 8, dtype=torch.bfloat16, requires_grad=True),
            300 * torch.randn(2, 2 * c, 8, 8, dtype=torch.bfloat16),
            None,
        )
        for tap, c in mgd.channels.items()
    }
    half["res3"].student.data[:, 0] = 0  # a dead channel
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = mgd(half)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(f.student.grad.isfinite().all() for f in half.values())


def test_steps_skipped_for_overflow_leave_student_and_matching_as_they_were(mgd_cfg):
    """A loss scale beyond float16: every step of the first iterations is skipped."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.SOLVER.AMP.ENABLED, mgd_cfg.SOLVER.AMP.DTYPE = True, "float16"
    mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.DISTILL.GRADIENT_PERIOD = 3, 1
    mgd_cfg.DISTILL.MATCHING.MODE, mgd_cfg.DISTILL.MATCHING.ONLINE_EVERY = "online", 1
    default_setup(mgd_cfg, None)
    trainer = Trainer(mgd_cfg)
    scaler = trainer._trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert scaler.get_scale() == 2.0**57
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    mgd = trainer.model.methods["mgd"]
    for tap, groups in mgd._matchings.items():
        assert sorted(groups.groups.flatten().tolist()) == list(range(groups.num_teacher))
        assert mgd._statistics[tap].similarity.isfinite().all()
        assert mgd._statistics[tap].skipped == 0
    assert not any("gradient_ratio" in name for name in trainer.storage.histories())
