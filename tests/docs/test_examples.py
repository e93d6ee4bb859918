"""The scripts of docs/examples, run as they stand there, on tiny data."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from helpers.commands import ROOT, run_tool
from helpers.detectors import FASTER_RCNN

from mgd_det.config import student_config

EXAMPLES = ROOT / "docs/examples"
ON_CPU = ["MODEL.DEVICE", "cpu"]


def metrics(folder: Path) -> dict[str, float]:
    """The last value of everything that a run logged."""
    found: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        found.update(json.loads(line))
    return found


def stock_student(folder: Path) -> torch.nn.Module:
    """What stock Detectron2 makes of a run's two files."""
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "student_config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(folder / "model_final.pth", weights_only=True)["model"], strict=True)
    return model


def test_digits_prints_what_its_figures_say():
    output = run_tool(EXAMPLES / "digits.py", "--quick").stdout
    teacher, student, distilled, control = (float(x) for x in re.findall(r"([\d.]+) %$", output, re.M))
    gains = re.findall(r"(\S+), 95 % confidence interval (\S+) to (\S+), 2 seeds", output)
    assert teacher > 90 > student
    for (gain, low, high), difference in zip(gains, (distilled - student, distilled - control)):
        assert float(gain) == pytest.approx(difference, abs=0.16)  # of three rounded figures
        assert float(low) < float(gain) < float(high)
        assert (float(low) + float(high)) / 2 == pytest.approx(float(gain), abs=0.11)
    assert len(gains) == 2


LAZY = """
from detectron2.config import LazyConfig
from detectron2.data.datasets import register_coco_instances

register_coco_instances("mine_train", {{}}, "{data}/annotations/train.json", "{data}/train")
register_coco_instances("mine_val", {{}}, "{data}/annotations/val.json", "{data}/val")
_example = LazyConfig.load("{example}")
dataloader, hook, lr_multiplier = _example.dataloader, _example.hook, _example.lr_multiplier
model, optimizer, train = _example.model, _example.optimizer, _example.train

model.student.num_classes = 6
_bottom_up = model.student.backbone.bottom_up
_bottom_up.freeze_at, _bottom_up.stages.norm, _bottom_up.stem.norm = 0, "BN", "BN"
model.teacher.config_file, model.teacher.weights = "{teacher}/config.yaml", "{teacher}/model_final.pth"
dataloader.train.dataset.names, dataloader.test.dataset.names = "mine_train", "mine_val"
dataloader.train.mapper.augmentations[0].short_edge_length = (64,)
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.train.total_batch_size, dataloader.train.num_workers, dataloader.test.num_workers = 2, 0, 0
optimizer.lr = 0.001
train.device, train.init_checkpoint, train.output_dir = "cpu", "", "{run}"
train.eval_period, train.log_period, train.matching_images = 0, 1, 4
"""


def test_lazy_train_distils_resumes_and_leaves_a_stock_student(demo_data, teacher_run, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "mine.py").write_text(
        LAZY.format(data=demo_data, example=EXAMPLES / "lazy_retinanet_r18.py", teacher=teacher_run, run=run)
    )
    train = [EXAMPLES / "lazy_train.py", "--config-file", tmp_path / "mine.py"]
    run_tool(*train, "train.max_iter=2")
    first = (run / "log.txt").read_text()
    assert "matching mgd_res4 before iteration 0, from 4 images" in first
    logged = metrics(run)
    assert logged["loss_mgd_res3"] > 0
    assert logged["mgd_res5/weight"] == 0.05
    assert logged["total_loss"] == pytest.approx(
        sum(value for name, value in logged.items() if name.startswith("loss_")), rel=1e-3
    )

    run_tool(*train, "--resume", "train.max_iter=3")
    second = (run / "log.txt").read_text()[len(first) :]
    assert "Starting training from iteration 2" in second
    assert "matching solved" not in second  # it came with the checkpoint

    student = instantiate(LazyConfig.load(str(run / "student.yaml")).model)
    saved = torch.load(run / "model_final.pth", weights_only=True)
    student.load_state_dict(saved["model"], strict=True)
    assert type(student).__name__ == "RetinaNet"


