"""FedBR: paper values of its losses, one step of each order by autograd, pseudo-data, and the ledger's closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients import fedbr
from clients.fedbr import FedBR
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.models.binding import Initial
from fl.tasks.supervised import Classification
from strategies.fedbr import FedBR as Strategy

IN, H, OUT, LR = 5, 3, 4, 0.2
CLIENTS, ROUNDS, ITEMS = 4, 2, 6
RUN = {
    "rounds": ROUNDS,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": CLIENTS},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [H]},
    "cohort": {"size": CLIENTS},
    "strategy": {"name": "fedbr", "items": ITEMS, "per_item": 2},
    "client": {"batch": 8, "lr": 0.1},
    "execution": {"executor": "serial"},
}


def context(client: FedBR, samples: int = 7, pseudo: int = 7) -> ClientContext:
    """Return a context in which the received model is not the initial one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = client.extend(nn.Sequential(nn.Linear(IN, H), nn.Tanh(), nn.Linear(H, OUT)), (IN,), OUT)
        arrays = {"x": torch.randn(samples, IN), "y": torch.randint(OUT, (samples,))}
        initial, x_p = Initial.of(module), torch.randn(pseudo, IN)
    view = View(arrays, np.arange(samples))
    received = {"model": 0.5 * initial.trained, "pseudo": x_p}
    place = dict(client=1, seed=2, round=0, rounds=1, participation=0, config={}, state=None)
    parts = dict(train=view, val=view, test=view, initial=initial, module=module, task=Classification())
    return ClientContext(**place, **parts, received=received, training_loop=train)


def after(client: FedBR, ctx: ClientContext) -> dict[str, torch.Tensor]:
    return dict(ctx.received["model"] + client.work("train", ctx, None).update.groups["model"])


# -- the losses -------------------------------------------------------------------------------------------------------
def test_the_losses_have_the_values_of_paper():
    e, f = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert fedbr.contrast(e, e, e, 0.5).item() == pytest.approx(np.log(2))
    assert fedbr.contrast(f, e, e, 0.5).item() == pytest.approx(np.log(1 + np.exp(-2)))
    assert fedbr.contrast(e, e, f, 0.5).item() == pytest.approx(np.log(1 + np.exp(2)))
    assert fedbr.balance(torch.full((2, 7), 3.0)).tolist() == pytest.approx([np.log(7)] * 2)


def test_the_projection_has_as_many_parameters_as_the_paper_says():
    for h in (3, 10):
        module = FedBR().extend(nn.Sequential(nn.Linear(IN, h), nn.ReLU(), nn.Linear(h, OUT)), (IN,), OUT)
        assert sum(p.numel() for p in module.projection.parameters()) == 8 * h * h + 5 * h


# -- steps ------------------------------------------------------------------------------------------------------------
def by_hand(w, d, start, x, y, x_p, mu, lam, temperature):
    """Return (con, the whole objective) as means, from tensors by name; written out layer by layer."""

    def body(p, x):
        return torch.tanh(F.linear(x, p["0.weight"], p["0.bias"]))

    def project(z):
        for layer in ("0", "2", "4"):
            z = F.linear(z, d[f"projection.{layer}.weight"], d[f"projection.{layer}.bias"])
            z = z if layer == "4" else z.relu()
        return z / z.norm(dim=1, keepdim=True)

    z, z_p, z_g = body(w, x), body(w, x_p), body(start, x_p).detach()
    a = (project(z_p) * project(z_g)).sum(1) / temperature
    b = (project(z_p) * project(z)).sum(1) / temperature
    con = (1 + (b - a).exp()).log().mean()
    scores = (F.linear(each, w["2.weight"], w["2.bias"]).log_softmax(1) for each in (z, z_p))
    own, pseudo = scores
    return con, -own[torch.arange(len(y)), y].mean() + mu * con - lam * pseudo.mean()


