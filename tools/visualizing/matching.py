"""The matching that a checkpoint holds, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from visualizing.page import GREY, PALETTE, Missing, Picture, colour, marker, new_figure, render
from visualizing.runs import Run, Series

from mgd_det.checkpoint.checkpointer import UNREADABLE
from mgd_det.engine.state_keys import MATCHING_STATE
from mgd_det.errors import ConfigError
from mgd_det.maths.matching import assignment_cost, matched_pairs
from mgd_det.maths.matching_statistics import MatchingStatistics
from mgd_det.maths.norms import STUDENT_NORMS
from mgd_det.methods.settings import module_key


class TapMatching(NamedTuple):
    """The matching of one tap."""

    groups: Tensor  # (Cs, G) teacher channels, -1 at the end of a short group
    cost: Tensor  # (Cs, Ct), that it was solved from; of the latest statistics in online mode
    images: float  # that the cost is the mean of; older ones decayed
    norm: nn.Module  # on the student's features in the loss, as it has been trained

    def members(self, channel: int) -> list[int]:
        """Returns the teacher channels in the group of a student channel."""
        return [teacher for teacher in self.groups[channel].tolist() if teacher >= 0]


class MatchingState(NamedTuple):
    """The state of MGD in a checkpoint."""

    taps: dict[str, TapMatching]
    settings: dict[str, Any]  # by config key


def read_checkpoint(run: Run) -> dict[str, Any]:
    """All that a run's checkpoint holds, on the CPU; {} where there is none yet.

    Raises:
        ConfigError: it cannot be read.
    """
    if run.checkpoint is None:
        return {}
    try:
        saved = torch.load(run.checkpoint, map_location="cpu", weights_only=True)
    except (OSError, *UNREADABLE) as error:
        problem, remedy = f"cannot be read ({type(error).__name__})", "Name another one of the run's folder."
        raise ConfigError("--checkpoint", str(run.checkpoint), problem, remedy) from error
    if not isinstance(saved, dict) or "model" not in saved:
        problem, remedy = "is no checkpoint of a run", "Name one that the run has written."
        raise ConfigError("--checkpoint", str(run.checkpoint), problem, remedy)
    return saved


def read_matching(run: Run, checkpoint: Mapping[str, Any]) -> MatchingState:
    """Take the matching out of a run's checkpoint; nothing is solved again.

    Raises:
        Missing: the run matches no channels, or has no checkpoint yet.
    """
    if not run.methods:
        raise Missing(
            "No method of distillation was at work in this run (DISTILL.ENABLED is False, or DISTILL.METHODS "
            "is empty), so no channels were matched."
        )
    if "mgd" not in run.methods:
        raise Missing(
            f"Of this run's methods, {', '.join(run.methods)}, none matches channels: "
            'that is what "mgd" in DISTILL.METHODS does.'
        )
    if run.checkpoint is None:
        raise Missing("The run has written no checkpoint yet, and the matching is in there.")
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(MATCHING_STATE, {}).get("mgd")
    if not state or not state["_extra_state"]["matchings"]:
        raise Missing(
            f"The checkpoint {run.checkpoint.name} holds weights alone: the trainer's state, in which the "
            "matching is, has been left out."
        )
    extra = state["_extra_state"]
    taps = {}
    for tap, matching in extra["matchings"].items():
        statistics = MatchingStatistics.from_sums(extra["statistics"][tap], torch.device("cpu"))
        norm = STUDENT_NORMS[extra["settings"]["DISTILL.MGD.NORM"]](len(matching["groups"]))
        prefix = f"norms.{module_key(tap)}."
        norm.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        taps[tap] = TapMatching(
            groups=matching["groups"],
            cost=statistics.cost(),
            images=statistics.images.item(),
            norm=norm.eval(),
        )
    return MatchingState(taps, extra["settings"])


def group_cost(cost: Tensor, groups: Tensor) -> Tensor:
    """(Cs, Ct) costs, (Cs, G) groups -> (Cs,): the mean cost of each student channel's group."""
    member = groups >= 0
    return (cost.gather(1, groups.clamp_min(0)) * member).sum(1) / member.sum(1)


