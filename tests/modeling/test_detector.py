"""The distiller seen from outside: a student with losses added, and no trace of a teacher."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.maths.losses import pooled_partial_l2
from mgd_det.maths.matching import assign_groups, channel_cost
from mgd_det.methods.imitation import Imitation
from mgd_det.modeling.detector import DistilledDetector, NotMatchedError
from mgd_det.modeling.pairing import unpadded_mask
from mgd_det.modeling.step_plan import StepPlan
from mgd_det.modeling.taps import capture, evaluating


@pytest.fixture
def detector(mgd_cfg):
    torch.manual_seed(0)
    return build_model(mgd_cfg)


def test_a_process_without_images_ends_the_pass_in_all(mgd_cfg, images):
    """This process has images. The sum over both processes says that the other one has none."""

    def with_another(tensor):
        tensor += 1

    with pytest.raises(ValueError, match="no images to solve the matching from in 1 of the processes"):
        build_model(mgd_cfg).rematch([images], with_another)


def test_the_teacher_is_invisible(detector, teacher_run):
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    parameters = [id(p) for p in detector.parameters()]
    detector.prepare()
    assert detector.teacher is not None
    assert [id(p) for p in detector.parameters()] == parameters
    assert list(detector.state_dict()) == list(before) == list(detector.student.state_dict())
    teachers = {id(m) for m in detector.teacher.model.modules()}
    assert not teachers & {id(m) for m in detector.modules()}
    assert not {id(b) for b in detector.teacher.model.buffers()} & {id(b) for b in detector.buffers()}
    detector.train()
    assert not any(m.training for m in detector.teacher.model.modules())
    assert copy.deepcopy(detector).teacher is None
    assert pickle.loads(pickle.dumps(detector)).teacher is None
    detector.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in detector.teacher.model.parameters())


def test_a_student_in_channels_last_order_learns_the_same(mgd_cfg, labelled):
    found = []
    for channels_last in (False, True):
        mgd_cfg.DISTILL.CHANNELS_LAST = channels_last
        torch.manual_seed(0)
        model = build_model(mgd_cfg).train()
        model.rematch([labelled])
        with EventStorage():
            losses = model(labelled)
        sum(losses.values()).backward()
        weight = model.student.backbone.bottom_up.res4[0].conv1.weight
        assert weight.is_contiguous() != channels_last
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        found.append(({name: loss.item() for name, loss in losses.items()}, weight.grad))
    (losses, gradient), (losses_last, gradient_last) = found
    assert losses_last == pytest.approx(losses, rel=1e-4)
    assert (gradient_last - gradient).norm() < 1e-3 * gradient.norm()


def test_the_students_initial_weights_are_the_same_with_and_without(mgd_cfg):
    torch.manual_seed(5)
    stock = build_model(student_config(mgd_cfg))
    after_stock = torch.get_rng_state()
    torch.manual_seed(5)
    distiller = build_model(mgd_cfg)
    distiller.prepare()
    assert torch.equal(torch.get_rng_state(), after_stock)
    assert list(stock.state_dict()) == list(distiller.state_dict())
    assert all(torch.equal(v, distiller.state_dict()[k]) for k, v in stock.state_dict().items())


def test_in_eval_mode_it_is_the_student_and_needs_no_teacher(mgd_cfg, images, tmp_path):
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = mgd_cfg.DISTILL.TEACHER.WEIGHTS = "/does/not/exist"
    torch.manual_seed(0)
    detector = build_model(mgd_cfg).eval()
    with torch.no_grad():
        ours, alone = detector(images), detector.student(images)
    assert detector.teacher is None
    for a, b in zip(ours, alone):
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        assert torch.equal(a["instances"].scores, b["instances"].scores)

    torch.save({"model": detector.state_dict()}, tmp_path / "student.pth")
    mgd_cfg.MODEL.WEIGHTS = str(tmp_path / "student.pth")
    mgd_cfg.DATASETS.TEST = ()
    picture = images[0]["image"].permute(1, 2, 0).numpy()
    stock_cfg = student_config(mgd_cfg)
    predicted = DefaultPredictor(mgd_cfg)(picture)["instances"]
    expected = DefaultPredictor(stock_cfg)(picture)["instances"]
    assert torch.equal(predicted.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_its_checkpoints_are_the_stock_students(detector, mgd_cfg, tmp_path):
    detector.prepare()
    DetectionCheckpointer(detector, str(tmp_path)).save("model")
    stock = build_model(student_config(mgd_cfg))
    saved = torch.load(tmp_path / "model.pth")["model"]
    stock.load_state_dict(saved, strict=True)
    DetectionCheckpointer(detector).load(str(tmp_path / "model.pth"))
    assert all(torch.equal(v, stock.state_dict()[k]) for k, v in detector.state_dict().items())


def test_a_shape_that_differs_is_skipped_as_in_stock(detector, tmp_path):
    """fvcore looks the module up by its stock name, which must resolve on the distiller."""
    state = detector.state_dict()
    state["head.cls_score.weight"] = torch.zeros(3, 2)
    torch.save({"model": state}, tmp_path / "other.pth")
    before = detector.student.head.cls_score.weight.clone()
    DetectionCheckpointer(detector).load(str(tmp_path / "other.pth"))
    assert torch.equal(detector.student.head.cls_score.weight, before)


def test_training_without_a_matching_stops_with_the_remedy(detector, labelled):
    with pytest.raises(NotMatchedError, match="RematchHook"), EventStorage():
        detector(labelled)


def test_losses_are_the_students_and_one_for_each_tap(detector, labelled, mgd_cfg):
    reports = detector.rematch([labelled])
    assert [r.name for r in reports] == ["mgd_res3", "mgd_res4", "mgd_res5"]
    detector.backbone.eval()  # so that a second forward pass sees the same statistics
    with EventStorage():
        stock = copy.deepcopy(detector.student)(labelled)
        losses = detector(labelled)
    assert list(losses) == [
        *("loss_cls", "loss_box_reg"),
        *("loss_mgd_res3", "loss_mgd_res4", "loss_mgd_res5"),
    ]
    assert all(torch.equal(losses[name], value) for name, value in stock.items())

    # The res3 term from its parts.
    with capture(detector.student.backbone, ["res3"]) as student:
        detector.student.backbone(detector.student.preprocess_image(labelled).tensor)
    pixels = [x["image"] for x in labelled]
    teacher = detector.teacher.features(pixels, "RGB", ["res3"])
    mgd = detector.methods["mgd"]
    groups, margin, _ = mgd._matchings["res3"]
    mask = unpadded_mask(pixels, 8, *student["res3"].shape[2:])
    normed = mgd.norms["res3"](student["res3"], mask)
    expected = 0.05 * pooled_partial_l2(normed, teacher["res3"], groups, margin, "mean", mask)
    assert losses["loss_mgd_res3"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_rematch_solves_the_optimum_of_the_features_seen(detector, images):
    detector.rematch([images])
    backbone = detector.student.backbone
    pixels = detector.student.preprocess_image(images).tensor
    with torch.no_grad(), evaluating(detector.student), capture(backbone, ["res4"]) as student:
        backbone(pixels)
    pixels = [x["image"] for x in images]
    teacher = detector.teacher.features(pixels, "RGB", ["res4"])
    mask = unpadded_mask(pixels, 16, *student["res4"].shape[2:])
    expected = assign_groups(channel_cost(student["res4"], teacher["res4"], mask))
    assert torch.equal(detector.methods["mgd"]._matchings["res4"].groups, expected)


def test_rematch_changes_nothing_else(detector, images):
    detector.student.backbone.bottom_up.res4.eval()
    modes = [m.training for m in detector.modules()]
    state = {k: v.clone() for k, v in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    detector.rematch([images, images])
    assert [m.training for m in detector.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in detector.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_gradients_reach_the_student_and_the_norms(detector, labelled):
    detector.rematch([labelled])
    with EventStorage():
        losses = detector(labelled)
    sum(loss for name, loss in losses.items() if "mgd" in name).backward()
    assert detector.student.backbone.bottom_up.res3[0].conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in detector.methods.parameters())


def test_a_tap_can_be_another_one_on_each_side(mgd_cfg, images):
    """The student's res4 by name, the teacher's by path, before and after the ReLU."""
    mgd_cfg.DISTILL.MGD.TAPS = ["res4=bottom_up.res4.5", "res3_relu"]
    detector = build_model(mgd_cfg)
    reports = detector.rematch([images])
    assert [r.name for r in reports] == ["mgd_res4=bottom_up.res4.5", "mgd_res3_relu"]
    margin = detector.methods["mgd"]._matchings["res3_relu"].margin
    assert not margin.any()  # nothing is negative behind a ReLU
    state = detector.distill_state()
    build_model(mgd_cfg).load_distill_state(state)


def test_disabled_it_has_no_methods_and_no_teacher(mgd_cfg, labelled):
    mgd_cfg.DISTILL.ENABLED = False
    detector = build_model(mgd_cfg)
    assert len(list(detector.parameters())) == len(list(detector.student.parameters()))
    with EventStorage():
        assert list(detector(labelled)) == ["loss_cls", "loss_box_reg"]


def test_attributes_of_the_student_are_found(detector):
    assert detector.backbone is detector.student.backbone
    assert detector.device == torch.device("cpu")
    assert detector.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert detector.pixel_mean is detector.student.pixel_mean
    assert not hasattr(detector, "roi_heads")  # which a RetinaNet has not
    with pytest.raises(AttributeError, match="'DistilledDetector' object has no attribute 'nonsense'"):
        detector.nonsense  # noqa: B018


def test_attributes_that_are_not_named_stay_the_students(detector):
    assert detector.student.smooth_l1_beta is not None
    with pytest.raises(AttributeError, match="'DistilledDetector' object has no attribute 'smooth_l1_beta'"):
        detector.smooth_l1_beta  # noqa: B018


def test_a_mistake_inside_a_property_reports_itself(mgd_cfg):
    class Mistaken(Imitation):
        @property
        def losses(self):
            return self.wieghts

    mgd_cfg.DISTILL.METHODS = []
    detector = build_model(mgd_cfg)
    methods = {"mistaken": Mistaken(name="mistaken", adapters={}, weights={})}
    detector = DistilledDetector(
        student=detector.student, methods=methods, teacher=detector.teacher_spec, input_format="RGB"
    )
    with pytest.raises(AttributeError, match="'Mistaken' object has no attribute 'wieghts'"):
        detector.losses  # noqa: B018


def test_a_plan_is_consumed_by_one_forward_pass_and_its_factor_stays(detector, labelled):
    detector.rematch([labelled])
    detector.plan_step(StepPlan(loss_factor=0.5, collect_statistics=True, measure_gradients=True))
    with EventStorage():
        detector(labelled)
    assert detector.plan == StepPlan(loss_factor=0.5)
    detector.plan_step(StepPlan(collect_statistics=True))
    with EventStorage(), torch.no_grad():
        detector.eval()(labelled)  # an evaluation consumes nothing
    assert detector.plan == StepPlan(collect_statistics=True)


def test_the_factor_of_a_plan_multiplies_every_distillation_loss(detector, labelled):
    detector.rematch([labelled])
    detector.backbone.eval()  # so that a second forward pass sees the same statistics
    with EventStorage():
        whole = detector(labelled)
        detector.plan_step(StepPlan(loss_factor=0.25))
        quarter = detector(labelled)
    for name in detector.losses:
        assert quarter[name].item() == pytest.approx(0.25 * whole[name].item(), rel=1e-6)


def test_gradient_ratios_are_taken_once(detector, labelled):
    detector.rematch([labelled])
    detector.plan_step(StepPlan(measure_gradients=True))
    with EventStorage():
        sum(detector(labelled).values()).backward()
        detector(labelled)  # of another hook: leaves the measurement alone
    assert list(detector.take_gradient_ratios()) == ["loss_mgd_res3", "loss_mgd_res4", "loss_mgd_res5"]
    assert detector.take_gradient_ratios() == {}


def test_a_frozen_tap_is_an_error_that_names_the_key(mgd_cfg):
    mgd_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    mgd_cfg.DISTILL.MGD.TAPS = ["res2", "res3"]
    with pytest.raises(ConfigError, match=r"DISTILL\.MGD\.TAPS.*'res2'.*FREEZE_AT"):
        build_model(mgd_cfg).prepare()


def test_taps_whose_strides_differ_are_an_error(cfg_with_fpnless_teacher):
    with pytest.raises(ConfigError, match=r"'res5'.*stride 32.*16"):
        build_model(cfg_with_fpnless_teacher).prepare()


def test_unpadded_mask_by_hand():
    images = [torch.zeros(3, 5, 8), torch.zeros(3, 8, 4)]
    # Stride 4: rows 0, 4 and columns 0, 4. Image one is 5 high and 8 wide: all inside. Image two is
    # 8 high and 4 wide: column 4 is outside.
    mask = unpadded_mask(images, 4, 2, 2)
    assert mask.tolist() == [[[[True, True], [True, True]]], [[[True, False], [True, False]]]]
    assert unpadded_mask(images[:1], 4, 2, 2) is None


def test_state_round_trip(detector, mgd_cfg, images):
    detector.rematch([images])
    detector.methods["mgd"].norms["res3"].weight.data.fill_(3)
    state = detector.distill_state()
    other = build_model(mgd_cfg)
    other.load_distill_state(state)
    for tap in ("res3", "res4", "res5"):
        ours, theirs = (d.methods["mgd"]._matchings[tap] for d in (detector, other))
        assert torch.equal(ours.groups, theirs.groups)
        assert torch.equal(ours.margin, theirs.margin)
    assert (other.methods["mgd"].norms["res3"].weight == 3).all()

    mgd_cfg.DISTILL.MGD.TAPS = ["res3"]
    with pytest.raises(ConfigError, match="Resume with"):
        build_model(mgd_cfg).load_distill_state(state)
