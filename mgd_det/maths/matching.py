"""Matching teacher channels to student channels as an assignment problem.

Pure functions on tensors, no Detectron2. Source: Matching Guided Distillation (MGD; Yue, Deng, Zhou;
ECCV 2020), section 3.2. Shapes: N images, Cs student channels, Ct teacher channels, H x W positions,
G teacher channels in a group.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

PAD = -1  # fills the end of a group that is shorter than the longest; reducers ignore it


def flat_channels(features: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N, C, H * W) in float32 or wider, 0 at the padding."""
    # Half precision cannot hold the sum of squares of a large map; float64 stays as it is.
    flat = features.detach().to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
    # Filled rather than multiplied: padding may hold anything, infinity too.
    return flat if mask is None else flat.masked_fill(~mask.reshape(len(flat), 1, -1), 0)


def similarity_sum(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarity of every student channel to every teacher channel, summed over the sound images.

    Args:
        student: (N, Cs, P), from :func:`flat_channels`.
        teacher: (N, Ct, P).

    Returns:
        (Cs, Ct), 0 for a channel that is zero throughout; and (N,) bool, False for an image that holds a NaN
        or infinity, which is left out of the sum.
    """
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    lengths = [torch.linalg.vector_norm(x, dim=2) for x in (student, teacher)]
    sound = lengths[0].isfinite().all(1) & lengths[1].isfinite().all(1)
    scales = (1 / length.clamp_min(1e-12).masked_fill(~sound[:, None], 1) for length in lengths)
    total = student.new_zeros((student.shape[1], teacher.shape[1]), dtype=dtype)
    with torch.autocast(student.device.type, enabled=False):
        # Image by image, and scaled afterwards, so that nothing is as large as the features, or all products.
        for s, t, by_student, by_teacher, counts in zip(student, teacher, *scales, sound):
            product = torch.mm(s.to(dtype), t.to(dtype).T).masked_fill_(~counts, 0)
            total.addcmul_(product.mul_(by_student[:, None]), by_teacher)
    return total, sound


def channel_cost(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Matching cost: squared L2 distance of unit-length channels, averaged over images.

    `D[i, j] = mean over n of (2 - 2 <s_ni, t_nj>)`, MGD eq. 3. Not mean-centred.

    Args:
        student: (N, Cs, H, W), any float dtype. Raw features, before the student-side norm.
        teacher: (N, Ct, H, W) of the same N, H, W.
        mask: (N, H, W) or (N, 1, H, W), True at the unpadded positions; None for all.

    Returns:
        (Cs, Ct) in [0, 4] up to rounding, float32 or wider; 0 for parallel channels, 2 for orthogonal ones
        and for a channel that is zero throughout. NaN if the features hold a NaN or infinity.

    Raises:
        ValueError: N, H or W of the two differ.
    """
    check_positions(student, teacher)
    similarity, sound = similarity_sum(flat_channels(student, mask), flat_channels(teacher, mask))
    return (2 - 2 * similarity / len(student)).masked_fill(~sound.all(), torch.nan)


def check_positions(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError unless two (N, C, H, W) agree in all but C."""
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            "student and teacher features must agree in N, H, W; "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def _as_matrix(cost: Tensor) -> np.ndarray:
    if cost.dim() != 2 or 0 in cost.shape:
        raise ValueError(f"cost must be a non-empty (Cs, Ct) matrix, got shape {tuple(cost.shape)}")
    matrix = cost.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(matrix).all():
        raise ValueError("cost contains NaN or infinity: the features it was computed from do too")
    return matrix


def _solve(matrix: np.ndarray, group_size: int) -> Tensor:
    """The cheapest assignment of `group_size` different teacher channels to every student channel."""
    cs, ct = matrix.shape
    sharers = -(-cs // ct)  # students that may share one teacher channel: 1 unless Cs > Ct
    # Teachers as rows: where the matrix is square, scipy needs about two thirds of the time for it.
    rows, columns = linear_sum_assignment(np.tile(matrix.T, (sharers, group_size)))
    # Column c is copy c // Cs of student channel c % Cs; each is taken once.
    groups = (rows % ct)[np.argsort(columns)].reshape(group_size, cs).T
    return torch.from_numpy(np.sort(groups, axis=1).astype(np.int64))


def assign_groups(cost: Tensor, *, spread: bool = False) -> Tensor:
    """Give every student channel its group of teacher channels at the least total cost.

    Every student channel gets G = max(Ct // Cs, 1) teacher channels and no teacher channel is used
    twice; where Cs > Ct, a teacher channel is shared by at most ceil(Cs / Ct) students. Where Cs does
    not divide Ct, all Ct channels compete and Ct - G * Cs of them stay unused.

    Args:
        cost: (Cs, Ct), finite.
        spread: use every teacher channel when Cs does not divide Ct: some groups then hold one member
            more, and the shorter ones end with -1.

    Returns:
        LongTensor (Cs, G) of teacher channels, ascending in each row; (Cs, G + 1) with `spread`
        where Cs < Ct does not divide Ct.

    Raises:
        ValueError: the cost is empty or not finite.
    """
    matrix = _as_matrix(cost)
    cs, ct = matrix.shape
    group_size = max(ct // cs, 1)
    if not spread or cs >= ct or ct % cs == 0:
        return _solve(matrix, group_size)

    # One optional slot per student beside its mandatory ones. Blank columns soak up the optional
    # slots that stay empty; a mandatory slot must not take one, so it pays more than any solution.
    slots = group_size + 1
    blanks = slots * cs - ct
    blank_cost = np.full((slots * cs, blanks), 1 + 2 * np.abs(matrix).max() * slots * cs)
    blank_cost[group_size * cs :] = 0
    _, columns = linear_sum_assignment(np.hstack([np.tile(matrix, (slots, 1)), blank_cost]))
    columns = np.where(columns < ct, columns, ct).reshape(slots, cs).T  # ct sorts to the end
    groups = np.sort(columns, axis=1)
    return torch.from_numpy(np.where(groups < ct, groups, PAD).astype(np.int64))


def assign_one_to_one(cost: Tensor) -> Tensor:
    """Sparse matching: one teacher channel for every student channel at the least total cost.

    Args and errors as :func:`assign_groups`; where Cs > Ct, teacher channels are shared likewise.

    Returns:
        LongTensor (Cs, 1) of teacher channels.
    """
    return _solve(_as_matrix(cost), group_size=1)


def group_members(groups: Tensor) -> Tensor:
    """(Cs, G) groups with the -1 padding replaced by the first member of the group."""
    return torch.where(groups < 0, groups[:, :1], groups)


def assignment_cost(cost: Tensor, groups: Tensor) -> float:
    """Mean cost of the matched pairs: `cost` (Cs, Ct) at `groups` (Cs, G), padding left out."""
    pairs = cost.gather(1, group_members(groups).to(cost.device))
    return pairs[(groups >= 0).to(cost.device)].mean().item()


def matched_pairs(groups: Tensor, num_teacher: int) -> Tensor:
    """(Cs, Ct) bool, on the CPU: which teacher channels are in which student channel's group."""
    matched = torch.zeros(len(groups), num_teacher + 1, dtype=torch.bool)
    matched.scatter_(1, torch.where(groups < 0, num_teacher, groups).cpu(), True)
    return matched[:, :num_teacher]


def changed_share(before: Tensor, after: Tensor, num_teacher: int) -> float:
    """Share of teacher channels, among those used before or after, whose set of students changed.

    Args:
        before, after: (Cs, G) groups.
        num_teacher: Ct.
    """
    old, new = matched_pairs(before, num_teacher), matched_pairs(after, num_teacher)
    used = (old | new).any(0)
    return ((old != new).any(0) & used).sum().item() / max(int(used.sum()), 1)


def control_cost(kind: str, num_student: int, num_teacher: int, *, seed: int = 0) -> Tensor:
    """(Cs, Ct) costs whose optimum is an assignment that ignores the features, for comparison.

    Args:
        kind: "random", or "identity": student channel c takes the teacher channels c, c + Cs, c + 2 Cs, ..,
            and where Cs > Ct the teacher channel c % Ct.
        seed: of "random", which is the same at every call with it.
    """
    if kind == "random":
        return torch.rand(num_student, num_teacher, generator=torch.Generator().manual_seed(seed))
    student, teacher = torch.arange(num_student)[:, None], torch.arange(num_teacher)
    return (student % num_teacher != teacher % num_student).double()
