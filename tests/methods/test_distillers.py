"""Every method in a whole distiller, on every kind of detector."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.detectors import distil, save_teacher, small, with_masks

from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.methods import HEAD_TAPS
from mgd_det.modeling.step_plan import StepPlan

IMITATION = [f"loss_imitation_{tap}" for tap in ("p3", "p4", "p5")]
MLP = [f"loss_channel_mlp_{tap}" for tap in ("p3", "p4", "p5")]
PKD = [f"loss_pkd_{tap}" for tap in ("p3", "p4", "p5")]
CWD = [f"loss_cwd_{tap}" for tap in ("p3", "p4", "p5")]
GENERATION = [f"loss_masked_generation_{tap}" for tap in ("p3", "p4", "p5")]
LSH = ["loss_lsh_head_l2", "loss_lsh_head_hash"]
LOGITS = ["loss_logits_cls", "loss_logits_box"]
CENTERNESS = [*LOGITS, "loss_logits_ctr"]
CROSS = ["loss_crosskd_cls", "loss_crosskd_box"]
MGD = [f"loss_mgd_{tap}" for tap in ("res3", "res4", "res5")]

CASES = [
    ("retinanet", ["imitation"], IMITATION),
    ("retinanet", ["channel_mlp"], MLP),
    ("retinanet", ["pkd"], PKD),
    ("retinanet", ["cwd"], CWD),
    ("retinanet", ["masked_generation"], GENERATION),
    ("retinanet", ["lsh"], LSH),
    ("retinanet", ["logits"], LOGITS),
    ("retinanet", ["crosskd"], CROSS),
    ("fcos", ["crosskd"], CROSS),
    (
        "retinanet",
        ["mgd", "imitation", "channel_mlp", "pkd", "cwd", "masked_generation", "lsh", "logits"],
        [*MGD, *IMITATION, *MLP, *PKD, *CWD, *GENERATION, *LSH, *LOGITS],
    ),
    ("fcos", ["lsh", "logits"], [*LSH, *CENTERNESS]),
    ("faster", ["imitation", "lsh", "logits"], [*IMITATION, *LSH, *LOGITS]),
    ("mask", ["lsh", "logits"], [*LSH, *LOGITS]),
]

# A teacher's widths that are not the student's; an FCOS's are those of a file.
WIDER = {
    "retinanet": ["MODEL.FPN.OUT_CHANNELS", 24],
    "faster": ["MODEL.FPN.OUT_CHANNELS", 24, "MODEL.ROI_BOX_HEAD.FC_DIM", 40],
    "mask": ["MODEL.ROI_BOX_HEAD.FC_DIM", 40],
    "fcos": [],
}
NARROW = ["MODEL.FPN.OUT_CHANNELS", 16]  # as the students
FEWER_HASHES = ["DISTILL.LSH.NUM_HASHES", 64, "DISTILL.LSH.LOSS_WEIGHTS", [1.0]]


@pytest.fixture(scope="module")
def teachers(demo_data, tmp_path_factory):
    """Folder of a teacher of each kind, made when it is first asked for."""
    made = {}

    def teacher(kind: str, *opts):
        key = (kind, str(opts))
        if key not in made:
            folder = tmp_path_factory.mktemp("teachers")
            cfg = small(demo_data, folder / "student", kind, *WIDER[kind], *opts)
            made[key] = save_teacher(folder / "teacher", cfg)
        return made[key]

    return teacher


@pytest.fixture
def make(demo_data, tmp_path, teachers):
    """A distiller's config."""

    def config(kind: str, methods, *opts, teacher=None, student=()):
        cfg = small(demo_data, tmp_path, kind, *student)
        return distil(cfg, methods, teacher or teachers(kind), *FEWER_HASHES, *opts)

    return config


