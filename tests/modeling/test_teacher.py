"""The teacher: where it comes from, and that nobody notices it."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch._inductor import config as inductor_config

from mgd_det.errors import ConfigError
from mgd_det.methods import method_defaults
from mgd_det.modeling.taps import capture
from mgd_det.modeling.teacher import Teacher, TeacherSpec
from mgd_det.modeling.teacher_ways import Way

CPU = torch.device("cpu")
ZOO = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


def spec_of(folder, **changes) -> TeacherSpec:
    files = {"config_file": str(folder / "config.yaml"), "weights": str(folder / "model_final.pth")}
    return TeacherSpec(**{**files, **changes})


def test_an_earlier_run_of_ours_loads_as_the_plain_detector(teacher_run):
    teacher = spec_of(teacher_run).load(CPU)
    assert type(teacher.model).__name__ == "RetinaNet"
    saved = torch.load(teacher_run / "model_final.pth")["model"]
    assert all(torch.equal(v, saved[k]) for k, v in teacher.model.state_dict().items())
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_loading_leaves_the_random_streams_alone(teacher_run):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    spec_of(teacher_run).load(CPU)
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())


def test_overrides_reach_the_teacher_alone(teacher_run, mgd_cfg):
    mgd_cfg.DISTILL.TEACHER.OPTS = ["INPUT.FORMAT", "BGR", "MODEL.RETINANET.SCORE_THRESH_TEST", 0.5]
    teacher = TeacherSpec.from_config(mgd_cfg).config()
    assert (teacher.INPUT.FORMAT, teacher.MODEL.RETINANET.SCORE_THRESH_TEST) == ("BGR", 0.5)
    assert (mgd_cfg.INPUT.FORMAT, mgd_cfg.MODEL.RETINANET.SCORE_THRESH_TEST) == ("RGB", 0.05)
    assert teacher.MODEL.RESNETS.DEPTH == 50
    assert mgd_cfg.MODEL.RESNETS.DEPTH == 18


def test_the_students_keys_do_not_leak_into_the_teachers_config(mgd_cfg):
    mgd_cfg.MODEL.RETINANET.NUM_CLASSES = 3
    mgd_cfg.INPUT.MIN_SIZE_TEST = 77
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = ZOO
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = ""
    spec = TeacherSpec.from_config(mgd_cfg)
    expected = get_cfg()
    from detectron2 import model_zoo

    expected.merge_from_file(model_zoo.get_config_file(ZOO))
    assert spec.config().dump() == expected.dump()
    assert spec.weights_path().endswith("retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl")


def test_weights_may_be_a_zoo_name_of_their_own(teacher_run):
    assert "retinanet_R_50_FPN_1x" in spec_of(teacher_run, weights=ZOO).weights_path()


def test_a_bgr_teacher_sees_what_it_would_see_alone(teacher_run, images):
    """A teacher of the model zoo's kind: BGR, its own mean, std 1; the student's images are RGB."""
    opts = ("INPUT.FORMAT", "BGR", "MODEL.PIXEL_STD", [1.0, 1.0, 1.0])
    mean = ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675])
    teacher = spec_of(teacher_run, opts=[*opts, *mean]).load(CPU)
    features = teacher.features([x["image"] for x in images], "RGB", ["res3", "res5"])

    bgr = [{"image": x["image"][[2, 1, 0]]} for x in images]
    alone = teacher.model
    with torch.no_grad(), capture(alone.backbone, ["res3", "res5"]) as expected:
        alone(bgr)
    assert torch.equal(features["res3"], expected["res3"])
    assert torch.equal(features["res5"], expected["res5"])
    # Hand-made: the first pixel's blue value, minus the mean of blue, divided by 1.
    first = alone.preprocess_image(bgr).tensor[0, :, 0, 0]
    rgb = images[0]["image"][:, 0, 0].tolist()
    assert first.tolist() == pytest.approx([rgb[2] - 103.53, rgb[1] - 116.28, rgb[0] - 123.675])


def test_only_what_the_taps_need_is_run(teacher_run, images):
    teacher = spec_of(teacher_run).load(CPU)
    run = []
    teacher.model.backbone.bottom_up.res5.register_forward_hook(lambda *args: run.append("res5"))
    teacher.model.backbone.fpn_lateral3.register_forward_hook(lambda *args: run.append("fpn"))
    teacher.model.head.register_forward_hook(lambda *args: run.append("head"))
    pixels = [x["image"] for x in images]
    teacher.features(pixels, "RGB", ["res3", "res4"])
    assert run == []
    teacher.features(pixels, "RGB", ["p3"])
    assert run == ["res5", "fpn"]


def test_its_own_precision_whatever_the_trainings_is(teacher_run, images):
    pixels = [x["image"] for x in images]

    def features(training: torch.dtype | None, **changes):
        teacher = spec_of(teacher_run, **changes).load(CPU)
        with torch.autocast("cpu", dtype=training, enabled=training is not None):
            return teacher.features(pixels, "RGB", ["bottom_up.res4.0.conv1"])["bottom_up.res4.0.conv1"]

    exact = features(None)
    for training in (None, torch.bfloat16):
        assert torch.equal(features(training, dtype="float32"), exact)
        half = features(training, dtype="bfloat16")
        assert half.dtype == torch.bfloat16
        assert 0 < (half.float() - exact).norm() / exact.norm() < 0.02
    assert features(torch.bfloat16).dtype == torch.bfloat16  # as the training
    last = features(None, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, exact, atol=1e-4)


@pytest.mark.parametrize("method", method_defaults())
def test_every_method_takes_a_teacher_in_bfloat16_and_channels_last(method, mgd_cfg, labelled):
    losses = []
    for dtype, channels_last in (("", False), ("bfloat16", True)):
        mgd_cfg.DISTILL.METHODS = [method]
        mgd_cfg.DISTILL.TEACHER.DTYPE, mgd_cfg.DISTILL.TEACHER.CHANNELS_LAST = dtype, channels_last
        torch.manual_seed(0)
        model = build_model(mgd_cfg).train()
        model.rematch([labelled])
        with EventStorage():
            found = model(labelled)
        losses.append({name: found[name].item() for name in model.losses})
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_way_that_is_taken_up_later_is_that_of_a_teacher_loaded_so(teacher_run, images):
    """Bit for bit, whatever ways it went before: the orders of all weights are the same."""
    pixels, taps = [x["image"] for x in images], ["res3", "p3", "head"]
    late = spec_of(teacher_run, dtype="auto", channels_last="auto").load(CPU)
    for way in (Way("bfloat16", True), Way("float32", False), Way("bfloat16", True), Way("bfloat16", False)):
        late.use(way)
        early = spec_of(teacher_run, dtype=way.dtype, channels_last=way.channels_last).load(CPU)
        for name, tensor in early.model.state_dict().items():
            assert tensor.stride() == late.model.state_dict()[name].stride(), name
        found, expected = (teacher.features(pixels, "RGB", taps) for teacher in (late, early))
        assert torch.equal(found["res3"], expected["res3"])
        assert torch.equal(found["p3"], expected["p3"])
        assert all(torch.equal(*pair) for pair in zip(found["head"], expected["head"]))


def test_the_first_batch_chooses_and_a_resumed_run_keeps_the_choice(mgd_cfg, labelled, caplog):
    caplog.set_level("INFO")
    mgd_cfg.merge_from_list(["DISTILL.TEACHER.DTYPE", "auto", "DISTILL.TEACHER.CHANNELS_LAST", "auto"])
    model = build_model(mgd_cfg)
    model.rematch([labelled])
    assert "teacher_way" not in model.distill_state()
    with EventStorage():
        model(labelled)
    lines = [x.getMessage() for x in caplog.records if "features differ by" in x.getMessage()]
    assert len(lines) == 4
    assert lines[0].startswith("the teacher in float32, contiguous: ")
    assert lines[0].endswith("differ by 0%")

    state = model.distill_state()
    assert state["teacher_way"].keys() == {"dtype", "channels_last"}
    for way in ({"dtype": "bfloat16", "channels_last": False}, {"dtype": "float32", "channels_last": True}):
        resumed = build_model(mgd_cfg)
        resumed.load_distill_state({**state, "teacher_way": way})
        with EventStorage():
            resumed(labelled)
        assert resumed.distill_state()["teacher_way"] == way
        assert resumed.teacher.dtype == getattr(torch, way["dtype"])

    mgd_cfg.DISTILL.TEACHER.DTYPE, mgd_cfg.DISTILL.TEACHER.CHANNELS_LAST = "float32", False
    plain = build_model(mgd_cfg)
    plain.load_distill_state({**state, "teacher_way": {"dtype": "bfloat16", "channels_last": True}})
    assert plain.teacher.dtype == torch.float32  # what is set counts
    assert "teacher_way" not in plain.distill_state()

    mgd_cfg.merge_from_list(["DISTILL.TEACHER.DTYPE", "float32"])
    mgd_cfg.DISTILL.TEACHER.CHANNELS_LAST = "auto"
    half_set = build_model(mgd_cfg)
    half_set.load_distill_state({**state, "teacher_way": {"dtype": "bfloat16", "channels_last": True}})
    assert "teacher_way" not in half_set.distill_state()  # and so is the memory order, which is chosen anew


def test_smaller_images_are_what_a_teacher_would_see_alone(teacher_run, images):
    """64 x 96 and 96 x 64 at 0.6 are 38 x 58 and 58 x 38, no multiples of any stride."""
    pixels = [x["image"] for x in images]
    whole, smaller = (spec_of(teacher_run, scale=scale).load(CPU) for scale in (1.0, 0.6))
    resizing = smaller.resizing(pixels)
    assert resizing.resized == [(38, 58), (58, 38)]
    taps = ["res3", "p3", "head", "confidence"]
    found = smaller.features(pixels, "RGB", taps)
    alone = whole.features(resizing.images(pixels), "RGB", taps)
    assert torch.equal(found["res3"], alone["res3"])
    assert torch.equal(found["p3"], alone["p3"])
    assert [x.shape[2:] for x in found["head"]] == [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]
    assert torch.equal(found["head"][1], resizing.features(alone["head"][1], 16))
    assert torch.equal(found["confidence"][8], alone["confidence"][8])
    assert whole.resizing(pixels) is None


def test_at_half_the_size_a_level_has_the_positions_of_the_students_next_one(mgd_cfg, images):
    """64 x 96 is 32 x 48 there: 4 x 6 positions of stride 8, as of stride 16 in full."""
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.IMITATION.TAPS = ["imitation"], ["p4=p3", "p5"]
    mgd_cfg.DISTILL.IMITATION.FOREGROUND, mgd_cfg.DISTILL.IMITATION.FOREGROUND_WEIGHT = "teacher", 3.0
    mgd_cfg.DISTILL.TEACHER.SCALE = 0.5
    model = build_model(mgd_cfg)
    model.prepare()
    batch = model.to_device(images)
    with torch.no_grad():
        paired = model.pair(model.tapped.features(batch, ["p4", "p5"]), batch)
    alone = model.teacher.features([x["image"] for x in images], "RGB", ["p3", "confidence"])
    assert paired["p4=p3"].student.shape[2:] == paired["p4=p3"].teacher.shape[2:] == (6, 6)
    found, expected = paired["p4=p3"], (alone["p3"], alone["confidence"][8])
    torch.testing.assert_close(found.teacher[0, :, :4, :6], expected[0][0, :, :4, :6])
    torch.testing.assert_close(found.confidence[0, :, :4, :6], expected[1][0, :, :4, :6])
    mgd_cfg.DISTILL.IMITATION.TAPS = ["p5=p3"]
    with pytest.raises(
        ConfigError, match="student has features of stride 32 and the teacher features of stride 8"
    ):
        build_model(mgd_cfg).prepare()


DENSE_PREDICTIONS = ("logits", "crosskd")


@pytest.mark.parametrize("method", method_defaults())
def test_every_method_takes_smaller_images_or_refuses_them(method, mgd_cfg, labelled):
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.TEACHER.SCALE = [method], 0.6
    mgd_cfg.DISTILL.LSH.NUM_HASHES = 16
    if method in DENSE_PREDICTIONS:
        with pytest.raises(ConfigError, match=rf"SCALE = 0\.6: {method} compares.*leave \"{method}\" out"):
            build_model(mgd_cfg)
        return
    if method == "imitation":
        mgd_cfg.DISTILL.IMITATION.FOREGROUND, mgd_cfg.DISTILL.IMITATION.FOREGROUND_WEIGHT = "teacher", 3.0
    model = build_model(mgd_cfg).train()
    model.rematch([labelled])
    with EventStorage():
        losses = model(labelled)
        sum(losses.values()).backward()
    assert all(0 < losses[name].item() < 1e4 for name in model.losses)


def test_class_maps_refuse_smaller_images_as_other_predictions_do(mgd_cfg):
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.TEACHER.SCALE = ["cwd"], 0.6
    mgd_cfg.DISTILL.CWD.TAPS = ["p3", "classes"]
    with pytest.raises(ConfigError, match=r"SCALE = 0\.6: cwd compares predictions"):
        build_model(mgd_cfg)


@pytest.fixture
def compiler_cache(tmp_path, monkeypatch):
    """Nothing compiled before, in this process or another."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    with inductor_config.patch({"compile_threads": 1}):
        yield
    torch.compiler.reset()


