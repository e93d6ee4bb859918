"""The report of a run: which parts it has, what they are made of, and writing it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

from matplotlib import rc_context
from torch import nn
from visualizing import texts
from visualizing.curves import draw_all, last_values
from visualizing.detections import LEAST_SCORE, draw_detections
from visualizing.features import TapMaps, best_learnt_channel, collect, draw_features, draw_idea
from visualizing.matching import (
    MatchingState,
    draw_matrix,
    draw_spread,
    draw_updates,
    read_checkpoint,
    read_matching,
)
from visualizing.page import STYLE, Missing, Picture, Section, write_page
from visualizing.runs import (
    Images,
    Run,
    check_teacher_classes,
    detect,
    find_images,
    last_iteration,
    load_run_student,
    load_run_teacher,
)

from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import Teacher

FEATURE_IMAGES = 2  # on which features are shown: more make long pictures
RESULTS = {"box AP": "bbox/AP", "box AP50": "bbox/AP50", "mask AP": "segm/AP"}


class Part(NamedTuple):
    """Something that the report is made of: itself, or why it is not there."""

    value: Any
    why: str = ""


class Material(NamedTuple):
    """The material that the parts of the report are made of."""

    run: Run
    checkpoint: dict[str, Any]  # {} where there is none
    state: Part  # MatchingState
    images: Part  # Images
    student: Part  # nn.Module
    teacher: Part  # Teacher
    baseline: Run | None
    baseline_student: Part  # nn.Module


def attempt(make: Callable[[], Any]) -> Part:
    """Returns the result of `make`, or the reason why the run has no material for it."""
    try:
        return Part(make())
    except (Missing, ConfigError) as error:
        return Part(None, str(error))


def gather(run: Run, baseline: Run | None, count: int) -> Material:
    """Read and load all that the report needs.

    Args:
        run: that the report is of.
        baseline: a run whose detections are shown beside its, if any.
        count: of images.

    Raises:
        ConfigError: a checkpoint cannot be read, or the baseline does not fit the run's data. What the run
            itself lacks, such as a teacher whose files have moved, is no error: the report says so.
    """
    checkpoint = read_checkpoint(run)
    images = attempt(lambda: find_images(run, count))
    baseline_student = Part(None)
    if baseline is not None and images.value is not None:
        if baseline.checkpoint is None:
            baseline_student = Part(None, f"The run {baseline.name} has written no checkpoint yet.")
        else:
            baseline_student = Part(load_run_student(baseline, run.cfg))
    return Material(
        run,
        checkpoint,
        attempt(lambda: read_matching(run, checkpoint)),
        images,
        attempt(lambda: load_run_student(run, run.cfg)) if images.value else Part(None),
        attempt(lambda: load_run_teacher(run)),
        baseline,
        baseline_student,
    )


def write_report(material: Material, others: Sequence[Run], out: Path) -> Path:
    """Draw everything, write it, and return the path of the page.

    Args:
        material: of the report.
        others: runs whose curves are drawn beside.
        out: folder, which is made.

    Raises:
        ConfigError: it cannot be written.
    """
    with rc_context(STYLE):
        maps = feature_maps(material)
        sections = [
            *idea_section(material, maps),
            matching_section(material),
            features_section(material, maps),
            detections_section(material),
            curves_section([material.run, *others]),
        ]
    run = material.run
    page = write_page(
        title=f"Distillation report: {run.name}" if run.methods else f"Training report: {run.name}",
        summary=texts.SUMMARY if run.methods else texts.ALONE,
        facts=facts(material),
        results=results([run, *others]),
        sections=sections,
        words=texts.WORDS,
        footer="Made by tools/visualize.py of mgd_det from the files of the run.",
    )
    pictures = [picture for section in sections for picture in section.pictures]
    return write_files(page, pictures, out)


def write_files(page: str, pictures: Sequence[Picture], out: Path) -> Path:
    """Write the page and its pictures into a folder, and return the page's path.

    Raises:
        ConfigError: they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (out / f"{picture.name}.png").write_bytes(picture.png)
        path = out / "report.html"
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "--out", str(out), f"cannot be written ({error})", "Name another folder."
        ) from error
    return path


def facts(material: Material) -> list[tuple[str, str]]:
    """Returns the facts of the run, for the head of the report."""
    run = material.run
    rows = [("run", str(run.folder))]
    if run.checkpoint is None:
        rows.append(("checkpoint", "none yet"))
    else:
        iteration = material.checkpoint.get("iteration")
        when = f", after {iteration + 1} iterations" if isinstance(iteration, int) else ""
        rows.append(("checkpoint", f"{run.checkpoint.name}{when} of {run.cfg.SOLVER.MAX_ITER}"))
    if run.methods:
        rows.append(("methods", ", ".join(run.methods)))
        rows.append(("teacher", run.cfg.DISTILL.TEACHER.CONFIG_FILE))
    state: MatchingState | None = material.state.value
    if state is not None:
        settings = ", ".join(f"{key} {value!r}" for key, value in state.settings.items())
        rows.append(("mgd", f"taps {', '.join(state.taps)}; {settings}"))
    last = last_iteration(run.metrics)
    if last is not None:
        rows.append(("logged", f"up to iteration {last}"))
    return rows


