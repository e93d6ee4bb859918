"""The evaluations of finished networks that a gate needs; their records are in gate.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from commandline import Figures, Record
from comparing.experiment import Arm, Experiment, Run, changed, file_name, files, start_of_command
from comparing.gate import Gate, Verdict, judge
from comparing.runner import RunProcess
from processes import Failed

from mgd_det.config import load_config
from mgd_det.run.metrics import read_metrics

TEACHER = Arm("teacher", [], 0)


def plan_evaluations(experiment: Experiment, gate: Gate, trained: Sequence[Run], gpus: int) -> list[Run]:
    """Returns the evaluations that the gate needs beside the records of the arms.

    Args:
        experiment: the experiment.
        gate: its gate.
        trained: the finished runs.
        gpus: number of GPUs that each evaluation uses.
    """
    planned = [_evaluation(experiment, gate, TEACHER, 0, [], gpus)]
    for run in trained if gate.data != experiment.tested else ():
        if run.arm.name in (experiment.baseline, gate.twice):
            # The network of a run is evaluated as a teacher is: by its own config, on the data set of ours.
            network = [
                *("DISTILL.TEACHER.CONFIG_FILE", str(run.output / "config.yaml")),
                *("DISTILL.TEACHER.WEIGHTS", str(run.output / "model_final.pth")),
                *("DISTILL.TEACHER.OPTS", "[]", "DISTILL.TEACHER.DTYPE", ""),
            ]
            arm = Arm(run.arm.name, [], 0)
            planned.append(_evaluation(experiment, gate, arm, run.seed, network, gpus))
    return planned


def _evaluation(
    experiment: Experiment, gate: Gate, arm: Arm, seed: int, network: Sequence[str], gpus: int
) -> Run:
    name = f"{file_name(arm.name)}_seed{seed}"
    output = experiment.output / "gate" / name
    opts = [
        *experiment.shared,
        *("DISTILL.ENABLED", "True", "DATASETS.TEST", f"({gate.data!r},)", "OUTPUT_DIR", str(output)),
        *network,
    ]
    cfg = load_config(str(experiment.config), opts, functions=experiment.functions)
    command = [*start_of_command(experiment, "--eval-teacher", gpus), *opts]
    records = experiment.results / "gate.jsonl"
    return Run(arm, seed, command, changed(cfg), files(cfg), name, output, records)


class EvaluationProcess(RunProcess):
    """The process of an evaluation."""

    def state(self) -> str:
        return "is evaluated"

    def measured(self) -> Figures:
        """Returns the figures of the evaluation.

        Raises:
            Failed: it did not finish, or has no AP.
        """
        self.check_exit()
        last = read_metrics(self.run.output / "teacher/metrics.json")[-1]
        if not math.isfinite(last.get("bbox/AP", math.nan)):
            raise Failed(f"no AP: nothing was detected, or there was nothing to detect; see {self.log}")
        figures: Figures = {name: last[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")}
        return {**figures, "seconds": round(self.seconds(), 1), "resumed_from": 0}


def verdict(
    experiment: Experiment, gate: Gate, records: Sequence[Record], evaluated: Sequence[Record]
) -> Verdict:
    """Returns whether the gate is passed.

    Args:
        experiment: the experiment.
        gate: its gate.
        records: of the finished runs.
        evaluated: of the evaluations that the gate needs, as far as they are finished.
    """
    students = records if gate.data == experiment.tested else evaluated

    def aps(found: Sequence[Record], arm: str) -> Mapping[int, float]:
        return {record["seed"]: record["AP"] for record in found if record["arm"] == arm}

    teacher_ap = aps(evaluated, TEACHER.name).get(0)
    return judge(gate, teacher_ap, aps(students, experiment.baseline), aps(students, gate.twice))