def built(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def step(detector, batch):
    with EventStorage():
        return detector(batch)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_cwd_on_class_maps_teaches_the_classifier_alone(kind, make, labelled):
    detector = built(make(kind, ["cwd"], "DISTILL.CWD.TAPS", ["classes"]))
    loss = step(detector, labelled)["loss_cwd_classes"]
    loss.backward()
    head = detector.student.head
    assert loss > 0
    assert head.cls_score.weight.grad.any()
    assert head.cls_subnet[0].weight.grad.any()
    assert head.bbox_pred.weight.grad is None


@pytest.mark.parametrize(("kind", "methods", "names"), CASES)
def test_a_method_in_a_whole_distiller(kind, methods, names, make, labelled, teachers):
    batch = with_masks(labelled) if kind == "mask" else labelled
    # CrossKD needs heads of one width.
    cfg = make(kind, methods, teacher=teachers(kind, *NARROW) if "crosskd" in methods else None)
    torch.manual_seed(5)
    stock = build_model(distil_nothing(cfg)).student
    torch.manual_seed(5)
    detector = build_model(cfg)
    # The student is the one that it would be without the methods, and all that a checkpoint holds.
    assert list(detector.state_dict()) == list(stock.state_dict())
    assert all(torch.equal(x, stock.state_dict()[name]) for name, x in detector.state_dict().items())
    if kind != "fcos":
        assert list(build_model(student_config(cfg)).state_dict()) == list(detector.state_dict())

    if "mgd" in methods:
        detector.rematch([batch])
    losses = step(detector, batch)
    assert list(detector.losses) == names
    assert list(losses)[-len(names) :] == names
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    assert all(losses[name] > 0 for name in names)
    sum(losses[name] for name in names).backward()
    assert detector.student.backbone.bottom_up.res5[-1].conv1.weight.grad.any()
    # Every parameter of the methods has a gradient, as DDP wants; the teacher has none.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.methods.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in detector.teacher.model.parameters())

    # Stopped, the losses are zero and still reach every parameter of the methods.
    detector.zero_grad()
    detector.plan_step(StepPlan(loss_factor=0.0))
    stopped = step(detector, batch)
    assert [stopped[name].item() for name in names] == [0] * len(names)
    sum(stopped.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in detector.methods.parameters())

    # What the methods have learnt goes with the checkpoint.
    with torch.no_grad():
        for parameter in detector.methods.parameters():
            parameter.uniform_(-1, 1)
    state = copy.deepcopy(detector.distill_state())
    other = built(cfg)
    other.load_distill_state(state)
    for ours, theirs in zip(detector.methods.parameters(), other.methods.parameters()):
        assert torch.equal(ours, theirs)


def distil_nothing(cfg):
    cfg = cfg.clone()
    cfg.DISTILL.ENABLED = False
    return cfg


def test_gradients_of_each_loss_reach_where_it_acts(make, labelled):
    """The box loss its subnet, the class loss and hashing the other one, imitation neither."""
    detector = built(make("retinanet", ["imitation", "lsh", "logits"]))
    losses = step(detector, labelled)
    head = detector.student.head
    reached = {
        "loss_logits_box": {"bbox_subnet", "bbox_pred"},
        "loss_logits_cls": {"cls_subnet", "cls_score"},
        "loss_lsh_head_l2": {"cls_subnet"},
        "loss_lsh_head_hash": {"cls_subnet"},
        "loss_imitation_p3": set(),
    }
    for name, modules in reached.items():
        detector.zero_grad()
        losses[name].backward(retain_graph=True)
        touched = {
            part
            for part, module in head.named_children()
            if any(p.grad is not None and p.grad.any() for p in module.parameters())
        }
        assert touched == modules, name
        assert detector.student.backbone.bottom_up.res3[0].conv1.weight.grad.any()


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster", "agnostic"])
def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(kind, make, labelled, teachers):
    """Both in eval mode as far as norms go: same weights, same images, same predictions."""
    same = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True] if kind == "agnostic" else []
    kind = "faster" if kind == "agnostic" else kind
    as_narrow = [*same, *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 24)]
    teacher = teachers(kind, *as_narrow)
    student = same if kind == "faster" else []
    detector = built(make(kind, ["logits", "lsh"], teacher=teacher, student=student))
    detector.load_state_dict(torch.load(teacher / "model_final.pth")["model"], strict=True)
    for module in detector.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    detector.methods["lsh"].terms = ["l2"]  # equal features still have a hashing loss
    losses = step(detector, labelled)
    assert list(detector.methods["lsh"].parameters()) == []
    distilled = {name: losses[name] for name in detector.losses}
    assert {name: loss.item() for name, loss in distilled.items()} == pytest.approx(
        dict.fromkeys(distilled, 0.0), abs=1e-6
    )
    # L1 has a gradient of +-1 beside 0; at 0 it has none.
    sum(distilled.values()).backward()
    gradients = [p.grad for p in detector.student.parameters() if p.grad is not None]
    assert gradients
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-4


