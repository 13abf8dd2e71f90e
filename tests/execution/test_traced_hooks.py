"""Hooks that are called before training with parameters that are not known yet: the results are those of the loop."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from fl import LocalTraining, Penalty, dot
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from tests.execution.test_loop_batched import BATCH, make, mlp
from tests.execution.test_own_steps import agree


@dataclass(frozen=True, kw_only=True)
class NoPull(LocalTraining):
    """A proximal term with weight 0."""

    def penalty(self, at):
        return Penalty(0.0, at.start)


@dataclass(frozen=True, kw_only=True)
class ChangesTheState(LocalTraining):
    """The penalty reads a state that `finish` changes in place; a number counts rounds."""

    def first_state(self, inputs):
        return {"c": 0.1 * inputs.received["model"], "n": torch.zeros(())}

    def penalty(self, at):
        return Penalty(slope=0.1 * (at.received["model"] - at.state["c"]))

    def finish(self, end):
        end.state["c"].mul_(0.5)
        end.state["n"].add_(1)
        return {"model": end.delta}, end.state


@dataclass(frozen=True, kw_only=True)
class Clamps(LocalTraining):
    """Changes the numbers of samples in place."""

    def finish(self, end):
        n = torch.as_tensor(end.num_examples).clamp_(min=1)
        return {"model": end.delta * (1.0 / n)}, None


@dataclass(frozen=True, kw_only=True)
class Swallows(LocalTraining):
    """Goes on after any error."""

    def finish(self, end):
        try:
            scale = 1 / (1 + dot(end.delta, end.delta))
        except Exception:
            scale = 1.0
        return {"model": end.delta * scale}, None


@dataclass(frozen=True, kw_only=True)
class Late(LocalTraining):
    """Changes a vector after a sum with it was made."""

    def finish(self, end):
        control = end.received["model"].clone()
        total = end.delta + control
        control.mul_(0.5)
        return {"model": total - control}, None


@dataclass(frozen=True, kw_only=True)
class SendsNumbers(LocalTraining):
    """Sends and keeps numbers that do not depend on training, beside the model."""

    sends: ClassVar[tuple[str, ...]] = ("model", "weight")

    def first_state(self, inputs):
        return {"rounds": torch.zeros(()), "model": inputs.received["model"]}

    def finish(self, end):
        weight = 1 / (1.0 + torch.as_tensor(end.num_examples))
        return {"model": end.delta * weight, "weight": weight}, {
            "rounds": end.state["rounds"] + 1,
            "model": end.params,
        }


@pytest.mark.parametrize("algorithm", [NoPull, ChangesTheState, Clamps, Swallows, Late, SendsNumbers])
def test_hooks_that_are_hard_to_trace_train_as_in_the_loop(algorithm):
    agree(algorithm(batch=BATCH, epochs=2), Compiled, mlp())


@pytest.mark.parametrize("needs_numbers", [False, True])
def test_the_hooks_at_the_beginning_are_called_once_for_a_chunk(needs_numbers):
    """Also if `finish` turns out to need numbers, and is called again."""
    called = []

    class Counts(LocalTraining):
        def phases_of(self, inputs, round_, rounds):
            called.append("phases_of")
            return super().phases_of(inputs, round_, rounds)

        def start(self, inputs):
            called.append("start")
            return super().start(inputs)

        def finish(self, end):
            called.append("finish")
            factor = 1 + dot(end.delta, end.delta) if needs_numbers else 2.0
            return {"model": end.delta * factor}, torch.as_tensor(end.num_examples)

    batched.train(Counts(batch=BATCH), make(mlp())[0], Compiled)
    assert called == ["phases_of", "start", *(["finish"] * (1 + needs_numbers))]


@pytest.mark.parametrize("algorithm", [ChangesTheState, SendsNumbers])
def test_combinations_of_wide_layers(algorithm):
    """Rows of 70 numbers are padded to 80, and rows of 80 follow one another. Neither is a multiple of 64."""
    torch.manual_seed(0)
    layers = nn.Linear(12, 70), nn.ReLU(), nn.Linear(70, 80), nn.Tanh(), nn.Linear(80, 4)
    agree(algorithm(batch=BATCH, epochs=2), Compiled, nn.Sequential(nn.Flatten(), *layers))
