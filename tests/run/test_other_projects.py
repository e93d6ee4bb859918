"""The commands on a run of another project, whose keys `--config-function` adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from exporting.networks import read_run
from helpers.detectors import stir
from helpers.projects import FUNCTION, add_project_config
from visualizing.runs import open_runs

from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.run import argument_parser, main
from mgd_det.run.metrics import read_metrics


def start(file: Path, *flags: str) -> None:
    parser = argument_parser("")
    main(parser.parse_args(["--config-file", str(file), "--num-gpus", "0", *flags]))


@pytest.fixture
def config_file(mgd_cfg, tmp_path) -> Path:
    """The config of a run whose student and teacher are of the project, with its keys."""
    add_project_config(mgd_cfg)
    mgd_cfg.MODEL.META_ARCHITECTURE, mgd_cfg.MODEL.PROJECT.EXTRA = "ProjectNet", 5
    mgd_cfg.SOLVER.MAX_ITER = 1
    (tmp_path / "teacher.yaml").write_text("VERSION: 2\n_BASE_: run.yaml\nMODEL: {PROJECT: {EXTRA: 4}}")
    teacher = student_config(mgd_cfg)
    teacher.MODEL.PROJECT.EXTRA = 4
    model = build_model(teacher)
    stir(model)
    torch.save({"model": model.state_dict()}, tmp_path / "teacher.pth")
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "teacher.yaml")
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "teacher.pth")
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    return tmp_path / "run.yaml"


def test_a_run_of_another_project(config_file, mgd_cfg, capsys):
    with pytest.raises(SystemExit, match="2"):
        start(config_file)
    assert "Keys of another project are there with --config-function" in capsys.readouterr().err

    start(config_file, "--config-function", FUNCTION)
    run = Path(mgd_cfg.OUTPUT_DIR)
    assert any("loss_mgd_res4" in line for line in read_metrics(run / "metrics.json"))
    theirs = get_cfg()
    add_project_config(theirs)
    theirs.merge_from_file(str(run / "student_config.yaml"))
    assert (theirs.MODEL.META_ARCHITECTURE, theirs.MODEL.PROJECT.EXTRA) == ("ProjectNet", 5)
    assert theirs.SOLVER.OPTIMIZER == "ADAMW"
    saved = torch.load(run / "model_final.pth", weights_only=True)
    build_model(theirs).load_state_dict(saved["model"], strict=True)

    start(config_file, "--config-function", FUNCTION, "--eval-only", "--resume")
    assert read_run(run, [FUNCTION]).MODEL.PROJECT.EXTRA == 5
    (opened,) = open_runs([("--run", run)], None, [FUNCTION])
    assert opened.cfg.MODEL.PROJECT.EXTRA == 5
    with pytest.raises(ConfigError, match=r"--run = .*Keys of another project are there with"):
        read_run(run)