@pytest.mark.parametrize("order", ["alternate", "together"])
def test_a_step_is_the_papers(order):
    mu, lam, gamma, temperature = 0.7, 0.3, 2.0, 0.4
    settings = dict(mu=mu, lam=lam, gamma=gamma, temperature=temperature, order=order)
    client = FedBR(**settings, batch="full", steps=1, lr=LR)
    ctx = context(client)
    # the batch is shuffled, and so are the pseudo-samples; equal rows make the pairs known
    same = ctx.train.arrays["x"][:1].expand(7, IN).contiguous(), ctx.received["pseudo"][:1].expand(7, IN).contiguous()
    y = torch.zeros(7, dtype=torch.int64)
    ctx = replace(ctx, train=View({"x": same[0], "y": y}, np.arange(7)))
    ctx = replace(ctx, received={**ctx.received, "pseudo": same[1]})

    start = {name: tensor.clone() for name, tensor in ctx.received["model"].items()}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    d = {name: leaf for name, leaf in leaves.items() if name.startswith("projection")}
    w = {name: leaf for name, leaf in leaves.items() if name not in d}
    con, whole = by_hand(w, d, start, same[0], y, same[1], mu, lam, temperature)
    up = torch.autograd.grad(con, list(d.values()), retain_graph=True)
    moved = {name: (leaf + LR * gamma * g).detach() for (name, leaf), g in zip(d.items(), up)}
    if order == "alternate":
        _, whole = by_hand(w, moved, start, same[0], y, same[1], mu, lam, temperature)
    down = torch.autograd.grad(whole, list(w.values()))
    moved |= {name: (leaf - LR * g).detach() for (name, leaf), g in zip(w.items(), down)}

    found = after(client, ctx)
    assert found.keys() == moved.keys()
    for name, tensor in moved.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_received_features_are_those_of_the_start_of_the_round():
    client = FedBR(mu=1.0, lr=LR, steps=3, batch=4)
    ctx = context(client)
    x = ctx.received["pseudo"]
    model = ctx.received["model"]
    expected = torch.tanh(F.linear(x, model["0.weight"], model["0.bias"]))
    torch.testing.assert_close(client.with_features(ctx)["received"], expected)


def test_without_gamma_the_projection_stays_and_the_max_step_moves_no_other_tensor():
    client = FedBR(gamma=0.0, lr=LR, steps=3, batch=4)
    ctx = context(client)
    found = after(client, ctx)
    for name, tensor in ctx.received["model"].items():
        assert torch.equal(found[name], tensor) == name.startswith("projection")
    client = FedBR(mu=1e-12, lam=0.0, gamma=1.0, lr=LR, steps=1, batch="full")  # the model's step is FedAvg's
    plain = FedBR(mu=0.0, lam=0.0, lr=LR, steps=1, batch="full")
    found, expected = after(client, ctx), after(plain, replace(ctx, received={"model": ctx.received["model"]}))
    for name, tensor in ctx.received["model"].items():
        if name.startswith("projection"):
            assert not torch.equal(found[name], tensor)
        else:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("samples, pseudo", [(0, 3), (1, 3), (3, 1), (9, 5)])
def test_clients_of_all_sizes_train(samples, pseudo):
    for client in (FedBR(batch=4), FedBR(batch=4, order="together"), FedBR(batch="full"), FedBR(batch=4, mu=0.0)):
        ctx = context(client, samples, pseudo)
        reply = client.work("train", ctx, None)
        change = reply.update.groups["model"]
        assert all(torch.isfinite(tensor).all() for tensor in change.values()) and reply.update.num_examples == samples
        assert any(tensor.any() for tensor in change.values()) == bool(samples)


def test_pseudo_samples_are_cycled():
    x, p = torch.zeros(5, 1), torch.arange(3.0)[:, None]
    pairs = fedbr.paired({"x": x, "pseudo/x": p, "pseudo/received": 10 * p})
    assert [part[:, 0].tolist() for part in pairs] == [[0, 1, 2, 0, 1], [0, 10, 20, 0, 10]]


