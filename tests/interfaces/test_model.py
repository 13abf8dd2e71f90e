"""A method extends the model, calls it with more arguments and under other weights, and sees facts of a client's data.

Toys: `Pulled` adds a projection head and compares projections under three models; `Balanced` shifts the outputs by the
logarithms of the client's class counts.
"""

import math
import pickle
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import fl
from clients.fedrod import FedROD
from clients.moon import Moon
from clients.partial import Partial
from clients.sgd import LocalSGD
from fl import Extended, LocalTraining, class_counts
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.errors import ClientError, ConfigError
from fl.execution import worker
from fl.execution.client_facts import ClientFacts
from fl.method.local_training import StepContext, TrainingInputs, data_facts
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.models.binding import Initial
from fl.models.dropout import Dropout
from fl.models.structure import structure
from fl.simulation.build import set_up_run
from fl.tasks.supervised import Classification
from fl.tensors.params import Params

FEATURES, HIDDEN, CLASSES, WIDTH = 6, 8, 3, 4
BASE = FEATURES * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES  # parameters of the MLP
ADDED = HIDDEN * WIDTH + WIDTH
CONFIG: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [FEATURES], "classes": CLASSES, "clients": 6, "samples": 9},
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 1.0, "min_size": 2},
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "cohort": {"size": 6},
    "strategy": "fedavg",
    "evaluation": {"server": False},
    "execution": {"executor": "serial", "plan": "loop"},
}
STEPS = {"epochs": 2, "batch": 4, "lr": 0.1}


class WithProjection(Extended):
    def forward(self, x, project=False):
        outputs, features = self.with_inputs(self.last, x)
        return (outputs, self.added(features)) if project else outputs


@dataclass(frozen=True, kw_only=True)
class Pulled(LocalTraining):
    """Projections are pulled to those of the received model and pushed away from those of the client's last one."""

    def extend(self, module, sample_shape, outputs):
        return WithProjection(module, "projection", nn.Linear(HIDDEN, WIDTH))

    def first_state(self, inputs):
        return inputs.received["model"]

    def objective(self, net, batch, at, task):
        x = batch["x"]
        outputs, z = net(x, project=True)
        others = (at.under(model, x, project=True)[1] for model in (at.received["model"], at.state))
        near, away = (F.cosine_similarity(z, other, -1) for other in others)
        return task.loss(outputs, batch) + F.softplus(2 * (away - near))

    def finish(self, end):
        return {"model": end.delta}, end.params


class Balanced(LocalTraining):
    """Balanced softmax."""

    def facts(self, view, task, outputs):
        return class_counts(view, outputs)

    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]) + at.facts.log(), batch)


class Wide(LocalTraining):
    """The added part takes part in `net(x)`; the objective is the task's."""

    def extend(self, module, sample_shape, outputs):
        class Bent(Extended):
            def forward(self, x):
                return self.with_layer(self.last, lambda last, h: last(h + self.added(h)), x)

        return Bent(module, "bend", nn.Linear(HIDDEN, HIDDEN))


def config(client=Pulled, **changes):
    own = {key.removeprefix("client."): changes.pop(key) for key in list(changes) if key.startswith("client.")}
    return read(CONFIG | {"client": client(**STEPS | own)}, changes)


def set_up(client=Pulled, **changes):
    return set_up_run(resolve(config(client, **changes)))


def trained(tmp_path, client, name, **changes):
    return fl.run(config(client, **changes), out=tmp_path / name)


# -- closed forms -----------------------------------------------------------------------------------------------------
def payload(result, direction):
    """Bytes of the raw tensors in the first round."""
    rows = result.ledger.to_pylist()
    return sum(row["payload_bytes"] for row in rows if row["round"] == 0 and row["direction"] == direction)


def test_the_payload_is_that_of_the_model_and_four_bytes_for_each_added_number(tmp_path):
    for client, numbers in ((LocalSGD, BASE), (Pulled, BASE + ADDED)):
        result = trained(tmp_path, client, client.__name__)
        assert payload(result, "up") == payload(result, "down") == 6 * 4 * numbers


