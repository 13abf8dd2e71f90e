"""A method extends the model, calls it with more arguments and under other weights, and sees facts of its data."""

import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fl
from clients.fedrod import FedROD
from clients.moon import Moon
from clients.partial import Partial
from clients.sgd import LocalSGD
from fl.check.check import check
from fl.config.config import resolve
from fl.data.views import View
from fl.errors import ConfigError
from fl.method.training_values import StepContext
from fl.models.layers import head_names, last_layer
from fl.models.structure import structure
from fl.simulation.headline import headline
from fl.tasks.supervised import Classification
from tests.interfaces import extending
from tests.interfaces.extending import (
    ADDED,
    BASE,
    CLASSES,
    FEATURES,
    HIDDEN,
    Balanced,
    Pulled,
    Wide,
    WithProjection,
    config,
    set_up,
    trained,
)


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


@pytest.mark.slow
@pytest.mark.parametrize("client", [Pulled, Balanced])
def test_all_laws_hold(client):
    broken = [f"{f.sentence}: {f.detail}" for f in check(f"{extending.__file__}:{client.__name__}") if not f.ok]
    assert not broken


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
        export(resolve(config(client, **changes)), tmp_path / client.__name__)
        text, there = tmp_path / client.__name__ / "config.yaml", tmp_path / f"{client.__name__}-there"
        simulate(server_app(text, out=there), client_app(text), 6, out=tmp_path / f"{client.__name__}-grid")
        tensors = load_file(there / "model.safetensors")
        assert tensors.keys() == set(here.model)
        assert all(torch.equal(here.model[name], tensors[name]) for name in tensors)
        assert pq.read_table(there / "ledger.parquet").equals(here.ledger)


# -- the model's tensors by name --------------------------------------------------------------------------------------
def test_the_models_own_tensors_keep_their_names_and_bits():
    plain, extended = set_up(LocalSGD), set_up()
    assert list(extended.model) == [*plain.model, "projection.weight", "projection.bias"]
    assert all(torch.equal(extended.model[name], plain.model[name]) for name in plain.model)
    assert extended.facts.outputs == CLASSES
    assert head_names(extended.module, extended.model) == ["3.weight", "3.bias"] and last_layer(extended.module) == "3"
    assert "client Pulled adds projection.* to the model (36 parameters)" in headline(extended, Path("here"), "", "")


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