# -- pseudo-data ------------------------------------------------------------------------------------------------------
def test_pseudo_samples_are_means_of_the_clients_samples():
    samples, draws = torch.arange(6.0).reshape(3, 2) ** 2, torch.Generator().manual_seed(0)
    assert torch.equal(fedbr.means(samples, 2, 3, draws), samples.mean(0).expand(2, 2))
    pairs = [(samples[i] + samples[j]) / 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    found = fedbr.means(samples, 20, 2, draws)
    assert all(any(torch.equal(item, pair) for pair in pairs) for item in found)
    assert len(torch.unique(found, dim=0)) == 3
    assert fedbr.means(samples, 2, 4, draws).shape == (0, 2)  # too few samples to hide in


@pytest.mark.parametrize("items, population", [(32, 10), (3, 10), (10, 10)])
def test_quotas_add_up(items, population):
    class Context:
        def __init__(self):
            self.population = population

        def generator(self, purpose):
            return torch.Generator().manual_seed(0)

    quotas = Strategy(items=items).quotas(Context())
    assert sum(quotas.items.values()) == items and len(quotas.items) == min(items, population)
    assert max(quotas.items.values()) - min(quotas.items.values()) <= 1 and list(quotas.items) == sorted(quotas.items)
    assert quotas(next(iter(quotas.items))) == {"items": max(quotas.items.values()), "per_item": 10}


@pytest.mark.parametrize("hidden", [[H], [6, H]])
def test_the_ledger_has_the_closed_form(hidden, tmp_path):
    result = fl.run({**RUN, "model": {"name": "mlp", "hidden": hidden}}, out=tmp_path / "run")
    widths = [IN, *hidden, OUT]
    model = 4 * sum((a + 1) * b for a, b in zip(widths, widths[1:])) + 4 * (8 * H * H + 5 * H)
    rows = [(r["round"], r["direction"], r["group"], r["payload_bytes"]) for r in result.ledger.to_pylist()]
    setup = sorted(nbytes for round_, *_, nbytes in rows if round_ == -1)
    assert setup == sorted(4 * IN * n for n in (2, 2, 1, 1))  # six items of four clients
    assert {row[1:3] for row in rows if row[0] == -1} == {("up", "items")}
    found = sorted(row for row in rows if row[0] >= 0)
    each = [(r, way, "model", model) for r in range(ROUNDS) for way in ("up", "down")]
    assert found == sorted(CLIENTS * [(0, "down", "pseudo", 4 * ITEMS * IN), *each])
    assert result.metrics[0]["pseudo"] == ITEMS


def test_balance_alone_sends_no_projection(tmp_path):
    result = fl.run({**RUN, "client": {**RUN["client"], "mu": 0.0}}, out=tmp_path / "run")
    assert not any(name.startswith("projection") for name in result.model)
    assert {r["group"] for r in result.ledger.to_pylist()} == {"model", "pseudo", "items"}


@pytest.mark.parametrize(
    "more, message",
    [
        ({"strategy": {"name": "fedbr", "items": 0}}, r"does not receive \['pseudo'\]"),
        ({"strategy": {"name": "fedbr", "per_item": 1}}, "strategy.per_item: 1 is not at least 2"),
        ({"task": "regression"}, "needs a class for each sample, and Regression is no classification"),
        ({"client": {"order": "first"}}, "client.order"),
        ({"strategy": {"name": "fedbr", "per_item": 10_000}}, "strategy.per_item: 10000 samples are more than"),
    ],
)
def test_wrong_settings_are_refused_before_round_0(more, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        fl.run({**RUN, **more}, out=tmp_path / "run")


def test_models_without_a_linear_last_layer_are_refused():
    with pytest.raises(ValueError, match=r"last layer has to be a linear one, it is 1 \(LayerNorm\)"):
        FedBR().extend(nn.Sequential(nn.Linear(IN, H), nn.LayerNorm(H)), (IN,), H)
    with pytest.raises(ValueError, match="last linear layer 0 has 5 outputs, and the task has 4"):
        FedBR().extend(nn.Sequential(nn.Linear(IN, 5), nn.Softmax(-1)), (IN,), 4)
