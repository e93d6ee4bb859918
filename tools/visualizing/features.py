"""Teacher channels, targets and student channels on a few images, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from torch import Tensor
from visualizing.matching import MatchingState, TapMatching, file_part, group_cost, typical_channels
from visualizing.page import GREY, PALETTE, WIDTH, Picture, new_figure, render
from visualizing.runs import Sample, network_input

from mgd_det.maths.reducers import REDUCERS
from mgd_det.methods import TapFeatures
from mgd_det.modeling.pairing import pair_maps
from mgd_det.modeling.tapped import TappedDetector
from mgd_det.modeling.taps import evaluating, student_and_teacher_names
from mgd_det.modeling.teacher import Teacher


class TapMaps(NamedTuple):
    """The features of one image at one tap, without padding."""

    teacher: Tensor  # (Ct, H, W)
    target: Tensor  # (Cs, H, W), pooled from the teacher's
    student: Tensor  # (Cs, H, W), behind the norm of the loss
    stride: int  # pixels of the network's input from one position to the next
    extent: tuple[
        float, float
    ]  # height and width of the image, in positions; the last may be in part outside


@torch.no_grad()
def collect(
    student: Any, teacher: Teacher, cfg: CfgNode, state: MatchingState, samples: Sequence[Sample]
) -> list[dict[str, TapMaps]]:
    """Run both networks on images: for each image, what every tap gives.

    Args:
        student: the trained student.
        teacher: its teacher.
        cfg: of the student's run.
        state: the matching, of which nothing is solved again.
        samples: the images, which pass through the networks one by one.
    """
    names = [student_and_teacher_names(tap) for tap in state.taps]
    tapped = TappedDetector(student, cfg.DISTILL.BACKBONE)
    infos = tapped.inspect([s for s, _ in names])
    strides = {name: info.stride for name, info in infos.items() if isinstance(info.stride, int)}
    found = []
    for sample in samples:
        image = network_input(cfg, sample)["image"]
        with evaluating(student):
            ours = tapped.run([{"image": image}], [s for s, _ in names]).features
        theirs = teacher.features([image], cfg.INPUT.FORMAT, [t for _, t in names])
        resizing = teacher.resizing([image])
        maps = {}
        for (tap, matching), (s, t) in zip(state.taps.items(), names):
            stride = strides[s]
            in_full_size = theirs[t] if resizing is None else resizing.features(theirs[t], stride)
            pair = pair_maps(ours[s], in_full_size, [image], stride)
            teacher_maps, target, student_maps = tap_maps(
                pair, matching, state.settings["DISTILL.MGD.REDUCER"]
            )
            extent = image.shape[1] / stride, image.shape[2] / stride
            maps[tap] = TapMaps(teacher_maps, target, student_maps, stride, extent)
        found.append(maps)
    return found


def tap_maps(pair: TapFeatures, matching: TapMatching, reducer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pool and normalise one image's features, as the loss does.

    Returns:
        Teacher (Ct, H, W), target (Cs, H, W) and student (Cs, H, W), padding cut off.
    """
    student, teacher, mask, *_ = pair
    pool = REDUCERS[reducer]
    # Random drop draws anew in every step; here one draw stands for all, the same whenever it is drawn.
    random = {"generator": torch.Generator().manual_seed(0)} if pool.random else {}
    target = pool.features(teacher, matching.groups, **random)
    student = matching.norm(student, mask)
    rows, columns = student.shape[2:]
    if mask is not None:
        rows, columns = int(mask[0, 0].any(1).sum()), int(mask[0, 0].any(0).sum())
    return teacher[0, :, :rows, :columns], target[0, :, :rows, :columns], student[0, :, :rows, :columns]


def best_learnt_channel(maps: TapMaps) -> int:
    """The student channel that goes together best with its target over the image (Pearson's correlation)."""
    target, student = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (maps.target, maps.student))
    lengths = target.norm(dim=1) * student.norm(dim=1)
    # A channel that is the same everywhere has no correlation, and nothing to show.
    correlation = torch.where(lengths > 0, (target * student).sum(1) / lengths.clamp_min(1e-12), -1.0)
    return int(correlation.argmax())


