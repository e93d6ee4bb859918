"""The configs for COCO: they build, teachers fit, and they are Detectron2's own but for what is meant."""

from __future__ import annotations

import os

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from helpers.commands import ROOT, run_tool
from omegaconf import OmegaConf

from mgd_det.config import add_mgd_config, load_config, student_config
from mgd_det.errors import ConfigError
from mgd_det.modeling.build import build_methods, build_student, check_taps, inspect_student, inspect_teacher
from mgd_det.modeling.inherit import inherit
from mgd_det.modeling.tapped import TappedDetector
from mgd_det.modeling.teacher import TeacherSpec
from mgd_det.run.main import argument_parser, main

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))

R18 = {
    "MODEL.WEIGHTS": "torchvision://resnet18",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 1,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "INPUT.FORMAT": "RGB",
}
MOBILENET = {
    **R18,
    "MODEL.WEIGHTS": "torchvision://mobilenet_v2",
    "MODEL.BACKBONE.NAME": "build_retinanet_torchvision_fpn_backbone",
    "MODEL.TORCHVISION.NAME": "mobilenet_v2",
    "MODEL.TORCHVISION.NORM": "FrozenBN",
    "MODEL.TORCHVISION.OUT_FEATURES": ["res3", "res4", "res5"],
}
# Of each student the config of Detectron2's that it is made after, and all that it changes there, beside
# OUTPUT_DIR.
REFERENCES = {
    "retinanet_mobilenetv2_mgd": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", MOBILENET),
    "retinanet_r18": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", R18),
    "retinanet_r18_best": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", R18),
    "retinanet_r18_mgd": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", R18),
    "retinanet_r50_mgd": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", {}),
    "faster_rcnn_r18_mgd": ("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", R18),
    "mask_rcnn_r18_mgd": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", R18),
}
FCOS = "COCO-Detection/fcos_R_50_FPN_1x.py"
# Of Detectron2's config for COCO, what data of one's own changes.
OWN_DATA = {
    *("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.RETINANET.NUM_CLASSES", "MODEL.WEIGHTS"),
    *("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "TEST.EVAL_PERIOD", "SEED", "OUTPUT_DIR"),
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    """Where the paths in the configs start."""
    monkeypatch.chdir(ROOT)


def config(name: str) -> CfgNode:
    return load_config(f"configs/{name}.yaml", device="cpu")


def flat(node, prefix="") -> dict:
    found = {}
    for key, value in node.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_student_and_teacher_build_and_their_taps_fit(name):
    """As DistilledDetector.prepare does, without weights."""
    cfg = config(name)
    student = TappedDetector(build_student(cfg))
    if not cfg.DISTILL.ENABLED:
        return
    methods, _ = build_methods(cfg, student)
    taps = [tap for method in methods.values() for tap in method.taps]
    spec = TeacherSpec.from_config(cfg)
    infos = inspect_student(student, taps, "DISTILL.METHODS")
    teacher = spec.build(torch.device("cpu"))
    teacher_infos = inspect_teacher(teacher.tapped, taps, spec.config_file)
    check_taps(methods, infos, teacher_infos)
    for method in methods.values():
        method.attach(infos, teacher_infos)
    strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32, "p3": 8, "p4": 16, "p5": 32}
    assert {tap: info.stride for tap, info in infos.items()} == {tap: strides[tap] for tap in taps}
    assert all(teacher_infos[tap].channels >= infos[tap].channels for tap in taps)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "fcos_r18_mgd"])
def test_the_student_is_detectron2s_but_for_what_is_meant(name):
    cfg = student_config(config(name))
    reference, changed = REFERENCES[name]
    stock = model_zoo.get_config(reference)
    stock.MODEL.DEVICE = "cpu"
    ours, theirs = flat(cfg), flat(stock)
    assert set(ours) == set(theirs) | {key for key in changed if ".TORCHVISION." in key}
    assert {k: v for k, v in ours.items() if v != theirs.get(k)} == {
        **changed,
        "OUTPUT_DIR": f"output/{name}",
    }


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "fcos_r18_mgd"])
def test_stock_detectron2_builds_the_student(name, tmp_path):
    (tmp_path / "student_config.yaml").write_text(student_config(config(name)).dump())
    stock = get_cfg()
    if name == "retinanet_mobilenetv2_mgd":  # whose backbone is code of this project
        add_mgd_config(stock)
    stock.merge_from_file(str(tmp_path / "student_config.yaml"))
    kinds = {"retinanet": "RetinaNet", "faster_rcnn": "GeneralizedRCNN", "mask_rcnn": "GeneralizedRCNN"}
    model = build_model(stock)
    assert type(model).__name__ == next(kinds[kind] for kind in kinds if name.startswith(kind))
    assert getattr(getattr(model, "roi_heads", None), "mask_on", False) == (name == "mask_rcnn_r18_mgd")


def test_fcos_is_detectron2s_but_for_what_is_meant():
    ours, theirs = (
        flat(OmegaConf.to_container(OmegaConf.create({"model": lazy.model}, flags={"allow_objects": True})))
        for lazy in (LazyConfig.load("configs/models/fcos_r18.py"), model_zoo.get_config(FCOS))
    )
    changed = {
        "model.backbone.bottom_up.stages.depth": 18,
        "model.backbone.bottom_up.freeze_at": 1,
        "model.pixel_mean": [123.675, 116.28, 103.53],
        "model.pixel_std": [58.395, 57.12, 57.375],
    }
    assert {k: v for k, v in ours.items() if v != theirs[k]} == changed
    assert set(theirs) - set(ours) == {"model.backbone.bottom_up.stages.stride_in_1x1"}