def test_training_brings_every_loss_down(make, labelled):
    methods = ["imitation", "channel_mlp", "pkd", "cwd", "masked_generation", "lsh", "logits"]
    detector = built(make("retinanet", methods, "DISTILL.MASKED_GENERATION.PROBABILITY", 0.0))
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    history = []
    for _ in range(6):
        losses = {name: loss for name, loss in step(detector, labelled).items() if name in detector.losses}
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(history[-1][name] < first for name, first in history[0].items())


@pytest.mark.parametrize(
    ("kind", "taps"),
    [("retinanet", ["p3", "res5"]), ("faster", ["p3", "res5"]), ("retinanet", ["head", "p4"])],
)
def test_lsh_at_any_tap(kind, taps, make, labelled):
    detector = built(make(kind, ["lsh"], "DISTILL.LSH.TAPS", taps))
    losses = step(detector, labelled)
    names = [f"loss_lsh_{tap}_{term}" for tap in taps for term in ("l2", "hash")]
    assert list(detector.losses) == names
    assert all(losses[name].isfinite() and losses[name] > 0 for name in names)
    assert detector.methods["lsh"]._kernels == {tap: 3 if tap == "head" else 1 for tap in taps}


@pytest.mark.parametrize("kind", ["retinanet", "faster"])
def test_projections_at_the_head_follow_the_teachers_trained_classifier(kind, make):
    detector = built(make(kind, ["lsh"]))
    detector.prepare()
    teacher = detector.teacher.model
    layer = teacher.head.cls_score if kind == "retinanet" else teacher.roi_heads.box_predictor.cls_score
    weight = detector.methods["lsh"]._projections["head"]
    length = layer.weight.shape[1] * (9 if kind == "retinanet" else 1)
    assert weight.shape == (64, length)
    assert weight.std().item() == pytest.approx(layer.weight.std().item(), rel=0.1)


BY_TEACHER = ["DISTILL.IMITATION.FOREGROUND", "teacher", "DISTILL.IMITATION.FOREGROUND_WEIGHT", 10.0]


@pytest.mark.parametrize(
    ("student", "teacher", "taps"),
    [
        ("retinanet", "retinanet", ["p3", "p5", "res4"]),
        ("fcos", "fcos", ["p3", "p5"]),
        ("faster", "retinanet", ["p4"]),
    ],
)
def test_imitation_weighted_by_the_teacher_needs_no_labels(student, teacher, taps, make, images, teachers):
    cfg = make(student, ["imitation"], *BY_TEACHER, "DISTILL.IMITATION.TAPS", taps, teacher=teachers(teacher))
    detector = built(cfg)
    detector.prepare()
    detector.teacher.model.head.cls_score.weight.mul_(0.01)  # so that it is not sure everywhere
    detector.eval()
    with detector.capture_student() as captured:
        detector.student(images)
    features = detector.pair(captured, images)
    for found in features.values():
        assert found.foreground is None
        assert found.confidence.shape == (2, 1, *found.student.shape[2:])
        assert 0 < found.confidence.min() < found.confidence.max() < 1
    losses = detector.methods["imitation"](features)
    assert list(losses) == [f"loss_imitation_{tap}" for tap in taps]
    plain = built(make(student, ["imitation"], "DISTILL.IMITATION.TAPS", taps, teacher=teachers(teacher)))
    others = plain.methods["imitation"](features)
    assert all(losses[name] > 0 and losses[name] != others[name] for name in losses)


