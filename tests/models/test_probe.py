"""What the first look finds in modules, and how clients train then. tests/test_robustness.py runs all kinds."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from experiments.robustness import networks
from experiments.robustness.case import CONFIG
from experiments.robustness.networks import (
    DRAWS,
    GPT2,
    STATES,
    Bert,
    Centred,
    Counter,
    D,
    IntegerBuffer,
    LateCounter,
    Net,
    Unused,
    Wrapped,
)
from fl.config.config import resolve
from fl.config.reading import read
from fl.models.probe import ModuleFacts, ModuleState, probe
from fl.simulation.build import set_up_run

K = 3


def config(module, **changes):
    return read(CONFIG | {"model": module}, changes)


@pytest.mark.parametrize("module", DRAWS)
def test_the_global_generators_are_elsewhere_and_stay_there(module, tmp_path):
    first = fl.run(config(module), out=tmp_path / "a")
    torch.rand(3), np.random.rand(3), random.random()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    again = fl.run(config(module), out=tmp_path / "b")
    assert first.digest == again.digest and first.metrics[-1]["val/loss"] == again.metrics[-1]["val/loss"]
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]


@pytest.mark.parametrize("module", DRAWS)
def test_draws_differ_from_step_to_step_client_to_client_and_round_to_round(module):
    facts = set_up_run(resolve(config(module))).facts
    assert facts.draws and facts.one_at_a_time


@pytest.mark.parametrize("module", STATES)
def test_what_a_pass_changes_is_found_and_each_client_begins_with_the_first_state(module, tmp_path):
    run_setup = set_up_run(resolve(config(module)))
    assert run_setup.facts.state and run_setup.plan.kind == "loop"


def test_a_client_is_trained_as_if_it_were_alone(tmp_path):
    """By hand: the counter is 1, 2, 3, ... at the steps of each client, whoever came before."""
    steps = {"client.steps": 3, "client.epochs": None, "client.batch": "full", "rounds": 1, "splits.val": 0.0}
    whole = {"cohort.size": 6}
    run_setup = set_up_run(resolve(config(IntegerBuffer, **steps, **whole)))
    model = fl.run(config(IntegerBuffer, **steps, **whole), out=tmp_path / "run").model
    partition, data = run_setup.periods[0].partition, run_setup.dataset.train
    w0, b0 = (run_setup.model[name] for name in ("l.weight", "l.bias"))
    deltas, weights = [], []
    for c in range(6):
        rows = partition.view_rows(c, "train")
        x, y = torch.tensor(data["x"][rows]), torch.tensor(data["y"][rows])
        w, b = w0.clone().requires_grad_(), b0.clone().requires_grad_()
        for n in (1, 2, 3):
            gradients = torch.autograd.grad(F.cross_entropy((x @ w.T + b) * (1 + 0.1 * n), y), (w, b))
            w, b = ((p - 0.1 * g).detach().requires_grad_() for p, g in zip((w, b), gradients))
        deltas.append(w.detach() - w0), weights.append(len(rows))
    mean = sum(d * n for d, n in zip(deltas, weights)) / sum(weights)
    torch.testing.assert_close(model["l.weight"], w0 + mean, rtol=1e-5, atol=1e-6)


def test_a_constant_buffer_is_taken_as_it_is(tmp_path):
    facts = set_up_run(resolve(config(Centred))).facts
    assert facts == ModuleFacts()


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "feddyn", "fedadam"])
def test_parameters_without_gradient_keep_their_values(strategy, tmp_path):
    decay = {"client.optimiser": {"name": "sgd", "weight_decay": 0.1}} if strategy == "fedavg" else {}
    run_setup = set_up_run(resolve(config(Unused, strategy=strategy, **decay)))
    assert run_setup.facts.unused == ("u.weight", "u.bias")
    result = fl.run(config(Unused, strategy=strategy, **decay), out=tmp_path / "run")
    assert torch.equal(result.model["u.weight"], run_setup.model["u.weight"])
    assert not torch.equal(result.model["l.weight"], run_setup.model["l.weight"])


def test_sparse_gradients_are_made_dense(tmp_path):
    class Embeds(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.e, self.l = nn.Embedding(5, 4, sparse=True), nn.Linear(4, outputs)

        def forward(self, x):
            return self.l(self.e(x.abs().long().clamp(max=4)).mean(1))

    adam = {"client.optimiser": "adam", "client.lr": 0.01}
    assert fl.run(config(Embeds, **adam), out=tmp_path / "run").metrics[-1]["train/loss"] > 0


def test_evaluation_does_not_change_the_model(tmp_path):
    """An embedding with a largest norm scales its own weights down in its forward pass."""

    class Embeds(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.e, self.l = nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, outputs)

        def forward(self, x):
            return self.l(self.e(x.abs().long().clamp(max=4)).mean(1))

    assert set_up_run(resolve(config(Embeds))).facts.writes_parameters
    often = fl.run(config(Embeds), out=tmp_path / "a")
    never = fl.run(config(Embeds, **{"evaluation.every": 9}), out=tmp_path / "b")
    assert often.digest == never.digest


def test_logits_of_an_object_are_the_outputs(tmp_path):
    wrapped, bare = (fl.run(config(m, **{"execution.plan": "loop"}), out=tmp_path / m.__name__) for m in (Wrapped, Net))
    assert wrapped.digest == bare.digest


@pytest.mark.parametrize("plan", ["loop", "flat"])
def test_a_change_that_the_first_look_did_not_see_stops_the_run_at_the_client(plan, tmp_path):
    chosen = {"execution.plan": plan}
    assert not set_up_run(resolve(config(LateCounter, **chosen))).facts.state
    with pytest.raises(fl.errors.ClientError, match=r"client.* \S+, round 0, stage 'train': .*changed state"):
        fl.run(config(LateCounter, **chosen), out=tmp_path / plan)


def test_a_state_is_restored_in_place():
    module = Counter((D,), K)
    seen, state = module.seen, ModuleState(module)
    module(torch.zeros(2, D))
    module.extra = 1
    assert set(state.changes()) == {"n", "seen", "extra"}
    state.restore()
    assert state.changes() == () and module.seen is seen and seen == {"batches": [0]} and module.n == 0


def test_the_first_look_leaves_the_module_and_the_generators_as_they_were():
    module, batch = Counter((D,), K), {"x": torch.randn(2, D), "y": torch.zeros(2).long()}
    before, weights = torch.get_rng_state(), {n: p.clone() for n, p in module.named_parameters()}
    facts = probe(module, batch, lambda net, batch: F.cross_entropy(net(batch["x"]), batch["y"], reduction="none"))
    assert facts.state == ("n", "seen") and module.n == 0
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in module.named_parameters())


@pytest.mark.ray
@pytest.mark.parametrize("module", [Bert, GPT2])
def test_models_of_hugging_face_repeat_to_the_bit_on_every_executor_and_after_a_resume(module, tmp_path):
    data = {"data": f"{networks.__file__}:tokens", "partition": {"name": "iid", "clients": 5}, "client.lr": 0.01}
    data |= {"client.epochs": 1, "client.batch": 5}
    module = f"{networks.__file__}:{module.__name__}"  # a resumed run reads it again
    serial = fl.run(config(module, **data), out=tmp_path / "serial")
    for workers in (2, 1):  # one Ray has room for both
        ray = {"execution.executor": "ray", "execution.workers": workers}
        assert fl.run(config(module, **data, **ray), out=tmp_path / f"ray{workers}").digest == serial.digest
    fl.run(config(module, **data), out=tmp_path / "resumed", interrupt=lambda: True)
    assert fl.resume(tmp_path / "resumed").digest == serial.digest
    if module.endswith("Bert"):
        facts = set_up_run(resolve(config(module, **data))).facts
        assert facts.unused == ("bert.pooler.dense.weight", "bert.pooler.dense.bias") and facts.draws
