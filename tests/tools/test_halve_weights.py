"""Weights in half the size."""

from __future__ import annotations

import halve_weights
import pytest
import torch


def test_weights_are_halved_and_statistics_stay():
    found = halve_weights.halved(
        {
            "conv.weight": torch.tensor([1.0, -0.1]),
            "norm.running_var": torch.tensor([1e-9]),
            "norm.num_batches_tracked": torch.tensor(7),
            "large": torch.tensor([1e5]),
        }
    )
    assert found["conv.weight"].dtype is torch.float16
    assert found["conv.weight"].tolist() == [1.0, -0.0999755859375]
    assert found["norm.running_var"].item() == pytest.approx(1e-9)
    assert found["norm.num_batches_tracked"].item() == 7
    assert found["large"].item() == 1e5


def test_a_halved_file_holds_the_model_alone(tmp_path, capsys):
    source, out = tmp_path / "model.pth", tmp_path / "new" / "half.pth"
    torch.save({"model": {"a": torch.ones(3)}, "optimizer": {"state": {}}, "iteration": 5}, source)
    halve_weights.main([str(source), str(out)])
    found = torch.load(out, weights_only=True)
    assert list(found) == ["model"]
    assert torch.equal(found["model"]["a"], torch.ones(3).half())
    assert "1 tensors" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"no", {"iteration": 1}])
def test_what_has_no_model_is_one_line(content, tmp_path, capsys):
    source = tmp_path / "model.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit) as end:
        halve_weights.main([str(source), str(tmp_path / "half.pth")])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FILE.pth = ")
    assert error.count("\n") == 1
    assert not (tmp_path / "half.pth").exists()


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    source, out = tmp_path / "model.pth", tmp_path / "half.pth"
    torch.save({"model": {"a": torch.ones(3)}}, source)
    out.write_text("mine")
    with pytest.raises(SystemExit):
        halve_weights.main([str(source), str(out)])
    assert "OUT.pth" in capsys.readouterr().err
    assert out.read_text() == "mine"