def test_a_rare_class_costs_log_10_with_nine_samples_of_the_other_one(tmp_path):
    """Counts (9, 1) and equal outputs: the classes have probabilities .9 and .1."""
    y = np.array([0] * 9 + [1])
    view = View({"y": torch.tensor(y)}, np.arange(10))
    counts = Balanced().facts(view, Classification(), 2)
    inputs = {"received": {}, "state": None, "config": {}, "initial": None, "phase": None, "start": None}
    at = StepContext(**inputs, facts=counts)
    batch = {"x": torch.zeros(2, 1), "y": torch.tensor([0, 1])}
    losses = Balanced().objective(lambda x: torch.zeros(2, 2), batch, at, Classification())
    assert losses.tolist() == pytest.approx([math.log(10 / 9), math.log(10)])

    class Zero(nn.Linear):
        def __init__(self, shape, outputs):
            super().__init__(shape[0], outputs)
            nn.init.zeros_(self.weight), nn.init.zeros_(self.bias)

    data = np.ones((10, 1), np.float32), y
    more = {"data": data, "partition": {"name": "file", "lists": [list(range(10))]}, "cohort.size": 1, "client.lr": 0.0}
    more["splits"] = {"val": 0.0, "test": 0.0}
    for plan in ("loop", "vmap"):
        row = trained(tmp_path, Balanced, plan, model=Zero, rounds=1, **more, **{"execution.plan": plan}).metrics[0]
        assert row["train/loss"] == pytest.approx(0.9 * math.log(10 / 9) + 0.1 * math.log(10), abs=1e-6)


