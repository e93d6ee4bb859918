"""Tables of the figures, for the terminal and docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from commandline import Record

ON_A_GPU = {
    "loss": (
        "The fused loss of `mgd_det/maths/kernels/cuda.py`, which has been checked under Triton's "
        "interpreter."
    ),
    "steps": "Training steps.",
    "losses": "All losses of each method.",
    "memory": "Peak memory.",
    "teacher": "The teacher's forward pass in each of its settings.",
    "cheaper": "Steps with a cheaper teacher.",
    "overlap": "The teacher's forward pass on a stream of its own, and as a CUDA graph.",
}

TITLES = {
    "steps": "training steps",
    "taps": "training steps by the number of taps",
    "cheaper": "training steps with a cheaper teacher",
    "memory": "peak memory",
    "losses": "all losses of a method",
    "loss": "the loss",
    "teacher": "the teacher's forward pass",
    "overlap": "the teacher's pass beside the floor",
    "solve": "solving a matching",
    "start": "the start",
    "data": "the data loader",
}

STEP_HEADS = ("takes", "over the floor", "over the student alone", "its limit")  # of `step_cells`

COMPILED = ("plain, compiled", "sequence, compiled")
NEAR = 1.3  # a compiled form that is so near to the kernel's time would make the kernel superfluous

HEAD = """# Performance

This page gives the cost of distillation with Matching Guided Distillation (MGD) and the methods beside it.
`tools/benchmark.py` measured each table in one run, in which everything that is compared ran in turn. The
first figure is the ratio of the minima, the one in brackets that of the medians. Times belong to the
machine and say little about others. `make gpu` measures on a GPU what a machine without one cannot, and
adds its tables here (`python tools/gpu_check.py --help`).

- **The floor** of a distilled step is the student's own training step plus that part of the teacher's
  forward pass that the taps need. Distillation cannot cost less. Both networks have random weights and see
  noise with boxes, in images of different sizes, so that there is padding. Everything that the methods
  learn beside the student is above the floor: the convolutions of `channel_mlp`, and most of all the 4,096
  projections of `lsh`. The teacher's pass is the one that the distilled step runs. `DTYPE`, `CHANNELS_LAST`
  and `COMPILE` of `DISTILL.TEACHER` therefore lower the floor itself, and the ratio to it does not show
  what they gain. A ratio below 1 is noise of the measurement, some per cent on a machine that does other
  work.
- **The limit** of a step is the floor's arithmetic over the student's: the multiplications and additions in
  convolutions and matrix products. A measured ratio can be below it, where the teacher computes faster
  than the student.
- **The teacher's forward pass** ends with the last tap. Its first compilation takes one to several minutes,
  which are not part of the figures; later starts find what was compiled.
- **A cheaper teacher** makes the whole step faster. With `DISTILL.TEACHER.EVERY` k the figures are means of k
  steps, in one of which the teacher runs. [results/](../results/README.md) has what these keys cost in AP.
- **The loss** is absolute max pooling (AMP, not mixed precision) with the partial L2 distance, forward and
  backward, beside a warm copy of the teacher's features into memory that is there already. Its limit counts
  the bytes that must move: teacher and student are read, the distances written and read again, the gradient
  written; a copy reads and writes the teacher's features. `fused` is the Triton kernel, which
  training uses on a GPU; `plain torch` takes its place elsewhere; `in sequence` are the two
  definitions one after the other, with automatic differentiation. The compiled columns are what
  `torch.compile` makes of these two for one size. On a GPU the time that launching takes is
  not counted, here alone.
- **All losses** of a method are those of its taps, with norms and adapters, forward and backward down to the
  student's features. They are compared with a copy of the teacher's features as well.
- **Peak memory** is the minimum of several processes for each kind of step. On the CPU, the memory that a
  process holds before it builds anything is left out. On a GPU it is the most that torch has allocated at
  once, in one process.
- **The teacher's pass beside the floor** is an experiment, and no option of a training: a floor step whose
  teacher runs on a CUDA stream of its own beside the student's forward pass, or is replayed as a CUDA graph,
  in turn with a floor step as it is.
- **The start**, from the command to the first iteration, is what `tools/benchmark_start.py` measures, beside
  stock Detectron2's start on the same student and its loading of the teacher.
- **Matching** takes a share of the training time. With `pass` it is the time of extra images through both
  networks; with `online`, that of statistics from the features of every N-th step, after a first pass.
  Solving is counted in both cases, reading the images of a pass is not. For its matching, the reference
  implementation passes 6 times 1,001 batches through both networks in 90,000 iterations.
- **Random input** leaves these figures right where the work does not depend on the numbers, as in
  convolutions, products, the loss and a dense detector's step. That of solving an assignment does: `re-solve`
  gets costs of features of scikit-learn's photographs, while the solving in the shares above gets those of
  noise. Proposals and their suppression in a two-stage detector depend on the numbers as well; no such
  detector is measured here.