COLOURS = "PuOr_r"  # orange above 0, purple below, white at 0
MOST_MEMBERS = 3  # of a group that are drawn
IDEA_HEIGHT = 3.0  # inches
# Which channels are drawn, by their place in the order of the groups' costs.
CHANNELS = {"matched best": 0.0, "matched typically": 0.5, "matched worst": 1.0}
REDUCER_WORDS = {
    "absolute_max": "absolute max pooling: at every place the value furthest from 0 is taken",
    "simple_max": "simple pooling: at every place the largest value is taken",
    "random_drop": "random drop: at every place one of them is taken at random",
    "sparse": "sparse matching: there is one member, taken as it is",
}


def draw_features(
    tap: str, matching: TapMatching, samples: Sequence[Sample], maps: Sequence[TapMaps], reducer: str
) -> Picture:
    """Some student channels of a tap on some images: a block for each channel, a row for each image."""
    chosen = typical_channels(matching.cost, matching.groups, tuple(CHANNELS.values()))
    names: dict[int, str] = {}
    for channel, name in zip(chosen, CHANNELS):
        names.setdefault(channel, name)
    members = {channel: matching.members(channel) for channel in names}
    shown = min(max(map(len, members.values())), MOST_MEMBERS)
    columns = 3 + shown
    images = [read_image(sample.record["file_name"], "RGB") for sample in samples]
    cell = WIDTH / columns
    block = sum(cell * image.shape[0] / image.shape[1] for image in images)
    figure = new_figure(len(names) * (block + 0.42))
    costs = group_cost(matching.cost, matching.groups)
    for part, (channel, name) in zip(figure.subfigures(len(names), 1, squeeze=False)[:, 0], names.items()):
        limit = max(m.teacher[members[channel]].abs().max().item() for m in maps) or 1.0
        cost = f"cost {costs[channel].item():.2f}, colours from {-limit:.1f} to {limit:.1f}"
        text = f"student channel {channel}, {name}: {cost}"
        part.suptitle(text, fontsize=8, x=0.01, ha="left", weight="bold")
        axes = part.subplots(len(samples), columns, squeeze=False)
        for row, image, of_image in zip(axes, images, maps):
            draw_row(row, image, of_image, channel, members[channel][:shown], limit)
        head(axes[0], channel, members[channel], shown)
    return render(
        figure,
        f"features_{file_part(tap)}",
        f"Heat maps at {tap} on {len(samples)} images, for the student channels "
        f"{', '.join(f'{c} ({name}, cost {costs[c].item():.2f})' for c, name in names.items())}: in every "
        "row the image, the teacher channels of the group, the target pooled from them, the student's "
        "channel.",
        f"What the student is asked for at {tap}, and what it gives.",
        "From left to right: the image; the teacher channels that were matched to this student channel; the "
        f"target made of them ({REDUCER_WORDS[reducer]}); the student's own channel, as the loss sees it. "
        "Orange is above 0, purple below, white 0, on one scale in each block. The nearer the last two "
        "columns are to each other, the better the student has learnt this channel. Only where the target "
        "is above 0 do they have to agree; where it is below, the student merely has to be "
        "as low, since a ReLU would cut both off.",
    )


def draw_row(
    row: Sequence[Axes], image: np.ndarray, maps: TapMaps, channel: int, members: Sequence[int], limit: float
) -> None:
    for axis in row:
        axis.set_axis_off()
    row[0].imshow(image)
    heat_map(row[-2], maps.target[channel], maps.extent, limit)
    heat_map(row[-1], maps.student[channel], maps.extent, limit)
    for axis, teacher in zip(row[1:], members):
        heat_map(axis, maps.teacher[teacher], maps.extent, limit)


def heat_map(axis: Axes, values: Tensor, extent: tuple[float, float], limit: float) -> None:
    """(H, W) on a scale from -limit to limit, cut at the image's edge, with a thin frame."""
    rows, columns = values.shape
    axis.imshow(
        values.numpy(),
        cmap=COLOURS,
        vmin=-limit,
        vmax=limit,
        interpolation="nearest",
        extent=(0, columns, rows, 0),
    )
    axis.set_axis_on()
    axis.set(xticks=[], yticks=[], xlim=(0, extent[1]), ylim=(extent[0], 0))
    axis.spines[:].set(visible=True, color="0.7", linewidth=0.5)


