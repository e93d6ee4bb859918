"""Writing where there is no room, and reading what claims to be larger than it is."""

from __future__ import annotations

import sys
import zipfile

import pytest
import torch
from helpers.commands import run_tool
from torch import nn

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer, trainer_state
from mgd_det.errors import ConfigError

FULL = """
import logging, resource, sys
import torch
from mgd_det.checkpoint.checkpointer import DISK_RETRIES, ReportingCheckpointer
from mgd_det.errors import ConfigError

logging.basicConfig(stream=sys.stdout, format="%(message)s")
checkpointer = ReportingCheckpointer(torch.nn.Linear(100, 100), sys.argv[1], retry_seconds=0)
checkpointer.save("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
try:
    checkpointer.save("second")
except ConfigError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpointer.save("third")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits on the size of files")
def test_a_full_disk_leaves_the_last_checkpoint_and_is_tried_again(tmp_path):
    *tries, error = run_tool("-c", FULL, tmp_path).stdout.splitlines()
    assert [line.split(" s, ")[1] for line in tries] == [f"{n} more times" for n in (5, 4, 3, 2, 1)]
    assert error == (
        f"OUTPUT_DIR = '{tmp_path}': second.pth cannot be written (File too large). "
        "Make room, then go on from the last checkpoint with --resume."
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pth", "last_checkpoint", "third.pth"]
    assert torch.load(tmp_path / "first.pth")["model"]["weight"].shape == (100, 100)


def test_a_file_that_would_inflate_is_refused_before_it_does(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"model": {"weight": torch.zeros(1000, 1000)}}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry.filename))
    with pytest.raises(
        ConfigError, match=r"is not a whole weight file \(it would inflate from \d+ to 40\d+ bytes"
    ):
        ReportingCheckpointer(nn.Linear(1000, 1000)).load(str(path))


@pytest.mark.parametrize("part", [b"PK\x01\x02", b"PK\x05\x06"], ids=["directory", "end of directory"])
def test_a_file_whose_table_of_contents_is_damaged(part, student_cfg, tmp_path):
    """Zeros in its place, as a file system leaves them after a loss of power."""
    path = tmp_path / "model_0000001.pth"
    torch.save({"model": {"weight": torch.zeros(2, 2)}}, path)
    content = path.read_bytes()
    path.write_bytes(content.replace(part, bytes(len(part))))
    with pytest.raises(ConfigError, match=rf"{path}.* is not a whole weight file"):
        ReportingCheckpointer(nn.Linear(2, 2)).load(str(path))
    (tmp_path / "last_checkpoint").write_text(path.name)
    student_cfg.OUTPUT_DIR = str(tmp_path)
    with pytest.raises(ConfigError, match=rf"--resume = .*{path.name}.*cannot be read.*last_checkpoint"):
        trainer_state(student_cfg, resume=True)
