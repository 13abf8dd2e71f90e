"""Data-free inversion: images that a model classifies as wanted, made from the model alone.

    minimise  bn * sum_l (|mu_l - mu^_l| + |var_l - var^_l|) + oh * CE(t(A x), y)
              - adv * mean([argmax s = argmax t] KL(t || s))

t is the model (teacher), in evaluation mode, on its first `classes` outputs; y are random classes.  mu_l and var_l are
moments of the inputs of BatchNorm layer l over the batch, with hats the layer's running statistics.  A is a chain of
augmentations.  s is a student, which learns the teacher's outputs for the images so far; the last term prefers images
that the student does not know yet.

    input        x = sigmoid(u), u ~ N(0, I): Adam on u
    generator    x = G(z), z ~ N(0, I): Adam on z and on a copy of G; then a step of Adam on G along the mean of the
                 copy's gradients (first-order meta-learning)

Each round makes one batch and keeps its best images, those of least loss over all steps, in 8 bits.
Yin et al. 2020, arXiv:1912.08795 (moments of BatchNorm); Fang et al. 2022, arXiv:2112.15278 (generator that adapts to
each batch); Zhang, Chen, Zhuang, Lv 2023, arXiv:2303.06937 (use in class-continual learning).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import Adam, Augment, Params, augmented, batch_norm, image_bytes, seeded_generators

Inversion = Literal["generator", "input"]
LATENT = 256  # size of a generator's input
META = Adam(beta1=0.5)
STUDENT_RATE = 1e-3  # of the student's Adam


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hyper-parameters of an inversion; `strategies/target.py` explains them."""

    inversion: Inversion
    batch: int
    steps: int
    generator_lr: float
    latent_lr: float
    oh: float
    bn: float
    adv: float
    temperature: float
    student_steps: int
    warm_up: int
    width: int
    pixels: tuple[float, float]
    augment: tuple[Augment, ...] = ()


@dataclass(frozen=True)
class Progress:
    """What one round of an inversion leaves to the next.

    Attributes:
        images: images so far, uint8 (n, channels, height, width).
        losses: the least loss of each round.
        student: tensors of the student.
        generator: tensors of the generator; None for inversion `input`.
        memory: Adam's memory of the generator.
    """

    images: Tensor
    losses: tuple[float, ...]
    student: Params
    generator: Params | None
    memory: Mapping[str, Any]


