"""Taps inside real heads: what is captured, how two networks' are lined up, and what is never run."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import DepthwiseSeparableConv2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from helpers.detectors import CLASSES, FCOS, distil, network, save_teacher, small, stir
from torch import nn
from torch.nn import functional as F

from mgd_det.errors import UnknownTap
from mgd_det.maths.resizing import Resizing
from mgd_det.modeling.heads import PROPOSALS, DenseHead, ProposalHead, find_head
from mgd_det.modeling.pairing import unpadded_mask
from mgd_det.modeling.tapped import TappedDetector

BOTH = ["head", "predictions"]


def on(detector: nn.Module, batch) -> dict[str, torch.Tensor]:
    return detector.backbone(detector.preprocess_image(batch).tensor)


def step(detector, batch):
    with EventStorage():
        return detector(batch)


@pytest.fixture
def retinanet(student_cfg) -> nn.Module:
    """One norm for each level in its head, in training mode."""
    return network(student_cfg)


@pytest.fixture
def fcos(tmp_path) -> nn.Module:
    (tmp_path / "fcos.py").write_text(FCOS)
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load(str(tmp_path / "fcos.py")).model)
    stir(model)
    return model


@pytest.fixture
def rcnn(demo_data, tmp_path) -> nn.Module:
    return network(small(demo_data, tmp_path, "faster"))


# What is known before any step.


def test_what_is_known_of_retinanet(retinanet):
    info = find_head(retinanet).info()
    assert (info.channels, info.stride, info.trainable) == (16, [8, 16, 32, 64, 128], True)
    assert (info.head.kind, info.head.num_classes, info.head.softmax) == ("anchors", CLASSES, False)
    assert info.head.classifier_std == retinanet.head.cls_score.weight.std().item()
    assert [len(cell) for cell in info.head.boxes.anchors] == [9] * 5
    assert info.head.boxes.coding["weights"] == [1.0, 1.0, 1.0, 1.0]


def test_what_is_known_of_fcos(fcos):
    info = find_head(fcos).info()
    assert (info.channels, info.stride) == (32, [8, 16, 32, 64, 128])
    assert (info.head.kind, info.head.num_classes, info.head.softmax) == ("points", CLASSES, False)
    assert [len(cell) for cell in info.head.boxes.anchors] == [1] * 5


@pytest.mark.parametrize(("agnostic", "outputs"), [(False, 4 * CLASSES), (True, 4)])
def test_what_is_known_of_a_box_head(demo_data, tmp_path, agnostic, outputs):
    cfg = small(demo_data, tmp_path, "faster", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic)
    info = find_head(network(cfg)).info()
    assert (info.channels, info.stride, info.trainable) == (24, None, True)
    assert (info.head.kind, info.head.num_classes, info.head.softmax) == ("proposals", CLASSES, True)
    assert info.head.boxes.columns == outputs


def test_a_frozen_head_still_teaches_a_backbone(retinanet):
    retinanet.head.requires_grad_(False)
    assert TappedDetector(retinanet).inspect(["head"])["head"].trainable
    retinanet.requires_grad_(False)
    assert not TappedDetector(retinanet).inspect(["head"])["head"].trainable


def test_box_coding_compares_across_kinds_of_config(retinanet):
    """A tuple from yaml, a list from a LazyConfig."""
    before = find_head(retinanet).info().head.boxes
    retinanet.box2box_transform.weights = list(retinanet.box2box_transform.weights)
    assert find_head(retinanet).info().head.boxes == before


def test_heads_of_other_kinds_are_refused(demo_data, tmp_path, retinanet):
    cascade = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    with pytest.raises(UnknownTap, match="GeneralizedRCNN has no head of RetinaNet, FCOS"):
        find_head(network(small(demo_data, tmp_path, "faster", *cascade)))
    proposals_only = ["DISTILL.STUDENT_ARCHITECTURE", "ProposalNetwork"]
    with pytest.raises(UnknownTap, match="ProposalNetwork has no head"):
        find_head(network(small(demo_data, tmp_path, "faster", *proposals_only)))
    retinanet.head = nn.Identity()
    with pytest.raises(UnknownTap, match="RetinaNet has no head"):
        find_head(retinanet)


# What is captured.


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_dense_forward_pass_gives_what_its_parts_give(request, kind, labelled):
    detector = request.getfixturevalue(kind)
    with find_head(detector).capture(BOTH) as found:
        step(detector, labelled)
    features = on(detector, labelled)
    maps = [features[name] for name in detector.head_in_features]
    assert [x.shape[2:] for x in found["head"]] == [x.shape[2:] for x in maps]
    assert all(torch.equal(x, detector.head.cls_subnet(y)) for x, y in zip(found["head"], maps))
    for outputs, expected in zip(found["predictions"], detector.head(maps)):
        assert all(torch.equal(x, y) for x, y in zip(outputs, expected))
    assert len(found["predictions"]) == (3 if kind == "fcos" else 2)
    assert found["head"][0].grad_fn is not None
    # Nothing stays behind.
    assert not any(module._forward_hooks for module in detector.modules())


def test_capture_of_one_tap_leaves_the_other_alone(retinanet, labelled):
    with find_head(retinanet).capture(["predictions"]) as found:
        step(retinanet, labelled)
    assert not found["head"]
    with find_head(retinanet).capture(["head"]) as found:
        step(retinanet, labelled)
    assert "predictions" not in found


def test_a_head_of_blocks_has_all_taps_but_the_one_half_way(retinanet, labelled):
    """Some heads are of blocks with several convolutions each."""
    retinanet.head.cls_subnet = nn.Sequential(DepthwiseSeparableConv2d(16, 16))
    with find_head(retinanet).capture(["head", "predictions"]) as found:
        step(retinanet, labelled)
    assert [maps.shape[1] for maps in found["head"]] == [16] * 5
    assert TappedDetector(retinanet).inspect(["head"])["head"].channels == 16
    with pytest.raises(UnknownTap, match=r"there is no convolution .* are \['DepthwiseSeparableConv2d'\]"):
        TappedDetector(retinanet).inspect(["cross_predictions"])


def test_a_box_heads_forward_pass_gives_what_its_parts_give(rcnn, labelled):
    with find_head(rcnn).capture(BOTH) as found:
        step(rcnn, labelled)
    assert [boxes.shape for boxes in found[PROPOSALS]] == [(8, 4), (8, 4)]
    assert not any(boxes.requires_grad for boxes in found[PROPOSALS])
    features, heads = on(rcnn, labelled), rcnn.roi_heads
    pooled = heads.box_pooler(
        [features[name] for name in ("p2", "p3", "p4", "p5")], [Boxes(x) for x in found[PROPOSALS]]
    )
    hidden = heads.box_head(pooled)
    assert torch.equal(found["head"], hidden)
    assert all(torch.equal(x, y) for x, y in zip(found["predictions"], heads.box_predictor(hidden)))
    assert found["head"].shape == (16, 24)


def test_a_convolutional_box_head_is_flattened(demo_data, tmp_path, labelled):
    conv = [
        "MODEL.ROI_BOX_HEAD.NUM_FC",
        0,
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        1,
        "MODEL.ROI_BOX_HEAD.CONV_DIM",
        5,
    ]
    rcnn = network(small(demo_data, tmp_path, "faster", *conv))
    head = find_head(rcnn)
    with head.capture(["head"]) as found:
        step(rcnn, labelled)
    assert found["head"].shape == (16, 5 * 3 * 3)
    assert head.info().channels == 45


# The teacher's.


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_dense_head_alone_gives_what_the_whole_gives(request, kind, labelled):
    """With one norm for each level, too, run after run."""
    teacher = request.getfixturevalue(kind).eval().requires_grad_(False)
    head, features = find_head(teacher), on(teacher, labelled)
    whole = head.run(features, BOTH, {})
    for _ in range(2):
        alone = head.run(features, ["head"], {})
        assert list(alone) == ["head"]
        assert all(torch.equal(x, y) for x, y in zip(alone["head"], whole["head"]))
    again = head.run(features, ["predictions"], {})["predictions"]
    for outputs, expected in zip(again, whole["predictions"]):
        assert all(torch.equal(x, y) for x, y in zip(outputs, expected))


def test_norms_of_the_levels_are_taken_in_turn(retinanet, labelled):
    """By hand: convolution, the level's own statistics with the shared weight and bias, ReLU."""
    teacher = retinanet.eval().requires_grad_(False)
    features = on(teacher, labelled)
    conv, norms, _ = teacher.head.cls_subnet
    found = find_head(teacher).run(features, ["head"], {})["head"]
    for name, norm, level in zip(teacher.head_in_features, norms, found):
        normed = F.batch_norm(conv(features[name]), norm.running_mean, norm.running_var, eps=norm.eps)
        scaled = normed * norms.weight[:, None, None] + norms.bias[:, None, None]
        assert torch.allclose(level, scaled.relu(), atol=1e-6)
    # The statistics do differ.
    assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


