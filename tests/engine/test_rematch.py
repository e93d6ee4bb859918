"""When the matching is solved, from which images, and in whose trainer."""

from __future__ import annotations

import copy
import os
from functools import partial
from pydoc import locate

import pytest
import torch
import torch.distributed as dist
from detectron2.config import LazyCall, LazyConfig
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from mgd_det import RematchHook, register_datasets
from mgd_det.config import student_config
from mgd_det.data.matching_images import MatchingImages
from mgd_det.engine.exact_resume import ExactResumeHook
from mgd_det.engine.schedules import UpdateSchedule
from mgd_det.engine.state_keys import EXACT_RESUME_STATE, MATCHING_STATE
from mgd_det.errors import ConfigError
from mgd_det.modeling.step_plan import StepPlan


def due(schedule: UpdateSchedule, last: int) -> list[int]:
    return [i for i in range(last + 1) if schedule.due(i)]


def test_default_schedule_over_a_coco_run(mgd_cfg):
    mgd_cfg.DISTILL.MATCHING.PERIOD = 5000
    schedule = UpdateSchedule.from_config(mgd_cfg)
    assert due(schedule, 90000) == [0, 5000, 10000, 15000, 30000, 45000, 60000, 75000, 90000]


def test_a_period_of_zero_is_never_again(mgd_cfg):
    mgd_cfg.DISTILL.MATCHING.PERIOD = 0
    assert due(UpdateSchedule.from_config(mgd_cfg), 90000) == [0]
    mgd_cfg.DISTILL.MATCHING.PERIOD, mgd_cfg.DISTILL.EXPERIMENT.SLOW_PERIOD = 5000, 0
    assert due(UpdateSchedule.from_config(mgd_cfg), 90000) == [0, 5000, 10000, 15000]


@pytest.mark.parametrize(
    "key", ["MATCHING.PERIOD", "EXPERIMENT.SLOW_AFTER", "EXPERIMENT.SLOW_PERIOD", "MATCHING.NUM_IMAGES"]
)
def test_schedules_that_make_no_sense(mgd_cfg, key):
    mgd_cfg.merge_from_list([f"DISTILL.{key}", -1])
    with pytest.raises(ConfigError, match=rf"DISTILL\.{key} = -1"):
        RematchHook(mgd_cfg)


def test_images_depend_on_seed_and_iteration_alone(mgd_cfg):
    register_datasets(mgd_cfg)

    def drawn(iteration: int) -> list[str]:
        batches = MatchingImages(mgd_cfg)(iteration)
        return [x["file_name"] for batch in batches for x in batch]

    torch.manual_seed(0)
    first = drawn(0)
    torch.manual_seed(1)
    assert drawn(0) == first
    assert len(set(first)) == 4
    assert sorted(drawn(3)) != sorted(first)
    mgd_cfg.SEED = 2
    assert sorted(drawn(0)) != sorted(first)


