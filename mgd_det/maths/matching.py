"""Match teacher channels to student channels by solving an assignment problem.

The functions are pure and know nothing of Detectron2. They follow Matching Guided Distillation (MGD; Yue,
Deng, Zhou; ECCV 2020), section 3.2. In the shapes, N is the number of images, Cs and Ct are the numbers of
student and teacher channels, H x W are the positions of a feature map, P = H * W, and G is the number of
teacher channels in a group.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

PAD = -1  # It fills the end of a group that is shorter than the longest one; reducers ignore it.


def flat_channels(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return features without their graph as one vector a channel, with zeros at the padding.

    Args:
        features: (N, C, H, W), any float dtype.
        mask: (N, H, W) or (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        (N, C, P), float32 or wider.
    """
    # Half precision cannot hold the sum of squares of a large map.
    flat = features.detach().to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
    # Padding may hold infinity, which a product with 0 would turn into NaN.
    return flat if mask is None else flat.masked_fill(~mask.reshape(len(flat), 1, -1), 0)


def similarity_sum(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the cosine similarity of every student channel to every teacher channel over the images.

    An image that holds a NaN or infinity is left out of the sum.

    Args:
        student: (N, Cs, P), from :func:`flat_channels`.
        teacher: (N, Ct, P), likewise.

    Returns:
        The sums, (Cs, Ct), in the wider dtype of the two, 0 for a channel that is zero throughout; and
        (N,) bool, False for an image that was left out.
    """
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    lengths = [torch.linalg.vector_norm(x, dim=2) for x in (student, teacher)]
    sound = lengths[0].isfinite().all(1) & lengths[1].isfinite().all(1)
    scales = (1 / length.clamp_min(1e-12).masked_fill(~sound[:, None], 1) for length in lengths)
    total = student.new_zeros((student.shape[1], teacher.shape[1]), dtype=dtype)
    with torch.autocast(student.device.type, enabled=False):
        # One image at a time, scaled after the product, so that no temporary is as large as the features.
        for s, t, by_student, by_teacher, counts in zip(student, teacher, *scales, sound):
            product = torch.mm(s.to(dtype), t.to(dtype).T).masked_fill_(~counts, 0)
            total.addcmul_(product.mul_(by_student[:, None]), by_teacher)
    return total, sound


def channel_cost(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the matching cost: the squared L2 distance of unit-length channels, averaged over images.

    It is `D[i, j] = mean over n of (2 - 2 <s_ni, t_nj>)`, MGD eq. 3, of channels that are not mean-centred.

    Args:
        student: (N, Cs, H, W), any float dtype: the raw features, before the norm on the student's side.
        teacher: (N, Ct, H, W), any float dtype.
        mask: (N, H, W) or (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        (Cs, Ct) in [0, 4] up to rounding, float32 or wider: 0 for parallel channels, 2 for orthogonal ones
        and for a channel that is zero throughout, NaN everywhere if the features hold a NaN or infinity.

    Raises:
        ValueError: student and teacher differ in N, H or W.
    """
    check_positions(student, teacher)
    similarity, sound = similarity_sum(flat_channels(student, mask), flat_channels(teacher, mask))
    return (2 - 2 * similarity / len(student)).masked_fill(~sound.all(), torch.nan)


def check_positions(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError unless the two feature maps, (N, C, H, W), agree in N, H and W."""
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            "student and teacher features must agree in N, H, W; "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _as_matrix(cost: Tensor) -> np.ndarray:
    """Return the cost as a float64 array; raise a ValueError if it is empty or not finite."""
    if cost.dim() != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a non-empty (Cs, Ct) matrix, got shape {tuple(cost.shape)}")
    matrix = cost.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(matrix).all():
        raise ValueError("cost contains NaN or infinity: the features it was computed from do too")
    return matrix


def _solve(matrix: np.ndarray, group_size: int) -> Tensor:
    """Return the cheapest assignment of `group_size` different teacher channels to every student channel.

    The groups are ascending, (Cs, group_size).
    """
    cs, ct = matrix.shape
    sharers = -(-cs // ct)  # students that may share one teacher channel: 1 unless Cs > Ct
    slots = np.tile(matrix, (group_size, sharers))
    # Slots as rows: on costs of real features, scipy takes up to 2.5 times as long with teachers as rows.
    _, columns = linear_sum_assignment(slots)
    groups = (columns % ct).reshape(group_size, cs).T
    return torch.from_numpy(np.sort(groups, axis=1).astype(np.int64))


def assign_groups(cost: Tensor, *, spread: bool = False) -> Tensor:
    """Give every student channel its group of teacher channels at the least total cost.

    Every student channel gets G = max(Ct // Cs, 1) teacher channels and no teacher channel is used
    twice. If Cs > Ct, a teacher channel is shared by at most ceil(Cs / Ct) students. If Cs does not
    divide Ct, all Ct channels compete and Ct - G * Cs of them stay unused. Of several optima the solver's
    choice depends on the cost alone, so that all processes make the same one.

    Args:
        cost: (Cs, Ct), any float dtype, finite.
        spread: use every teacher channel even if Cs does not divide Ct: some groups then hold one member
            more, and the shorter ones end with -1.

    Returns:
        (Cs, G) int64 on the CPU: teacher channels, ascending in each row; (Cs, G + 1) with `spread`
        if Cs < Ct does not divide Ct.

    Raises:
        ValueError: the cost is empty or not finite.
    """
    matrix = _as_matrix(cost)
    cs, ct = matrix.shape
    group_size = max(ct // cs, 1)
    if not spread or cs >= ct or ct % cs == 0:
        return _solve(matrix, group_size)

    # Every student has one optional slot beside its mandatory ones. Blank columns take the optional slots
    # that stay empty. A blank costs a mandatory slot more than any solution, so that it never takes one.
    slots = group_size + 1
    blanks = slots * cs - ct
    blank_cost = np.full((slots * cs, blanks), 1 + 2 * np.abs(matrix).max() * slots * cs)
    blank_cost[group_size * cs :] = 0
    _, columns = linear_sum_assignment(np.hstack([np.tile(matrix, (slots, 1)), blank_cost]))
    columns = np.minimum(columns, ct).reshape(slots, cs).T  # Blanks become ct, which sorts to the end.
    groups = np.sort(columns, axis=1)
    return torch.from_numpy(np.where(groups < ct, groups, PAD).astype(np.int64))


def assign_one_to_one(cost: Tensor) -> Tensor:
    """Give every student channel one teacher channel at the least total cost (sparse matching).

    If Cs > Ct, teacher channels are shared as in :func:`assign_groups`.

    Args:
        cost: (Cs, Ct), any float dtype, finite.

    Returns:
        (Cs, 1) int64 on the CPU: teacher channels.

    Raises:
        ValueError: the cost is empty or not finite.
    """
    return _solve(_as_matrix(cost), group_size=1)


def group_members(groups: Tensor) -> Tensor:
    """Return the groups, (Cs, G), with the first member of a group in place of its -1 padding."""
    return torch.where(groups < 0, groups[:, :1], groups)


def assignment_cost(cost: Tensor, groups: Tensor) -> float:
    """Return the mean cost of the matched pairs.

    Args:
        cost: (Cs, Ct).
        groups: (Cs, G) teacher channels; -1 is left out of the mean.
    """
    pairs = cost.gather(1, group_members(groups).to(cost.device))
    return pairs[(groups >= 0).to(cost.device)].mean().item()


def matched_pairs(groups: Tensor, num_teacher: int) -> Tensor:
    """Mark the teacher channels of every student channel's group.

    Args:
        groups: (Cs, G) teacher channels, -1 at the end of a short group.
        num_teacher: Ct.

    Returns:
        (Cs, Ct) bool on the CPU.
    """
    matched = torch.zeros(len(groups), num_teacher + 1, dtype=torch.bool)
    matched.scatter_(1, torch.where(groups < 0, num_teacher, groups).cpu(), True)
    return matched[:, :num_teacher]


def changed_share(before: Tensor, after: Tensor, num_teacher: int) -> float:
    """Return the share of teacher channels whose set of students changed, among those used before or after.

    Args:
        before, after: (Cs, G) teacher channels, -1 at the end of a short group.
        num_teacher: Ct.
    """
    old, new = matched_pairs(before, num_teacher), matched_pairs(after, num_teacher)
    used = (old | new).any(0)
    return ((old != new).any(0) & used).sum().item() / max(int(used.sum()), 1)


def control_cost(kind: str, num_student: int, num_teacher: int, *, seed: int = 0) -> Tensor:
    """Return costs whose optimum is an assignment that ignores the features, for experiments.

    Args:
        kind: "random", or "identity": student channel c takes the teacher channels c, c + Cs, c + 2 Cs, ..,
            and if Cs > Ct the teacher channel c % Ct.
        num_student, num_teacher: Cs and Ct.
        seed: seed of "random"; the same seed gives the same costs.

    Returns:
        (Cs, Ct) on the CPU: float32 for "random", float64 for "identity".
    """
    if kind == "random":
        return torch.rand(num_student, num_teacher, generator=torch.Generator().manual_seed(seed))
    student, teacher = torch.arange(num_student)[:, None], torch.arange(num_teacher)
    return (student % num_teacher != teacher % num_student).double()