def test_the_teachers_box_head_is_run_on_the_students_proposals(demo_data, tmp_path, labelled):
    student = network(small(demo_data, tmp_path, "faster"))
    wider = ["MODEL.ROI_BOX_HEAD.FC_DIM", 40, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 2]
    teacher = network(small(demo_data, tmp_path, "faster", *wider), seed=8).eval().requires_grad_(False)
    with find_head(student).capture(BOTH) as found:
        step(student, labelled)
    features = on(teacher, labelled)
    given = find_head(teacher).run(features, BOTH, found)
    maps = [features[name] for name in ("p2", "p3", "p4", "p5")]
    pooled = teacher.roi_heads.box_pooler(maps, [Boxes(boxes) for boxes in found[PROPOSALS]])
    hidden = teacher.roi_heads.box_head(pooled)
    assert torch.equal(given["head"], hidden)
    scores, boxes = teacher.roi_heads.box_predictor(hidden)
    assert torch.equal(given["predictions"][0], scores)
    assert torch.equal(given["predictions"][1], boxes)
    (pair,) = find_head(student).pair("head", found, given, labelled)
    assert pair.student.shape == (16, 24, 1, 1)
    assert pair.teacher.shape == (16, 40, 1, 1)
    assert pair.mask is None
    assert torch.equal(pair.student[..., 0, 0], found["head"])


