"""Hooks that are called before training with parameters that are not known yet: the results are those of the loop."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fl
from fl import LocalTraining, Params, Penalty, dot
from fl.execution.training import batched
from fl.execution.training.at_once import Window
from fl.execution.training.compiled import Compiled
from fl.tensors.gathered import Gathered
from fl.tensors.trees import leaves, row, stack
from tests.execution.test_loop_batched import BATCH, like, make, mlp
from tests.execution.test_own_steps import agree, close


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


class Watched(LocalTraining):
    """A control in the state; `finish` counts its calls."""

    sends: ClassVar[tuple[str, ...]] = ("model", "weight")
    calls: ClassVar[list[int]] = []

    def first_state(self, inputs):
        return {"control": 0.1 * inputs.received["model"], "kind": "control"}

    def penalty(self, at):
        return Penalty(slope=0.1 * (at.received["model"] - at.state["control"]))

    def change(self, end):
        return end.delta * (1.0 / (1 + end.steps))

    def finish(self, end):
        self.calls.append(torch.as_tensor(end.num_examples).numel())
        change, weight = self.change(end), 1 / (1.0 + torch.as_tensor(end.num_examples))
        return {"model": change, "weight": weight}, {**end.state, "control": end.state["control"] - 0.5 * change}


class StartsElsewhere(Watched):
    """Starts from the client's control, which is not known for clients of other chunks."""

    def start(self, inputs):
        return inputs.received["model"] + 0.01 * inputs.state["control"]


class MakesVectors(Watched):
    """Adds a vector of each client's own to the change."""

    def change(self, end):
        return super().change(end) + end.received["model"] * torch.as_tensor(end.num_examples)


class Measures(Watched):
    """Scales the change by its length."""

    def change(self, end):
        return end.delta * (1 + dot(end.delta, end.delta))


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (Watched, [5]),  # once for all
        (StartsElsewhere, [2, 2, 1]),  # for each chunk
        (MakesVectors, [5, 2, 2, 1]),
        (Measures, [5, 2, 2, 2, 2, 1, 1]),  # before and after the training of each chunk
    ],
)
def test_hooks_are_called_once_for_several_chunks_if_they_only_add_and_scale(kind, calls):
    """The results are those of each client alone in the loop, and have the bits of a chunk without the others."""
    module, algorithm = mlp(), kind(batch=BATCH, epochs=2, lr=0.1)
    model = Params.of(dict(module.named_parameters()))
    old = [None, *({"control": like(model, f"state/{c}"), "kind": "control"} for c in range(1, 4)), None]
    chunk, contexts = make(module, states=old)
    alone = [algorithm.work("train", ctx, None) for ctx in contexts]
    Watched.calls.clear()
    window, together = Window(chunk.sizes), []
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        together.append(batched.train(algorithm, _some(chunk, part), Compiled, window=(window, part)))
    assert Watched.calls == calls
    for part, reply in zip((slice(0, 2), slice(2, 4), slice(4, 5)), together):
        same = batched.train(algorithm, _some(chunk, part), Compiled)
        for found, bits in ((reply.update.groups, same.update.groups), (reply.state, same.state)):
            assert all(torch.equal(a, b) for a, b in zip(leaves(found), leaves(bits), strict=True))
        for c, one in enumerate(alone[part]):
            close(row(dict(reply.update.groups), c), dict(one.update.groups))
            close(row(reply.state["control"], c), one.state["control"])


def _some(chunk, part):
    """Some clients of a chunk, with their states stacked as a worker reads them."""
    states, arrays = chunk.states[part], {name: getattr(chunk, name)[part] for name in ("clients", "starts", "sizes")}
    if not any(states):
        return replace(chunk, states=states, **arrays)
    has = np.array([state is not None for state in states])
    known = has, stack([state for state in states if state is not None])
    return replace(chunk, states=[None] * len(states), known_states=known, **arrays)