def warnings_of(caplog) -> list[str]:
    """Ours alone; Detectron2 changes the name of a record that it prints."""
    ours = (r for r in caplog.records if "mgd_det." in r.name and r.levelno >= logging.WARNING)
    return [r.message.split(":")[0] for r in ours]


def test_a_compiled_teacher_gives_the_same_features(teacher_run, images, compiler_cache, caplog):
    """At other sizes, too, and at a tap within what was compiled for the first one."""
    plain, compiled = (spec_of(teacher_run, compile=flag).load(CPU) for flag in (False, True))
    names = list(compiled.model.state_dict())
    pixels = [x["image"] for x in images]
    outside, inside = "bottom_up.res2.0.conv1", "bottom_up.stem.conv1"
    for tap, seen in ((outside, pixels), (outside, [p[:, :, :40] for p in pixels]), (inside, pixels)):
        expected, found = (teacher.features(seen, "RGB", [tap])[tap] for teacher in (plain, compiled))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        stem = compiled.model.backbone.bottom_up.stem
        assert (stem._compiled_call_impl is None) == (tap == inside)
    modules = list(compiled.model.backbone.modules())
    parts = [module._compiled_call_impl for module in modules]
    compiled.features(pixels, "RGB", [outside])  # as a pass over images without labels may
    assert [module._compiled_call_impl for module in modules] == parts
    assert list(compiled.model.state_dict()) == names
    assert warnings_of(caplog) == []


