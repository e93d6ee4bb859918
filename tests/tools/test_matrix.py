"""The tool that tries pairs of detectors: its table, and seven pairs that differ most."""

from __future__ import annotations

import contextlib
import io
import traceback

import matrix
import pytest
import torch
from helpers.commands import run_tool

from mgd_det.config import load_config
from mgd_det.methods import method_defaults
from mgd_det.run.main import argument_parser, main

SEVEN = [
    matrix.Pair("retinanet-r50", "retinanet-r18", "mgd logits"),
    matrix.Pair("fcos-r50", "fcos-r18", "lsh logits crosskd"),
    matrix.Pair("faster-r50", "faster-r18", "imitation lsh logits inherit:fpn,head"),
    matrix.Pair("mask-r50", "mask-r18", "masked_generation channel_mlp lsh"),
    matrix.Pair("faster-r50", "retinanet-r18", "mgd cwd pkd"),
    matrix.Pair("retinanet-regnet", "retinanet-r18", "mgd:res3=bottom_up.s2,res4=bottom_up.s3.b1"),
    # The last, since stock Detectron2 needs this project's code for its backbone.
    matrix.Pair("retinanet-r50", "retinanet-mobilenet_v2", "mgd imitation"),
]


def in_this_process(command) -> tuple[int, str]:
    """tools/train_net.py without the seconds that a process takes to start."""
    arguments = argument_parser("").parse_args([str(x) for x in command[1:]])
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(arguments)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        except Exception:
            return 1, traceback.format_exc()
    return 0, said.getvalue()


def in_a_process(command) -> tuple[int, str]:
    result = run_tool(*command, check=False)
    return result.returncode, result.stdout + result.stderr


def tried(pair, folder, data) -> str:
    """How a pair failed; empty if it did not."""
    try:
        matrix.check_pair(pair, folder, data, in_this_process, steps=2)
    except matrix.Failed as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def failures(demo_data, tmp_path_factory) -> dict:
    """Of the seven pairs, their folders and how they failed."""
    work = tmp_path_factory.mktemp("matrix")
    folders = {pair: work / str(number) for number, pair in enumerate(SEVEN)}
    return {pair: (folder, tried(pair, folder, demo_data)) for pair, folder in folders.items()}


@pytest.mark.parametrize("pair", SEVEN, ids=str)
def test_a_pair_trains_is_evaluated_and_resumes(pair, failures):
    assert failures[pair][1] == ""


def test_stock_detectron2_loads_the_students(failures):
    matrix.load_in_stock(in_a_process, *(folder / "run" for folder, _ in failures.values()))


def test_a_file_that_lacks_a_tensor_is_found(failures, tmp_path):
    folder = failures[SEVEN[0]][0] / "run"
    saved = torch.load(folder / "model_final.pth")
    del saved["model"]["head.cls_score.weight"]
    torch.save(saved, tmp_path / "model_final.pth")
    (tmp_path / "student_config.yaml").write_text((folder / "student_config.yaml").read_text())
    with pytest.raises(matrix.Failed, match=r"stock Detectron2: .*RuntimeError: Error\(s\) in loading"):
        matrix.load_in_stock(in_a_process, tmp_path)


def test_pairs_that_do_not_fit_fail_with_the_reason(demo_data, tmp_path):
    dense = matrix.Pair("fcos-r50", "retinanet-r18", "logits")
    reason = tried(dense, tmp_path / "dense", demo_data)
    assert reason.startswith("train: exit code 2, error: DISTILL.METHODS = 'logits': the student predicts")
    backwards = matrix.Pair("retinanet-regnet", "retinanet-r18", "mgd:bottom_up.s2=res3")
    reason = tried(backwards, tmp_path / "taps", demo_data)
    assert reason.startswith(
        "train: exit code 2, error: DISTILL.MGD.TAPS = ['bottom_up.s2=res3']: the student"
    )


def test_the_table_tries_every_method_on_every_kind():
    pairs = matrix.pairs()
    assert len(set(pairs)) == len(pairs) > 40
    for kind in ("retinanet", "fcos", "faster", "mask"):
        own = {
            pair.methods for pair in pairs if pair.teacher == f"{kind}-r50" and pair.student == f"{kind}-r18"
        }
        dense_alone = {"crosskd"} if kind in ("faster", "mask") else set()
        assert own == {*method_defaults(), "all"} - dense_alone
        others = {pair.student for pair in pairs if pair.teacher == f"{kind}-r50"}
        assert {f"{other}-r18" for other in ("retinanet", "fcos", "faster", "mask")} <= others


def test_words_of_the_table_become_keys():
    cfg = load_config(str(matrix.ROOT / "configs/demo/student.yaml"))
    cfg.merge_from_list(matrix.Pair("a", "b", "all mgd:res3=bottom_up.s2,res4 imitation:p5").options())
    everything = "mgd imitation channel_mlp pkd cwd masked_generation lsh logits"
    assert " ".join(cfg.DISTILL.METHODS) == everything
    assert cfg.DISTILL.INHERIT == ["fpn", "head"]
    assert cfg.DISTILL.MGD.TAPS == ["res3=bottom_up.s2", "res4"]
    assert cfg.DISTILL.IMITATION.TAPS == ["p5"]


def test_losses_that_are_missing_zero_or_not_finite_are_found(tmp_path):
    def check(*lines):
        (tmp_path / "metrics.json").write_text("\n".join(lines))
        matrix.check_metrics(tmp_path, 5, ["mgd"])

    check('{"iteration": 4, "loss_mgd_res3": 0.5, "loss_mgd_res4": 0.0}', '{"iteration": 3}')
    for line in ('{"iteration": 3, "loss_mgd_res3": 0.5}', '{"iteration": 4, "loss_mgd_res3": 0.0}'):
        with pytest.raises(matrix.Failed, match="no loss of mgd"):
            check(line)
    with pytest.raises(matrix.Failed, match="not finite: loss_cls"):
        check('{"iteration": 4, "loss_mgd_res3": 0.5, "loss_cls": NaN}')


def test_command_line(capsys):
    assert matrix.main(["--list", "--only", "regnet -> retinanet-r18"]) == 0
    assert capsys.readouterr().out.startswith("retinanet-regnet -> retinanet-r18: mgd:res3=bottom_up.s2")
    assert matrix.main(["--only", "yolo"]) == 2
    assert "part of no pair" in capsys.readouterr().out


def test_the_document_holds_what_failed_and_no_paths():
    rows = [(SEVEN[0], 12.3, ""), (SEVEN[1], 4.0, "train: exit code 2, a|b")]
    text = matrix.document(["tools/matrix.py"], rows, 5)
    assert "1 of 2 pairs work" in text
    assert "| retinanet-r50 | retinanet-r18 | mgd logits | 12 | ok |" in text
    assert "| fcos-r50 | fcos-r18 | lsh logits crosskd | 4 | FAILED: train: exit code 2, a/b |" in text
    assert str(matrix.ROOT) not in text


def test_a_folder_that_exists_is_left_alone(tmp_path, capsys):
    (tmp_path / "teachers").mkdir()
    with pytest.raises(SystemExit) as end:
        matrix.main(["--work", str(tmp_path)])
    assert end.value.code == 2
    assert f"--work {tmp_path}: it exists already" in capsys.readouterr().err
    assert (tmp_path / "teachers").is_dir()
