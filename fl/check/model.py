"""Laws of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fl.check.finding import Broken, Law
from fl.models.batch_norm import depends_on_batch
from fl.models.dropout import with_addressed_dropout
from fl.models.outputs import sum_of_outputs
from fl.models.probe import probe
from fl.tensors import random

OUTPUTS = 7
IDS = (20,)  # shape of a sample of ids


class ModelPart(Protocol):
    """A model part: it builds a module for samples of a shape."""

    def build(self, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
        """A module that maps (B, *shape) to (B, outputs)."""


class OwnModel:
    """A user's module, which need not refuse the samples that it is not made for: any error counts as a refusal.

    Args:
        part: what builds the module.
    """

    def __init__(self, part: ModelPart):
        self.part = part

    def build(self, shape: tuple[int, ...], outputs: int) -> torch.nn.Module:
        """Build the module and try it on two samples; ValueError if it cannot take them."""
        x = torch.zeros(2, *shape, dtype=torch.int64 if shape == IDS else torch.float32)
        try:
            module = self.part.build(shape, outputs)
            module(x)
        except Exception as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return module


def reals(*shape: int) -> Tensor:
    """Uniform float32 numbers in [0, 1) of a shape, the same at each call."""
    return torch.from_numpy(random.uniform("inputs", np.arange(math.prod(shape))).astype(np.float32)).view(shape)


def _ids(n: int) -> Tensor:
    ids = (random.hash64("ids", np.arange(n * 20)) % np.uint64(50)).astype(np.int64)
    return torch.from_numpy(ids).view(n, 20)


# kinds of samples that a model may be made for: number of samples -> samples
SAMPLES: dict[str, Callable[[int], Tensor]] = {
    "60 features": lambda n: reals(n, 60),
    "images 1 x 28 x 28": lambda n: reals(n, 1, 28, 28),
    "images 3 x 32 x 32": lambda n: reals(n, 3, 32, 32),
    "20 ids": _ids,
}


def _built(model: ModelPart) -> Iterator[tuple[str, torch.nn.Module, Tensor]]:
    """(kind, module, five samples) for each kind of samples that the model accepts."""
    refusals = {}
    for kind, samples in SAMPLES.items():
        x = samples(5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                module = with_addressed_dropout(model.build(tuple(x.shape[1:]), OUTPUTS))
            except ValueError as error:
                refusals[kind] = str(error)
                continue
        if not x.is_floating_point() and isinstance(module, torch.nn.Sequential):
            continue  # layers for features; they cannot take ids
        yield kind, module.eval(), x
    if len(refusals) == len(SAMPLES):
        raise Broken(f"build() accepts none of {list(SAMPLES)}: {refusals}")


def outputs_are_finite_and_have_the_requested_size(model: ModelPart) -> None:
    """Each accepted sample gets as many finite outputs as requested, and the module has parameters to train."""
    for kind, module, x in _built(model):
        outputs = module(x)
        if len(outputs) != len(x) or (outputs.shape[-1] != OUTPUTS and getattr(model, "head", True)):
            raise Broken(f"{len(x)} of {kind} give outputs {tuple(outputs.shape)}, {OUTPUTS} were asked for")
        if not torch.isfinite(outputs).all():
            raise Broken(f"outputs for {kind} are not finite")
        if not any(p.requires_grad for p in module.parameters()):
            raise Broken("it has nothing to train")


def the_seed_determines_the_first_weights(model: ModelPart) -> None:
    """Building twice from one seed gives the same weights."""
    for (kind, one, _), (_, two, _) in zip(_built(model), _built(model)):
        for name, tensor in one.state_dict().items():
            if not torch.equal(tensor, two.state_dict()[name]):
                raise Broken(f"built twice for {kind} from one seed, {name} differs")


def evaluation_treats_each_sample_alone(model: ModelPart) -> None:
    """In evaluation mode, the output of a sample does not depend on the other samples of its batch."""
    for kind, module, x in _built(model):
        if depends_on_batch(module):
            continue
        with torch.inference_mode():
            together, alone = module(x), torch.cat([module(x[i : i + 1]) for i in range(len(x))])
        if float((together - alone).abs().max()) > 1e-4 * max(1.0, float(alone.abs().max())):
            raise Broken(f"outputs for {kind} change with the other samples in the batch")


def training_and_evaluation_passes_work(model: ModelPart) -> str:
    """Two samples pass forward and backward; the remark tells what the module does beside computing outputs."""
    remarks = []
    for _, module, x in _built(model):
        facts = probe(module, {"x": x[:2]}, lambda net, batch: sum_of_outputs(net(batch["x"])))
        reason = facts.one_at_a_time
        remarks += [*facts.notes, *([f"clients train one at a time: {reason}"] if reason else [])]
    return "; ".join(dict.fromkeys(remarks))


LAWS: list[Law] = [
    outputs_are_finite_and_have_the_requested_size,
    training_and_evaluation_passes_work,
    the_seed_determines_the_first_weights,
    evaluation_treats_each_sample_alone,
]
