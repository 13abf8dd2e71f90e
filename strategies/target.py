"""TARGET: class-continual learning without stored samples; the server makes images of old classes from its model.

    w <- w + server optimiser(mean_i (w_i - w))          clients: `clients/target.py`, a uniform mean by default
    after the last round of a task (not of the last task):  f_old <- w;  images <- inversion of f_old, 8 bits a value

The inversion (`strategies/inversion.py`) starts from the model alone; no client sends anything but its update.  It runs
as `batches` calls of server work, each one a pure function of the last one's result and of a seed.
With P parameters a round costs P floats each way. In each task after the first, each client also receives, once,
f_old (P floats) and the images (batches * batch * channels * height * width bytes).  Clients keep no state.
Zhang, Chen, Zhuang, Lv 2023 (ICCV), arXiv:2303.06937.  Needs stream: {name: classes, head: joint, masked: true}: the
head has all classes from the start (the paper's head grows); rows of other tasks get no gradient from the labels.
Differs from the authors' program: warm_up must be below batches (there it is 20 of 10, so the adversarial term never
counts), and there are fewer student steps; inversion `input` is an addition; the student starts from the run's first
model and learns with Adam; each task has a new generator, and it is never sent.
Equals FedAvg: weight=0, weights=examples, equal bits in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl import (
    Augment,
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    Metrics,
    Params,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Static,
    checks,
    random,
    register,
)

from .fedavg import FedAvg
from .fedavg import State as FedAvgState
from .inversion import Progress, Settings, first_progress, one_round, statistics_layers


@dataclass(frozen=True)
class State(FedAvgState):
    """FedAvg's state, and what the last task left.

    Args:
        initial: the model before round 0, from which students start.
        teacher: the model at the end of the last task.
        images: images of old classes, uint8 (n, channels, height, width).
    """

    initial: Params
    teacher: Params
    images: Tensor


@register("strategy", "target")
@dataclass(frozen=True, kw_only=True)
class TARGET(FedAvg):
    """FedAvg that replays images which the server has made from its model.

    Args:
        weight: weight of the old model's outputs in the clients' loss, at least 0. 0 makes no images.
        kd_temperature: temperature T of these outputs, positive.
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
        inversion: how images are made: by a `generator`, or `input`, by steps on the pixels themselves.
        batches: batches of images after each task, at least 1.
        batch: images in a batch, at least 2.
        steps: steps on a batch, positive. 10 with a generator; `input` needs some hundred.
        generator_lr: learning rate of the generator, positive.
        latent_lr: learning rate of the generator's inputs, or of the pixels (their logits), positive.
        oh: weight of the cross-entropy with the wanted classes, at least 0.
        bn: weight of the distance from BatchNorm's running moments, at least 0. Needs model.batch_norm: averaged.
        adv: weight of the student's divergence, at least 0. 0 trains no student.
        temperature: temperature of the student's distillation, positive.
        student_steps: steps of the student after each batch, positive.
        warm_up: batches before the student learns and counts, at least 0 and below `batches`.
        width: channels of the generator's last hidden layer, positive.
        pixels: values of the model's input that the 8-bit values 0 and 255 stand for.
        augment: augmentations of images before the model sees them, in the inversion.
    """

    weights: Literal["examples", "uniform"] = "uniform"
    weight: float = 25.0
    kd_temperature: float = 2.0
    inversion: Literal["generator", "input"] = "generator"
    batches: int = 20
    batch: int = 256
    steps: int = 10
    generator_lr: float = 2e-3
    latent_lr: float = 1e-2
    oh: float = 0.5
    bn: float = 10.0
    adv: float = 1.0
    temperature: float = 20.0
    student_steps: int = 50
    warm_up: int = 4
    width: int = 64
    pixels: tuple[float, float] = (0.0, 1.0)
    augment: tuple[Augment, ...] = ()

    client: ClassVar[str] = "target"
    later_metrics: ClassVar[tuple[str, ...]] = ("inversion/*",)
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"weight": 0.0, "weights": "examples", "lr": 1.0}, bits=False
    )

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight, hint="0 is masked fine-tuning")
        checks.one_of(("examples", "uniform"), weights=self.weights)
        checks.one_of(("generator", "input"), inversion=self.inversion)
        checks.positive(kd_temperature=self.kd_temperature, temperature=self.temperature, steps=self.steps)
        checks.positive(generator_lr=self.generator_lr, latent_lr=self.latent_lr)
        checks.positive(student_steps=self.student_steps, width=self.width)
        checks.not_negative(oh=self.oh, bn=self.bn, adv=self.adv, warm_up=self.warm_up)
        checks.at_least(1, batches=self.batches)
        checks.at_least(2, batch=self.batch, hint="moments of a batch need two images")
        if self.adv and self.warm_up >= self.batches:
            raise ValueError(
                f"warm_up: {self.warm_up} is not below batches: {self.batches}, so the student would never count; make "
                "more batches, or set adv: 0"
            )
        if not self.pixels[0] < self.pixels[1]:
            raise ValueError(f"pixels: {list(self.pixels)} is not (low, high); the data's range, such as [0.0, 1.0]")

    def init(self, model: Params, ctx: ServerContext) -> State:
        if self.weight and ctx.periods > 1:
            self._check(ctx)
        elif self.weight:
            logging.getLogger(__name__).warning(
                "strategy: target without a stream of tasks makes no images; add a stream"
            )
        images = torch.zeros((0, *ctx.sample_shape), dtype=torch.uint8)
        return State(model, self.server_optimiser.init(model), model, model, images)

    def _check(self, ctx: ServerContext) -> None:
        """Require what an inversion needs: classes of a task, BatchNorm's running moments, images for a generator."""
        if not hasattr(ctx.task, "high"):
            raise ValueError(
                f"name: target needs to know the classes of each task of the stream, and {type(ctx.task).__name__} has "
                "none; use stream: {name: classes, head: joint, masked: true}"
            )
        if self.bn and not statistics_layers(ctx.module):
            raise ValueError(
                f"bn: {self.bn} compares with running moments, which this model does not have; give the model "
                "BatchNorm layers and set model.batch_norm: averaged, or set bn: 0"
            )
        if self.inversion == "generator" and len(ctx.sample_shape) != 3:
            raise ValueError(
                f"inversion: the generator makes images (channels, height, width), and a sample is {ctx.sample_shape}; "
                "set inversion: input"
            )
        for change in self.augment:
            change.check(ctx.sample_shape)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        static = {"images": Static(ctx.period, state.images)}
        if len(state.images):
            static["teacher"] = Static(ctx.period, state.teacher)
        config = {"weight": self.weight, "temperature": self.kd_temperature, "pixels": self.pixels}
        return Broadcast(shared={"model": state.model}, static=static, config=config)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        work = "replay" if len(state.images) else "train"  # virtual time books the images
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx), work)
        metrics: Metrics = {}
        if outcome.value is not None:
            moved, metrics = self.step(state, outcome.value, ctx)
            state = replace(state, model=moved.model, optimiser=moved.optimiser)
        if not self.weight or not ctx.period_ends or ctx.period == ctx.periods - 1:
            return state, metrics
        progress = yield from self.inverted(state, ctx)
        found = {
            "inversion/loss": sum(progress.losses) / len(progress.losses),
            "inversion/images": len(progress.images),
        }
        return replace(state, teacher=state.model, images=progress.images), {**metrics, **found}

    def inverted(self, state: State, ctx: ServerContext) -> Generator[ServerWork, Progress, Progress]:
        """Make images of all classes so far from the model, one call of server work for each batch."""
        settings = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        seeds = [int(random.hash64(ctx.seed, "inversion", ctx.round, k)) for k in range(self.batches + 1)]
        progress = first_progress(ctx.sample_shape, state.initial, settings, seeds[-1])
        classes = getattr(ctx.task, "high")
        for seed in seeds[:-1]:
            arguments = (ctx.module, state.model, ctx.frozen, classes, progress, settings, seed)
            progress = yield ServerWork(one_round, arguments)
        return progress
