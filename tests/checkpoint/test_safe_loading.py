"""Weight files are data: whatever could run code is refused, by name of the key that allows it."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import student_config
from mgd_det.errors import ConfigError


class Hostile:
    """Creates a file when unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def model(student_cfg):
    return build_model(student_config(student_cfg))


def write(suffix: str, content: dict, folder) -> str:
    path = folder / f"weights{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_code_is_refused_and_not_run(suffix, model, tmp_path):
    trace = tmp_path / "ran"
    path = write(suffix, {"model": {}, "extra": Hostile(trace)}, tmp_path)
    with pytest.raises(ConfigError, match=r"mkdir.*DISTILL\.UNSAFE_LOADING True"):
        ReportingCheckpointer(model).load(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_whoever_trusts_a_file_can_load_it(suffix, model, tmp_path):
    trace = tmp_path / "ran"
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    content = {"model": state, "__author__": "somebody", "extra": Hostile(trace)}
    checkpointer = ReportingCheckpointer(model, trusted=True)
    checkpointer.load(write(suffix, content, tmp_path))
    assert checkpointer.report.missing == []
    assert trace.exists()


def test_a_model_zoo_pickle_loads(model, tmp_path):
    """NumPy arrays and scalars under Detectron2's header, as in the model zoo."""
    state = {k: np.asarray(v.numpy() + 1) for k, v in model.state_dict().items()}
    content = {"model": state, "__author__": "Detectron2 Model Zoo", "step": np.float64(3)}
    checkpointer = ReportingCheckpointer(model)
    checkpointer.load(write(".pkl", content, tmp_path))
    assert checkpointer.report.missing == []
    name = "head.cls_score.bias"
    assert torch.equal(model.state_dict()[name], torch.from_numpy(state[name]))


def test_a_checkpoint_is_written_aside_first(model, tmp_path):
    """What a kill in the middle of writing leaves is not taken for a checkpoint."""
    checkpointer = ReportingCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    (tmp_path / "model_0000003.pth.partial").write_bytes(b"torn")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert checkpointer.get_all_checkpoint_files() == [str(tmp_path / "model_0000001.pth")]
    assert ReportingCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True) == {}