@pytest.fixture(scope="module")
def predict():
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("predict", EXAMPLES / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_trainer_distils_and_predict_finds_something(mgd_cfg, demo_data, tmp_path):
    run = Path(mgd_cfg.OUTPUT_DIR)
    stock = student_config(mgd_cfg)
    stock.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0  # an untrained student is sure of nothing
    run.mkdir()
    (run / "student_config.yaml").write_text(stock.dump())
    teacher = mgd_cfg.DISTILL.TEACHER
    run_tool(
        *(EXAMPLES / "own_trainer.py", "--config-file", run / "student_config.yaml", *ON_CPU),
        *("DATASETS.REGISTER", mgd_cfg.DATASETS.REGISTER, "DISTILL.MATCHING.NUM_IMAGES", 4),
        *("DISTILL.TEACHER.CONFIG_FILE", teacher.CONFIG_FILE, "DISTILL.TEACHER.WEIGHTS", teacher.WEIGHTS),
        *("SOLVER.MAX_ITER", 2, "DISTILL.MGD.LOSS_WEIGHTS", [0.5]),
    )
    logged = metrics(run)
    assert logged["loss_mgd_res4"] > 0
    assert logged["mgd_res4/weight"] == 0.5
    assert "bbox/AP" in logged  # the evaluator of its own
    stock_student(run)

    image = min((demo_data / "val").iterdir())
    output = run_tool(
        *(EXAMPLES / "predict.py", "--run", run, "--image", image, "--score", 0, *ON_CPU)
    ).stdout
    assert len(re.findall(r"^\d \d+ % at( \d+){4}$", output, re.M)) == 5  # TEST.DETECTIONS_PER_IMAGE


def test_plain_loop_rematches_and_leaves_a_stock_student(mgd_cfg, tmp_path):
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    output = run_tool(EXAMPLES / "plain_loop.py", "--config-file", tmp_path / "run.yaml").stdout
    solved = re.findall(r"step (\d): mgd_res4 matched at a mean cost of ([\d.]+)", output)
    assert [step for step, _ in solved] == ["0", "3"]  # of steps 0 .. 3, every third
    assert all(0 < float(cost) < 2 for _, cost in solved)
    assert re.search(r"step 0: loss_cls [\d.]+, loss_box_reg [\d.]+, loss_mgd_res3 [\d.]+", output)
    stock_student(Path(mgd_cfg.OUTPUT_DIR))

    resumed = [EXAMPLES / "plain_loop.py", "--config-file", tmp_path / "run.yaml", "--resume"]
    output = run_tool(*resumed, "SOLVER.MAX_ITER", 6).stdout
    assert "matched" not in output  # steps 4 and 5, with the matching of step 3
    assert "no state of the distillation" not in output
    stock_student(Path(mgd_cfg.OUTPUT_DIR))


@pytest.fixture
def retinanet(student_cfg):
    """A stock student's config and network, which finds a lot."""
    cfg = student_config(student_cfg)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST, cfg.TEST.AUG.MIN_SIZES = 0.0, (64,)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.1)  # scores apart from each other
    return cfg, model


def rows(found) -> torch.Tensor:
    """(5, 6): box, score and class of each detection, the best first."""
    return torch.cat(
        [found.pred_boxes.tensor, found.scores[:, None], found.pred_classes[:, None].float()], dim=1
    )


def test_augmenting_by_nothing_changes_nothing(predict, retinanet):
    cfg, model = retinanet
    cfg.TEST.AUG.FLIP = False
    image = {"image": torch.rand(3, 64, 64) * 255, "height": 128, "width": 128}
    with torch.no_grad():
        plain = model([image])[0]["instances"]
        augmented = predict.predict_augmented(cfg, model, image)
    assert len(plain) == 5
    assert augmented.image_size == (128, 128)
    torch.testing.assert_close(rows(augmented), rows(plain), atol=1e-3, rtol=1e-4)


def test_a_mirrored_image_has_mirrored_detections(predict, retinanet):
    """As it must be where an image and its mirror image are looked at together."""
    cfg, model = retinanet
    pixels = torch.rand(3, 64, 64) * 255
    with torch.no_grad():
        found, mirrored = (
            rows(predict.predict_augmented(cfg, model, {"image": x, "height": 64, "width": 64}))
            for x in (pixels, pixels.flip(2))
        )
    left, right = mirrored[:, 0].clone(), mirrored[:, 2].clone()
    mirrored[:, 0], mirrored[:, 2] = 64 - right, 64 - left
    torch.testing.assert_close(found, mirrored, atol=1e-2, rtol=1e-3)


def test_an_r_cnn_is_augmented_by_detectron2(predict, student_cfg):
    student_cfg.merge_from_list([*FASTER_RCNN, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0])
    cfg = student_config(student_cfg)
    cfg.TEST.AUG.MIN_SIZES = (64, 80)
    torch.manual_seed(0)
    image = {"image": torch.rand(3, 64, 96) * 255, "height": 128, "width": 192}
    with torch.no_grad():
        found = predict.predict_augmented(cfg, build_model(cfg).eval(), image)
    assert found.image_size == (128, 192)
    assert len(found) == 5