def test_the_teacher_that_weights_must_score_every_position(make, teachers):
    with pytest.raises(ConfigError, match=r"IMITATION\.FOREGROUND = 'teacher': .*no class scores for every"):
        built(make("retinanet", ["imitation"], *BY_TEACHER, teacher=teachers("faster")))


@pytest.mark.parametrize("kind", ["retinanet", "faster"])
def test_gradients_of_losses_in_the_head_are_compared_at_the_backbones_outputs(kind, make, labelled):
    detector = built(make(kind, ["imitation", "lsh", "logits"]))
    outputs = []
    handle = detector.student.backbone.register_forward_hook(lambda _, args, output: outputs.append(output))
    detector.plan_step(StepPlan(measure_gradients=True))
    torch.manual_seed(0)
    losses = step(detector, labelled)
    handle.remove()
    student = detector.student
    names = student.head_in_features if kind == "retinanet" else student.roi_heads.box_in_features
    maps = [outputs[-1][name] for name in names]

    def norm(loss):
        gradients = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
        return torch.stack([g.norm() for g in gradients if g is not None]).norm().item()

    task = norm(sum(loss for name, loss in losses.items() if name not in detector.losses))
    expected = {name: norm(losses[name]) / task for name in detector.losses if "imitation" not in name}
    sum(losses.values()).backward()
    found = detector.take_gradient_ratios()
    # The gradients of the untrained RetinaNet's task at p4 and p5 are lost in the rounding of imitation's.
    lost = {"loss_imitation_p4", "loss_imitation_p5"} if kind == "retinanet" else set()
    assert list(found) == [name for name in detector.losses if name not in lost]
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-3)


def test_a_two_stage_teachers_fpn_teaches_a_one_stage_student(make, labelled, teachers):
    cfg = make("retinanet", ["imitation"], teacher=teachers("faster"))
    losses = step(built(cfg), labelled)
    assert list(losses)[-3:] == IMITATION
    assert all(losses[name] > 0 for name in IMITATION)


@pytest.mark.parametrize(("student", "teacher"), [("retinanet", "faster"), ("faster", "retinanet")])
@pytest.mark.parametrize("method", ["lsh", "logits"])
def test_heads_of_one_and_two_stages_are_not_compared(student, teacher, method, make, teachers):
    """Of the method that cannot work, the key is named with its own value."""
    detector = built(make(student, ["imitation", method], teacher=teachers(teacher)))
    key, tap = {
        "lsh": (r"DISTILL\.LSH\.TAPS = \['head'\]", "head"),
        "logits": (r"DISTILL\.METHODS = \['imitation', 'logits'\]", "predictions"),
    }[method]
    assert tap in HEAD_TAPS
    with pytest.raises(ConfigError, match=rf"^{key}: at '{tap}' .*proposals.*same kind of head"):
        detector.prepare()


def test_dense_heads_of_two_kinds_share_features_and_not_predictions(make, labelled, teachers):
    losses = step(built(make("retinanet", ["lsh"], teacher=teachers("fcos"))), labelled)
    assert all(losses[name] > 0 for name in LSH)
    detector = built(make("retinanet", ["logits"], teacher=teachers("fcos")))
    with pytest.raises(ConfigError, match="anchors by sigmoid, and the teacher points by sigmoid"):
        detector.prepare()