def test_images_are_the_whole_set_when_it_is_small(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DISTILL.MATCHING.NUM_IMAGES = 1000
    assert sum(len(batch) for batch in MatchingImages(mgd_cfg)(0)) == 16


def train(trainer) -> None:
    trainer.resume_or_load(resume=True)
    trainer.train()


def test_it_plugs_into_a_stock_trainer_and_survives_resume(mgd_cfg):
    """The snippet of the README: a config call, a meta-architecture name, a hook."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()

    def stock_trainer() -> DefaultTrainer:
        trainer = DefaultTrainer(mgd_cfg)
        trainer.register_hooks([RematchHook(mgd_cfg)])
        return trainer

    mgd_cfg.SOLVER.MAX_ITER = 2
    first = stock_trainer()
    train(first)
    solved = first.model.methods["mgd"]._matchings["res4"].groups
    norm = first.model.methods["mgd"].norms["res4"].weight

    mgd_cfg.SOLVER.MAX_ITER = 3  # 3 is the period: a matching at 2 can only be the first run's
    second = stock_trainer()
    train(second)
    assert second.start_iter == 2
    assert torch.equal(second.model.methods["mgd"]._matchings["res4"].groups, solved)
    assert not torch.equal(norm, torch.ones_like(norm))

    stock = build_model(student_config(mgd_cfg))
    for name in ("model_0000001.pth", "model_final.pth"):
        saved = torch.load(f"{mgd_cfg.OUTPUT_DIR}/{name}", weights_only=True)
        stock.load_state_dict(saved["model"], strict=True)


def test_a_renamed_hook_reads_the_checkpoints_of_before(mgd_cfg):
    """Detectron2 finds a hook's state by the name of its class, which ours pin."""
    assert RematchHook.__qualname__ == MATCHING_STATE
    assert ExactResumeHook.__qualname__ == EXACT_RESUME_STATE

    class Renamed(RematchHook):
        __qualname__ = MATCHING_STATE

    first = trained(mgd_cfg, 2)
    solved = first.model.distill_state()["mgd"]["_extra_state"]["matchings"]["res4"]["groups"]
    mgd_cfg.SOLVER.MAX_ITER = 3
    second = DefaultTrainer(mgd_cfg)
    second.register_hooks([Renamed(mgd_cfg)])
    train(second)
    assert second.start_iter == 2
    loaded = second.model.distill_state()["mgd"]["_extra_state"]["matchings"]["res4"]["groups"]
    assert torch.equal(loaded, solved)


@pytest.mark.parametrize("hook", [RematchHook, ExactResumeHook])
def test_a_lazy_config_saves_a_hook_under_a_name_that_imports_it(hook, tmp_path):
    LazyConfig.save(OmegaConf.create({"hook": LazyCall(hook)(cfg=None)}), str(tmp_path / "hook.yaml"))
    assert locate(LazyConfig.load(str(tmp_path / "hook.yaml")).hook._target_) is hook


def test_each_update_is_logged_with_cost_and_change(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.SOLVER.MAX_ITER = 4
    trainer = DefaultTrainer(mgd_cfg)
    trainer.register_hooks([RematchHook(mgd_cfg)])
    trainer.train()
    histories = trainer.storage.histories()
    costs = histories["mgd_res4/match_cost"].values()
    changes = histories["mgd_res4/match_changed"].values()
    assert [iteration for _, iteration in costs] == [0, 3]
    assert all(0 < cost < 2 for cost, _ in costs)
    assert changes[0][0] == 1.0
    assert 0 <= changes[1][0] < 1


def test_the_hook_wants_a_distiller(student_cfg):
    register_datasets(student_cfg)
    cfg = student_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([RematchHook(cfg)])
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE.*DistilledDetector"):
        trainer.train()


def test_with_distillation_disabled_the_hook_does_nothing(student_cfg):
    register_datasets(student_cfg)
    student_cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(student_cfg)
    trainer.register_hooks([RematchHook(student_cfg)])
    trainer.train()
    assert not any("mgd" in name for name in trainer.storage.histories())


def trained(cfg, iterations: int) -> DefaultTrainer:
    register_datasets(cfg)
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.MAX_ITER = iterations
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([RematchHook(cfg)])
    trainer.train()
    return trainer


def iterations_of(trainer, name: str) -> list[int]:
    return [int(iteration) for _, iteration in trainer.storage.history(name).values()]


def test_online_takes_the_features_of_training_steps_and_no_others(mgd_cfg):
    """Every second step of two images; what PreciseBN runs through the model does not count."""
    mgd_cfg.DISTILL.MATCHING.MODE = "online"
    mgd_cfg.DISTILL.MATCHING.ONLINE_EVERY = 2
    mgd_cfg.DISTILL.EXPERIMENT.ONLINE_DECAY = 0.5
    mgd_cfg.DISTILL.MATCHING.PERIOD = 3
    mgd_cfg.TEST.PRECISE_BN.ENABLED, mgd_cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
    mgd_cfg.TEST.EVAL_PERIOD = 1
    mgd_cfg.DISTILL.MGD.NORM = "BN"  # not one of those whose statistics PreciseBN computes
    trainer = trained(mgd_cfg, 5)
    assert iterations_of(trainer, "mgd_res4/match_cost") == [0, 3]
    # The first pass saw 4 images; then steps 0, 2 and 4 add 2 each: ((4/2 + 2)/2 + 2)/2 + 2 = 4.
    statistics = trainer.model.methods["mgd"]._statistics["res4"]
    assert statistics.images.item() == 4
    assert mgd_cfg.TEST.PRECISE_BN.ENABLED


def test_online_statistics_are_those_of_the_features_seen(mgd_cfg, images):
    from mgd_det.maths.matching import channel_cost
    from mgd_det.methods import TapFeatures, TapInfo

    model = build_model(mgd_cfg)
    mgd = model.methods["mgd"]
    info = {tap: TapInfo(2 * c, 8, True) for tap, c in mgd.channels.items()}
    mgd.attach(info, info)
    generator = torch.Generator().manual_seed(0)

    def batch():
        return {
            tap: TapFeatures(
                torch.randn(2, c, 4, 5, generator=generator),
                torch.randn(2, 2 * c, 4, 5, generator=generator),
                None,
            )
            for tap, c in mgd.channels.items()
        }

    first, second = batch(), batch()
    for features in (first, second):
        mgd.observe(features)
        mgd.absorb(lambda tensor: None, decay=0.25)
    # Of two images, whose mean cost is 2 - 2 * similarity / 2.
    old, new = (2 - channel_cost(b["res3"].student, b["res3"].teacher) for b in (first, second))
    similarity = mgd._statistics["res3"].similarity
    assert torch.allclose(similarity, (0.25 * old + new).double(), atol=1e-6)
    assert [r.images for r in mgd.solve()] == [2, 2, 2]  # 0.25 * 2 + 2 = 2.5, rounded to even


def test_explicit_iterations_and_an_end(mgd_cfg):
    mgd_cfg.DISTILL.MATCHING.ITERATIONS = [1, 4]
    mgd_cfg.DISTILL.MATCHING.UNTIL = 3
    assert iterations_of(trained(mgd_cfg, 6), "mgd_res3/match_cost") == [0, 1]


def test_losses_rise_fall_and_stop(mgd_cfg):
    mgd_cfg.DISTILL.SCHEDULE.WARMUP_ITERS = 2
    mgd_cfg.DISTILL.EXPERIMENT.DECAY_ITER = 2
    mgd_cfg.DISTILL.SCHEDULE.STOP_ITER = 4
    trainer = trained(mgd_cfg, 6)
    factors = [value for value, _ in trainer.storage.history("mgd_res4/weight").values()]
    assert factors == pytest.approx([0.025, 0.05, 0.05, 0.025, 0.0, 0.0])
    losses = [value for value, _ in trainer.storage.history("loss_mgd_res4").values()]
    assert all(value > 0 for value in losses[:4])
    assert losses[4:] == [0.0, 0.0]


def test_the_teacher_runs_in_some_iterations_and_nothing_is_logged_in_the_others(mgd_cfg):
    mgd_cfg.DISTILL.TEACHER.EVERY, mgd_cfg.DISTILL.GRADIENT_PERIOD = 2, 3
    mgd_cfg.DISTILL.MATCHING.MODE, mgd_cfg.DISTILL.MATCHING.ONLINE_EVERY = "online", 3
    mgd_cfg.DISTILL.EXPERIMENT.ONLINE_DECAY = 0.5
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST, mgd_cfg.SOLVER.MAX_ITER = (), 7
    trainer = DefaultTrainer(mgd_cfg)
    trainer.register_hooks([RematchHook(mgd_cfg)])
    ran = []
    trainer.model.prepare()
    trainer.model.teacher.model.register_forward_pre_hook(lambda *_: ran.append(trainer.iter))
    trainer.train()
    assert sorted(set(ran)) == [0, 2, 4, 6]
    assert iterations_of(trainer, "loss_cls") == list(range(7))
    for name in ("loss_mgd_res4", "mgd_res4/weight"):
        assert iterations_of(trainer, name) == [0, 2, 4, 6]
    assert trainer.storage.history("mgd_res4/weight").latest() == pytest.approx(0.1)  # twice the default
    # Both are due at 3, and wait for the next iteration of the teacher; the matching does not.
    assert iterations_of(trainer, "mgd_res4/gradient_ratio") == [0, 4, 6]
    assert iterations_of(trainer, "mgd_res4/match_cost") == [0, 3, 6]
    # The first pass saw 4 images; then steps 0, 4 and 6 add 2 each: ((4/2 + 2)/2 + 2)/2 + 2 = 4.
    assert trainer.model.methods["mgd"]._statistics["res4"].images.item() == 4


def test_a_skipped_step_is_the_students_own(mgd_cfg, labelled):
    mgd_cfg.DISTILL.METHODS = ["mgd", "channel_mlp"]
    model = build_model(mgd_cfg)
    twin = copy.deepcopy(model.student)
    model.plan_step(StepPlan(loss_factor=0.0, skipped=True))
    unlabelled = [{**labelled[0], "unlabeled": True}]
    with EventStorage(), torch.jit.optimized_execution(False):
        expected, losses = twin(labelled), model([*labelled, *unlabelled])
        sum(losses.values()).backward()
    assert losses == expected
    assert model.teacher is None
    assert all(p.grad is not None and not p.grad.any() for p in model.methods.parameters())


def test_skipped_steps_under_ddp(mgd_cfg, labelled):
    """DDP refuses a step after one that has left parameters without gradients."""
    mgd_cfg.DISTILL.METHODS = ["channel_mlp"]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(build_model(mgd_cfg))
        with EventStorage():
            for skipped in (False, True, True, False):
                model.module.plan_step(StepPlan(loss_factor=0.0 if skipped else 1.0, skipped=skipped))
                sum(model(labelled).values()).backward()
    finally:
        dist.destroy_process_group()


def test_stopped_losses_reach_every_parameter_and_leave_the_teacher_alone(mgd_cfg, labelled):
    model = build_model(mgd_cfg)
    model.plan_step(StepPlan(loss_factor=0.0))
    with EventStorage():
        sum(model(labelled).values()).backward()
    assert model.teacher is None
    assert all(p.grad is not None and not p.grad.any() for p in model.methods.parameters())


def test_a_diverged_student_stops_with_the_tap_and_keeps_the_matching(mgd_cfg, images):
    model = build_model(mgd_cfg)
    model.rematch([images])
    before = model.methods["mgd"]._matchings["res3"].groups.clone()
    model.student.backbone.bottom_up.res3[0].conv1.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"tap 'res3'.*NaN or infinite in all 2 images"):
        model.rematch([images])
    assert torch.equal(model.methods["mgd"]._matchings["res3"].groups, before)


def test_bad_numbers_at_one_tap_leave_the_matchings_of_all(mgd_cfg, images):
    model = build_model(mgd_cfg)
    model.rematch([images])
    before = {tap: m.groups.clone() for tap, m in model.methods["mgd"]._matchings.items()}
    other = [{"image": 255 - x["image"]} for x in images]
    model.student.backbone.bottom_up.res4[0].conv1.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="tap 'res4'"):
        model.rematch([other])
    for tap, groups in before.items():
        assert torch.equal(model.methods["mgd"]._matchings[tap].groups, groups)


