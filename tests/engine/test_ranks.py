"""Two gloo processes against one, two agents against one, and a rank that dies: the checks that users run."""

from __future__ import annotations

import pytest
from checking.checks import dead_rank, ranks, two_agents
from checking.jobs import make_config


@pytest.fixture
def config(demo_data, teacher_run, tmp_path):
    return make_config(tmp_path, demo_data, teacher_run)


def test_two_ranks_equal_one_on_the_whole_batch(config, tmp_path):
    figures = ranks(config, tmp_path)
    assert figures["share of equal assignments"] == 1
    assert figures["deviation of margins"] == 0  # the teacher's own, pooled by equal assignments
    assert figures["deviation of losses"] <= 1e-5
    assert figures["deviation of gradients"] <= 1e-5


def test_two_agents_train_as_one_with_two_processes(config, tmp_path):
    figures = two_agents(config, tmp_path, iterations=2)
    assert figures["deviation of weights"] <= 1e-5


def test_a_rank_that_dies_ends_the_job(config, tmp_path):
    figures = dead_rank(config, tmp_path)
    assert figures["exit code"] != 0
    assert figures["processes left"] == 0
    assert "SIGKILL" in (tmp_path / "job.log").read_text()
