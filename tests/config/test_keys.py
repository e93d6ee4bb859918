"""The config: keys, comments, and the way back to stock Detectron2."""

from __future__ import annotations

import inspect

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from helpers.commands import ROOT

from mgd_det import add_mgd_config
from mgd_det.config import load_config, student_config
from mgd_det.errors import ConfigError


def test_every_key_has_a_comment():
    lines = [line.strip() for line in inspect.getsource(inspect.getmodule(add_mgd_config)).splitlines()]
    keys = [i for i, line in enumerate(lines) if line.startswith("cfg.")]
    keys = [i for i in keys if "CfgNode()" not in lines[i]]
    assert len(keys) > 10
    for i in keys:
        assert lines[i - 1].startswith("#"), lines[i]


def test_nothing_stock_is_changed():
    stock, ours = get_cfg(), get_cfg()
    add_mgd_config(ours)
    assert student_config(ours).dump() == stock.dump()


def test_the_student_config_is_stock_and_builds_the_student(mgd_cfg, tmp_path):
    path = tmp_path / "student_config.yaml"
    path.write_text(student_config(mgd_cfg).dump())
    stock = get_cfg()
    stock.merge_from_file(str(path))
    assert stock.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert list(build_model(stock).state_dict()) == list(build_model(mgd_cfg).state_dict())


def test_a_dumped_config_loads_as_it_was(mgd_cfg, tmp_path):
    def round_trip(cfg):
        (tmp_path / "config.yaml").write_text(cfg.dump())
        return load_config(str(tmp_path / "config.yaml"))

    loaded = round_trip(mgd_cfg)
    for node in ("DISTILL", "DATASETS", "SOLVER", "INPUT"):
        assert loaded[node] == mgd_cfg[node]
    assert round_trip(loaded) == loaded


def test_overrides_win_over_the_device_of_the_command_line():
    path = str(ROOT / "configs/retinanet_r18_mgd.yaml")
    assert load_config(path).MODEL.DEVICE == "cuda"
    assert load_config(path, device="cpu").MODEL.DEVICE == "cpu"
    assert load_config(path, ["MODEL.DEVICE", "cuda"], device="cpu").MODEL.DEVICE == "cuda"


def differences(a: CfgNode, b: CfgNode, prefix: str = "") -> set[str]:
    found = set()
    for key in a:
        if isinstance(a[key], CfgNode):
            found |= differences(a[key], b[key], f"{prefix}{key}.")
        elif a[key] != b[key]:
            found.add(prefix + key)
    return found


@pytest.mark.parametrize(
    ("distilled", "baseline"),
    [("retinanet_r18_mgd", "retinanet_r18"), ("demo/student_mgd", "demo/student")],
)
def test_baselines_differ_in_distillation_only(distilled, baseline):
    a, b = (load_config(str(ROOT / f"configs/{name}.yaml")) for name in (distilled, baseline))
    changed = differences(a, b)
    assert "DISTILL.ENABLED" in changed
    assert all(key.startswith("DISTILL.") or key == "OUTPUT_DIR" for key in changed)
    assert b.DISTILL.ENABLED is False


def test_anchors_of_the_coco_config_are_those_of_detectron2():
    from detectron2 import model_zoo

    ours = load_config(str(ROOT / "configs/retinanet_r18.yaml")).MODEL.ANCHOR_GENERATOR.SIZES
    zoo = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    for a, b in zip(ours, zoo.MODEL.ANCHOR_GENERATOR.SIZES):
        assert a == pytest.approx(b, abs=0.005)


def test_bad_files_and_overrides(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("MODEL: [")
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("DISTILL: {MGD: {REDUCERS: amp}}")
    for path, opts, match in [
        (tmp_path / "none.yaml", [], "no such file"),
        (bad, [], "Correct the file"),
        (unknown, [], "DISTILL.MGD.REDUCERS"),
        (ROOT / "configs/retinanet_r18.yaml", ["DISTILL.MGDX", "1"], "DISTILL.MGDX"),
        (ROOT / "configs/retinanet_r18.yaml", ["DISTILL.ENABLED"], "overrides"),
        (
            ROOT / "configs/retinanet_r18.yaml",
            ["SOLVER.MAX_ITER", "many"],
            r"overrides = \['SOLVER.MAX_ITER', 'many'\]: Type mismatch.*Lists are written",
        ),
        (
            ROOT / "configs/retinanet_r18.yaml",
            ["SEED", "1", "DISTILL.MDG.REDUCER", "amp"],
            r"overrides = \['DISTILL.MDG.REDUCER', 'amp'\]: .*Did you mean DISTILL.MGD.REDUCER\? .* imported",
        ),
        (ROOT / "configs/retinanet_r18.yaml", ["SEED", "1", "--resume", "x"], "Give --flags before"),
    ]:
        with pytest.raises(ConfigError, match=match):
            load_config(str(path), opts)


@pytest.mark.parametrize("given", ["True", "False", "auto"])
@pytest.mark.parametrize("in_file", ["", "True", "False", "auto"])
def test_a_key_of_several_types_takes_them_from_files_and_overrides(given, in_file, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"DISTILL: {{TEACHER: {{CHANNELS_LAST: {in_file or 'null'}}}}}")
    key = "DISTILL.TEACHER.CHANNELS_LAST"
    values = {"": None, "True": True, "False": False, "auto": "auto"}
    for overrides, expected in (([], values[in_file]), ([key, given], values[given])):
        found = load_config(str(path), overrides).DISTILL.TEACHER.CHANNELS_LAST
        assert found == expected