def test_one_step_with_a_projection_by_hand():
    """d loss / d projection for a linear model by autograd on plain tensors."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    net = WithProjection(original, "projection", nn.Linear(3, 2))
    x = torch.randn(5, 2)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    hidden = torch.tanh(x @ weights["0.weight"].T + weights["0.bias"])
    outputs, z = net(x, project=True)
    torch.testing.assert_close(outputs, hidden @ weights["2.weight"].T + weights["2.bias"])
    torch.testing.assert_close(z, hidden @ weights["projection.weight"].T + weights["projection.bias"])
    torch.testing.assert_close(net(x), outputs)


# -- plans, executors, resume -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("client", [Pulled, Balanced])
def test_loop_and_vmap_agree(client, tmp_path):
    loop, vmap = (trained(tmp_path, client, plan, **{"execution.plan": plan}) for plan in ("loop", "vmap"))
    assert set_up(client, **{"execution.plan": "vmap"}).plan.kind == "vmap"
    for name in loop.model:
        torch.testing.assert_close(vmap.model[name], loop.model[name], atol=1e-5, rtol=1e-5)
    assert vmap.metrics[-1]["train/loss"] == pytest.approx(loop.metrics[-1]["train/loss"], abs=1e-5)


def test_loop_and_flat_agree_where_the_objective_is_the_tasks(tmp_path):
    loop, flat = (trained(tmp_path, Wide, plan, **{"execution.plan": plan}) for plan in ("loop", "flat"))
    for name in loop.model:
        torch.testing.assert_close(flat.model[name], loop.model[name], atol=1e-5, rtol=1e-5)
    assert set_up(Wide, **{"execution.plan": "auto"}).plan.kind == "flat"
    for plan in ("compiled", "stacked"):
        with pytest.raises(ConfigError, match=f"{plan}' is not possible: the model is a Bent, not an nn.Sequential"):
            set_up(Wide, **{"execution.plan": plan})
    for plan in ("compiled", "stacked", "flat"):
        with pytest.raises(ConfigError, match=f"{plan}' is not possible: Balanced has its own objective"):
            set_up(Balanced, **{"execution.plan": plan})


@pytest.mark.parametrize("client", [Pulled, Balanced])
def test_a_resumed_run_has_the_same_bits(client, tmp_path):
    whole = trained(tmp_path, client, "whole", rounds=3)
    trained(tmp_path, client, "parts", rounds=2)
    assert fl.resume(tmp_path / "parts", rounds="+1").digest == whole.digest


@pytest.mark.ray
def test_ray_has_the_same_bits(tmp_path):
    for client in (Pulled, Balanced):
        for plan in ("loop", "vmap"):
            runs = [
                trained(tmp_path, client, f"{client.__name__}-{plan}-{i}", **{"execution.plan": plan, **more})
                for i, more in enumerate(({}, {"execution.executor": "ray", "execution.workers": 2}))
            ]
            assert (
                runs[0].digest == runs[1].digest
                and runs[0].metrics[-1]["train/loss"] == runs[1].metrics[-1]["train/loss"]
            )


def test_an_exported_project_has_the_simulators_bits(tmp_path, capsys):
    """Server and client build the same extended model, each by itself."""
    pytest.importorskip("flwr")
    from fl.flower import simulate
    from fl.flower.deploy import client_app, server_app
    from fl.flower.export import export

    for client in (Pulled, FedROD):
        changes = {"strategy": "fedrod" if client is FedROD else "fedavg"}
        here = trained(tmp_path, client, f"{client.__name__}-here", **changes)
        app, there = (
            export(resolve(config(client, **changes)), tmp_path / client.__name__),
            tmp_path / f"{client}-there",
        )
        text = app / "config.yaml"
        simulate(server_app(text, out=there), client_app(text), 6, out=tmp_path / f"{client}-grid")
        tensors = load_file(there / "model.safetensors")
        assert tensors.keys() == set(here.model) and all(
            torch.equal(here.model[name], tensors[name]) for name in tensors
        )
        assert pq.read_table(there / "ledger.parquet").equals(here.ledger)


# -- the model's tensors by name --------------------------------------------------------------------------------------
def test_the_models_own_tensors_keep_their_names_and_bits():
    plain, extended = set_up(LocalSGD), set_up()
    assert list(extended.model) == [*plain.model, "projection.weight", "projection.bias"]
    assert all(torch.equal(extended.model[name], plain.model[name]) for name in plain.model)
    assert extended.facts.outputs == CLASSES
    assert "client Pulled adds projection.* to the model (36 parameters)" in extended.headline("here", "")


def test_extended_tensors_are_frozen_trained_kept_and_adapted_by_name(tmp_path):
    frozen = set_up(**{"model.freeze": ["projection.*"]})
    assert "projection.weight" in frozen.initial.frozen and "projection.weight" not in frozen.model
    part = trained(tmp_path, Wide, "part", **{"client.trains": ("bend.*",)}).model
    first = set_up(Wide).model
    changed = {name for name in first if not torch.equal(part[name], first[name])}
    assert changed == {"bend.weight", "bend.bias"}
    adapted = set_up(model={"name": "mlp", "hidden": [HIDDEN], "adapter": {"name": "lora", "rank": 2}}).model
    plain = set_up(LocalSGD, model={"name": "mlp", "hidden": [HIDDEN], "adapter": {"name": "lora", "rank": 2}}).model
    assert set(adapted) - set(plain) == {"projection.weight", "projection.bias"}
    assert all(torch.equal(adapted[name], plain[name]) for name in plain)


def test_a_private_added_part_stays_with_each_client(tmp_path):
    class Own(Partial, Wide):
        pass

    result = trained(tmp_path, Own, "own", strategy={"name": "fedper", "private": ["bend.*"]})
    assert payload(result, "up") == payload(result, "down") == 6 * 4 * BASE


def test_a_warm_start_holds_the_model_with_the_added_part_or_without(tmp_path):
    plain, extended = (trained(tmp_path, client, client.__name__).model for client in (LocalSGD, Pulled))
    from_plain = set_up(**{"model.init": str(tmp_path / "LocalSGD")}).model
    assert all(torch.equal(from_plain[name], plain[name]) for name in plain)
    assert torch.equal(from_plain["projection.weight"], set_up().model["projection.weight"])
    from_extended = set_up(**{"model.init": str(tmp_path / "Pulled")}).model
    assert all(torch.equal(from_extended[name], extended[name]) for name in extended)
    with pytest.raises(ConfigError, match=r"and the model differ in \['projection.bias', 'projection.weight'\]"):
        set_up(LocalSGD, **{"model.init": str(tmp_path / "Pulled")})


class Frozen(nn.Module):
    """A body that counts its passes and stays in evaluation mode, and a last layer inside a container."""

    def __init__(self):
        super().__init__()
        self.top = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.body, self.passes = nn.Dropout(0.5), torch.zeros(())

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x):
        self.passes = self.passes + 1
        return self.top(self.body(x))


def test_an_extended_module_runs_the_originals_code():
    net, x = WithProjection(Frozen(), "projection", nn.Linear(2, 3)).train(), torch.ones(4, 2)
    assert net.last == "top.1" and net.training and net.added.training and not net.get_submodule("body").training
    outputs, z = net(x, project=True)
    hidden = net.get_submodule("top.0")(x)
    assert torch.equal(outputs, net.get_submodule("top.1")(hidden)) and torch.equal(z, net.added(hidden))
    net(x), pickle.loads(pickle.dumps(net))(x)
    assert net.original_attributes["passes"] == 2 and not structure(net)._plain
    with pytest.raises(ValueError, match="'top.5' is not a layer of the model"):
        net.with_inputs("top.5", x)
    lonely = WithProjection(nn.ModuleDict({"a": nn.Linear(2, 2)}), "projection", nn.Linear(2, 3))
    lonely.original_class = type("Ignores", (nn.Module,), {"forward": lambda self, x: x})
    with pytest.raises(ValueError, match="forward pass does not call the layer 'a'"):
        lonely(x)


# -- MOON and FedROD --------------------------------------------------------------------------------------------------
def test_moons_projection_head_lies_before_the_last_layer(tmp_path):
    more = {"strategy": "moon", "client.mu": 1.0}
    same, narrow = (set_up(Moon, **more, **{"client.projection": width}) for width in (HIDDEN, 5))
    first = set_up(LocalSGD).model
    assert all(torch.equal(same.model[name], first[name]) for name in first)
    shapes = {name: tuple(p.shape) for name, p in narrow.model.items() if name not in first or "3" in name}
    assert shapes == {
        "3.weight": (CLASSES, 5), "3.bias": (CLASSES,), "projection.0.weight": (HIDDEN, HIDDEN),
        "projection.0.bias": (HIDDEN,), "projection.2.weight": (5, HIDDEN), "projection.2.bias": (5,),
    }  # fmt: skip
    w, x = narrow.model, torch.randn(7, FEATURES)
    h = torch.relu(x @ w["1.weight"].T + w["1.bias"])
    h = torch.relu(h @ w["projection.0.weight"].T + w["projection.0.bias"])
    h = h @ w["projection.2.weight"].T + w["projection.2.bias"]
    torch.testing.assert_close(narrow.module(x), h @ w["3.weight"].T + w["3.bias"])
    assert trained(tmp_path, Moon, "moon", **more, **{"client.projection": 5}).metrics[-1]["train/loss"] > 0


def test_fedrods_head_is_not_sent(tmp_path):
    result = trained(tmp_path, FedROD, "rod", strategy="fedrod")
    assert payload(result, "up") == payload(result, "down") == 6 * 4 * BASE


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
    with pytest.raises(ClientError, match="facts.n of Numbers is a int; facts of a client's data hold tensors only"):
        trained(tmp_path, Numbers, "a")
    plan = set_up(Lengths, **{"execution.plan": "auto"}).plan
    assert plan.kind == "loop" and trained(tmp_path, Lengths, "b").metrics


# -- the pieces -------------------------------------------------------------------------------------------------------
def step_context(module, **more):
    initial = Initial.of(module)
    inputs = TrainingInputs({"model": initial.trained}, None, {}, initial)
    return StepContext(**vars(inputs), phase=Phase(SGD(), 0.1, 4), start=initial.trained, module=module, **more)


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

    facts = ClientFacts(compute, limit=160)
    for key in ((0, 1), (0, 1), (1, 1), (0, 1)):
        facts.of(*key)
    assert calls == [(0, 1), (1, 1)] and facts.size == 160
    facts.of(0, 2)  # (1, 1) was not used for the longest time
    assert facts.of(0, 1) is not None and calls == [(0, 1), (1, 1), (0, 2)] and facts.size == 160


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
