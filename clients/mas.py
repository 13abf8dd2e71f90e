"""MAS's client: local training of one group of tasks, and probes of the affinities between tasks.

    loss = sum_t L_t,  over the tasks with a head in the received model (`heads.NAME.*`)

    work probe/n: the same training; before every `every`-th step, on its batch,
        theta_i = theta - lr (grad L_i + wd theta)          in the encoder, all tensors but heads
        S[j, i] = (1 - L_j(theta_i) / L_j(theta)) / lr      the gain of task j (row) from a step for task i (column)
    and the mean of S over the client's probes is sent, (n, n)

Probes use the learning rate lr and the weight decay wd of the step, and the model in evaluation mode. They change
neither weights nor statistics, optimiser or draws, so that training has equal bits without them. L_j(theta) counts as
1e-8 if it is less. Virtual time counts the gradients of the n tasks. Zhuang, Wen, Lyu, Zhang 2023, arXiv:2307.11285.
Differs from the authors' program: rows receive and columns give; the program prints the transpose, and probes a model
with BatchNorm in training mode.
Equals FedAvg: one group of all tasks is FedAvg's training, equal bits in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl import (
    Batch,
    ClientContext,
    Descent,
    LocalSteps,
    LocalTraining,
    Multitask,
    Params,
    Phase,
    Reply,
    StepContext,
    Task,
    Tree,
    Update,
    checks,
    register,
)

SMALLEST = 1e-8  # loss that a ratio of losses is divided by, at least


def gains(before: Tensor, after: Tensor, lr: float) -> Tensor:
    """Return (1 - after / before) / lr, the gains from one step, of losses (n,).

    >>> [round(gain, 4) for gain in gains(torch.tensor([2.0, 0.0]), torch.tensor([1.5, 0.0]), lr=0.5).tolist()]
    [0.5, 2.0]
    """
    return (1 - after / before.clamp(min=SMALLEST)) / lr


def tasks_of(names: Iterable[str], task: Task) -> tuple[str, ...]:
    """Return the tasks with a head among the `names` of tensors, in the order of the outputs."""
    assert isinstance(task, Multitask)
    present = {name.split(".")[1] for name in names if name.startswith("heads.")}
    return tuple(name for name in task.classes if name in present)


@register("client", "mas")
@dataclass(frozen=True, kw_only=True)
class MAS(LocalTraining):
    """Local training of a group of tasks, with probes of affinities. The paper: epochs 5, batch 64, momentum .9.

    Args:
        every: number of steps between two probes, at least 1.
    """

    every: int = 10

    sends: ClassVar[tuple[str, ...]] = ("model", "affinity")
    optional: ClassVar[tuple[str, ...]] = ("affinity",)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, every=self.every)

    def check_task(self, task: Task) -> None:
        if not isinstance(task, Multitask):
            raise ValueError(
                f"client MAS learns several tasks at once, and {type(task).__name__} is one; use task: multitask"
            )

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        assert isinstance(task, Multitask)
        return task.loss_of(tasks_of(at.received["model"], task), net(batch["x"]), batch)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if "groups" in ctx.received:  # the evaluation of trained models
            groups = ctx.received["groups"]
            each = [super(MAS, self).work(name, replace(ctx, received={"model": group}), carry) for group in groups]
            changes = tuple(reply.update.groups["model"] for reply in each)
            return Reply(Update({"groups": changes}, len(ctx.train)))
        return self._with_probes(ctx) if name.startswith("probe/") else super().work(name, ctx, carry)

    def _with_probes(self, ctx: ClientContext) -> Reply:
        """Train as the engine's loop does, and probe before some of the steps."""
        steps, received = LocalSteps(self, ctx), ctx.received["model"]
        local = received.clone()
        theta = local.select(steps.phase.trains)
        descent, probes = Descent(steps.phase, theta), []
        for t, batch in enumerate(steps):
            if t % self.every == 0 and steps.phase.rate(t) > 0:
                probes.append(self.affinities(steps, batch, theta, local, steps.phase.rate(t)))
            descent.step(steps.gradient(theta, local))
            if theta is not local:
                local.copy_(theta, names=theta)
        local.copy_(received, names=[name for name in ctx.module_facts.unused if name in local])
        n = len(tasks_of(received, ctx.task))
        affinity = torch.stack(probes).mean(0) if probes else torch.zeros(n, n)
        groups = {"model": local - received, "affinity": affinity}
        return Reply(Update(groups, len(ctx.train), {"loss": steps.loss}))

    def affinities(self, steps: LocalSteps, batch: Batch, theta: Params, local: Params, lr: float) -> Tensor:
        """Return S (n, n) of one batch.

        Args:
            steps: the steps of the training; they are not changed.
            batch: the batch.
            theta: the parameters that are trained.
            local: all parameters of the model.
            lr: learning rate of the probing steps, positive.
        """
        ctx, at, decay = steps.ctx, steps.at, getattr(self.optimiser, "weight_decay", 0.0)
        tasks = tasks_of(local, ctx.task)
        encoder = [name for name in theta if not name.startswith("heads.")]
        before, columns = self._losses(at, batch, local, tasks, ctx.task), []
        for task in tasks:
            alone = replace(at, received={**at.received, "model": local.select([f"heads.{task}.*"])})
            probe = LocalSteps(self, ctx, phase=steps.phase, at=alone, limit=1, batches=[batch], training=False)
            for _ in probe:
                step = probe.gradient(theta, local) + decay * theta
            moved = local.clone()
            for name in encoder:
                moved[name].sub_(step[name], alpha=lr)
            columns.append(gains(before, self._losses(at, batch, moved, tasks, ctx.task), lr))
        return torch.stack(columns, 1)

    @staticmethod
    def _losses(at: StepContext, batch: Batch, params: Params, tasks: tuple[str, ...], task: Task) -> Tensor:
        """Return the mean loss of each task under `params`, (n,)."""
        assert isinstance(task, Multitask)
        outputs = at.under(params, batch["x"])
        return torch.stack([task.loss_of((name,), outputs, batch).mean() for name in tasks])

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        steps, samples = super().workload(sizes, round_, rounds, name)
        if not name.startswith("probe/"):
            return steps, samples
        (phase,) = self.phases(round_, rounds)
        probed = np.array([self._probed_samples(phase, int(n)) for n in sizes], np.int64)
        return steps, samples + int(name.partition("/")[2]) * probed

    def _probed_samples(self, phase: Phase, n: int) -> int:
        """Return the number of samples in the batches that a client with n training samples probes."""
        batches = [part.stop - part.start for part in phase.batch_slices(n)]
        return sum(batches[t % len(batches)] for t in range(0, int(phase.num_steps(np.array(n))), self.every))

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        groups: Sequence[Params] = ctx.received.get("groups") or (ctx.received["model"],)
        if len(groups) == 1:
            return ctx.net(groups[0])
        assert isinstance(ctx.task, Multitask)
        columns, serves = list(ctx.task.columns.values()), ctx.config["serves"]

        def predict(x: Tensor) -> Tensor:
            outputs = [ctx.net(group)(x) for group in groups]
            return torch.cat([outputs[g][:, part] for g, part in zip(serves, columns)], -1)

        return predict

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        if "groups" not in reply.update.groups:
            return super().context_after_training(ctx, reply)
        trained = tuple(g + change for g, change in zip(ctx.received["groups"], reply.update.groups["groups"]))
        return replace(ctx, received={**ctx.received, "groups": trained})
