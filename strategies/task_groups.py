"""Groups of tasks that help each other most, from their affinities S (n, n): row j receives, column i gives.

    groups = argmax  1/n sum_j max_{g with j} score_j(g)        over at most m groups that contain all tasks

    score_j(g) = mean_{i in g, i != j} S[j, i]
    alone      = mean of the 2 (n - 1) entries of row j and column j off the diagonal; -1e6 if groups may overlap

The diagonal has no influence. All choices are compared. Zhuang, Wen, Lyu, Zhang 2023, arXiv:2307.11285.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import comb, factorial

from torch import Tensor

from fl import checks

Group = tuple[int, ...]
Rows = Sequence[Sequence[float]]  # of S

ALONE = -1e6  # score of a task that is alone, where groups may overlap
MOST = 500_000  # choices of groups that are compared


def score(rows: Rows, task: int, group: Group, overlap: bool = False) -> float:
    """Return score_j(g) of task j in a group g that contains it.

    >>> rows = [[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]]
    >>> score(rows, 0, (0, 1, 2)), score(rows, 0, (0,)), score(rows, 0, (0,), overlap=True)
    (1.5, 2.75, -1000000.0)
    """
    if len(group) > 1:
        return sum(rows[task][i] for i in group if i != task) / (len(group) - 1)
    if overlap:
        return ALONE
    both = [rows[task][i] + rows[i][task] for i in range(len(rows)) if i != task]
    return sum(both) / (2 * len(both)) if both else 0.0


def value(rows: Rows, groups: Sequence[Group], overlap: bool = False) -> float:
    """Return the mean over tasks of the best score among the groups with the task.

    >>> value([[0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [(0, 1), (2,)])  # (1 + 3 + (0 + 2 + 0 + 0) / 4) / 3
    1.5
    """
    n = len(rows)
    return sum(max(score(rows, j, g, overlap) for g in groups if j in g) for j in range(n)) / n


def partitions(tasks: Group, most: int) -> Iterator[tuple[Group, ...]]:
    """Yield the ways to divide tasks into at most `most` disjoint groups.

    >>> list(partitions((0, 1, 2), 2))
    [((0, 1, 2),), ((0, 1), (2,)), ((0, 2), (1,)), ((0,), (1, 2))]
    """
    if not tasks:
        yield ()
        return
    first, rest = tasks[0], tasks[1:]
    for size in range(len(rest), -1, -1):
        for others in combinations(rest, size):
            left = tuple(task for task in rest if task not in others)
            if left and most == 1:
                continue
            for groups in partitions(left, most - 1):
                yield ((first, *others), *groups)


def covers(n: int, most: int) -> Iterator[tuple[Group, ...]]:
    """Yield the choices of at most `most` different groups that contain all of n tasks, fewer groups first.

    >>> list(covers(2, 2))
    [((0, 1),), ((0, 1), (0,)), ((0, 1), (1,)), ((0,), (1,))]
    """
    every = [group for size in range(n, 0, -1) for group in combinations(range(n), size)]
    for count in range(1, most + 1):
        for groups in combinations(every, count):
            if len({task for group in groups for task in group}) == n:
                yield groups


def choices(n: int, most: int, overlap: bool) -> int:
    """Return the number of choices among which `grouping` looks for n tasks and at most `most` groups.

    >>> choices(5, 5, False), choices(5, 2, True)  # the Bell number; 31 subsets, alone and in pairs
    (52, 496)
    """
    if overlap:
        return sum(comb(2**n - 1, k) for k in range(1, most + 1))
    stirling = (
        sum((-1) ** i * comb(k, i) * (k - i) ** n for i in range(k)) // factorial(k) for k in range(1, most + 1)
    )
    return sum(stirling)


def grouping(affinity: Tensor, groups: int, overlap: bool = False) -> tuple[Group, ...]:
    """Return the best groups of tasks; the first of equally good ones.

    >>> import torch
    >>> S = torch.tensor([[0.0, 1.0, 0.1], [1.0, 0.0, 0.1], [0.3, 0.1, 0.0]])
    >>> grouping(S, 2), grouping(S, 2, overlap=True)
    (((0, 1), (2,)), ((0, 1), (0, 2)))

    Args:
        affinity: S (n, n).
        groups: most groups, at least 1.
        overlap: whether a task may be in several groups; then no task is alone unless n = 1.

    Raises:
        ValueError: there are too many choices to compare.
    """
    checks.at_least(1, groups=groups)
    rows = affinity.double().tolist()
    n = len(rows)
    if (count := choices(n, groups, overlap)) > MOST:
        raise ValueError(f"groups: {n} tasks have {count:,} choices of {groups} groups, too many to compare; name them")
    candidates = covers(n, groups) if overlap else partitions(tuple(range(n)), groups)
    return max(candidates, key=lambda choice: value(rows, choice, overlap))


def serving(affinity: Tensor, groups: Sequence[Group], overlap: bool = False) -> Group:
    """Return for each task the number of the group that predicts it: the one with its best score.

    >>> import torch
    >>> serving(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), ((0, 1), (0, 2)), overlap=True)
    (1, 0, 1)
    """
    rows = affinity.double().tolist()
    own = [[g for g, group in enumerate(groups) if j in group] for j in range(len(rows))]
    return tuple(max(found, key=lambda g: score(rows, j, groups[g], overlap)) for j, found in enumerate(own))