def test_a_change_of_a_received_vector_after_the_hooks_is_seen():
    """The first chunk's hooks are not replayed with other numbers: each chunk is trained with what it received."""
    algorithm, (chunk, _) = Watched(batch=BATCH, epochs=2, lr=0.1), make(mlp())
    window, part = Window(chunk.sizes), slice(2, 5)
    batched.train(algorithm, _some(chunk, slice(0, 2)), Compiled, window=(window, slice(0, 2)))
    chunk.received["model"].mul_(2.0)
    found = batched.train(algorithm, _some(chunk, part), Compiled, window=(window, part))
    alone = batched.train(algorithm, _some(chunk, part), Compiled)
    for one, other in zip(leaves(found.update.groups), leaves(alone.update.groups), strict=True):
        assert torch.equal(one, other)


def test_rows_that_lie_in_two_places():
    one = Params.of({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
    known, has = stack([2 * one, 4 * one]), np.array([True, False, True])
    found = Gathered(has, known, one)
    assert found.batch == (3,)
    assert found.version == 0
    assert found["w"].tolist() == [[2, 4], [1, 2], [4, 8]]
    assert found.version == 0  # reading is no change
    found.mul_(2.0)
    assert found.version > 0
    assert found["b"].tolist() == [[12], [6], [24]]
    assert one["b"].tolist() == [3]


@dataclass(frozen=True, kw_only=True)
class CountsRounds(LocalTraining):
    """Numbers in a state differ between clients; a factor is 1 for some clients only."""

    def first_state(self, inputs):
        return {"c": 0.1 * inputs.received["model"], "seen": -1}

    def penalty(self, at):
        return Penalty(slope=0.1 * (at.received["model"] - at.state["c"]))

    def finish(self, end):
        factor = torch.where(torch.as_tensor(end.num_examples) > 40, 0.5, 1.0)
        moved = end.params * factor - end.received["model"]
        return {"model": moved}, {"c": end.state["c"] + moved, "seen": end.round}


@dataclass(frozen=True, kw_only=True)
class SeveralVectors(LocalTraining):
    """A state of three models in one `Params`, which changes in place."""

    def first_state(self, inputs):
        model = inputs.received["model"]
        return {"c": stack([0.1 * model, 0.2 * model, 0.3 * model])}

    def finish(self, end):
        end.state["c"].mul_(0.5)
        return {"model": end.delta}, {"c": end.state["c"]}


SMALL = {
    **{"seed": 3, "rounds": 6, "data": "digits", "model": "softmax", "cohort": {"size": 14}},
    **{"strategy": {"name": "fedavg", "lr": 0.9}},
    **{"partition": {"name": "dirichlet", "clients": 60, "alpha": 0.5}, "evaluation": {"clients": 0}},
}


@pytest.mark.parametrize("client", [CountsRounds(batch=16, lr=0.1), SeveralVectors(batch=16, lr=0.1)])
def test_bits_do_not_depend_on_which_worker_meets_which_chunk_first(client, tmp_path):
    def run(workers, plan):
        execution = {"executor": "serial", "workers": workers, "plan": plan, "chunk": 2 if plan == "compiled" else None}
        return fl.run(SMALL, client=client, execution=execution, out=tmp_path / f"{plan}{workers}")

    runs = [run(workers, "compiled") for workers in (1, 3, 7)]
    assert len({each.digest for each in runs}) == 1
    loop = run(1, "loop")
    for name, tensor in loop.model.items():
        torch.testing.assert_close(runs[0].model[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_state_of_several_vectors_keeps_its_axes():
    chunk = make(mlp(), sizes=np.array([7, 3, 5]), ids=np.array([1, 2, 3]))[0]
    together = batched.train(SeveralVectors(batch=4, lr=0.1), chunk, Compiled)
    assert together.state["c"].batch == (3, 3)
    for name, tensor in chunk.received["model"].items():
        expected = torch.stack([0.05 * tensor, 0.1 * tensor, 0.15 * tensor])
        torch.testing.assert_close(together.state["c"][name], expected.expand(3, *expected.shape))
