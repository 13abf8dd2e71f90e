"""FedSA-LoRA: A is exchanged, B and the head stay on the client, for every executor and plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.fedsa_lora import FedSALoRA as FedSAClient
from fl.config.config import resolve
from fl.config.reading import read
from fl.method.training_values import TrainingInputs
from fl.models import adapter
from fl.models.binding import Initial
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from fl.tensors.params import NOTHING, Params, join
from tests.watching import AfterRound

CLIENTS, IN, HIDDEN, OUT, R = 5, 6, 7, 4, 2
RUN = {
    "rounds": 4,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": CLIENTS},
    "partition": "natural",
    "model": {
        "name": "mlp",
        "hidden": [HIDDEN],
        "adapter": {"name": "lora", "rank": R, "alpha": 4, "targets": ["1"], "trains": ["3.*"]},
    },
    "cohort": {"name": "uniform", "size": 3},
    "strategy": "fedsa_lora",
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}


@dataclass(frozen=True, kw_only=True)
class Watched(FedSAClient):
    """Stores in its state the B at the start of its latest training."""

    def start(self, given):
        state = given.state
        return super().start(given if "left" not in state else _with(given, state["left"]))

    def finish(self, end):
        groups, left = super().finish(end if "left" not in end.state else _with(end, end.state["left"]))
        return groups, {"left": left, "began": end.start.select(list(left))}


def _with(given, state):
    return replace(given, state=state)


def states(simulation) -> dict[int, object]:
    """Return the stored state of each client."""
    segments = Segments(simulation.directory / "clients")
    found = {c: segments.read(w) for c, w in enumerate(simulation.states.locations(np.arange(CLIENTS))) if w[0] >= 0}
    segments.close()
    return found


def equal(p, q) -> bool:
    return set(p) == set(q) and all(torch.equal(p[n], q[n]) for n in p)


def test_a_client_goes_on_from_the_b_and_head_it_left(tmp_path):
    history = []
    config = {**RUN, "rounds": 8, "client": {**RUN["client"], "name": f"{__file__}:Watched"}}
    with Simulation(resolve(read(config)), tmp_path / "run") as simulation:
        simulation.run([AfterRound(lambda _: history.append(states(simulation)))])
    returned = 0
    for before, after in zip(history, history[1:]):
        for client, state in before.items():
            if equal(after[client]["left"], state["left"]):
                continue  # the client did not take part, so its state is unchanged
            returned += 1
            assert equal(after[client]["began"], state["left"])
    assert returned >= 5
    last = [state["left"] for state in history[-1].values()]
    assert {n for n in last[0]} == {"1.lora_B.default.weight", "3.weight", "3.bias"}
    assert not any(equal(p, q) for i, p in enumerate(last) for q in last[:i])


@pytest.mark.parametrize(
    ("kind", "floats"),
    [("lora", R * (IN + HIDDEN)), ("rslora", R * (IN + HIDDEN)), ("vera", 2 * R)],
    ids=lambda x: str(x),
)
def test_only_a_is_sent(kind, floats, tmp_path):
    """Two adapted layers take 4 sum r in bytes, with VeRA 4 sum r. The server's model shows no unsent tensor."""
    changes = {
        "client.lr": 0.03,
        "model.adapter.name": kind,
        "model.adapter.targets": [],
        "model.adapter.trains": [],
        "cohort.size": CLIENTS,
    }
    result = fl.run(RUN, out=tmp_path / "run", **changes)
    rows = result.ledger.to_pylist()
    assert {r["group"] for r in rows} == {"model"} and len(rows) == 2 * 4 * CLIENTS
    assert {r["payload_bytes"] for r in rows} == {r["encoded_bytes"] for r in rows} == {4 * floats}
    assert not any(result.model[n].any() for n in adapter.second(result.model))
    first = fl.run(RUN, out=tmp_path / "first", **{**changes, "client.lr": 0.0}).model
    assert all(not torch.equal(result.model[n], first[n]) for n in adapter.first(first))


def test_a_shared_head_is_a_group_of_its_own(tmp_path):
    result = fl.run(RUN, out=tmp_path / "run", **{"strategy.head": "shared"})
    sizes = {(r["direction"], r["group"]): r["payload_bytes"] for r in result.ledger.to_pylist()}
    head = 4 * (HIDDEN + 1) * OUT
    assert sizes == {(way, group): n for way in ("up", "down") for group, n in (("model", 4 * R * IN), ("head", head))}


def trained(a, b, w, bias, x, y, scale, lr):
    """Take one gradient step on A and B by autograd."""
    a, b = (x.detach().clone().requires_grad_() for x in (a, b))
    nn.functional.cross_entropy(x @ (w + scale * b @ a).T + bias, y).backward()
    return a - lr * a.grad, b - lr * b.grad


