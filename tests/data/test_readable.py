"""Images that cannot be read in training."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetMapper
from helpers.commands import ROOT, run_tool
from PIL import Image

from mgd_det import Trainer, register_datasets
from mgd_det.data.readable import NamingMapper, UnreadableImage


@pytest.fixture
def cfg(student_cfg, demo_data, tmp_path):
    """Three images, of which the second one is cut off behind its header."""
    content = json.loads((demo_data / "annotations/train.json").read_text())
    images = content["images"][:3]
    kept = {image["id"] for image in images}
    for image in images:
        data = (demo_data / "train" / image["file_name"]).read_bytes()
        cut = len(data) // 2 if image is images[1] else len(data)
        (tmp_path / image["file_name"]).write_bytes(data[:cut])
    annotations = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "train.json").write_text(
        json.dumps({**content, "images": images, "annotations": annotations})
    )
    name = f"cut_{tmp_path}"
    student_cfg.DATASETS.REGISTER = [[name, str(tmp_path / "train.json"), str(tmp_path)]]
    student_cfg.DATASETS.TRAIN, student_cfg.DATASETS.TEST = (name,), ()
    return student_cfg


def test_it_is_named_or_left_out_and_others_pass_through(tmp_path, student_cfg, caplog):
    mapper = DatasetMapper(student_cfg, False)
    Image.new("RGB", (48, 32)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    good = {"file_name": str(tmp_path / "good.png"), "width": 48, "height": 32}
    cut, other = {**good, "file_name": str(tmp_path / "cut.png")}, {**good, "width": 50}
    assert NamingMapper(mapper)(dict(good))["image"].shape[0] == 3
    for record, reason in ((cut, r"cut\.png cannot be read \("), (other, r"good\.png cannot be read \(Mism")):
        with pytest.raises(UnreadableImage, match=reason + ".*DATALOADER.SKIP_UNREADABLE True"):
            NamingMapper(mapper)(dict(record))
    skipping = NamingMapper(mapper, skip=True)
    assert [skipping(dict(record)) for record in (cut, other)] == [None, None]
    assert caplog.messages[-1].endswith("; 2 so far in this process")


@pytest.mark.parametrize("exact", [False, True])
def test_a_training_leaves_them_out_where_it_is_told_to(exact, cfg):
    cfg.DISTILL.EXACT_RESUME, cfg.SEED, cfg.DATALOADER.SKIP_UNREADABLE = exact, 1, True
    register_datasets(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == cfg.SOLVER.MAX_ITER


def test_otherwise_it_ends_in_one_line_that_names_it(cfg, tmp_path):
    """Also where a worker process has read it."""
    cfg.DATALOADER.NUM_WORKERS = 1
    (tmp_path / "run.yaml").write_text(cfg.dump())
    result = run_tool(
        ROOT / "tools/train_net.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0, check=False
    )
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "000002" in line or "cannot be read (" in line
    assert "SKIP_UNREADABLE" in line
    assert "Traceback" not in result.stderr.split("error: ")[-1]
