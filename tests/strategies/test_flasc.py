"""FLASC: masks, traffic and the server's rule by hand; at density 1 it is FedAvg."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.flasc import FLASC as FLASCClient
from fl.communication.codecs.identity import Identity
from fl.communication.codecs.top_k import keep_largest
from fl.communication.transmit import transmit
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.optimiser import Adam
from fl.method.reduction import Meta, SparseMean
from fl.method.requests import ExchangeResult
from fl.method.server_optimiser import Plain, PseudoGradient
from fl.method.strategy import ServerContext
from fl.models.binding import Initial, module_params
from fl.tasks.supervised import Regression
from fl.tensors.params import Params
from fl.tensors.sparse import Sparse
from strategies.flasc import FLASC
from strategies.flasc_fixed import FLASCFixed

CONFIG = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 8, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.0},
    "model": {"name": "mlp", "hidden": [5], "adapter": {"name": "lora", "rank": 2}},
    "cohort": {"size": 4},
    "client": {"epochs": 1, "batch": 5, "lr": 0.1},
    "execution": {"executor": "serial"},
}
SIZE = 2 * (6 + 5) + 2 * (5 + 4)  # r (in + out) of both layers


def params(*w: float) -> Params:
    return Params.of({"a": torch.tensor(w[:2]), "b": torch.tensor(w[2:])})


def context(round_=0, n=3) -> ServerContext:
    return ServerContext(0, round_, 10, n, np.arange(n), Regression(), nn.Identity())


def play(tmp_path, name, **overrides):
    return fl.run({**CONFIG, "strategy": "fedavg"}, out=tmp_path / name, **overrides)


def ranked(values: np.ndarray, k: int) -> list[int]:
    """Return the positions of the k largest magnitudes by an independent sort; of equal ones the first."""
    return sorted(np.argsort(-np.abs(values), kind="stable")[:k].tolist())


# -- 7: ties, and one ranking over all tensors ------------------------------------------------------------------------
def test_ties_go_to_the_first_by_index():
    sparse = keep_largest(torch.tensor([1.0, -2.0, 1.0, 2.0, -1.0, 0.0]), 0.5)
    assert sparse.positions.tolist() == [0, 1, 3] and sparse.values.tolist() == [1.0, -2.0, 2.0]


def test_the_mask_ranks_all_tensors_together():
    state = FLASC(down=0.5).init(params(0.1, 0.2, 3.0, -4.0), None)
    sent = FLASC(down=0.5).broadcast(state, context()).shared["model"]
    assert sent.positions.tolist() == [2, 3] and sent.values.tolist() == [3.0, -4.0]
    assert FLASC(down=0.5).model(state).compact().tolist() == [0.0, 0.0, 3.0, -4.0]


def test_densities_decay_geometrically():
    state = FLASC(down=0.8, up=0.4, decay=0.5).init(params(4, 3, 2, 1), None)
    rule, counts = FLASC(down=1, up=0.5, decay=0.5), []
    for r in range(4):
        broadcast = rule.broadcast(replace(state, optimiser=replace(state.optimiser, steps=r)), context())
        model = broadcast.shared["model"]
        counts.append((model.numel if isinstance(model, Params) else len(model.positions), broadcast.config["up"]))
    assert counts == [(4, 0.5), (2, 0.25), (1, 0.125), (1, 0.0625)]


# -- 2, 3, 4: the server ----------------------------------------------------------------------------------------------
def test_the_mean_of_sparse_vectors_is_uniform_and_as_dense_ones():
    draw, reduction, rows = np.random.default_rng(0), SparseMean("uniform"), []
    acc = None
    for i in range(3):
        values = draw.standard_normal(20).astype(np.float32)
        positions = ranked(values, 5)
        rows.append(np.where(np.isin(np.arange(20), positions), values, 0))
        sparse = Sparse(torch.tensor(positions), torch.from_numpy(values[positions]), 20)
        lifted = reduction.lift(sparse, Meta(i, 10 * i + 1))
        acc = lifted if acc is None else reduction.merge(acc, lifted)
    mean = reduction.finish(acc)
    np.testing.assert_allclose(mean, np.mean(rows, 0), rtol=1e-6)
    assert torch.count_nonzero(mean) <= 3 * 5


def test_a_plain_server_of_lr_one_adds_the_mean_and_leaves_the_rest():
    rule = FLASC(down=0.5, up=0.25, lr=1.0, server_optimiser=Plain())
    state = rule.init(params(0.5, 1.0, -3.0, 2.0), None)
    after, _ = rule.step(state, torch.tensor([0.0, 0.25, 0.0, -1.0]), context())
    assert after.w.compact().tolist() == [
        0.5,
        1.25,
        -3.0,
        1.0,
    ]  # entry 0 is outside the mask and in no update, so it does not change
    assert state.w.compact().tolist() == [0.5, 1.0, -3.0, 2.0]


def test_adam_is_torchs():
    rule, grads = (
        FLASC(lr=0.1, server_optimiser=PseudoGradient(optimiser=Adam())),
        [[1.0, -2.0, 0.0, 0.5], [0.0, 1.0, 0.0, -0.5]],
    )
    state, weights = rule.init(params(1.0, 2.0, 3.0, 4.0), None), torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    theirs = torch.optim.Adam([weights], lr=0.1)
    for grad in grads:
        state, _ = rule.step(state, -torch.tensor(grad), context())
        weights.grad = torch.tensor(grad)
        theirs.step()
    torch.testing.assert_close(state.w.compact(), weights.detach())


# -- 2, 5, 6: the client ----------------------------------------------------------------------------------------------
def client(up: float, down: float):
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    w = module_params(module)
    arrays = {"x": torch.randn(12, 5), "y": torch.randn(12, 3)}
    view = View(arrays, np.arange(12))
    received = {"model": keep_largest(w.compact(), down)}
    own = {"config": {"up": up}, "state": None, "initial": Initial.of(module), "module": module, "task": Regression()}
    own["training_loop"] = train
    ctx = ClientContext(0, 0, 0, 1, 0, received, train=view, val=view, test=view, **own)
    return ctx, w, arrays


def test_the_change_is_against_the_masked_start():
    """One full step in numpy: w_i = M w - lr grad(M w); the floor(P up) largest entries of -lr grad are sent."""
    ctx, w, arrays = client(up=0.3, down=0.5)
    flat = w.compact().numpy()
    start = np.where(np.isin(np.arange(18), ranked(flat, 9)), flat, 0)
    weight, bias = start[:15].reshape(3, 5), start[15:]
    x, y = arrays["x"].numpy(), arrays["y"].numpy()
    error = (x @ weight.T + bias - y) / 12
    delta = -0.1 * np.concatenate([(error.T @ x).reshape(-1), error.sum(0)])
    sent = FLASCClient(batch="full", steps=1, lr=0.1).work("train", ctx, None).update.groups["model"]
    assert np.count_nonzero(delta) == 18  # local training is dense
    assert sent.positions.tolist() == ranked(delta, 5)  # floor(5.4)
    np.testing.assert_allclose(sent.values, delta[ranked(delta, 5)], rtol=1e-4, atol=1e-6)


def test_in_round_0_b_is_zero_and_can_come_up_all_the_same(tmp_path):
    config = {"strategy": {"name": "flasc", "down": 0.25, "lr": 1.0, "server_optimiser": "plain"}, "rounds": 1}
    result = play(tmp_path, "a", **config, **{"client.lr": 0.0})
    assert all(not result.model[n].any() for n in result.model if "lora_B" in n)  # M has entries of A only
    moved = play(tmp_path, "b", **config, **{"strategy.down": 1.0})
    assert any(moved.model[n].any() for n in moved.model if "lora_B" in n)


# -- 1: density 1 -----------------------------------------------------------------------------------------------------
def test_density_1_is_fedavg_to_the_bit(tmp_path):
    plain = play(tmp_path, "fedavg", **{"strategy.weights": "uniform"})
    ours = {"name": "flasc", "down": 1.0, "up": 1.0, "lr": 1.0, "server_optimiser": "plain"}
    dense = play(tmp_path, "flasc", strategy=ours)
    assert dense.digest == plain.digest
    assert dense.ledger.select(["encoded_bytes"]).equals(plain.ledger.select(["encoded_bytes"]))
    quarter = play(tmp_path, "quarter", strategy={**ours, "up": 0.25})
    assert quarter.digest != plain.digest


# -- traffic ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("down, up", [(0.25, 0.25), (0.5, 0.05), (0.02, 1.0)])
def test_the_ledger_has_the_closed_form(tmp_path, down, up):
    result = play(tmp_path, "r", strategy={"name": "flasc", "down": down, "up": up})

    def encoded(density):
        k = max(1, math.floor(density * SIZE))
        return 4 * k + (0 if density == 1 else math.ceil(min(k * math.ceil(math.log2(SIZE)), SIZE) / 8))

    for row in result.metrics:
        assert (row["downlink_bytes"], row["uplink_bytes"]) == (4 * encoded(down), 4 * encoded(up))
        assert row["downlink_values_bytes"] == 4 * 4 * max(1, math.floor(down * SIZE))
        assert row["uplink_values_bytes"] == 4 * 4 * max(1, math.floor(up * SIZE))


def test_a_quarter_of_2640_takes_2970_bytes():
    """A bitmap and 32-bit values at density 1/4 take 1.125 P bytes, 3.56 times less than 4 P."""
    _, sizes = transmit(Identity(), keep_largest(torch.randn(2640, generator=torch.Generator().manual_seed(0)), 0.25))
    assert sizes.encoded_bytes == 2970 == 1.125 * 2640


# -- the fixed mask ---------------------------------------------------------------------------------------------------
def test_a_fixed_mask_stays_what_the_dense_round_left(tmp_path):
    result = play(
        tmp_path, "f", strategy={"name": "flasc_fixed", "down": 0.25}, client={"name": "flasc_fixed", "lr": 0.1}
    )
    assert torch.count_nonzero(result.model.compact()) <= SIZE // 4
    assert [row["uplink_values_bytes"] for row in result.metrics] == [4 * 4 * SIZE] + 2 * [4 * 4 * (SIZE // 4)]


def test_a_fixed_mask_by_hand():
    rule = FLASCFixed(down=0.5, lr=1.0, server_optimiser=Plain())
    state, first = rule.init(params(1.0, 2.0, 3.0, 4.0), None), torch.tensor([5.0, 0.0, -2.0, 0.0])
    rounds = rule.round(state, context(n=1))
    assert isinstance(next(rounds).broadcast.shared["model"], Params)
    with pytest.raises(StopIteration) as end:
        rounds.send(ExchangeResult(first, np.arange(1), np.ones(1), {}))
    after, _ = end.value.value
    assert after.positions.tolist() == [0, 3] and after.w.compact().tolist() == [6.0, 0.0, 0.0, 4.0]
    assert rule.broadcast(after, context(1)).shared["model"].values.tolist() == [6.0, 4.0]


@pytest.mark.parametrize(
    "field, value",
    [
        ("down", 0),
        ("up", 1.5),
        ("decay", 0),
        ("server_optimiser", {"name": "pseudo_gradient", "optimiser": {"name": "torch", "cls": "SGD"}}),
    ],
)
def test_refusals(tmp_path, field, value):
    with pytest.raises(ConfigError, match=f"strategy.{field}"):
        play(tmp_path, "x", strategy={"name": "cellm", field: value})
