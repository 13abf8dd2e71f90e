"""Wrong extensions of the model are errors before round 0; the pieces of the interfaces alone."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from clients.sgd import LocalSGD
from fl import Extended, LocalTraining
from fl.errors import ClientError, ConfigError
from fl.execution import worker
from fl.execution.client_facts import ENTRY_BYTES, ClientFacts
from fl.method.facts import data_facts
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.method.training_values import StepContext, TrainingInputs
from fl.models.binding import Initial
from fl.models.dropout import Dropout
from fl.tensors.params import Params
from tests.interfaces.extending import HIDDEN, WIDTH, Balanced, Pulled, WithProjection, set_up, trained


# -- errors -----------------------------------------------------------------------------------------------------------
class Nothing(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        return None


class Fails(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        raise KeyError("head")


class Renames(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        return nn.Sequential(module)


class Reshapes(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        module[-1] = nn.Linear(HIDDEN, 2 * outputs)
        return module


class Changes(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        nn.init.zeros_(module[-1].weight)
        return module


class Twice(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        return Extended(Extended(module, "one", nn.Linear(2, 2)), "two", nn.Linear(2, 2))


class Counts(LocalTraining):
    calls: ClassVar[list[int]] = []

    def extend(self, module, sample_shape, outputs):
        self.calls.append(1)
        added = nn.Linear(2, 2)
        nn.init.constant_(added.weight, len(self.calls))
        return Extended(module, "head", added)


class Taken(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        return Extended(module, "0", nn.Linear(2, 2))


class Tuple(Pulled):
    def extend(self, module, sample_shape, outputs):
        class Always(Extended):
            def forward(self, x):
                return self.original(x), x

        return Always(module, "more", nn.Identity())


@pytest.mark.parametrize(
    "client, message",
    [
        (Nothing, "client: extend of Nothing returns a NoneType, not an nn.Module"),
        (Fails, "client: extend of Fails fails: KeyError: 'head'"),
        (Renames, r"client: extend of Renames changes 1.weight, 1.bias, 3.weight and 1 more of the model"),
        (Reshapes, "client: extend of Reshapes changes 3.weight, 3.bias of the model"),
        (Changes, "client: extend of Changes changes 3.weight of the model"),
        (Twice, "client: extend of Twice adds one.weight, one.bias, two.weight and 1 more; all added tensors need"),
        (Counts, "client: extend of Counts returns other tensors when it is called again"),
        (Taken, "client: extend of Taken fails: ValueError: '0' is a name in the model already"),
        (Tuple, "model: forward returns a tuple of .* it has to return one tensor .* called with x alone"),
    ],
)
def test_a_wrong_extension_is_an_error_before_round_0(client, message):
    with pytest.raises(ConfigError, match=message):
        set_up(client)


def test_only_the_runs_client_extends_the_model():
    adapt = {"evaluation": {"server": False, "stage": "adapted", "adapt": {"name": "moon", "projection": 4}}}
    with pytest.raises(ConfigError, match="evaluation.adapt: moon adds parts to the model"):
        set_up(LocalSGD, **adapt)
    assert set_up(LocalSGD, **{"evaluation": adapt["evaluation"] | {"adapt": {"name": "moon"}}}).plan.kind == "loop"


class Numbers(Balanced):
    def facts(self, view, task, outputs):
        return {"n": len(view)}


class Lengths(Balanced):
    def facts(self, view, task, outputs):
        return view.take()["y"]

    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]), batch)


def test_facts_are_tensors_of_one_shape(tmp_path):
    with pytest.raises(ClientError, match="facts.n of Numbers is a int; what facts returns holds tensors only"):
        trained(tmp_path, Numbers, "a")
    plan = set_up(Lengths, **{"execution.plan": "auto"}).plan
    assert plan.kind == "loop" and trained(tmp_path, Lengths, "b").metrics


# -- the pieces -------------------------------------------------------------------------------------------------------
def step_context(module, **more):
    initial = Initial.of(module)
    inputs = TrainingInputs({"model": initial.trained}, None, {}, initial, module=module)
    return StepContext(**vars(inputs), phase=Phase(SGD(), 0.1, 4), start=initial.trained, **more)


def test_under_is_evaluation_mode_without_gradients_and_leaves_the_module_as_it_is():
    module = nn.Sequential(nn.Linear(2, 3), Dropout(0.5)).train()
    at, x = step_context(module), torch.ones(4, 2)
    other = 2 * at.received["model"]
    before = [p.data_ptr() for p in module.parameters()]
    outputs = at.under(other, x)  # without masks, Dropout in training mode is an error
    torch.testing.assert_close(outputs, x @ other["0.weight"].T + other["0.bias"])
    assert not outputs.requires_grad and module.training and module[1].training
    assert [p.data_ptr() for p in module.parameters()] == before
    only_bias = at.under(Params.of({"0.bias": torch.zeros(3)}), x)
    torch.testing.assert_close(only_bias, x @ module[0].weight.detach().T)
    both = Params(other.layout, tuple(torch.stack([b, 0 * b]) for b in other.buffers))
    torch.testing.assert_close(at.under(both, x), torch.stack([outputs, torch.zeros(4, 3)]))
    with pytest.raises(ValueError, match="module: this context has none"):
        replace(at, module=None).under(other, x)


def test_facts_are_computed_once_and_dropped_when_they_are_too_large():
    calls = []

    def compute(period, client):
        calls.append((period, client))
        return torch.zeros(10, dtype=torch.int64)

    room = 2 * (80 + ENTRY_BYTES)
    facts = ClientFacts(compute, limit=room)
    for key in ((0, 1), (0, 1), (1, 1), (0, 1)):
        facts.of(*key)
    assert calls == [(0, 1), (1, 1)] and facts.size == room
    facts.of(0, 2)  # (1, 1) was not used for the longest time
    assert facts.of(0, 1) is not None and calls == [(0, 1), (1, 1), (0, 2)] and facts.size == room


def test_clients_without_facts_take_no_memory():
    facts = ClientFacts(lambda period, client: None)
    assert facts.of(0, 1) is None and not facts._known and facts.size == 0


def test_small_facts_of_many_clients_stay_within_the_limit():
    """An entry takes more memory than its few elements, so entries count too."""
    facts = ClientFacts(lambda period, client: torch.zeros(1), limit=1 << 20)
    for client in range(10_000):
        facts.of(0, client)
    assert len(facts._known) < (1 << 20) / 800  # an entry takes 800 bytes at least


def test_facts_of_each_client_reach_their_client_in_every_plan(tmp_path, monkeypatch):
    counted = []

    def counting(algorithm, view, task, outputs):
        counted.append(len(view))
        return data_facts(algorithm, view, task, outputs)

    monkeypatch.setattr(worker, "data_facts", counting)

    class Sees(LocalTraining):
        def facts(self, view, task, outputs):
            return torch.tensor(float(len(view)))

        def finish(self, end):
            counts = torch.as_tensor(end.num_examples).to(torch.float32)
            assert torch.equal(end.facts, counts if end.facts.ndim else counts.reshape(()))
            return {"model": 0 * end.delta}, None

    for plan in ("loop", "vmap"):
        counted.clear()
        assert trained(tmp_path, Sees, plan, rounds=3, **{"execution.plan": plan}).metrics
        assert len(counted) == 6  # once for each client


class DropoutInHead(Pulled):
    def extend(self, module, sample_shape, outputs):
        head = nn.Sequential(nn.Linear(HIDDEN, WIDTH), nn.Dropout(0.5))
        return WithProjection(module, "projection", head)


def test_dropout_that_only_a_longer_call_reaches_is_drawn_in_the_loop(tmp_path):
    plan = set_up(DropoutInHead, **{"execution.plan": "auto"}).plan
    assert plan.kind == "loop" and "net(x) alone calls not all Dropout layers" in plan.why
    runs = [trained(tmp_path, DropoutInHead, name) for name in "ab"]
    assert runs[0].digest == runs[1].digest != trained(tmp_path, Pulled, "c").digest


class Counter(nn.Module):
    """A model that counts its passes in an attribute."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.layer, self.passes = nn.Linear(shape[0], outputs), 0

    def forward(self, x):
        self.passes = self.passes + 1
        return self.layer(x)


class Idle(LocalTraining):
    def extend(self, module, sample_shape, outputs):
        return Extended(module, "head", nn.Linear(2, 2))


def test_what_the_original_keeps_in_attributes_is_still_found(tmp_path):
    setup = set_up(Idle, model=Counter)
    assert any("original_attributes" in name for name in setup.facts.state) and setup.plan.kind == "loop"
    assert setup.facts.unused == ("head.weight", "head.bias")
    assert trained(tmp_path, Idle, "a", model=Counter).digest == trained(tmp_path, Idle, "b", model=Counter).digest