def head(row: Sequence[Axes], channel: int, members: Sequence[int], shown: int) -> None:
    """Titles of the columns."""
    row[0].set_title("image", pad=3)
    for axis, teacher in zip(row[1:], members[:shown]):
        axis.set_title(f"teacher {teacher}", pad=3, color=PALETTE[1])
    if len(members) > shown:
        row[shown].set_title(
            f"teacher {members[shown - 1]}, +{len(members) - shown}", pad=3, color=PALETTE[1]
        )
    row[-2].set_title("target", pad=3)
    row[-1].set_title(f"student {channel}", pad=3, color=PALETTE[0])


def draw_idea(
    tap: str, matching: TapMatching, sample: Sample, maps: TapMaps, channel: int, reducer: str
) -> Picture:
    """The method on one student channel: teacher channels to target, target beside the student's channel."""
    members = matching.members(channel)
    shown = members[:MOST_MEMBERS]
    limit = maps.teacher[members].abs().max().item() or 1.0
    image = read_image(sample.record["file_name"], "RGB")
    figure = draw_pooling(image, maps, shown, channel, limit)
    how = REDUCER_WORDS[reducer]
    more = f" ({len(members) - len(shown)} more are not drawn)" if len(members) > len(shown) else ""
    return render(
        figure,
        "idea",
        f"An image, the {len(members)} teacher channels matched to student channel {channel} at {tap}, the "
        "target pooled from them, and the student channel, which the loss compares with the target.",
        "The method on one channel of this run.",
        f"At {tap}, each student channel is matched to a group of teacher channels{more}. The group becomes "
        f"one target ({how}), and the loss pulls the student's channel towards it. Orange is above 0, "
        "purple below. Of all channels of this tap this is the one that the student has learnt best on this "
        "image.",
    )


def draw_pooling(
    image: np.ndarray, maps: TapMaps, teachers: Sequence[int], channel: int, limit: float
) -> Figure:
    """Draw an image, some teacher channels of a group, their target, and the student's channel beside it."""
    figure = Figure(figsize=(WIDTH, IDEA_HEIGHT))  # laid out by hand, for the arrows
    ratio = maps.extent[0] / maps.extent[1]
    step = (IDEA_HEIGHT - 0.1) / max(len(teachers), 2)
    width = min(1.1, (step - 0.3) / ratio)
    height = width * ratio

    def place(x: float, y: float, text: str, shade: str = "black") -> Axes:
        """An axes around a place in inches, with a text above it."""
        low = (x - width / 2) / WIDTH, (y - height / 2) / IDEA_HEIGHT
        figure.text(
            x / WIDTH, (y + height / 2 + 0.05) / IDEA_HEIGHT, text, ha="center", va="bottom", color=shade
        )
        return figure.add_axes((*low, width / WIDTH, height / IDEA_HEIGHT))

    middle, upper, lower = IDEA_HEIGHT / 2 - 0.1, IDEA_HEIGHT - step / 2 - 0.1, step / 2 - 0.1
    picture = place(0.65, middle, "image")
    picture.imshow(image, aspect="auto")
    picture.set_axis_off()
    for i, teacher in enumerate(teachers):
        y = middle + ((len(teachers) - 1) / 2 - i) * step
        axis = place(2.3, y, f"teacher channel {teacher}", PALETTE[1])
        heat_map(axis, maps.teacher[teacher], maps.extent, limit)
        arrow(figure, (0.65 + width / 2, middle), (2.3 - width / 2, y), GREY)
        arrow(figure, (2.3 + width / 2, y), (3.95 - width / 2, upper))
    heat_map(place(3.95, upper, "target: pooled", PALETTE[1]), maps.target[channel], maps.extent, limit)
    axis = place(3.95, lower, f"student channel {channel}", PALETTE[0])
    heat_map(axis, maps.student[channel], maps.extent, limit)
    for y, end in ((upper, middle + 0.25), (lower, middle - 0.25)):
        arrow(figure, (3.95 + width / 2 + 0.03, y), (4.8, end))
    figure.text(4.7 / WIDTH, middle / IDEA_HEIGHT, "loss: how\nfar apart?", va="center")
    return figure


def arrow(figure: Figure, start: tuple[float, float], end: tuple[float, float], shade: str = "black") -> None:
    """An arrow between two places in inches."""
    height = figure.get_figheight()
    ends = [(x / WIDTH, y / height) for x, y in (start, end)]
    figure.add_artist(
        FancyArrowPatch(*ends, transform=figure.transFigure, arrowstyle="-|>", mutation_scale=8, color=shade)
    )