def test_a_teacher_that_cannot_be_compiled_runs_as_it_is(teacher_run, images, compiler_cache, caplog):
    plain, compiled = (spec_of(teacher_run, compile=flag).load(CPU) for flag in (False, True))
    pixels = [x["image"] for x in images]
    with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}):
        for _ in range(2):
            expected, found = (teacher.features(pixels, "RGB", ["res2"]) for teacher in (plain, compiled))
            assert torch.equal(found["res2"], expected["res2"])
    assert warnings_of(caplog) == ["the teacher runs without torch.compile"]


def test_a_compiled_teacher_that_is_out_of_memory_says_so(teacher_run, images, caplog):
    """Before anything is compiled: what a tap looks into is not."""
    teacher = spec_of(teacher_run, compile=True).load(CPU)

    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    teacher.model.backbone.register_forward_pre_hook(full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        teacher.features([x["image"] for x in images], "RGB", ["res3"])
    assert teacher.compile
    assert warnings_of(caplog) == []


def test_features_carry_no_gradient(teacher_run, images):
    teacher = spec_of(teacher_run).load(CPU)
    features = teacher.features([x["image"] for x in images], "RGB", ["res3"])
    assert not features["res3"].requires_grad


def test_a_teacher_with_a_random_part_needs_the_key_that_allows_it(teacher_run, tmp_path):
    state = torch.load(teacher_run / "model_final.pth")["model"]
    state = {k: v for k, v in state.items() if not k.startswith("head.")}
    torch.save({"model": state}, tmp_path / "partial.pth")
    spec = spec_of(teacher_run, weights=str(tmp_path / "partial.pth"))
    with pytest.raises(ConfigError, match=r"head\.cls_subnet.*ALLOW_PARTIAL_WEIGHTS"):
        spec.load(CPU)
    allowed = spec_of(teacher_run, weights=spec.weights, allow_partial_weights=True).load(CPU)
    assert torch.equal(
        allowed.model.state_dict()["backbone.fpn_lateral3.weight"],
        state["backbone.fpn_lateral3.weight"],
    )


def test_format_is_taken_from_the_teachers_config(teacher_run):
    assert spec_of(teacher_run).load(CPU).input_format == "RGB"
    bgr = spec_of(teacher_run, opts=["INPUT.FORMAT", "BGR"]).load(CPU)
    assert bgr.input_format == "BGR"


def test_teacher_ignores_train_mode_of_its_own_model(student_cfg):
    from mgd_det.config import student_config

    model = build_model(student_config(student_cfg))
    assert model.training
    assert not Teacher(model, "RGB").model.training