"""


def lines(record: Record) -> Iterator[str]:
    """Markdown tables of one record."""
    if "loss" in record:
        yield from loss_lines(record["loss"])
    if "solve" in record:
        yield from solve_lines(record["solve"])
    if {"steps", "memory", "losses", "taps", "teacher", "cheaper", "overlap"} & set(record):
        yield from setting_lines(record["setting"])
    if "steps" in record or "memory" in record:
        yield from step_lines(record)
    if "losses" in record:
        yield from method_lines(record["losses"])
    if "teacher" in record:
        yield from teacher_lines(record["teacher"])
    for method, rows in record.get("cheaper", {}).items():
        yield from cheaper_lines(method, rows)
    for method, rows in record.get("overlap", {}).items():
        yield from overlap_lines(method, rows)
    for method, rows in record.get("taps", {}).items():
        yield from tap_lines(method, rows)
    for method, steps in record.get("steps", {}).items():
        if "shares" in steps:
            yield from share_lines(method, steps)
    steps = record.get("steps", {})
    yield from gradient_lines({m: found["gradients"] for m, found in steps.items() if "gradients" in found})
    if "start" in record:
        yield from start_lines(record["start"])
    if "data" in record:
        data = record["data"]
        images = "scikit-learn's photographs of 427 x 640" if data["photos"] else "the training set"
        yield (
            f"The data loader alone (on {images}, workers: {data['workers']}) takes {data['seconds']:.3f} s "
            f"for a batch, which is {data['of a step']:.1%} of a distilled step of the first method. It "
            f"gives {data['images a second']:.0f} images a second."
        )
        yield ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """In markdown, with an empty line behind it; all columns but the first hold figures."""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
    yield ""


def loss_lines(rows: Sequence[Record]) -> Iterator[str]:
    kinds = ["fused", "plain torch", "in sequence"]
    kinds += [kind for kind in COMPILED if any(kind in row["ratios"] for row in rows)]
    heads = ["(images, student from teacher channels, height, width)", "a copy", "limit", *kinds]

    def cells(row: Record) -> list[str]:
        ratios = (ratio(row["ratios"].get(kind)) for kind in kinds)
        return [loss_name(row), f"{row['copy_seconds'] * 1e3:.2f} ms", f"{row['limit']:.2f}", *ratios]

    yield from table(heads, map(cells, rows))
    if both := [row for row in rows if {"fused", *COMPILED} <= set(row["ratios"])]:
        near = [loss_name(row) for row in both if compiled_over_fused(row) <= NEAR]
        yield (
            f"A compiled form takes at most {NEAR} times the time of the fused loss at {len(near)} of these "
            f"{len(both)} sizes{': ' if near else ''}{'; '.join(near)}."
        )
        yield ""


def loss_name(row: Record) -> str:
    dtype = row.get("dtype", "float32")
    return ", ".join([row["size"], *filter(None, [row["what"], dtype if dtype != "float32" else ""])])


def compiled_over_fused(row: Record) -> float:
    """The time of the faster compiled form, divided by that of the kernel."""
    return min(row["ratios"][kind]["median"] for kind in COMPILED) / row["ratios"]["fused"]["median"]


def solve_lines(rows: Sequence[Record]) -> Iterator[str]:
    def cells(row: Record) -> list[str]:
        matrix = ", ".join(map(str, row["matrix"]))
        return [row["tap"], f"({matrix})", f"{row['solver_seconds']:.3f} s", ratio(row["ratio"])]

    heads = ["re-solve at", "(student, teacher) channels", "the solver alone takes", "ratio"]
    return table(heads, map(cells, rows))


def setting_lines(setting: Record) -> Iterator[str]:
    height, width = setting["size"]
    overrides = f", {' '.join(setting['overrides'])}" if setting["overrides"] else ""
    yield (
        f"`{setting['config']}`{overrides}: {setting['images']} images of up to {height} x {width}, "
        f"{setting['dtype']}."
    )
    yield ""


def step_lines(record: Record) -> Iterator[str]:
    steps, memory = record.get("steps", {}), record.get("memory", {})

    def cells(method: str) -> list[str]:
        peak = memory.get(method)
        ratio_of_peaks = f"{peak['distilled'] / peak['floor']:.3f}" if peak else "-"
        return [method, *step_cells(steps.get(method)), ratio_of_peaks]

    heads = ["distilled step", *STEP_HEADS, "peak memory over the floor"]
    return table(heads, map(cells, {**steps, **memory}))


def step_cells(steps: Record | None) -> list[str]:
    """Seconds, ratios, and the limit that arithmetic alone sets to the last one."""
    if steps is None:
        return ["-"] * 4
    flops = steps.get("flops")
    return [
        f"{steps['seconds']['distilled']['median']:.3f} s",
        ratio(steps["over the floor"]),
        ratio(steps["over the student"]),
        f"{flops['floor'] / flops['student']:.2f}" if flops else "-",
    ]


def method_lines(methods: Mapping[str, Record]) -> Iterator[str]:
    def cells(method: str) -> list[str]:
        row = methods[method]
        ratios = [ratio(row["ratios"].get(kind)) for kind in ("losses", "observe")]
        return [method, f"{row['mebibytes']:.3g} MiB", f"{row['copy_seconds'] * 1e3:.2f} ms", *ratios]

    heads = ["method", "teacher's features", "a copy of them", "all losses", "statistics of a step"]
    return table(heads, map(cells, methods))


def teacher_lines(rows: Sequence[Record]) -> Iterator[str]:
    heads = ["the teacher's forward pass, with DISTILL.TEACHER.", "takes", "of the first"]
    return table(
        heads, ([row["way"], f"{row['seconds']['median']:.3f} s", ratio(row["ratio"])] for row in rows)
    )


def cheaper_lines(method: str, rows: Sequence[Record]) -> Iterator[str]:
    def cells(row: Record) -> list[str]:
        return [row["way"], f"{row['seconds']['median']:.3f} s", ratio(row["over the student"])]

    heads = [f"distilled step of `{method}`, with DISTILL.TEACHER.", "takes", "over the student alone"]
    return table(heads, map(cells, rows))


def overlap_lines(method: str, rows: Sequence[Record]) -> Iterator[str]:
    def cells(row: Record) -> list[str]:
        if "refused" in row:
            return [row["way"], "-", f"refused: {row['refused']}"]
        return [row["way"], f"{row['seconds']['median']:.3f} s", ratio(row["ratio"])]

    heads = [f"the floor of `{method}` with the teacher's pass", "takes", "over the floor"]
    return table(heads, map(cells, rows))


def tap_lines(method: str, rows: Sequence[Record]) -> Iterator[str]:
    heads = [f"distilled step of `{method}` at", *STEP_HEADS]
    return table(heads, ([", ".join(row["taps"]), *step_cells(row)] for row in rows))


def start_lines(start: Record) -> Iterator[str]:
    def cells(row: Record) -> list[str]:
        wall, cpu = row["seconds"], row["CPU seconds"]
        low, high = wall["range"]
        times = [f"{wall['median']:.2f} s", f"{low:.2f} to {high:.2f} s", f"{wall['ratio']:.2f}"]
        return [row["start"], *times, f"{cpu['median']:.2f} s", f"{cpu['ratio']:.2f}"]

    yield f"`{start['config']}`, with weights in local files:"
    yield ""
    heads = ["start", "takes (median)", "range", "of stock and the teacher's load", "CPU time", "ratio"]
    yield from table(heads, map(cells, start["rows"]))


def share_lines(method: str, steps: Record) -> Iterator[str]:
    schedule, shares = steps["schedule"], steps["shares"]
    images, length = schedule["images of a pass"], schedule["iterations"]
    yield (
        f"The matching of `{method}` takes this share of the training time, in {length} iterations of "
        f"{schedule['batch']} images: {shares['online']:.2%} online, from every {schedule['online every']}th "
        f"step, and {shares['first pass']:.2%} for the first pass over {images} images; or "
        f"{shares['pass']:.2%} by pass, {schedule['passes']} times over {images} images."
    )
    yield ""


def gradient_lines(methods: Mapping[str, Record]) -> Iterator[str]:
    def cells(method: str) -> list[str]:
        found = methods[method]
        return [method, f"{found['ratio']:.2f}", f"{found['share']:.2%}"]

    schedules = {(found["iterations"], found["period"]) for found in methods.values()}
    for iterations, period in sorted(schedules):
        yield f"With `DISTILL.STRENGTH`, in {iterations} iterations with a comparison in every {period}th:"
        yield ""
        rows = [
            m
            for m, found in methods.items()
            if (found["iterations"], found["period"]) == (iterations, period)
        ]
        heads = ["method", "a step that compares gradients, over one that does not", "of the training time"]
        yield from table(heads, map(cells, rows))


def ratio(timing: Record | None) -> str:
    return f"{timing['minimum']:.3g} ({timing['median']:.3g})" if timing else "-"


def document(records: Sequence[Record]) -> str:
    """docs/performance.md."""
    parts = [HEAD]
    for record in records:
        parts.append(f"## {title(record)}\n")
        made = f"{record['machine']}; {record['versions']}; {record['date']}"
        parts.append(f"{made}:\n\n```\n{record['command']}\n```\n")
        parts.append("\n".join(lines(record)))
    parts.append(not_run(records))
    return "\n".join(parts)


def title(record: Record) -> str:
    """Returns what a record measures, and at which size."""
    parts = " and ".join(what for part, what in TITLES.items() if part in record)
    what = parts[:1].upper() + parts[1:]
    if "setting" not in record:
        return what
    setting = record["setting"]
    height, width = setting["size"]
    images = f"{setting['images']} images of {height} x {width}"
    return f"{what}: {images}, {setting['dtype']}"


def not_run(records: Sequence[Record]) -> str:
    """Returns the section that lists the parts without a record from a GPU."""
    run = {part for record in records if record.get("device", "cpu").startswith("cuda") for part in record}
    missing = [f"- {what}" for part, what in ON_A_GPU.items() if part not in run]
    if not missing:
        return ""
    return "\n".join(["## What has not been run\n", "On a GPU:\n", *missing, ""])