# Which positions count, and in which order.


def test_a_box_head_pools_proposals_in_smaller_images(rcnn, labelled):
    """Features that are those of images of half the size, at boxes of half the size."""
    head = ProposalHead(rcnn.eval().requires_grad_(False))
    features = rcnn.backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 56.0]]), torch.tensor([[0.0, 16.0, 64.0, 64.0]])]
    doubled = {PROPOSALS: [2 * box for box in boxes]}
    expected = head.run(features, BOTH, {PROPOSALS: boxes})
    large = [torch.zeros(3, 128, 128)] * 2
    found = head.run(features, BOTH, doubled, Resizing.by(large, 0.5))
    assert torch.equal(found["head"], expected["head"])
    assert torch.equal(found["predictions"][1], expected["predictions"][1])


def ignoring(demo_data, tmp_path, *sizes):
    """A RetinaNet with square anchors of these sizes at p3."""
    anchors = [[*sizes], *([32 * 2**i] * len(sizes) for i in range(4))]
    options = ["MODEL.ANCHOR_GENERATOR.SIZES", anchors, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]]
    return network(small(demo_data, tmp_path, "retinanet", *options))


def unpadded(batch) -> list[torch.Tensor]:
    """For each level, of images that are padded to 96 x 96."""
    sizes = zip((8, 16, 32, 64, 128), (12, 6, 3, 2, 1))
    masks = [unpadded_mask([x["image"] for x in batch], s, n, n) for s, n in sizes]
    return [torch.ones(2, 1, 1, 1, dtype=torch.bool) if mask is None else mask for mask in masks]