def test_three_rounds_by_hand(tmp_path):
    """Full batches, one step: A is the weighted mean of the clients' A, and each client keeps its own B."""
    config = {**RUN, "rounds": 3, "cohort": {"name": "uniform", "size": CLIENTS}}
    config["model"] = {"name": "softmax", "adapter": {"name": "lora", "rank": R, "alpha": 4}}
    config["client"] = {"steps": 1, "batch": "full", "lr": 0.3}
    with Simulation(resolve(read(config)), tmp_path / "run") as simulation:
        initial, dataset = simulation.run_setup.initial, simulation.run_setup.dataset.train
        partition = simulation.run_setup.periods[0].partition
        model = simulation.run().model
        left = states(simulation)
    names = [
        next(n for n in {**initial.trained, **initial.frozen} if m in n) for m in ("lora_A", "lora_B", "layer.weight")
    ]
    a, w, bias = initial.trained[names[0]], initial.frozen[names[2]], initial.frozen[names[2].replace("weight", "bias")]
    b = [initial.trained[names[1]]] * CLIENTS
    rows = [partition.view_rows(c, "train") for c in range(CLIENTS)]
    for _ in range(3):
        local = []
        for c in range(CLIENTS):
            x, y = (torch.from_numpy(dataset[k][rows[c]]) for k in ("x", "y"))
            own, b[c] = trained(a, b[c], w, bias, x.flatten(1), y, 2.0, 0.3)
            local.append(own)
        n = [len(r) for r in rows]
        a = sum(k * own for k, own in zip(n, local)) / sum(n)
    torch.testing.assert_close(model[names[0]], a.detach(), rtol=1e-4, atol=1e-6)
    for c in range(CLIENTS):
        torch.testing.assert_close(left[c][names[1]], b[c].detach(), rtol=1e-4, atol=1e-6)


def test_one_client_is_local_training(tmp_path):
    one = {"data.clients": 1, "cohort.size": 1, "splits.test": 0.3}
    fedsa = fl.run(RUN, out=tmp_path / "fedsa", **one)
    local = fl.run(RUN, out=tmp_path / "local", **one, **{"strategy": "fedavg", "client.name": "sgd"})
    for name in adapter.first(local.model):
        torch.testing.assert_close(fedsa.model[name], local.model[name], rtol=1e-5, atol=1e-6)
    key = "clients/loss_weighted"
    assert fedsa.metrics[-1][key] == pytest.approx(local.metrics[-1][key], rel=1e-4)


def test_with_a_common_b_the_mean_of_a_is_exact_in_the_product():
    """mean(B A_i) = B mean(A_i), so clients with the same B need not send it."""
    draw = torch.Generator().manual_seed(0)
    b, p = torch.randn(HIDDEN, R, generator=draw), torch.tensor([0.2, 0.5, 0.3])
    a = torch.randn(3, R, IN, generator=draw)
    torch.testing.assert_close(b @ torch.einsum("i,irk->rk", p, a), torch.einsum("i,iok->ok", p, b @ a))


def test_a_client_that_was_away_has_the_new_a_and_its_own_b():
    """A is received; the rest comes from the client's state, whatever its age."""
    draw = torch.Generator().manual_seed(0)
    old, new, b = (
        Params.of({n: torch.randn(2, 2, generator=draw)}) for n in ("l.lora_A.x", "l.lora_A.x", "l.lora_B.x")
    )
    given = TrainingInputs({"model": new}, b, {}, Initial(join(old, b * 0.0), NOTHING))
    start = FedSAClient().start(given)
    assert torch.equal(start["l.lora_A.x"], new["l.lora_A.x"]) and torch.equal(start["l.lora_B.x"], b["l.lora_B.x"])
    first = FedSAClient().first_state(given)
    assert set(first) == {"l.lora_B.x"} and not first["l.lora_B.x"].any()


@pytest.mark.ray
def test_ray_and_serial_leave_the_same(tmp_path):
    kept = []
    for name, execution in (("serial", {}), ("ray", {"execution.executor": "ray", "execution.workers": 2})):
        with Simulation(resolve(read({**RUN}, execution)), tmp_path / name) as simulation:
            model = simulation.run().model
            kept.append((model, states(simulation)))
    (one, left), (other, found) = kept
    assert equal(one, other) and left.keys() == found.keys() and all(equal(left[c], found[c]) for c in left)


# -- on an encoder ----------------------------------------------------------------------------------------------------
WIDTH, BLOCKS = 32, 2


class Encoder(nn.Module):
    """A tiny BERT; the features of a sample are binned to token ids."""

    def __init__(self, outputs: int):
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 2, "intermediate_size": 48}
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        self.body = BertModel(
            BertConfig(vocab_size=16, max_position_embeddings=16, **sizes, **still), add_pooling_layer=False
        )
        self.classifier = nn.Linear(WIDTH, outputs)

    def forward(self, x):
        words = (x.flatten(1).clamp(-2, 2) * 3 + 8).long()
        return self.classifier(self.body(words).last_hidden_state[:, 0])


@dataclass(frozen=True, kw_only=True)
class TinyBert:
    kind: ClassVar[str] = "encoder"

    def build(self, shape, outputs):
        return Encoder(outputs)


def test_an_encoder_adapted_at_query_and_value(tmp_path):
    adapted = {"name": "lora", "rank": R, "targets": ["query", "value"], "trains": ["classifier.*"]}
    config = {
        **RUN,
        "rounds": 2,
        "splits": {"test": 0.3},
        "model": {"name": f"{__file__}:TinyBert", "adapter": adapted},
    }
    result = fl.run(config, out=tmp_path / "run")
    rows = result.ledger.to_pylist()
    assert {(r["group"], r["payload_bytes"]) for r in rows} == {("model", 4 * BLOCKS * 2 * R * WIDTH)}
    assert {n.split(".")[-4] for n in adapter.first(result.model)} == {"query", "value"}
    assert result.metrics[1]["train/loss"] < result.metrics[0]["train/loss"] + 0.5
    assert np.isfinite(result.metrics[-1]["clients/loss_mean"])