@pytest.mark.parametrize(
    ("kind", "opts", "message"),
    [
        ("retinanet", ["MODEL.RETINANET.NUM_CLASSES", 3], "student has 6 classes .* teacher 3"),
        (
            "retinanet",
            ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]],
            r"student's anchors are .*MODEL\.ANCHOR_GENERATOR",
        ),
        (
            "faster",
            ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True],
            "box outputs are 24, the teacher's 4.*BOX_WEIGHT 0",
        ),
        (
            "faster",
            ["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)],
            "box coding is .*BBOX_REG_WEIGHTS.*BOX_WEIGHT 0",
        ),
    ],
)
def test_predictions_that_mean_different_things_are_refused(kind, opts, message, make, teachers, labelled):
    teacher = teachers(kind, *opts)
    with pytest.raises(ConfigError, match=message):
        built(make(kind, ["logits"], teacher=teacher)).prepare()
    if kind == "faster":  # classes alone
        detector = built(make(kind, ["logits"], "DISTILL.LOGITS.BOX_WEIGHT", 0.0, teacher=teacher))
        assert list(step(detector, labelled))[-1] == "loss_logits_cls"


@pytest.mark.parametrize("kind", ["retinanet", "mask"])  # FCOS of 0.6 has a loss that fails there
def test_under_autocast_distilled_losses_are_float32_and_finite(kind, make, labelled):
    detector = built(make(kind, ["imitation", "pkd", "cwd", "masked_generation", "lsh", "logits"]))
    batch = with_masks(labelled) if kind == "mask" else labelled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step(detector, batch)
    assert all(losses[name].dtype == torch.float32 for name in detector.losses)
    assert all(losses[name].isfinite() for name in detector.losses)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)


@pytest.mark.parametrize(("student", "teacher"), [("retinanet", "retinanet"), ("retinanet", "fcos")])
def test_crosskd_trains_a_head_up_to_where_the_teachers_goes_on(student, teacher, make, teachers, labelled):
    """Through an FCOS's head, too; autocast changes little."""
    width = ["MODEL.FPN.OUT_CHANNELS", 32] if teacher == "fcos" else NARROW
    cfg = make(student, ["crosskd"], teacher=teachers(teacher, *width), student=width)
    detector = built(cfg)
    losses = step(detector, labelled)
    divisor = detector.student.loss_normalizer
    sum(losses[name] for name in CROSS).backward()
    head = detector.student.head
    assert all(subnet[0].weight.grad.any() for subnet in (head.cls_subnet, head.bbox_subnet))
    assert head.cls_score.weight.grad is None
    assert all(parameter.grad is None for parameter in detector.teacher.model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = step(detector, labelled)
    assert all(half[name].dtype == torch.float32 for name in CROSS)
    # Less what the student divides its losses by, which is another one in the second step.
    exact = [losses[name].item() * divisor for name in CROSS]
    found = [half[name].item() * detector.student.loss_normalizer for name in CROSS]
    assert found == pytest.approx(exact, rel=0.05)


def test_images_without_objects_and_larger_padding_of_the_teacher(make, labelled):
    """The first image loses its box; the teacher pads to 128 px, the student to 96."""
    labelled[0]["instances"] = labelled[0]["instances"][:0]
    for kind in ("retinanet", "faster"):
        detector = built(
            make(
                kind,
                ["imitation", "pkd", "cwd", "masked_generation", "lsh", "logits"],
                *("DISTILL.IMITATION.FOREGROUND_WEIGHT", 2.0),
            )
        )
        detector.prepare()
        plain = {name: loss.item() for name, loss in step(detector, labelled).items()}
        detector.teacher.model.backbone._size_divisibility = 128
        padded = {name: loss.item() for name, loss in step(detector, labelled).items()}
        for losses in (plain, padded):
            assert all(torch.tensor(losses[name]).isfinite() for name in detector.losses)