def test_a_position_whose_anchors_are_all_ignored_does_not_count(demo_data, tmp_path, labelled):
    """A box from (10, 8) to (26, 24), and anchors of 16 px centred at multiples of 8.

    The anchor at x 16 overlaps it by 14 / 18 (an object), the one at x 24 by 10 / 22 = 0.45 (ignored, being
    from 0.4 to 0.5), the one at x 8 by 6 / 26 (background); one row off, they overlap half as much.
    """
    for x in labelled:
        x["instances"].gt_boxes = Boxes(torch.tensor([[10.0, 8.0, 26.0, 24.0]]))
    detector = ignoring(demo_data, tmp_path, 16)
    head = find_head(detector)
    with head.capture(["head"]) as found:
        step(detector, labelled)
    levels = head.pair("head", found, found, labelled)
    expected = unpadded(labelled)
    expected[0][:, :, 2, 3] = False
    assert [level.mask.tolist() for level in levels] == [mask.tolist() for mask in expected]

    # A second anchor there, of 64 px, is background: the position counts again.
    detector = ignoring(demo_data, tmp_path, 16, 64)
    head = find_head(detector)
    with head.capture(["head"]) as found:
        step(detector, labelled)
    levels = head.pair("head", found, found, labelled)
    assert [level.mask.tolist() for level in levels] == [x.tolist() for x in unpadded(labelled)]


def test_fcos_ignores_no_point(fcos, labelled):
    head = find_head(fcos)
    with head.capture(["head"]) as found:
        step(fcos, labelled)
    levels = head.pair("head", found, found, labelled)
    for level, expected in zip(levels, unpadded(labelled)):
        assert expected.all() if level.mask is None else torch.equal(level.mask, expected)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_rows_of_predictions_by_a_naive_loop(request, kind, labelled):
    """Level, image, row, column, anchor; the teacher pads to 128 px, the student to 96."""
    detector = request.getfixturevalue(kind)
    head = find_head(detector)
    with head.capture(BOTH) as found:
        step(detector, labelled)
    detector.backbone._size_divisibility = 64
    with torch.no_grad():
        theirs = head.run(on(detector, labelled), BOTH, {})
    assert found["predictions"][0][0].shape[-1] == 12
    assert theirs["predictions"][0][0].shape[-1] == 16
    pair = head.pair("predictions", found, theirs, labelled)

    anchors = 9 if kind == "retinanet" else 1
    widths = [CLASSES, 4, 1]
    for side, outputs in ((pair.student, found["predictions"]), (pair.teacher, theirs["predictions"])):
        for rows, levels, width in zip(side, outputs, widths):
            expected = [
                maps[n, a * width : (a + 1) * width, y, x]
                for maps, size in zip(levels, (12, 6, 3, 2, 1))
                for n in range(2)
                for y in range(size)
                for x in range(size)
                for a in range(anchors)
            ]
            assert torch.equal(rows if rows.dim() > 1 else rows[:, None], torch.stack(expected))
    shapes = [(n, 1, size, size) for n, size in ((2, 12), (2, 6), (2, 3), (2, 2), (2, 1))]
    masks = [mask.expand(shape) for mask, shape in zip(unpadded(labelled), shapes)]
    expected = [bool(m) for mask in masks for m in mask.flatten() for _ in range(anchors)]
    assert pair.mask.tolist() == expected
    assert not all(expected)
    assert (pair.student.centerness is not None) == (kind == "fcos")
    # The features before the classifier, at the same positions.
    for level, size in zip(head.pair("head", found, theirs, labelled), (12, 6, 3, 2, 1)):
        assert level.student.shape[2:] == level.teacher.shape[2:] == (size, size)


def test_predictions_of_unpadded_images_have_no_mask(retinanet, labelled):
    batch = [labelled[0], {**labelled[0], "image": labelled[0]["image"].flip(2)}]
    head = find_head(retinanet)
    with head.capture(["predictions"]) as found:
        step(retinanet, batch)
    assert head.pair("predictions", found, found, batch).mask is None


def test_a_sigmoid_classifiers_background_is_cut_off(rcnn, labelled):
    """Detectron2 after 0.6 has such box heads: the same layer, whose last column is never trained."""
    head = find_head(rcnn)
    with head.capture(["predictions"]) as found:
        step(rcnn, labelled)
    assert head.pair("predictions", found, found, labelled).student.scores.shape == (16, CLASSES + 1)
    rcnn.roi_heads.box_predictor.use_sigmoid_ce = True
    assert not head.info().head.softmax
    pair = head.pair("predictions", found, found, labelled)
    assert torch.equal(pair.teacher.scores, found["predictions"][0][:, :CLASSES])


# What is never run.


class Calls:
    """How often modules have run."""

    def __init__(self, **modules: nn.Module) -> None:
        self.counts = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: self.count(name))

    def count(self, name: str) -> None:
        self.counts[name] += 1