class Generator(nn.Sequential):
    """Three convolutions with two enlargements: z (B, latent) -> images (B, channels, height, width) in (0, 1).

    2.33 million parameters for 3 x 32 x 32, width 64 and latent 256. Normalisation is over the batch.

    Args:
        shape: channels, height and width of an image.
        latent: size of z.
        width: channels of the last hidden layer; the first ones have twice as many.
    """

    def __init__(self, shape: tuple[int, ...], latent: int = LATENT, width: int = 64):
        channels, height, wide = shape
        quarter, half = (-(-height // 4), -(-wide // 4)), (-(-height // 2), -(-wide // 2))
        twice = 2 * width
        super().__init__(
            *(nn.Linear(latent, twice * quarter[0] * quarter[1]), nn.Unflatten(1, (twice, *quarter)), _norm(twice)),
            *(nn.Upsample(half), nn.Conv2d(twice, twice, 3, padding=1), _norm(twice), nn.LeakyReLU(0.2)),
            *(nn.Upsample((height, wide)), nn.Conv2d(twice, width, 3, padding=1), _norm(width), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid()),
        )


def _norm(maps: int) -> nn.Module:
    return nn.BatchNorm2d(maps, track_running_stats=False)


def first_progress(shape: tuple[int, ...], student: Params, settings: Settings, seed: int) -> Progress:
    """Return the progress before the first round, with a new generator of this seed.

    Args:
        shape: channels, height and width of an image.
        student: first tensors of the student.
        settings: hyper-parameters.
        seed: seed of the generator's tensors.
    """
    images = torch.zeros((0, *shape), dtype=torch.uint8)
    if settings.inversion == "input":
        return Progress(images, (), student, None, {})
    with seeded_generators(seed):
        generator = Params.of(
            {name: p.detach() for name, p in Generator(shape, LATENT, settings.width).named_parameters()}
        )
    return Progress(images, (), student, generator, META.state(generator))


def moment_distance(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Return |mean(x) - mean| + |var(x) - var| of inputs x (B, C, ...) of a BatchNorm layer, Euclidean norms over C.

    The variance has the divisor of the layer's running variance, N - 1 for N numbers in a channel.

    >>> x = torch.tensor([[0.0], [2.0]])  # mean 1, variance 2
    >>> [float(moment_distance(x, torch.tensor([m]), torch.tensor([v]))) for m, v in ((1.0, 2.0), (4.0, 1.0))]
    [0.0, 4.0]
    """
    axes = [0, *range(2, x.ndim)]
    return (x.mean(axes) - mean).norm() + (x.var(axes) - var).norm()


def novelty(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over samples of KL(teacher || student) where both predict the same class; outputs (B, K)."""
    log_s, log_t = student.log_softmax(-1), teacher.log_softmax(-1)
    divergence = (log_t.exp() * (log_t - log_s)).sum(-1)
    return (divergence * (student.argmax(-1) == teacher.argmax(-1))).mean()


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the inputs of the BatchNorm layers with averaged running statistics, by the layer's name."""
    inputs: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in statistics_layers(module).items()
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def statistics_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers with averaged running statistics by name."""
    names = batch_norm.statistics_names(module, "averaged")
    return {name.rpartition(".")[0]: module.get_submodule(name.rpartition(".")[0]) for name in names}


def one_round(
    module: nn.Module,
    teacher: Params,
    frozen: Params,
    classes: int,
    progress: Progress,
    settings: Settings,
    seed: int,
) -> Progress:
    """Return the progress after one more batch of images. The result depends on the arguments only.

    Args:
        module: structure of the model.
        teacher: its trained tensors.
        frozen: its other tensors.
        classes: number of classes so far; they are the first outputs.
        progress: what earlier rounds left.
        settings: hyper-parameters.
        seed: seed of this round's draws.
    """
    with seeded_generators(seed):
        return _Round(module, teacher, frozen, classes, progress, settings, seed).made()


class _Round:
    """One batch of images."""

    def __init__(
        self,
        module: nn.Module,
        teacher: Params,
        frozen: Params,
        classes: int,
        progress: Progress,
        settings: Settings,
        seed: int,
    ):
        self.module, self.classes, self.progress = copy.deepcopy(module).eval(), classes, progress
        self.settings, self.seed = settings, seed
        self.teacher = {**frozen, **teacher}
        self.student = {**frozen, **progress.student}
        self.adversarial = settings.adv > 0 and len(progress.losses) >= settings.warm_up

    def made(self) -> Progress:
        """Make the batch, then let the student learn.

        Raises:
            ValueError: the objective is never a number.
        """
        make = self._from_input if self.settings.inversion == "input" else self._from_generator
        best, changed = make()
        if not math.isfinite(best.loss):
            raise ValueError("inversion: the objective of the images is not a number; lower latent_lr and generator_lr")
        images = torch.cat([self.progress.images, image_bytes.to_bytes(best.x)])
        after = replace(changed, images=images, losses=(*changed.losses, best.loss))
        if self.settings.adv and len(after.losses) >= self.settings.warm_up:
            after = replace(after, student=self._learnt(images))
        return after

    def _from_input(self) -> tuple[_Best, Progress]:
        u = torch.randn(self.settings.batch, *self.progress.images.shape[1:], requires_grad=True)
        return self._descended(u.sigmoid, [{"params": [u], "lr": self.settings.latent_lr}]), self.progress

    def _from_generator(self) -> tuple[_Best, Progress]:
        slow, settings = self.progress.generator, self.settings
        assert slow is not None
        fast = Generator(tuple(self.progress.images.shape[1:]), LATENT, settings.width)
        fast.load_state_dict(dict(slow))
        z = torch.randn(settings.batch, LATENT, requires_grad=True)
        total = {name: torch.zeros_like(slow[name]) for name in slow}

        def collect() -> None:
            for name, p in fast.named_parameters():
                if p.grad is not None:
                    total[name] += p.grad / settings.steps

        groups = [{"params": fast.parameters(), "lr": settings.generator_lr}, {"params": [z], "lr": settings.latent_lr}]
        best = self._descended(lambda: fast(z), groups, collect)
        generator, memory = slow.clone(), {name: m.clone() for name, m in self.progress.memory.items()}
        META.step(generator, Params.of(total), memory, settings.generator_lr, len(self.progress.losses))
        return best, replace(self.progress, generator=generator, memory=memory)

    def _descended(
        self, images: Callable[[], Tensor], groups: list[dict[str, Any]], collect: Callable[[], None] | None = None
    ) -> _Best:
        """Take steps of Adam on `groups`, and return the images of least loss. `collect` sees each gradient."""
        optimiser, best = torch.optim.Adam(groups, betas=(0.5, 0.999)), _Best()
        y = torch.randint(self.classes, (self.settings.batch,))
        for step in range(self.settings.steps):
            x = images()
            loss = self.loss(x, y, step)
            best.see(x, loss)
            optimiser.zero_grad()
            loss.backward()
            if collect:
                collect()
            optimiser.step()
        return best

    def loss(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Return the objective for images x (B, ...) in [0, 1], a tensor ()."""
        settings = self.settings
        low, high = settings.pixels
        inputs = low + (high - low) * x
        if settings.augment:
            inputs = augmented(settings.augment, inputs, self.seed, step, np.arange(len(inputs)))
        with _recorded(self.module) as layers:
            outputs = torch.func.functional_call(self.module, self.teacher, (inputs,))[:, : self.classes]
        loss = settings.oh * F.cross_entropy(outputs, y)
        if settings.bn:
            loss = loss + settings.bn * sum(
                moment_distance(values, self.teacher[f"{name}.running_mean"], self.teacher[f"{name}.running_var"])
                for name, values in layers.items()
            )
        if self.adversarial:
            student = torch.func.functional_call(self.module, self.student, (inputs,))[:, : self.classes]
            loss = loss - settings.adv * novelty(student, outputs)
        return loss

    def _learnt(self, images: Tensor) -> Params:
        """Return the student after steps on the teacher's softened outputs for random images."""
        settings, first = self.settings, self.progress.student
        weights = {
            name: first[name].clone().requires_grad_() for name, _ in self.module.named_parameters() if name in first
        }
        running = {name: first[name].clone() for name in first if name not in weights}
        optimiser = torch.optim.Adam(weights.values(), lr=STUDENT_RATE)
        for _ in range(settings.student_steps):
            rows = torch.randint(len(images), (settings.batch,))
            x = image_bytes.from_bytes(images[rows], *settings.pixels)
            with torch.no_grad():
                wanted = torch.func.functional_call(self.module, self.teacher, (x,))[:, : self.classes]
            self._normalise_by_batch(True)
            outputs = torch.func.functional_call(self.module, {**self.student, **running, **weights}, (x,))
            target = (wanted / settings.temperature).softmax(-1)
            loss = F.kl_div(
                (outputs[:, : self.classes] / settings.temperature).log_softmax(-1), target, reduction="batchmean"
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            self._normalise_by_batch(False)
        return Params.of({name: ({**running, **weights})[name].detach() for name in first})

    def _normalise_by_batch(self, training: bool) -> None:
        """Put the BatchNorm layers in training mode, and no other layer: a student has no Dropout."""
        for layer in statistics_layers(self.module).values():
            layer.train(training)


class _Best:
    """The images of least loss."""

    def __init__(self) -> None:
        self.loss = float("inf")
        self.x = torch.empty(0)

    def see(self, x: Tensor, loss: Tensor) -> None:
        """Keep x if its loss is the least so far."""
        if loss.item() < self.loss:
            self.loss, self.x = loss.item(), x.detach().clone()