def results(runs: Sequence[Run]) -> list[list[str]]:
    """A table of the last evaluation of each run; [] where none was evaluated."""
    shown = {title: name for title, name in RESULTS.items() if any(name in run.metrics for run in runs)}
    if not shown:
        return []
    rows = [["last evaluation", *shown, "at iteration"]]
    for run in runs:
        values = last_values(run.metrics, list(shown.values()))
        when = max((i for name in shown.values() for i in run.metrics.get(name, {})), default=None)
        rows.append(
            [
                run.name,
                *("-" if v is None else f"{v:.1f}" for v in values),
                "-" if when is None else str(when),
            ]
        )
    return rows


def feature_maps(material: Material) -> list[dict[str, TapMaps]]:
    """Returns the features of the first images; [] if something for it is missing."""
    needed = material.state, material.images, material.student, material.teacher
    if any(part.value is None for part in needed):
        return []
    samples = material.images.value.samples[:FEATURE_IMAGES]
    return collect(
        material.student.value, material.teacher.value, material.run.cfg, material.state.value, samples
    )


def idea_section(material: Material, maps: Sequence[dict[str, TapMaps]]) -> list[Section]:
    """The method, with a picture where there are features; none where the run does not use it."""
    if "mgd" not in material.run.methods:
        return []
    pictures = []
    if maps:
        state: MatchingState = material.state.value
        tap = next(iter(state.taps))
        channel = best_learnt_channel(maps[0][tap])
        sample = material.images.value.samples[0]
        pictures.append(
            draw_idea(
                tap, state.taps[tap], sample, maps[0][tap], channel, state.settings["DISTILL.MGD.REDUCER"]
            )
        )
    return [Section("idea", "The idea", [texts.IDEA], pictures, steps=texts.STEPS)]


def matching_section(material: Material) -> Section:
    """Who is matched with whom, and how that went over the updates."""
    anchor, title = "matching", "The matching of channels"
    if material.state.value is None:
        return Section(anchor, title, [], [], [material.state.why])
    state: MatchingState = material.state.value
    online = texts.ONLINE if material.run.cfg.DISTILL.MATCHING.MODE == "online" else ""
    intro = texts.MATCHING.format(online=online, images=next(iter(state.taps.values())).images)
    if state.settings["DISTILL.EXPERIMENT.ASSIGNMENT"] != "solved":
        intro += texts.CONTROL.format(kind=state.settings["DISTILL.EXPERIMENT.ASSIGNMENT"])
    updates = attempt(lambda: draw_updates(material.run.metrics, list(state.taps)))
    pictures = []
    for tap, matching in state.taps.items():
        pictures += [draw_matrix(tap, matching), draw_spread(tap, matching)]
    pictures += [updates.value] if updates.value else []
    return Section(anchor, title, [intro], pictures, reasons(updates))


def features_section(material: Material, maps: Sequence[dict[str, TapMaps]]) -> Section:
    """Teacher channels, targets and student channels on a few images."""
    anchor, title = "features", "Features: asked for and given"
    if not maps:
        missing = reasons(material.state, material.images, material.student, material.teacher)
        return Section(anchor, title, [], [], missing)
    state: MatchingState = material.state.value
    images: Images = material.images.value
    strides = [f"{maps[0][tap].stride} ({tap})" for tap in state.taps]
    intro = texts.FEATURES.format(count=len(maps), dataset=images.dataset, strides=", ".join(strides))
    samples = images.samples[: len(maps)]
    pictures = [
        draw_features(tap, matching, samples, [m[tap] for m in maps], state.settings["DISTILL.MGD.REDUCER"])
        for tap, matching in state.taps.items()
    ]
    return Section(anchor, title, [intro], pictures)


def detections_section(material: Material) -> Section:
    """Returns the section with the detections of all detectors on the same images."""
    anchor, title = "detections", "Detections"
    run = material.run
    missing = reasons(material.images, material.student, material.baseline_student, material.teacher)
    if material.images.value is None:
        return Section(anchor, title, [], [], missing[:1])
    images: Images = material.images.value
    models: dict[str, tuple[nn.Module, Any]] = {}
    if material.teacher.value is not None:
        teacher: Teacher = material.teacher.value
        tested = attempt(lambda: check_teacher_classes(run))
        if tested.value is None:
            missing.append(f"The teacher's detections: {tested.why}")
        else:
            models["teacher"] = teacher.model, tested.value
    if material.baseline is not None and material.baseline_student.value is not None:
        models["baseline"] = material.baseline_student.value, material.baseline.cfg
    if material.student.value is not None:
        models["distilled student" if run.methods else "student"] = material.student.value, run.cfg
    found = {name: detect(model, cfg, images.samples, LEAST_SCORE) for name, (model, cfg) in models.items()}
    pictures: list[Picture] = [
        draw_detections(i + 1, sample, {name: boxes[i] for name, boxes in found.items()}, images.classes)
        for i, sample in enumerate(images.samples)
    ]
    count, least = len(images.samples), round(100 * LEAST_SCORE)
    intro = texts.DETECTIONS.format(count=count, dataset=images.dataset, least=least)
    return Section(anchor, title, [intro], pictures, missing)


def curves_section(runs: Sequence[Run]) -> Section:
    """Losses, weights, gradient ratios and AP over the iterations."""
    pictures = attempt(lambda: draw_all({run.name: run.metrics for run in runs}))
    return Section("curves", "Curves", [texts.CURVES], pictures.value or [], reasons(pictures))


def reasons(*parts: Part) -> list[str]:
    """Why some of these are missing, each reason once."""
    return list(dict.fromkeys(part.why for part in parts if part.why))
