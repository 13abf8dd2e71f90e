"""FedCurv: two rounds by hand and in torch, its bytes, and the settings in which it is FedAvg."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

import fl
from clients.fedcurv import FedCurv as Client
from clients.fedcurv import of_others
from fl.config.config import resolve
from fl.simulation.build import set_up_run
from fl.tensors.params import Params
from strategies.fedcurv import FedCurv

MODEL = 4 * (64 * 10 + 10)  # bytes of a softmax for digits
CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 2},
    "splits": {"val": 0, "test": 0.85},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedcurv",
    "client": {"batch": "full", "steps": 2, "lr": 0.1, "lam": 0.5},
    "execution": {"executor": "serial", "plan": "loop"},
    "evaluation": {"every": 9},
}


def params(*w):
    return Params.of({"w": torch.tensor(w)})


def test_two_rounds_by_hand():
    rule, ctx = FedCurv(), SimpleNamespace(round=0)
    state = rule.init(params(1.0, 2.0), ctx)
    assert state.fisher["w"].tolist() == [0, 0] and rule.broadcast(state, ctx).config == {"sums_of_round": -1}
    # two clients at (2, 2) and (0, 4) with Fisher information (1, 0) and (3, 1): pulls (2, 0) and (0, 4)
    reduced = {"model": params(0.0, 1.0), "fisher": params(4.0, 1.0), "pull": params(2.0, 4.0)}
    one, _ = rule.step(state, reduced, ctx)
    assert one.model["w"].tolist() == [1, 3] and one.round == 0
    sent = rule.broadcast(one, ctx)
    own = {"fisher": params(1.0, 0.0), "pull": params(2.0, 0.0), "round": torch.tensor(0)}
    total, pull = of_others(sent.shared, own, 0)
    assert total["w"].tolist() == [3, 1] and pull["w"].tolist() == [0, 4]
    # the first client at (1, 3): 2 lam (F w - b) = 2 * 0.5 * ((3, 3) - (0, 4))
    at = SimpleNamespace(received=sent.shared, state=own, config=sent.config, phase=SimpleNamespace(trains=None))
    penalty = Client(lam=0.5).penalty(at)
    assert penalty.add_gradient(params(0.0, 0.0), one.model)["w"].tolist() == [3, -1]
    late = {**own, "round": torch.tensor(-3)}  # it has not taken part in the round of the sums, which lack its part
    assert of_others(sent.shared, late, 0)[0]["w"].tolist() == [4, 1]
    two, _ = rule.step(one, {**reduced, "fisher": params(7.0, 7.0)}, SimpleNamespace(round=5))
    assert two.fisher["w"].tolist() == [7, 7] and two.round == 5


def test_two_rounds_of_two_clients_in_torch(tmp_path):
    """All steps and the Fisher information, sample by sample, with autograd alone."""
    result = fl.run(CONFIG, out=tmp_path / "run")
    setup = set_up_run(resolve(CONFIG))
    data = []
    for client in range(2):
        rows = setup.periods[0].partition.view_rows(client, "train")
        x, y = (torch.tensor(setup.dataset.train[name][rows]) for name in ("x", "y"))
        data.append((x.flatten(1), y))
    names = list(setup.model)
    rank = {setup.model[name].ndim: i for i, name in enumerate(names)}

    def loss(weights, x, y):
        return cross_entropy(x @ weights[rank[2]].T + weights[rank[1]], y)

    server, parts = [setup.model[name].clone() for name in names], [None, None]
    for _ in range(2):
        models, new = [], []
        for client, (x, y) in enumerate(data):
            weights, other = [w.clone().requires_grad_() for w in server], parts[1 - client]
            for _ in range(2):
                objective = loss(weights, x, y)
                if other is not None:
                    pairs = zip(weights, other["fisher"], other["at"])
                    objective = objective + 0.5 * sum((f * (w - a).square()).sum() for w, f, a in pairs)
                grads = torch.autograd.grad(objective, weights)
                weights = [(w - 0.1 * g).detach().requires_grad_() for w, g in zip(weights, grads)]
            each = [torch.autograd.grad(loss(weights, x[s : s + 1], y[s : s + 1]), weights) for s in range(len(x))]
            squares = [torch.stack([g[k].square() for g in each]).mean(0) for k in range(len(weights))]
            new.append({"fisher": squares, "at": [w.detach() for w in weights]})
            models.append([w.detach() for w in weights])
        shares, parts = [len(x) / sum(len(x) for x, _ in data) for x, _ in data], new
        server = [sum(share * model[k] for share, model in zip(shares, models)) for k in range(len(names))]
    assert max(float((result.model[name] - w).abs().max()) for name, w in zip(names, server)) < 1e-5
    plain = fl.run(CONFIG, out=tmp_path / "plain", **{"client.lam": 0.0})
    assert max(float((result.model[name] - plain.model[name]).abs().max()) for name in names) > 3e-5


def test_three_models_travel_in_each_direction(tmp_path):
    rows = fl.run(CONFIG, out=tmp_path / "run").metrics
    assert [(row["uplink_bytes"], row["downlink_bytes"]) for row in rows] == [(2 * 3 * MODEL,) * 2] * 2


@pytest.mark.parametrize("changes", [{"client.lam": 0.0}, {"partition.clients": 1, "cohort.size": 1}])
def test_without_penalty_or_without_others_it_is_fedavg(changes, tmp_path):
    curved = fl.run(CONFIG, out=tmp_path / "curved", **changes)
    client = {key: value for key, value in CONFIG["client"].items() if key != "lam"}
    changes = {key: value for key, value in changes.items() if "lam" not in key}
    plain = fl.run({**CONFIG, "strategy": "fedavg", "client": client}, out=tmp_path / "plain", **changes)
    assert curved.digest == plain.digest


def test_clients_that_come_and_go_resume_to_the_same_bits(tmp_path):
    changes = {"partition.clients": 5, "rounds": 4}
    whole = fl.run(CONFIG, out=tmp_path / "whole", **changes)
    fl.run(CONFIG, out=tmp_path / "part", **{**changes, "rounds": 2})
    assert fl.resume(tmp_path / "part", rounds="+2").digest == whole.digest