def order_by_groups(cost: Tensor, groups: Tensor) -> tuple[list[int], list[int]]:
    """Orders of student and teacher channels in which matched pairs lie along the diagonal.

    The students go from the cheapest group to the dearest. The teachers follow: the group of the first
    student, of the second, and so on, each teacher where it is first used; those that nobody uses come last.

    Args:
        cost: (Cs, Ct).
        groups: (Cs, G), -1 at the end of a short group.

    Returns:
        Cs student channels and Ct teacher channels.
    """
    students = group_cost(cost, groups).argsort(stable=True).tolist()
    used = [t for t in groups[students].flatten().tolist() if t >= 0]
    teachers = list(dict.fromkeys([*used, *range(cost.shape[1])]))
    return students, teachers


def group_sizes(groups: Tensor) -> list[int]:
    """Returns the numbers of student channels that have a group of 0, 1, 2, .. teacher channels."""
    return torch.bincount((groups >= 0).sum(1)).tolist()


def teacher_uses(groups: Tensor, num_teacher: int) -> list[int]:
    """Returns the numbers of teacher channels that are in 0, 1, 2, .. groups."""
    return torch.bincount(torch.bincount(groups[groups >= 0], minlength=num_teacher)).tolist()


def typical_channels(cost: Tensor, groups: Tensor, shares: tuple[float, ...]) -> list[int]:
    """Student channels that are so far along the order from the cheapest group (0) to the dearest (1)."""
    students, _ = order_by_groups(cost, groups)
    return [students[round(share * (len(students) - 1))] for share in shares]


MOST_ROWS = 128  # of a matrix that are drawn
ZOOM, MOST_COLUMNS = 12, 36  # student and teacher channels in the close-up, at most
COLOURS = "viridis_r"  # low costs are bright