def test_the_training_of_fcos_is_detectron2s():
    """The schedule is that of all 1x configs; its LazyConfig says the same in other words."""
    cfg, lazy = config("fcos_r18_mgd"), model_zoo.get_config(FCOS)
    stock = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    for node in ("INPUT", "SOLVER", "DATASETS", "DATALOADER", "TEST"):
        changed = {k: v for k, v in flat(student_config(cfg)[node]).items() if v != flat(stock[node])[k]}
        assert changed == ({"FORMAT": "RGB"} if node == "INPUT" else {})
    resize = lazy.dataloader.train.mapper.augmentations[0]
    assert (lazy.optimizer.lr, lazy.optimizer.momentum) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM)
    assert lazy.optimizer.weight_decay == cfg.SOLVER.WEIGHT_DECAY
    assert lazy.lr_multiplier.scheduler.milestones == [*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER]
    assert lazy.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert tuple(resize.short_edge_length) == cfg.INPUT.MIN_SIZE_TRAIN
    assert resize.max_size == cfg.INPUT.MAX_SIZE_TRAIN


def test_the_best_recipe_inherits_all_but_what_takes_the_backbones_stages():
    """These are narrower in the student."""
    cfg = config("retinanet_r18_best")
    student, teacher = build_student(cfg), TeacherSpec.from_config(cfg).build(torch.device("cpu")).model
    names = {name for part in inherit(student, teacher, cfg.DISTILL.INHERIT).values() for name in part}
    left = {name for name in student.state_dict() if ".bottom_up." not in name} - names
    takes_stages = ["fpn_lateral3", "fpn_lateral4", "fpn_lateral5", "top_block.p6"]
    assert left == {f"backbone.{module}.weight" for module in takes_stages}


@pytest.mark.parametrize(
    ("name", "reference", "changed"),
    [
        ("teacher", "COCO-Detection/retinanet_R_50_FPN_3x.yaml", {}),
        ("student", "COCO-Detection/retinanet_R_50_FPN_1x.yaml", R18),
    ],
)
def test_detectors_for_own_data_are_detectron2s_but_for_what_is_meant(name, reference, changed):
    ours = flat(student_config(config(f"own_data/{name}")))
    theirs = flat(model_zoo.get_config(reference))
    differing = {k: v for k, v in ours.items() if v != theirs[k] and k != "MODEL.DEVICE"}
    assert differing.keys() == OWN_DATA | changed.keys()
    assert {k: differing[k] for k in changed} == changed
    if name == "teacher":
        weights = differing["MODEL.WEIGHTS"].removeprefix("detectron2://")
        assert model_zoo.get_checkpoint_url(reference).endswith(weights)


@pytest.mark.parametrize("folder", ["own_data", "demo/odd_digits"])
def test_a_student_of_own_data_starts_with_the_head_of_its_teacher(folder):
    distilled, teacher = config(f"{folder}/student_distilled"), config(f"{folder}/teacher")
    assert flat(config(f"{folder}/student")["MODEL"]) == flat(distilled["MODEL"])
    assert os.path.dirname(distilled.DISTILL.TEACHER.CONFIG_FILE) == teacher.OUTPUT_DIR
    student = build_student(distilled)
    found = inherit(student, build_model(student_config(teacher)), distilled.DISTILL.INHERIT)
    assert found["head"] == [name for name in student.state_dict() if name.startswith("head.")]


def test_the_zoo_has_weights_of_every_teacher_but_fcos():
    for name in CONFIGS:
        spec = TeacherSpec.from_config(config(name))
        if name == "fcos_r18_mgd":
            with pytest.raises(ConfigError, match=r"DISTILL\.TEACHER\.WEIGHTS = ''.*Give the path or URL"):
                spec.weights_path()
        elif spec.config_file:
            assert spec.weights_path().endswith(".pkl")


needs_no_coco = pytest.mark.skipif(
    os.path.exists(ROOT / MetadataCatalog.get("coco_2017_train").json_file), reason="COCO is there"
)


@needs_no_coco
@pytest.mark.parametrize("name", CONFIGS)
def test_without_coco_the_error_names_the_data_set(name, capsys, tmp_path):
    command = [
        "--config-file",
        f"configs/{name}.yaml",
        "--num-gpus",
        "0",
        "OUTPUT_DIR",
        str(tmp_path / "run"),
    ]
    if name == "fcos_r18_mgd":  # whose teacher is the user's
        (tmp_path / "teacher.pth").touch()
        command += ["DISTILL.TEACHER.WEIGHTS", str(tmp_path / "teacher.pth")]
    with pytest.raises(SystemExit) as end:
        main(argument_parser("").parse_args(command))
    assert end.value.code == 2
    check_error(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_without_coco_the_command_says_so(tmp_path):
    """A process whose data is where none is."""
    command = ["tools/train_net.py", "--config-file", "configs/retinanet_r50_mgd.yaml", "--num-gpus", 0]
    env = {"DETECTRON2_DATASETS": str(tmp_path)}
    result = run_tool(*command, "OUTPUT_DIR", tmp_path / "run", check=False, env=env.items())
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    check_error(result.stderr)


def check_error(text: str) -> None:
    assert "error: DATASETS.TRAIN = 'coco_2017_train': its annotation file" in text
    assert "does not exist" in text