def second_step(detector, batch, calls) -> dict[str, int]:
    """The first one looks at its batch more than once."""
    step(detector, batch)
    calls.counts = dict.fromkeys(calls.counts, 0)
    step(detector, batch)
    return calls.counts


@pytest.mark.parametrize(
    ("methods", "head", "classes", "boxes"),
    [(["mgd"], 0, 0, 0), (["imitation"], 0, 0, 0), (["lsh"], 0, 5, 0), (["logits", "lsh"], 1, 5, 5)],
)
def test_no_more_of_a_dense_teacher_is_run_than_the_taps_need(
    mgd_cfg, labelled, methods, head, classes, boxes
):
    mgd_cfg.DISTILL.METHODS = methods
    detector = build_model(mgd_cfg)
    detector.rematch([labelled])
    teacher = detector.teacher.model
    calls = Calls(
        whole=teacher,
        head=teacher.head,
        classes=teacher.head.cls_subnet,
        boxes=teacher.head.bbox_subnet,
        anchors=teacher.anchor_generator,
    )
    expected = {"whole": 0, "head": head, "classes": classes, "boxes": boxes, "anchors": 0}
    assert second_step(detector, labelled, calls) == expected


@pytest.mark.parametrize(
    ("methods", "pooler", "box_head", "predictor"),
    [(["imitation"], 0, 0, 0), (["lsh"], 1, 1, 0), (["logits"], 1, 1, 1), (["lsh", "logits"], 1, 1, 1)],
)
def test_no_more_of_a_two_stage_teacher_is_run_than_the_taps_need(
    demo_data, tmp_path, labelled, methods, pooler, box_head, predictor
):
    cfg = small(demo_data, tmp_path, "faster")
    detector = build_model(distil(cfg, methods, save_teacher(tmp_path / "teacher", cfg)))
    detector.prepare()
    teacher = detector.teacher.model
    calls = Calls(
        whole=teacher,
        proposals=teacher.proposal_generator,
        rpn=teacher.proposal_generator.rpn_head,
        heads=teacher.roi_heads,
        pooler=teacher.roi_heads.box_pooler,
        box_head=teacher.roi_heads.box_head,
        predictor=teacher.roi_heads.box_predictor,
    )
    assert second_step(detector, labelled, calls) == {
        **dict.fromkeys(["whole", "proposals", "rpn", "heads"], 0),
        **{"pooler": pooler, "box_head": box_head, "predictor": predictor},
    }


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_dense_teachers_confidence_is_its_largest_class_probability(request, kind, labelled):
    """Whatever else is asked for, and of its box subnet nothing is run for it."""
    teacher = request.getfixturevalue(kind).eval().requires_grad_(False)
    head, features = find_head(teacher), on(teacher, labelled)
    scores = teacher.head([features[name] for name in teacher.head_in_features])[0]
    calls = Calls(boxes=teacher.head.bbox_subnet, classes=teacher.head.cls_subnet)
    for taps in (["confidence"], ["head", "confidence"], [*BOTH, "confidence"]):
        found = head.run(features, taps, {})["confidence"]
        assert list(found) == [8, 16, 32, 64, 128]
        for level, expected in zip(found.values(), scores):
            assert torch.allclose(level, expected.sigmoid().amax(1, keepdim=True))
    assert calls.counts == {"boxes": 5, "classes": 15}


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_class_maps_are_the_class_scores_of_the_levels(request, kind, labelled):
    """A channel for each anchor and class, whatever else is asked for; padding does not count."""
    detector = request.getfixturevalue(kind).eval().requires_grad_(False)
    head, features = find_head(detector), on(detector, labelled)
    expected = detector.head([features[name] for name in detector.head_in_features])[0]
    calls = Calls(boxes=detector.head.bbox_subnet)
    for taps in (["classes"], ["classes", "confidence"], [*BOTH, "classes", "confidence"]):
        found = head.run(features, taps, {})
        assert len(found["classes"]) == 5
        assert all(torch.allclose(x, y) for x, y in zip(found["classes"], expected))
    assert calls.counts == {"boxes": 5}
    with head.capture(["classes"]) as captured:
        detector.head([features[name] for name in detector.head_in_features])
    levels = head.pair("classes", captured, found, labelled)
    assert all(torch.equal(level.student, x) for level, x in zip(levels, expected))
    pixels = [x["image"] for x in labelled]
    masks = [unpadded_mask(pixels, s, *x.shape[2:]) for s, x in zip(head.strides, expected)]
    assert all(
        m is None if level.mask is None else torch.equal(level.mask, m) for level, m in zip(levels, masks)
    )
    assert masks[0] is not None  # the images differ in size