def draw_matrix(tap: str, matching: TapMatching) -> Picture:
    """The cost matrix in the order of the groups, whole, and its middle from near."""
    cs, ct = matching.cost.shape
    step = -(-cs // MOST_ROWS)
    students, teachers = drawn_channels(matching, step)
    matrix = matching.cost[students][:, teachers]
    colours = Normalize(matrix.min().item(), matrix.max().item())
    figure = new_figure(5.3)
    whole, near = figure.subplots(2, 1, height_ratios=[1.15, 1])
    image = whole.imshow(matrix.numpy(), COLOURS, colours, aspect="auto", interpolation="nearest")
    every = f"every {ordinal(step)} of {cs}" if step > 1 else str(cs)
    whole.set(xlabel="teacher channels, in the order of the groups", ylabel=f"{every} student channels")
    whole.set(xticks=[], yticks=[])
    whole.set_title("the whole matching", loc="left")
    rows, columns = draw_close_up(near, matching, students, teachers, colours)
    corner = columns.start - 0.5, rows.start - 0.5
    for edge, wide in (("white", 3.0), ("black", 1.5)):
        whole.add_patch(
            Rectangle(corner, len(columns), len(rows), fill=False, edgecolor=edge, linewidth=wide)
        )
    bar = figure.colorbar(image, ax=[whole, near], shrink=0.6, aspect=30)
    bar.set_label("cost: 0 the same pattern, 2 unrelated")
    inside = assignment_cost(matching.cost, matching.groups)
    overall = matching.cost.mean().item()
    left_out = f" (of {cs} rows, every {ordinal(step)} is drawn)" if step > 1 else ""
    return render(
        figure,
        f"matching_{file_part(tap)}",
        f"Cost matrix of {tap}, {cs} student channels by {ct} teacher channels, sorted so that matched "
        f"pairs lie on the diagonal. Their mean cost is {inside:.2f}; the mean of all pairs is "
        f"{overall:.2f}.",
        f"Who is matched with whom at {tap}.",
        "Every row is a student channel, every column a teacher channel, and the colour says how far apart "
        "their patterns are. Rows are sorted from the cheapest group (top) to the dearest, columns by the "
        f"row they are matched to{left_out}: the matching is the diagonal. A good one is a bright diagonal "
        "on a darker ground. Bright stripes are channels that resemble many others; the assignment has to "
        f"share them out. Here matched pairs cost {inside:.2f} on average, all pairs {overall:.2f}.",
    )


def drawn_channels(matching: TapMatching, step: int) -> tuple[list[int], list[int]]:
    """Returns every `step`-th student channel in the order of the groups, and their teacher channels."""
    students, teachers = order_by_groups(matching.cost, matching.groups)
    if step > 1:  # whole groups are left out, so that the rest stays as it is
        students = students[::step]
        used = matching.groups[students].flatten().tolist()
        teachers = list(dict.fromkeys(t for t in used if t >= 0))
    return students, teachers


def draw_close_up(
    axis: Axes, matching: TapMatching, students: Sequence[int], teachers: Sequence[int], colours: Normalize
) -> tuple[range, range]:
    """Draw the middle of the ordered matrix, matched pairs outlined; returns its rows and columns."""
    rows, columns = close_up(students, teachers, matching.groups)
    chosen = [students[i] for i in rows], [teachers[i] for i in columns]
    part = matching.cost[chosen[0]][:, chosen[1]]
    axis.imshow(part.numpy(), COLOURS, colours, aspect="auto", interpolation="nearest")
    matched = matched_pairs(matching.groups, matching.cost.shape[1])[chosen[0]][:, chosen[1]]
    for y, x in matched.nonzero().tolist():
        axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    axis.set_xticks(range(len(columns)), list(map(str, chosen[1])), rotation=90, fontsize=6)
    axis.set_yticks(range(len(rows)), list(map(str, chosen[0])), fontsize=6)
    axis.set(xlabel="teacher channel, by its number", ylabel="student channel")
    axis.set_title("its framed part from near: outlined pairs are matched", loc="left")
    return rows, columns


def ordinal(number: int) -> str:
    return f"{number}{ {2: 'nd', 3: 'rd'}.get(number, 'th') }"


def close_up(students: Sequence[int], teachers: Sequence[int], groups: Tensor) -> tuple[range, range]:
    """Rows and columns of the ordered matrix that hold some groups of its middle."""
    count = min(ZOOM, len(students), max(2 * ZOOM // groups.shape[1], 1))
    first = (len(students) - count) // 2
    rows = range(first, first + count)
    places = {teacher: place for place, teacher in enumerate(teachers)}
    used = [places[t] for row in rows for t in groups[students[row]].tolist() if t >= 0]
    return rows, range(min(used), min(max(used) + 1, min(used) + MOST_COLUMNS))


def draw_spread(tap: str, matching: TapMatching) -> Picture:
    """Histograms: costs of matched and of all pairs; sizes of groups and uses of teachers."""
    matched = matched_pairs(matching.groups, matching.cost.shape[1])
    figure = new_figure(2.3)
    costs, counts = figure.subplots(1, 2, width_ratios=[1.5, 1])
    edges = np.linspace(matching.cost.min().item(), matching.cost.max().item(), 41)
    for pairs, name, shade in (
        (matching.cost[~matched], "other pairs", "0.7"),
        (matching.cost[matched], "matched pairs", PALETTE[0]),
    ):
        share = 100 / max(len(pairs), 1) * np.histogram(pairs, edges)[0]
        costs.stairs(share, edges, fill=True, color=shade, alpha=0.85, label=name)
    costs.axvline(2, color="black", linewidth=1, linestyle=":")
    costs.set(xlabel="cost (dotted: 2, unrelated)", ylabel="% of the pairs")
    costs.set_ylim(0, 1.3 * costs.get_ylim()[1])  # room for the legend
    costs.legend(loc="upper right", fontsize=7)

    sizes = group_sizes(matching.groups)
    uses = teacher_uses(matching.groups, matching.cost.shape[1])
    bars(counts, {"students with k teachers": sizes, "teachers with k students": uses})
    counts.set(xlabel="k", ylabel="channels")
    counts.set_ylim(0, 1.5 * max([*sizes, *uses]))
    counts.legend(loc="upper left", fontsize=7)

    low, high = np.quantile(matching.cost[matched], [0.1, 0.9])
    all_low, all_high = np.quantile(matching.cost, [0.1, 0.9])
    unused = uses[0]
    spare = f"{unused} teacher channels are used by nobody" if unused else "every teacher channel is used"
    return render(
        figure,
        f"spread_{file_part(tap)}",
        f"Two histograms of {tap}. Left: eight in ten of the matched pairs cost {low:.2f} to {high:.2f}, of "
        f"all pairs {all_low:.2f} to {all_high:.2f}. Right: {in_words(sizes, 'student', 'teacher')}; "
        f"{in_words(uses, 'teacher', 'student')}.",
        f"How good the matching at {tap} is, and how it is shared out.",
        "Left: the costs of matched pairs and of all others, each adding up to 100 %. The further the two "
        "are apart, the more the matching has found; if they lie upon each other, any other matching would "
        "do as well. Right: how many teacher channels a student channel has in its group, and in how many "
        f"groups a teacher channel is: {spare}.",
    )


def bars(axis: Axes, counts: Mapping[str, Sequence[int]]) -> None:
    """Bars side by side with their numbers above; place k of a sequence is the count of k."""
    width = 0.8 / len(counts)
    for index, (name, values) in enumerate(counts.items()):
        places = [k + (index - (len(counts) - 1) / 2) * width for k in range(len(values))]
        drawn = axis.bar(places, values, width, color=(PALETTE[0], PALETTE[4])[index], label=name)
        axis.bar_label(drawn, [str(v) if v else "" for v in values], fontsize=7)
    axis.set_xticks(range(max(map(len, counts.values()))))


def in_words(counts: Sequence[int], of: str, other: str) -> str:
    """The counts as a clause, for a text beside the picture."""
    return ", ".join(
        f"{n} {of} channel{'s' * (n != 1)} with {k} {other}{'s' * (k != 1)}"
        for k, n in enumerate(counts)
        if n
    )


def draw_updates(metrics: Series, taps: Sequence[str]) -> Picture:
    """Draw the matched cost and the share of reassigned channels over the updates.

    Raises:
        Missing: the metrics hold no update.
    """
    taps = [tap for tap in taps if f"mgd_{tap}/match_cost" in metrics]
    if not taps:
        raise Missing("metrics.json tells of no update of the matching.")
    figure = new_figure(2.4)
    said = draw_update_curves(figure, metrics, taps)
    count = len(metrics[f"mgd_{taps[0]}/match_cost"])
    return render(
        figure,
        "updates",
        f"Two curves over {count} update{'s' * (count != 1)}. Mean cost of the matched pairs: "
        f"{'; '.join(said)}. Beside it, the share of teacher channels that were reassigned at each update "
        "after the first.",
        "How the matching changed while the student learnt.",
        "Each mark is one solution of the assignment problem. Left: the cost of the matched pairs, which "
        "falls when the student's channels come to resemble the teacher's. Right: how many teacher channels "
        "went to another student channel, from the second solution on. Shares that fall towards 0 mean that "
        "the matching has settled; where they stay high, targets keep changing under the student, and fewer "
        "updates may serve it better.",
    )


def draw_update_curves(figure: Figure, metrics: Series, taps: Sequence[str]) -> list[str]:
    """Draw the curves of these taps; returns the first and last cost of each, as text."""
    cost, changed = figure.subplots(1, 2)
    said = []
    for index, tap in enumerate(taps):
        look: dict[str, Any] = {"color": colour(index), "marker": marker(index), "label": tap}
        costs, shares = metrics[f"mgd_{tap}/match_cost"], metrics[f"mgd_{tap}/match_changed"]
        cost.plot(list(costs), list(costs.values()), **look)
        # The first solution has none before it: all channels count as changed, which says nothing.
        later = {iteration: share for iteration, share in shares.items() if iteration != min(shares)}
        changed.plot(list(later), [100 * share for share in later.values()], **look)
        first, last = next(iter(costs.values())), list(costs.values())[-1]
        said.append(f"{tap} from {first:.2f} to {last:.2f}" if len(costs) > 1 else f"{tap} {last:.2f}")
    cost.set_title("mean cost of the matched pairs", loc="left")
    changed.set_title("teacher channels reassigned, %", loc="left")
    cost.set_ylim(0)
    changed.set_ylim(0)
    for axis in (cost, changed):
        axis.set(xlabel="iteration", xlim=cost.get_xlim())
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
    if len(metrics[f"mgd_{taps[0]}/match_cost"]) == 1:
        changed.text(0.5, 0.5, "solved once so far", transform=changed.transAxes, ha="center", color=GREY)
    figure.legend(*cost.get_legend_handles_labels(), loc="outside upper center", ncols=len(taps))
    return said


def file_part(tap: str) -> str:
    """A tap's name as part of a file's."""
    return "".join(c if c.isalnum() else "-" for c in tap)
