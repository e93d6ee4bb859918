"""Experiments on a GPU, which are no options of a training: other ways to run the teacher in a step."""

from __future__ import annotations

from typing import Callable

import torch
from benchmarking.steps import Bench
from benchmarking.timing import Job, in_turn
from commandline import Figures

WARM_UP = 3  # passes before one is captured, in which libraries choose their kernels


def teacher_overlap(bench: Bench, runs: int) -> list[Figures]:
    """Steps of the floor with the teacher's pass in other ways, each in turn with the floor as it is."""
    return [{"way": way, **beside_floor(bench, make, runs)} for way, make in WAYS.items()]


def beside_floor(bench: Bench, make: Callable[[Bench], Job], runs: int) -> Figures:
    """Seconds of a way and its ratio to the floor, or what refused it."""
    try:
        job = make(bench)
    except (RuntimeError, AssertionError, ValueError) as error:  # of CUDA, of torch without it
        return {"refused": str(error).strip().split("\n")[0]}
    seconds = in_turn({"floor": bench.floor_step, "way": job}, runs, bench.device)
    return {"seconds": seconds["way"]._asdict(), "ratio": seconds["way"].over(seconds["floor"])._asdict()}


def on_its_own_stream(bench: Bench) -> Job:
    """The floor with the teacher's pass beside the student's forward pass; the losses need both."""
    stream = torch.cuda.Stream()

    def step() -> None:
        with bench.running():
            batch = bench.model.to_device(bench.batch)
            current = torch.cuda.current_stream()
            stream.wait_stream(current)  # for the images
            with torch.cuda.stream(stream):
                bench.teacher_pass(batch)
            losses = bench.model.student(batch)
            current.wait_stream(stream)
        bench.update(losses)

    return step


def as_a_graph(bench: Bench) -> Job:
    """The floor with the teacher's pass replayed, on images in the memory that it was captured with."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    captured = bench.model.to_device(bench.batch)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), bench.running():
        for _ in range(WARM_UP):
            bench.teacher_pass(captured)
    torch.cuda.synchronize()
    with bench.running(), torch.cuda.graph(graph):
        bench.teacher_pass(captured)

    def step() -> None:
        with bench.running():
            batch = bench.model.to_device(bench.batch)
            losses = bench.model.student(batch)
            for new, old in zip(batch, captured):
                old["image"].copy_(new["image"])
            graph.replay()
        bench.update(losses)

    return step


WAYS = {"on a stream of its own": on_its_own_stream, "as a CUDA graph": as_a_graph}