# What a teacher's head predicts from a student's features.


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_a_student_that_equals_its_teacher_predicts_through_it_what_it_predicts(request, kind, labelled):
    """Features that are given the moments that they have are themselves; boxes are those of inference."""
    teacher = request.getfixturevalue(kind).eval().requires_grad_(False)
    head, pixels = find_head(teacher), [x["image"] for x in labelled]
    own = head.run(on(teacher, labelled), ["cross_predictions"], {})
    found = head.cross(own["half_way"], own, pixels)
    assert found.mask is not None  # the images differ in size
    assert torch.allclose(found.student.scores, found.teacher.scores, atol=1e-3)
    assert torch.allclose(found.student.boxes, found.teacher.boxes, rtol=1e-3, atol=1e-2)
    # Rows are those of the plain predictions.
    plain = head.pair("predictions", own, own, labelled)
    assert torch.equal(found.teacher.scores, plain.teacher.scores)
    assert torch.equal(found.mask, plain.mask)
    # The first level of the first image, decoded as the detector does it.
    anchors = teacher.anchor_generator(own["predictions"][1])[0].tensor
    boxes = teacher.box2box_transform.apply_deltas(plain.teacher.boxes[: len(anchors)], anchors)
    assert torch.equal(found.teacher.boxes[: len(anchors)], boxes)


def test_features_go_on_where_they_were_taken(demo_data, tmp_path, labelled):
    """Of three convolutions: the third input is half-way, before the activation; by hand at one level."""
    cfg = small(demo_data, tmp_path, "retinanet", "MODEL.RETINANET.NUM_CONVS", 3, "MODEL.RETINANET.NORM", "")
    student, teacher = network(cfg), network(cfg, seed=8).eval().requires_grad_(False)
    labelled = labelled[:1]  # without padding
    with find_head(student).capture(["cross_predictions"]) as found:
        step(student, labelled)
    ours, theirs = ([on(x, labelled)[name] for name in x.head_in_features] for x in (student, teacher))
    x, y = student.head.cls_subnet[:3](ours[0]), teacher.head.cls_subnet[:3](theirs[0])
    assert torch.allclose(found["half_way"].classes[0], x, atol=1e-5)
    moments = [
        (m.mean((0, 2, 3), keepdim=True), m.std((0, 2, 3), keepdim=True, correction=0)) for m in (x, y)
    ]
    (mean, deviation), (mean_of_teacher, deviation_of_teacher) = moments
    given = ((x - mean) / deviation * deviation_of_teacher + mean_of_teacher).relu()
    last = teacher.head.cls_subnet[4]
    expected = teacher.head.cls_score(last(given).relu())
    own = find_head(teacher).run(on(teacher, labelled), ["cross_predictions"], {})
    pair = find_head(student).pair("cross_predictions", found, own, labelled)
    assert pair.normalizer == student.loss_normalizer
    rows = expected.permute(0, 2, 3, 1).reshape(-1, CLASSES)
    assert torch.allclose(pair.student.scores[: len(rows)], rows, rtol=1e-3, atol=1e-3)
    # The gradient reaches the student's head up to there, and the teacher not at all.
    (pair.student.scores.sum() + pair.student.boxes.sum()).backward()
    reached = [
        subnet[i].weight.grad
        for subnet in (student.head.cls_subnet, student.head.bbox_subnet)
        for i in (0, 2)
    ]
    assert all(gradient is not None and gradient.any() for gradient in reached)
    assert student.head.cls_subnet[4].weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_kinds_of_heads(retinanet, fcos, rcnn):
    assert isinstance(find_head(retinanet), DenseHead)
    assert isinstance(find_head(fcos), DenseHead)
    assert isinstance(find_head(rcnn), ProposalHead)