def test_a_matching_that_cannot_be_solved_names_the_iteration(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(mgd_cfg)
    hook = RematchHook(mgd_cfg)
    trainer.register_hooks([hook])
    trainer.model.student.backbone.bottom_up.res4[0].conv1.weight.data.fill_(float("nan"))
    trainer.iter = 7
    diverged = pytest.raises(FloatingPointError, match=r"before iteration 7: .*tap 'res4'")
    with EventStorage(7) as trainer.storage, diverged:
        hook.before_step()


def test_a_worker_forked_by_a_dying_process_ends(mgd_cfg):
    """The parent that it was told of is another than the one it has."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATALOADER.NUM_WORKERS = 1
    ours = MatchingImages(mgd_cfg)(0)
    assert sum(len(batch) for batch in ours) == 4
    orphaned = MatchingImages(mgd_cfg)(0)
    orphaned.worker_init_fn = partial(orphaned.worker_init_fn.func, os.getppid())
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(orphaned)


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (["DISTILL.MATCHING.MODE", "sometimes"], r"MATCHING\.MODE = 'sometimes'.*'online'"),
        (["DISTILL.EXPERIMENT.ONLINE_DECAY", 1.5], r"ONLINE_DECAY = 1\.5"),
        (["DISTILL.MATCHING.ONLINE_EVERY", 0], r"ONLINE_EVERY = 0"),
        (["DISTILL.SCHEDULE.WARMUP_ITERS", -1], r"WARMUP_ITERS = -1"),
        (["DISTILL.EXPERIMENT.DECAY_ITER", 5], r"DECAY_ITER = 5.*STOP_ITER is 0.*Set STOP_ITER"),
    ],
)
def test_more_schedules_that_make_no_sense(mgd_cfg, opts, match):
    mgd_cfg.merge_from_list(opts)
    with pytest.raises(ConfigError, match=match):
        RematchHook(mgd_cfg)
