"""What a run says at its end."""

from __future__ import annotations

import json

import pytest

from mgd_det.errors import ConfigError
from mgd_det.run.preflight import check_baseline
from mgd_det.run.summary import last_values, summary

RESULTS = {"bbox": {"AP": 28.04, "AP50": 46.41}}


def finished_run(folder, cfg, *aps: float, test=None) -> str:
    """What is left of a run with these evaluations."""
    folder.mkdir()
    config = cfg.clone()
    config.DATASETS.TEST = test or cfg.DATASETS.TEST
    (folder / "config.yaml").write_text(config.dump())
    lines = [{"iteration": 1, "total_loss": 2.0}, *({"iteration": 2, "bbox/AP": ap} for ap in aps)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_names_the_gap_that_was_closed(mgd_cfg, tmp_path):
    finished_run(tmp_path / "teacher", mgd_cfg, 1.0, 40.0)
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "teacher/config.yaml")
    mgd_cfg.DISTILL.BASELINE = finished_run(tmp_path / "alone", mgd_cfg, 20.04)
    mgd_cfg.OUTPUT_DIR = "out"
    assert summary(mgd_cfg, RESULTS, 3725.4).splitlines() == [
        "finished after 1:02:05: out",
        f"  AP 28.0, AP50 46.4 on {mgd_cfg.DATASETS.TEST[0]}",
        "  the teacher's AP there is 40.0",
        # (28.04 - 20.04) / (40 - 20.04)
        "  the AP of the student alone is 20.0: distilling gained +8.0, 40% of the gap to the teacher",
        "  the student, for stock Detectron2: out/student_config.yaml and out/model_final.pth",
        "  look at it: python tools/visualize.py --run out",
    ]


def test_says_how_to_learn_what_is_not_known(mgd_cfg):
    text = summary(mgd_cfg, RESULTS, 1)
    assert "the teacher's AP there is not known: --eval-teacher measures it" in text
    assert "name the folder of its run in DISTILL.BASELINE" in text


def test_takes_the_teachers_ap_from_its_evaluation_on_these_images(mgd_cfg, tmp_path):
    mgd_cfg.OUTPUT_DIR = str(tmp_path)
    finished_run(tmp_path / "teacher", mgd_cfg, 33.0)
    assert "the teacher's AP there is 33.0" in summary(mgd_cfg, RESULTS, 1)


def test_an_ap_on_other_images_is_none(mgd_cfg, tmp_path):
    run = finished_run(tmp_path / "run", mgd_cfg, 33.0, test=("another_set",))
    assert last_values(run, mgd_cfg.DATASETS.TEST[0]) == {}
    assert last_values(finished_run(tmp_path / "same", mgd_cfg, 33.0, 34.0), mgd_cfg.DATASETS.TEST[0]) == {
        "bbox/AP": 34.0
    }
    assert last_values(finished_run(tmp_path / "unfinished", mgd_cfg), mgd_cfg.DATASETS.TEST[0]) == {}
    assert last_values(str(tmp_path / "gone"), mgd_cfg.DATASETS.TEST[0]) == {}


def test_of_several_test_sets_each_has_its_ap(mgd_cfg, tmp_path):
    mgd_cfg.DATASETS.TEST = ("near", "far")
    mgd_cfg.DISTILL.BASELINE = finished_run(tmp_path / "alone", mgd_cfg)
    metrics = {"iteration": 2, "near/bbox/AP": 20.04, "far/bbox/AP": 10.0}
    (tmp_path / "alone/metrics.json").write_text(json.dumps(metrics) + "\n")
    check_baseline(mgd_cfg)
    lines = summary(mgd_cfg, {"near": RESULTS, "far": {"bbox": {"AP": 9.0, "AP50": 12.0}}}, 1).splitlines()
    assert [line for line in lines if "AP50" in line] == [
        "  AP 28.0, AP50 46.4 on near",
        "  AP 9.0, AP50 12.0 on far",
    ]
    assert [line.split("distilling ")[1] for line in lines if "gained" in line] == [
        "gained +8.0",
        "gained -1.0",
    ]
    mgd_cfg.DATASETS.TEST = ("far",)  # one of the baseline's
    assert "distilling gained -1.0" in summary(mgd_cfg, {"bbox": {"AP": 9.0, "AP50": 12.0}}, 1)
    mgd_cfg.DATASETS.TEST = ("far", "elsewhere")
    with pytest.raises(ConfigError, match="holds no run that was evaluated on 'elsewhere'"):
        check_baseline(mgd_cfg)


def test_a_student_that_finds_nothing_is_compared_with_nothing(mgd_cfg, tmp_path):
    mgd_cfg.DISTILL.BASELINE = finished_run(tmp_path / "alone", mgd_cfg, 20.04)
    text = summary(mgd_cfg, {"bbox": {"AP": float("nan"), "AP50": float("nan")}}, 1)
    assert f"there is no AP: the student finds nothing in {mgd_cfg.DATASETS.TEST[0]}" in text
    assert "the AP of the student alone is 20.0\n" in text
    assert "nan" not in text
    assert "gained" not in text


def test_without_an_evaluation_there_is_no_ap(mgd_cfg):
    assert "AP" not in summary(mgd_cfg, None, 1).replace("AP there", "")


def test_a_baseline_must_be_a_finished_run(mgd_cfg, tmp_path):
    check_baseline(mgd_cfg)
    mgd_cfg.DISTILL.BASELINE = str(tmp_path)
    with pytest.raises(ConfigError, match=r"^DISTILL\.BASELINE = .*holds no run that was evaluated on"):
        check_baseline(mgd_cfg)
