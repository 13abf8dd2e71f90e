"""FedIns: the choice of entries and the adapted layers on paper, frozen tensors, and the ledger's closed form."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients import fedins
from clients.fedins import FedIns, WithPool
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.models.architectures.cnn import CNNTiny
from fl.models.architectures.resnet import ResNet8
from fl.models.architectures.transformer import Transformer
from fl.models.binding import Initial
from fl.tasks.supervised import Classification

IN, H, OUT, CLIENTS, ROUNDS = 5, 3, 4, 3, 2
RUN = {
    "rounds": ROUNDS,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": CLIENTS},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [H]},
    "cohort": {"size": CLIENTS},
    "strategy": "fedins",
    "client": {"batch": 8, "lr": 0.1, "entries": 4, "chosen": 2},
    "execution": {"executor": "serial"},
}


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(IN, H), nn.ReLU(), nn.Linear(H, OUT))


def with_pool(entries: int, chosen: int, module: nn.Module | None = None, seed: int = 0) -> WithPool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WithPool(module or network(), entries, chosen)


def context(client: FedIns, module: nn.Module, samples: int = 9) -> ClientContext:
    draw = torch.Generator().manual_seed(1)
    arrays = {"x": torch.randn(samples, IN, generator=draw), "y": torch.arange(samples) % OUT}
    view, initial = View(arrays, np.arange(samples)), Initial.of(module)
    place = dict(client=1, seed=2, round=0, rounds=1, participation=0, config={}, state=None)
    parts = dict(train=view, val=view, test=view, initial=initial, module=module, task=Classification())
    return ClientContext(**place, **parts, received={"model": initial.trained}, training_loop=train)


# -- the choice -------------------------------------------------------------------------------------------------------
def test_samples_choose_the_nearest_keys():
    net = with_pool(2, 1, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with torch.no_grad():
        net.get_submodule("0").weight.copy_(torch.eye(2))
        net.get_submodule("0").bias.zero_()
        net.adapters.keys.copy_(torch.tensor([[3.0, 4.0], [-6.0, -8.0]]))
    near, chosen = net.choice(torch.tensor([[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]]))
    assert chosen.tolist() == [[0], [1], [0]]  # a query of zero is as near to all keys, and takes the first
    assert near[:, 0].tolist() == pytest.approx([1.0, 1.0, 0.0])
    y = torch.zeros(3, dtype=torch.int64)
    batch = {"x": torch.tensor([[3.0, 4.0], [-3.0, -4.0], [0.0, 0.0]]), "y": y}
    losses = FedIns(entries=2, chosen=1, key_weight=1.0).objective(net, batch, None, Classification())
    assert losses.tolist() == pytest.approx([0.0, 0.0, 1.0])


def test_one_layer_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    shares = torch.full((1, 2), 0.5)
    scale, shift = shares @ torch.tensor([[2.0], [4.0]]), shares @ torch.tensor([[1.0], [3.0]])
    assert fedins.adapted(scale, shift, layer, torch.ones(1, 1)).item() == 5  # 1 * 3 + 2


def by_hand(net: WithPool, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs, one sample after another."""
    tensors, pool, found = dict(net.named_parameters()), net.adapters, []
    for row in x:
        hidden = F.linear(row, tensors["1.weight"], tensors["1.bias"])
        query = hidden.relu()
        cosines = [(query @ key / (query.norm() * key.norm()).clamp(min=1e-12)).item() for key in pool.keys]
        best = sorted(range(len(cosines)), key=lambda j: (-cosines[j], j))[: net.chosen]
        scale, shift = (torch.stack([part[j] for j in best]).mean(0) for part in (pool.scale, pool.shift))
        f = (hidden * scale + shift).relu()
        found.append(torch.stack([pool.weight[j] @ f + pool.bias[j] for j in best]).mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("entries, chosen", [(1, 1), (5, 2), (3, 3)])
def test_outputs_by_hand(entries, chosen):
    net, x = with_pool(entries, chosen), torch.randn(12, IN, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        net.adapters.weight.add_(torch.randn(net.adapters.weight.shape, generator=torch.Generator().manual_seed(4)))
        net.adapters.scale.mul_(torch.arange(1.0, entries + 1)[:, None])
    torch.testing.assert_close(net(x), by_hand(net, x))
    alone = torch.cat([net(row[None]) for row in x])  # a sample's choice does not depend on its batch
    torch.testing.assert_close(net(x), alone)


def test_with_all_entries_the_keys_do_not_matter():
    net, x = with_pool(4, 4), torch.randn(6, IN)
    before = net(x)
    with torch.no_grad():
        net.adapters.keys.copy_(torch.randn(4, H))
    assert torch.equal(net(x), before)


def test_entries_that_nobody_chose_have_no_gradient():
    net, batch = with_pool(6, 2), {"x": torch.randn(2, IN), "y": torch.tensor([0, 1])}
    chosen = net.choice(batch["x"])[1].flatten()
    FedIns(entries=6, chosen=2).objective(net, batch, None, Classification()).sum().backward()
    left_out = [j for j in range(6) if j not in chosen]
    assert left_out
    for name, parameter in net.named_parameters():
        if name.startswith("adapters."):
            assert parameter.grad[chosen].any() and not parameter.grad[left_out].any()
        else:
            assert parameter.grad is None


# -- one entry is one set of scales and shifts ------------------------------------------------------------------------
class Scaled(nn.Module):
    """The network with one set of scales and shifts, written out."""

    def __init__(self, net: WithPool):
        super().__init__()
        tensors = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        self.register_buffer("w", tensors["1.weight"])
        self.register_buffer("b", tensors["1.bias"])
        for name in ("scale", "shift", "weight", "bias"):
            setattr(self, name, nn.Parameter(tensors[f"adapters.{name}"][0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(x, self.w, self.b) * self.scale + self.shift
        return F.linear(hidden.relu(), self.weight, self.bias)


def test_one_entry_without_key_loss_is_local_sgd_of_one_set():
    net = with_pool(1, 1)
    before = {name: p.clone() for name, p in net.named_parameters() if not name.startswith("adapters.")}
    settings = dict(lr=0.3, batch=4, epochs=2)
    pool = FedIns(entries=1, chosen=1, key_weight=0.0, **settings)
    found = pool.work("train", context(pool, net), None).update.groups["model"]
    plain = fl.LocalTraining(**settings)
    expected = plain.work("train", context(plain, Scaled(net)), None).update.groups["model"]
    assert not found["adapters.keys"].any()
    for name, change in expected.items():
        assert change.any()
        torch.testing.assert_close(found[f"adapters.{name}"][0], change, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(dict(net.named_parameters())[name], tensor) for name, tensor in before.items())


# -- architectures ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "build, x, sizes",
    [
        (partial(CNNTiny().build, (1, 8, 8)), torch.rand(3, 1, 8, 8), [16, 32]),
        (partial(ResNet8(width=4).build, (3, 8, 8)), torch.rand(3, 3, 8, 8), [4] * 6 + [8] * 6 + [16] * 6),
        (
            partial(Transformer(vocabulary=9, width=8, layers=1, heads=2, forward=6).build, (7,)),
            torch.randint(9, (3, 7)),
            [8, 24, 8, 8, 6, 8, 8],
        ),
    ],
)
def test_other_architectures_start_as_they_were(build, x, sizes):
    """With scales of 1 and shifts of 0, the outputs are those of the model before."""
    torch.manual_seed(0)
    module = build(OUT).eval()
    expected = module(x)
    net = with_pool(3, 2, module).eval()
    assert sorted(net.widths.values()) == sorted(sizes)
    with torch.no_grad():
        net.adapters.scale.fill_(1.0)
        net.adapters.shift.zero_()
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net.adapters.scale.fill_(2.0)
    assert not torch.allclose(net(x), expected)


def test_channels_and_tokens_are_scaled_by_feature():
    scale, shift = torch.tensor([[2.0, 3.0], [5.0, 7.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    for layer, x, axis in ((nn.GroupNorm(1, 2), torch.rand(2, 2, 3, 3), 1), (nn.LayerNorm(2), torch.rand(2, 3, 2), -1)):
        found, plain = fedins.adapted(scale, shift, layer, x).movedim(axis, 1), layer(x).movedim(axis, 1)
        for b in range(2):
            for d in range(2):
                torch.testing.assert_close(found[b, d], plain[b, d] * scale[b, d] + shift[b, d])


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)), "normalises over the batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "no linear, convolution or normalisation layer before"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "last layer has to be a linear one"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)), "2 has 3 outputs, and the task has 2"),
    ],
)
def test_models_that_do_not_fit_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        FedIns().extend(module, (2,), 2)


# -- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("hidden", [[H], [6, H]])
def test_the_ledger_has_the_closed_form_and_the_body_stays(hidden, tmp_path):
    config = {**RUN, "model": {"name": "mlp", "hidden": hidden}}
    body = fl.run({**config, "strategy": "fedavg", "client": {"batch": 8}, "rounds": 1}, out=tmp_path / "body")
    config["model"]["init"] = str(tmp_path / "body")
    result = fl.run(config, out=tmp_path / "run")
    a = 2 * sum(hidden)
    each = 4 * 4 * (a + H + OUT * H + OUT)
    rows = result.ledger.to_pylist()
    assert len(rows) == 2 * CLIENTS * ROUNDS and {(r["group"], r["payload_bytes"]) for r in rows} == {("model", each)}
    assert set(result.model) == {f"adapters.{name}" for name in ("keys", "scale", "shift", "weight", "bias")}
    shares = [result.metrics[-1][f"train/entry{j}"] for j in range(4)]
    assert sum(shares) == pytest.approx(2) and all(0 <= share <= 1 for share in shares)
    assert set(body.model).isdisjoint(result.model)


def test_a_client_without_samples_sends_no_change():
    client, net = FedIns(entries=3, chosen=2), with_pool(3, 2)
    reply = client.work("train", context(client, net, samples=0), None)
    assert not any(tensor.any() for tensor in reply.update.groups["model"].values())
    assert [reply.update.metrics[f"entry{j}"] for j in range(3)] == [0.0] * 3


def test_more_chosen_than_entries_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="chosen: 5 is more than the 4 entries"):
        fl.run({**RUN, "client": {**RUN["client"], "chosen": 5}}, out=tmp_path / "run")


def test_an_adapter_of_the_body_is_refused_before_round_0(tmp_path):
    with pytest.raises(ConfigError, match="strategy.name: fedins trains the parts .*client: fedins without model.adap"):
        fl.run(RUN, out=tmp_path / "run", **{"model.adapter": {"name": "lora", "rank": 1}})
