"""MAS: tasks are trained together, then split into groups of tasks that help each other.

    rounds 0 .. merged - 1     one encoder, all heads: FedAvg on the sum of the losses        (`clients/mas.py`)
    in the first `probes`      S = mean over rounds and clients of the affinities that clients measure, (n, n)
    round `merged`             groups = argmax of  1/n sum_j max_{g with j} score_j(g)  over at most `groups` groups
    after                      each group has a copy of the encoder and its own heads: FedAvg of its own

Row j of S receives, column i gives; `strategies/task_groups.py` has the scores and compares all choices.
All groups train with the same cohort, one exchange each.  Traffic per client and round, each way: 4 (|encoder| +
|heads|) bytes, and 4 n^2 up while probing; after the split 4 sum_g (|encoder| + |heads of g|).  Predictions are made
head by head, each with the encoder of its group.  The saved model is one module with one encoder, that of group 0: its
heads of other groups' tasks belong to encoders that are in the checkpoints only.  A warning names these tasks.
Metrics: affinity/J/I (mean of S[J, I] so far), group/J (number of the group that predicts J), groups.
Zhuang, Wen, Lyu, Zhang 2023, arXiv:2307.11285.
Baselines of the paper: all in one is `groups: 1, probes: 0`, one by one is `groups: alone, merged: 0, probes: 0`.
Differs from the authors' program: groups are disjoint by default, as in the program's setting and not in its functions.
Equals FedAvg: groups=1, probes=0, to 1e-6 (it is trained in the loop).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fl import (
    Broadcast,
    ClientAlgorithm,
    Exchange,
    FedAvgEquivalent,
    Metrics,
    Multitask,
    Params,
    Reduction,
    RoundGenerator,
    ServerContext,
    Stack,
    Strategy,
    WeightedMean,
    checks,
    join,
    register,
)

from .task_groups import Group, grouping, serving


@dataclass(frozen=True)
class State:
    """The models of the groups.

    Attributes:
        groups: encoder and heads of each group.
        serves: number of the group that predicts each task.
        affinity: sum of S over the rounds with probes, float64 (n, n).
        probed: number of these rounds.
    """

    groups: tuple[Params, ...]
    serves: Group
    affinity: Tensor
    probed: int = 0


@register("strategy", "mas")
@dataclass(frozen=True, kw_only=True)
class MAS(Strategy):
    """Train tasks together, then in groups of tasks that help each other.

    Args:
        groups: most groups after the split, at least 1; 1 never splits. Or "alone" (each task is a group), or the
            groups themselves, as lists of names of tasks.
        merged: rounds in which all tasks are trained together, at least 0. With as many as the run has,
            tasks are never split.
        probes: first rounds in which clients measure affinities, at least 0; at most `merged` count.
        overlap: whether a task may be in several groups.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    groups: int | Literal["alone"] | tuple[tuple[str, ...], ...] = 2
    merged: int = 70
    probes: int = 10
    overlap: bool = False
    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "mas"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"groups": 1, "probes": 0, "weights": "examples"}, bits=False
    )
    later_metrics: ClassVar[tuple[str, ...]] = ("affinity/*",)
    example_config: ClassVar[dict[str, Any]] = {
        "data": {
            "name": "tasks",
            "of": {"name": "noise", "shape": [6], "classes": 4, "clients": 8, "samples": 20},
            "targets": {"digit": {"kind": "label"}, "noise": {"kind": "random"}, "parity": {"kind": "parity"}},
        },
        "task": {"name": "multitask", "classes": {"digit": 4, "noise": 2, "parity": 2}},
        "model": {"name": "multihead", "encoder": {"name": "mlp", "hidden": [5], "dropout": 0.2}, "features": 4},
        "strategy.merged": 1,
        "client.every": 1,
    }

    def __post_init__(self) -> None:
        checks.not_negative(merged=self.merged, probes=self.probes)
        checks.one_of(("examples", "uniform"), weights=self.weights)
        if isinstance(self.groups, int):
            checks.at_least(1, groups=self.groups)
            if self.groups > 1 and not (self.merged and self.probes):
                raise ValueError(
                    f"{'merged' if self.probes else 'probes'}: 0 rounds measure no affinities, which the {self.groups} "
                    "groups follow from; set 1 or more, or name the groups (groups: alone, or [[a, b], [c]])"
                )

    def check_client(self, client: ClientAlgorithm) -> None:
        if self.probes and "affinity" not in client.sends:
            raise ValueError(f"name: {type(client).__name__} measures no affinities; use client: mas, or probes: 0")

    def init(self, model: Params, ctx: ServerContext) -> State:
        names = _task_names(ctx)
        if missing := [name for name in names if not any(n.startswith(f"heads.{name}.") for n in model)]:
            raise ValueError(
                f"name: mas trains tensors heads.{missing[0]}.*, and the model has none; use model: multihead, and "
                "freeze none of its heads"
            )
        if isinstance(self.groups, int) and self.groups > len(names):
            raise ValueError(f"groups: {self.groups} groups of {len(names)} tasks; use at most as many as tasks")
        self._named_groups(names)
        if self.groups != 1 and self.merged >= ctx.rounds:
            logging.getLogger(__name__).warning(
                "strategy: merged=%d, and the run has %d rounds: tasks are never split; set fewer, or groups: 1",
                self.merged,
                ctx.rounds,
            )
        n = len(names)
        return State((model,), (0,) * n, torch.zeros(n, n, dtype=torch.float64))

    def _named_groups(self, names: Sequence[str]) -> tuple[Group, ...] | None:
        """The groups that `groups` names, by number of task; None if they follow from affinities."""
        if isinstance(self.groups, int):
            return None
        if self.groups == "alone":
            return tuple((j,) for j in range(len(names)))
        listed = [name for group in self.groups for name in group]
        if set(listed) != set(names) or (len(listed) > len(names) and not self.overlap) or not all(self.groups):
            once = "at least" if self.overlap else "exactly"
            raise ValueError(f"groups: {self.groups} do not have each of the tasks {list(names)} {once} once")
        return tuple(tuple(sorted(names.index(name) for name in set(group))) for group in self.groups)

    def model(self, state: State) -> Params:
        first, *others = state.groups
        if not others:
            return first
        heads = [g.select(["heads.*"]) for g in (*others, first)]
        return join(first, *heads)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast({"groups": state.groups}, config={"serves": state.serves})

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        names = _task_names(ctx)
        if self.groups != 1 and ctx.round >= self.merged and len(state.groups) == 1:
            state = self._split(state, names)
        probing = ctx.round < min(self.probes, self.merged if self.groups != 1 else self.probes)
        reduction: dict[str, Reduction] = {"model": WeightedMean(self.weights)}
        work, models = "train", list(state.groups)
        if probing:
            work, reduction = f"probe/{len(names)}", {**reduction, "affinity": Stack()}
        for g, model in enumerate(state.groups):
            outcome = yield Exchange({"model": model}, reduction, work=work, pin=self.groups != 1)
            if outcome.value is None or outcome.value["model"] is None:
                continue
            models[g] = model + outcome.value["model"]
            if probing:
                state = _with_affinity(state, outcome.value["affinity"])
        state = replace(state, groups=tuple(models))
        return state, self._metrics(state, names)

    def _split(self, state: State, names: Sequence[str]) -> State:
        """Copy the encoder into each group."""
        affinity = state.affinity / max(state.probed, 1)
        groups = self._named_groups(names)
        if groups is None:
            assert isinstance(self.groups, int)
            groups = grouping(affinity, self.groups, self.overlap)
        (merged,) = state.groups
        encoder = [name for name in merged if not name.startswith("heads.")]
        serves = serving(affinity, groups, self.overlap)
        if elsewhere := [name for name, g in zip(names, serves) if g]:
            logging.getLogger(__name__).warning(
                "strategy: the saved model has the encoder of group 0; the heads of %s are trained with encoders of "
                "other groups, which only checkpoints hold; evaluations use the encoder of each task's group",
                ", ".join(elsewhere),
            )
        parts = tuple(merged.select([*encoder, *(f"heads.{names[j]}.*" for j in group)]) for group in groups)
        return replace(state, groups=parts, serves=serves)

    def _metrics(self, state: State, names: Sequence[str]) -> Metrics:
        found: dict[str, Any] = {"groups": len(state.groups)}
        found |= {f"group/{name}": g for name, g in zip(names, state.serves)}
        if state.probed:
            mean = (state.affinity / state.probed).tolist()
            found |= {f"affinity/{j}/{i}": mean[a][b] for a, j in enumerate(names) for b, i in enumerate(names)}
        return found


def _task_names(ctx: ServerContext) -> list[str]:
    if not isinstance(ctx.task, Multitask):
        raise ValueError(f"name: mas splits several tasks, and {type(ctx.task).__name__} is one; use task: multitask")
    return list(ctx.task.classes)


def _with_affinity(state: State, found: Sequence[tuple[Tensor, Any]]) -> State:
    """Add the mean over the clients that have probed; a client that has not sends zeros."""
    measured = [affinity.double() for affinity, _ in found if affinity.any()]
    if not measured:
        return state
    return replace(state, affinity=state.affinity + torch.stack(measured).mean(0), probed=state.probed + 1)
