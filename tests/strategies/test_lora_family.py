"""Federated LoRA methods: server rules on random factors in numpy, and traffic in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.feddpa_lora import FedDPALoRA as FedDPAClient
from clients.fedex_lora import FedExLoRA as FedExLoRAClient
from clients.flora import FLoRA as FLoRAClient
from clients.hetlora import HetLoRA as HetLoRAClient
from clients.lora import LoRA as LoRAClient
from fl.data.views import View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.fold import Fold
from fl.method.messages import Broadcast
from fl.method.reduction import Meta, Product
from fl.method.requests import ExchangeResult
from fl.method.strategy import ServerContext
from fl.method.training_values import TrainingInputs
from fl.models import adapter
from fl.models.adapters.lora import LoRA
from fl.models.binding import Initial
from fl.tasks.supervised import Classification
from fl.tensors.params import Params
from strategies import lora_math as lora
from strategies.fedex_lora import FedExLoRA
from strategies.fedit import FedIT
from strategies.ffa_lora import FFALoRA
from strategies.flexlora import FlexLoRA
from strategies.flora import FLoRA
from strategies.hetlora import HetLoRA
from strategies.lora_fair import LoRAFair
from strategies.rolora import RoLoRA

IN, OUT, SCALE = 40, 30, 2.0
A, B, W = "0.lora_A.default.weight", "0.lora_B.default.weight", "0.base_layer.weight"
SIZES = (3, 5, 2)  # samples of the clients


def module(rank: int) -> nn.Module:
    torch.manual_seed(0)
    return LoRA(rank=rank, alpha=SCALE * rank).wrap(nn.Sequential(nn.Linear(IN, OUT)))


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(ranks=(2, 2, 2)) -> list[dict[str, torch.Tensor]]:
    """Return random LoRA factors, one pair per client."""
    return [{A: normal(r, IN, seed=2 * i), B: normal(OUT, r, seed=2 * i + 1)} for i, r in enumerate(ranks)]


def mean_product(local, weights=SIZES) -> np.ndarray:
    """Return sum_i p_i B_i A_i."""
    return sum(w / sum(weights) * x[B].numpy().astype(float) @ x[A].numpy() for w, x in zip(weights, local))


class Federation:
    """A server rule on one layer, and clients that answer with given factors."""

    def __init__(self, strategy, rank=2, clients=3):
        self.strategy, self.module, self.clients, self.round = strategy, module(rank), clients, 0
        self.initial = Initial.of(self.module)
        self.state = strategy.init(self.initial.trained, self.context())

    def context(self) -> ServerContext:
        ids = np.arange(self.clients)
        return ServerContext(0, self.round, 9, self.clients, ids, Classification(), self.module, self.initial.frozen)

    def begins(self) -> Params:
        """Return the initial factors of clients, at the largest rank."""
        state = self.state if isinstance(self.state, Params) else self.state.model
        return adapter.redrawn(state, self.state.draw) if isinstance(self.strategy, FLoRA) else state

    def answer(self, local) -> Federation:
        """Perform a round in which client i ends training with local[i]."""
        rounds = self.strategy.round(self.state, self.context())
        exchange = next(rounds)
        reduction = Product(exchange.reduction)
        fold = Fold(reduction, len(local))
        for i, tensors in enumerate(local):
            own = Params.of(tensors)
            delta = own - adapter.resized(self.begins().select(own), adapter.shapes(own))
            fold.add(0, i, reduction.lift({"model": delta}, Meta(i, SIZES[i])))
        try:
            rounds.send(ExchangeResult(fold.finish(), np.arange(len(local)), np.array(SIZES), {}))
        except StopIteration as end:
            self.state = end.value[0]
        self.round += 1
        return self

    @property
    def change(self) -> np.ndarray:
        """Return the change of the layer's weight with its adapter, divided by the adapter's scale."""
        model = self.strategy.model(self.state)
        weight = model[W] if W in model else self.initial.frozen[W]
        return ((weight - self.initial.frozen[W]) / SCALE + model[B] @ model[A]).double().numpy()


def close(x, y, tolerance=1e-5):
    x, y = (np.asarray(v, dtype=float) for v in (x, y))
    assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(y)


# -- algebra ----------------------------------------------------------------------------------------------------------
def test_stacked_factors_of_any_ranks_are_exact():
    local = factors((1, 3, 2))
    p = [w / sum(SIZES) for w in SIZES]
    first, second = lora.stack_factors([x[A] for x in local], [x[B] for x in local], p)
    assert first.shape == (6, IN) and second.shape == (OUT, 6)
    close(second @ first, mean_product(local))


@pytest.mark.parametrize("form", [lambda p: p, lora.dense])
def test_residual_is_what_the_mean_of_halves_misses(form):
    local = factors()
    p = [w / sum(SIZES) for w in SIZES]
    first, second = (sum(w * x[half] for w, x in zip(p, local)) for half in (A, B))
    stacked = lora.stack_factors([x[A] for x in local], [x[B] for x in local], p)
    error = lora.residual(form(stacked), first, second)
    close(lora.dense(error), mean_product(local) - second.numpy().astype(float) @ first.numpy())


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_flex_svd_is_the_truncated_svd(rank):
    matrix = normal(9, 4, seed=0) @ normal(4, 12, seed=1)  # a matrix of rank 4
    first, second = lora.flex_svd(matrix, rank, SCALE)
    assert first.shape == (rank, 12) and second.shape == (9, rank)
    u, s, v = np.linalg.svd(matrix.numpy().astype(float))
    close(SCALE * second @ first, (u[:, :rank] * s[:rank]) @ v[:rank])


def test_fair_correction_is_ridge_regression():
    error, first = normal(OUT, IN, seed=0), normal(3, IN, seed=1)
    lam = 0.7  # least squares on the rows of A^T followed by those of sqrt(lam) I
    rows = np.vstack([first.numpy().T, np.sqrt(lam) * np.eye(3)])
    expected = np.linalg.lstsq(rows, np.vstack([error.numpy().T, np.zeros((3, OUT))]), rcond=None)[0].T
    close(lora.fair_correction(error, first, lam), expected)


def test_norm_of_a_product():
    first, second = normal(3, IN, seed=0), normal(OUT, 3, seed=1)
    assert float(lora.product_norm(first, second)) == pytest.approx(
        np.linalg.norm(second.numpy() @ first.numpy()), rel=1e-5
    )


def test_ranks_cut_and_fill():
    model = Params.of(factors((3,))[0] | {"head.weight": torch.ones(2)})
    small = adapter.at_rank(model, 2)
    assert adapter.shapes(small) == {A: (2, IN), B: (OUT, 2), "head.weight": (2,)}
    full = adapter.resized(small, adapter.shapes(model))
    assert torch.equal(full[A][:2], model[A][:2]) and not full[A][2:].any()
    assert torch.equal(full[B][:, :2], model[B][:, :2]) and not full[B][:, 2:].any()


def test_redrawn_adapters():
    model = Params.of(factors()[0])
    one, same, other = (adapter.redrawn(model, draw) for draw in (7, 7, 8))
    assert torch.equal(one[A], same[A]) and not torch.equal(one[A], other[A])
    assert (
        not one[B].any() and one[A].abs().max() <= IN**-0.5 and one[A].std() == pytest.approx((3 * IN) ** -0.5, rel=0.2)
    )
    assert torch.equal(adapter.redrawn(model, 0)[A], model[A])


# -- server rules on random factors -----------------------------------------------------------------------------------
def test_fedit_averages_halves_and_is_not_exact():
    local, p = factors(), np.array(SIZES) / sum(SIZES)
    federation = Federation(FedIT()).answer(local)
    first, second = (sum(w * x[half].numpy() for w, x in zip(p, local)) for half in (A, B))
    close(federation.change, second @ first)
    assert np.linalg.norm(federation.change - mean_product(local)) > 0.1 * np.linalg.norm(mean_product(local))


@pytest.mark.parametrize("ranks", [(), (1, 4, 3)])
def test_flora_is_exact_for_any_ranks_round_after_round(ranks):
    federation = Federation(FLoRA(ranks=ranks), rank=max(ranks, default=2))
    expected = 0.0
    for round_ in range(5):  # beyond the increments that are kept
        local = [{name: x + round_ for name, x in own.items()} for own in factors(ranks or (2, 2, 2))]
        expected = expected + mean_product(local)
        federation.answer(local)
        assert not federation.state.model[B].any()
        close(federation.change, expected)


@pytest.mark.parametrize("uniform", [False, True])
def test_fedex_is_exact_round_after_round(uniform):
    federation = Federation(FedExLoRA(weights="uniform" if uniform else "examples"))
    for round_ in range(5):
        before = federation.strategy.model(federation.state)[W] - federation.initial.frozen[W]
        local = [{name: x + round_ for name, x in own.items()} for own in factors()]
        federation.answer(local)
        weights = (1, 1, 1) if uniform else SIZES
        close(federation.change, before.numpy() / SCALE + mean_product(local, weights))


def test_flexlora_is_the_best_of_its_rank_and_exact_if_that_is_enough():
    local = factors((1, 4, 3))
    u, s, v = np.linalg.svd(mean_product(local))
    four = Federation(FlexLoRA(ranks=(1, 4, 3)), rank=4).answer(local)
    close(four.change, (u[:, :4] * s[:4]) @ v[:4])
    cut = adapter.at_rank(four.state, 2)  # a client of rank 2 gets the best approximation of rank 2
    close(cut[B] @ cut[A], (u[:, :2] * s[:2]) @ v[:2])
    few = factors((1, 2, 1))
    close(Federation(FlexLoRA(ranks=(1, 4, 1)), rank=4).answer(few).change, mean_product(few))


def test_hetlora_pads_and_weighs_by_norm():
    local = factors((1, 4, 3))
    norms = [np.linalg.norm(x[B].numpy() @ x[A].numpy()) for x in local]
    first, second = np.zeros((4, IN)), np.zeros((OUT, 4))
    for w, x in zip(norms, local):
        first[: len(x[A])] += w / sum(norms) * x[A].numpy()
        second[:, : len(x[A])] += w / sum(norms) * x[B].numpy()
    state = Federation(HetLoRA(ranks=(1, 4, 3)), rank=4).answer(local).state
    close(state.model[A], first)
    close(state.model[B], second)
    assert state.ranks.tolist() == [1, 4, 3]


def test_hetlora_of_equal_ranks_and_norms_is_fedit():
    local = factors()
    for x in local:
        x[B] /= torch.linalg.norm(x[B] @ x[A])
    close(Federation(HetLoRA()).answer(local).change, Federation(FedIT(weights="uniform")).answer(local).change)


def test_hetlora_remembers_pruned_ranks():
    federation = Federation(HetLoRA(ranks=(4,)), rank=4).answer(factors((4, 3, 2)))
    assert federation.state.ranks.tolist() == [4, 3, 2]
    row = Broadcast.of(federation.strategy.broadcast(federation.state, federation.context()))
    assert [row.rows["model"](i, row.shared, None)[A].shape for i in range(3)] == [(4, IN), (3, IN), (2, IN)]


def test_lora_fair_misses_less_than_fedit_and_is_fedit_without_correction():
    local = factors()
    exact, fedit = mean_product(local), Federation(FedIT()).answer(local)
    fair = Federation(LoRAFair(lam=1e-3)).answer(local)
    assert np.linalg.norm(fair.change - exact) < np.linalg.norm(fedit.change - exact)
    close(fair.state[A], fedit.state[A])
    close(Federation(LoRAFair(lam=1e12)).answer(local).change, fedit.change)


def test_rolora_is_exact_and_leaves_the_other_half():
    federation = Federation(RoLoRA())
    begun, local = federation.state.model, factors()
    federation.answer([{B: x[B]} for x in local])
    assert torch.equal(federation.state.model[A], begun[A])
    close(federation.change, mean_product([{A: begun[A], B: x[B]} for x in local]))
    after = federation.state.model
    federation.answer([{A: x[A]} for x in local])
    assert torch.equal(federation.state.model[B], after[B])
    close(federation.change, mean_product([{A: x[A], B: after[B]} for x in local]))


def test_ffa_is_exact():
    federation = Federation(FFALoRA())
    begun, local = federation.state, factors()
    federation.answer([{B: x[B]} for x in local])
    assert torch.equal(federation.state[A], begun[A])
    close(federation.change, mean_product([{A: begun[A], B: x[B]} for x in local]))


@pytest.mark.parametrize("rule", [FedIT(), FLoRA(), FlexLoRA(), FedExLoRA(), HetLoRA(), LoRAFair()])
def test_one_client_is_that_client(rule):
    local = factors((2,))
    close(Federation(rule, clients=1).answer(local).change, local[0][B].numpy() @ local[0][A].numpy())


# -- whole runs -------------------------------------------------------------------------------------------------------
R, K = 2, 3
RUN = {
    "rounds": 4,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": K},
    "partition": "natural",
    "model": {"name": "softmax", "adapter": {"name": "lora", "rank": R, "alpha": 4}},
    "cohort": {"name": "uniform", "size": K},
    "client": {"steps": 3, "batch": 8, "lr": 0.5},
    "execution": {"executor": "serial"},
}
BOTH, STACK, DENSE = R * (IN + OUT), K * R * (IN + OUT), IN * OUT


def run(tmp_path, name, **overrides):
    return fl.run({**RUN, "strategy": name}, out=tmp_path / f"{len(list(tmp_path.iterdir()))}", **overrides)


def floats(result, direction: str, client: int = 0) -> list[int]:
    """Return the number of floats that a client sent or received in each round."""
    rows = [r for r in result.ledger.to_pylist() if r["direction"] == direction and r["client"] == client]
    assert {r["group"] for r in rows} <= {"model", "A", "B", "base"}
    return [sum(r["encoded_bytes"] for r in rows if r["round"] == t) // 4 for t in range(len(result.metrics))]


@pytest.mark.parametrize(
    ("name", "up", "down"),
    [  # all clients take part in all rounds, so each round they lack the last increment only
        ("fedit", [BOTH] * 4, [BOTH] * 4),
        ("ffa_lora", [R * OUT] * 4, [R * OUT] * 4),
        ("fedsa_lora", [R * IN] * 4, [R * IN] * 4),
        ("rolora", [R * OUT, R * IN] * 2, [0, R * OUT, R * IN, R * OUT]),  # the seed gives the initial halves
        ("flora", [BOTH] * 4, [0, *[STACK] * 3]),  # the stack of the last round's K factors, K r (in + out)
        ("flexlora", [BOTH] * 4, [BOTH] * 4),
        ("fedex_lora", [BOTH] * 4, [BOTH, *[BOTH + STACK] * 3]),
        ("hetlora", [BOTH] * 4, [BOTH] * 4),
        ("lora_fair", [BOTH] * 4, [BOTH] * 4),
        ("feddpa_lora", [BOTH] * 4, [BOTH] * 4),
        ("local", [0] * 4, [0] * 4),
    ],
)
def test_floats_up_and_down(name, up, down, tmp_path):
    settings = {"strategy.gamma": 1.0} if name == "hetlora" else {}
    result = run(tmp_path, name, **settings)
    assert (floats(result, "up"), floats(result, "down")) == (up, down)


def test_with_a_codec_that_loses_something_a_dense_sum_corrects_the_increments(tmp_path):
    """Two bytes per number. Three increments have 1,260 numbers, more than the 1,200 of the sum. Then all get it."""
    result = run(tmp_path, "flora", **{"codec.down": "fp16", "rounds": 7})
    assert floats(result, "down") == [n // 2 for n in (0, STACK, STACK, DENSE, STACK, STACK, DENSE)]


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
def test_floats_of_clients_of_several_ranks(name, tmp_path):
    settings = {"strategy.ranks": [1, 2, 4], "model.adapter.rank": 4, "model.adapter.alpha": 8, "rounds": 2}
    settings |= {"strategy.gamma": 1.0} if name == "hetlora" else {}
    result = run(tmp_path, name, **settings)
    for client, rank in enumerate((1, 2, 4)):
        own = rank * (IN + OUT)
        assert floats(result, "up", client) == [own, own]
        assert floats(result, "down", client) == ([0, 7 * (IN + OUT)] if name == "flora" else [own, own])


def test_who_was_away_catches_up(tmp_path):
    """Clients 0, 1, 2 take part in turn, one per round.

    When client 0 returns it receives three increments, each of the size of one client's factors.
    """
    result = run(tmp_path, "flora", **{"cohort": {"name": "cyclic", "size": 1}, "rounds": 4})
    assert [floats(result, "down", c)[c] for c in range(3)] == [0, BOTH, 2 * BOTH]
    assert floats(result, "down", 0)[3] == 3 * BOTH


def test_who_was_away_long_receives_the_dense_sum(tmp_path):
    """Ten clients take part in turn, one per round. Client c lacks c increments of BOTH = 140 floats.

    Nine of them, 1,260 floats, are more than the dense sum of 1,200 floats.
    """
    settings = {"cohort": {"name": "cyclic", "size": 1}, "data.clients": 10, "rounds": 10}
    result = run(tmp_path, "flora", **settings)
    assert [floats(result, "down", c)[c] for c in range(10)] == [*(c * BOTH for c in range(9)), DENSE]


@pytest.mark.parametrize(("name", "adapter_floats"), [("fedex_lora", 219), ("flora", 0)])
def test_who_holds_every_increment_receives_the_last_one(name, adapter_floats, tmp_path):
    """Softmax 120 -> 99, rank 1, five clients: the dense sum has 120 * 99 = 11,880 floats.

    An increment has 5 * (120 + 99) = 1,095 floats, so eleven increments are more than the sum. FedEx-LoRA also sends
    the adapter, 120 + 99 = 219 floats, 1,314 together.
    """
    data = {"name": "noise", "shape": [120], "classes": 99, "clients": 5}
    settings = {"data": data, "cohort.size": 5, "model.adapter.rank": 1, "client.steps": 1, "rounds": 14}
    result = run(tmp_path, name, **settings)
    assert floats(result, "down") == [adapter_floats, *[adapter_floats + 1095] * 13]


def test_one_client_of_fedex_is_fedit(tmp_path):
    settings = {"data.clients": 1, "cohort.size": 1}
    fedit, fedex = (run(tmp_path, name, **settings).model for name in ("fedit", "fedex_lora"))
    for name in fedit:
        close(fedex[name], fedit[name])


def test_the_first_round_of_one_client_of_flora_is_its_own_training(tmp_path):
    settings = {"data.clients": 1, "cohort.size": 1, "rounds": 1}
    before = run(tmp_path, "flora", **settings, **{"client.lr": 0.0}).model
    fedit, flora = (run(tmp_path, name, **settings).model for name in ("fedit", "flora"))
    a, b, w = (next(n for n in flora if mark in n) for mark in ("lora_A", "lora_B", "base_layer"))
    close(flora[w] - before[w], 2.0 * fedit[b] @ fedit[a], 1e-4)  # s = alpha / r = 2
    assert float((flora[w] - before[w]).norm()) > 0.01


def test_later_rounds_train_on_the_folded_weights(tmp_path):
    """Each round starts with new adapters, so earlier training is in the weights only."""
    losses = [m["train/loss"] for m in run(tmp_path, "flora", rounds=3).metrics]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize(("name", "client"), [("fedex_lora", FedExLoRAClient()), ("flora", FLoRAClient())])
def test_clients_that_train_together_train_on_the_changed_weights(name, client, tmp_path):
    net = module(2)
    initial, change = Initial.of(net), Params.of({"0.W": normal(OUT, IN, seed=7)})
    changed = client.initial_tensors(initial, {"base": change})
    assert torch.equal(changed.frozen[W], initial.frozen[W] + change["0.W"])
    assert client.initial_tensors(initial, {}) is initial  # nothing is changed in place
    loop, flat = (run(tmp_path, name, **{"rounds": 3, "execution.plan": plan}) for plan in ("loop", "flat"))
    for tensor in loop.model:
        close(flat.model[tensor], loop.model[tensor])
    weight = next(tensor for tensor in loop.model if "base_layer" in tensor)
    first = run(tmp_path, name, **{"rounds": 1, "client.lr": 0.0}).model[weight]
    assert float((flat.model[weight] - first).norm()) > 0.01  # the weights did change


def test_fedit_is_fedavg_on_an_adapted_model(tmp_path):
    fedit, fedavg = (run(tmp_path, name).model for name in ("fedit", "fedavg"))
    for name in fedavg:
        close(fedit[name], fedavg[name], 1e-6)


def test_ffa_is_fedavg_on_b(tmp_path):
    ffa, fedavg = run(tmp_path, "ffa_lora").model, run(tmp_path, "fedavg", **{"client.trains": ["*lora_B*"]}).model
    for name in fedavg:
        close(ffa[name], fedavg[name], 1e-6)


def test_ffa_with_vera_averages_b_and_keeps_d(tmp_path):
    """The change diag(b) B diag(d) A is linear in b, so the mean of b is exact; b has OUT floats."""
    result = run(tmp_path, "ffa_lora", **{"model.adapter": {"name": "vera", "rank": R}})
    assert (floats(result, "up"), floats(result, "down")) == ([OUT] * 4, [OUT] * 4)
    (d,), (b,) = adapter.first(result.model), adapter.second(result.model)
    assert torch.equal(result.model[d], torch.full((R,), 0.1)) and result.model[b].any()
    with pytest.raises(fl.ConfigError, match="no adapter with a second half"):
        fl.run({**RUN, "model": "softmax", "strategy": "ffa_lora"}, out=tmp_path / "none")


def test_lora_fair_without_correction_runs_as_fedit(tmp_path):
    fedit, fair = run(tmp_path, "fedit").model, run(tmp_path, "lora_fair", **{"strategy.lam": 1e12}).model
    for name in fedit:
        close(fair[name], fedit[name], 1e-5)


def test_shared_part_of_feddpa_is_fedit(tmp_path):
    dpa, fedit = run(tmp_path, "feddpa_lora"), run(tmp_path, "fedit", **{"strategy.weights": "uniform"})
    for name in fedit.model:
        close(dpa.model[name], fedit.model[name], 1e-6)


# -- clients ----------------------------------------------------------------------------------------------------------
def context(rank=3, state=None, received=None, **config) -> ClientContext:
    net = module(rank)
    initial, n = Initial.of(net), 12
    arrays = {"x": normal(n, IN, seed=5), "y": torch.arange(n) % OUT}
    view = View(arrays, np.arange(n))
    received = {"model": initial.trained} if received is None else received
    common = {"client": 0, "seed": 0, "round": 0, "rounds": 1, "participation": 0}
    views = {"train": view, "val": view, "test": view}
    return ClientContext(
        **common,
        **views,
        received=received,
        config=config,
        state=state,
        initial=initial,
        module=net,
        task=Classification(),
        training_loop=train,
    )


@dataclass(frozen=True, kw_only=True)
class Keeps(LoRAClient):
    """A client that stores its trained model as state."""

    sends: ClassVar[tuple[str, ...]] = ("model",)

    def finish(self, end):
        return super().finish(end)[0], end.params


def test_missing_pairs_stay_zero():
    start = Params.of({A: normal(1, IN, seed=0), B: normal(OUT, 1, seed=1)})
    reply = Keeps(steps=5, batch=4, lr=0.5).work("train", context(received={"model": start}), None)
    assert not reply.state[A][1:].any() and not reply.state[B][:, 1:].any()
    assert reply.update.groups["model"][A].shape == (1, IN) and reply.update.groups["model"][A].abs().max() > 0


def test_pressure_on_tails_is_the_gradient_of_their_norms():
    params = Params.of(factors((4,))[0])
    given = TrainingInputs({"model": params}, None, {"gamma": 0.5, "lam": 0.3}, Initial(params, params))
    first, second = (params[n].clone().requires_grad_() for n in (A, B))
    (0.3 * first[2:].norm() * second[:, 2:].norm()).backward()
    pressed = HetLoRAClient().gradient(params * 0.0, params, given)
    close(pressed[A], first.grad)
    close(pressed[B], second.grad)


@pytest.mark.parametrize(("lam", "rank"), [(0.0, 4), (50.0, 2)])
def test_regularised_tails_are_pruned(lam, rank):
    """Regularisation shrinks the tails; with a learning rate of zero they do not shrink."""
    start = Params.of(factors((4,))[0])
    client = HetLoRAClient(steps=2, batch=4, lr=1e-4 if lam else 0.0)
    reply = client.work("train", context(4, received={"model": start}, gamma=0.5, lam=lam), None)
    assert reply.update.groups["model"][A].shape == (rank, IN)


def test_feddpa_predicts_with_both():
    shared, own = (Params.of(x) for x in factors((3, 3)))
    ctx = context(received={"model": shared}, state=own)
    base, bias = ctx.initial.frozen[W], ctx.initial.frozen["0.base_layer.bias"]
    x = normal(4, IN, seed=9)
    weight = base + 0.25 * SCALE * shared[B] @ shared[A] + SCALE * own[B] @ own[A]
    close(FedDPAClient(weight=0.25).predictor(ctx)(x).detach(), x @ weight.T + bias)
    alone = context(received={"model": shared})
    close(FedDPAClient().predictor(alone)(x).detach(), x @ (base + SCALE * shared[B] @ shared[A]).T + bias)


def test_feddpa_keeps_what_it_trained_beside_the_shared_one():
    shared, own = (Params.of(x) for x in factors((3, 3)))
    ctx = context(received={"model": shared}, state=own)
    reply = FedDPAClient(steps=1, batch="full", lr=0.1).work("train", ctx, None)
    frozen, x, y = ctx.initial.frozen, ctx.train.arrays["x"], ctx.train.arrays["y"]
    a, b = own[A].clone().requires_grad_(), own[B].clone().requires_grad_()
    weight = frozen[W] + 0.5 * SCALE * shared[B] @ shared[A] + SCALE * b @ a
    nn.functional.cross_entropy(x @ weight.T + frozen["0.base_layer.bias"], y).backward()
    close(reply.state[A], own[A] - 0.1 * a.grad)
    close(reply.state[B], own[B] - 0.1 * b.grad)


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("fedit", {"model": "softmax"}, "model.adapter: there is none"),
        ("flora", {"strategy.ranks": [1, 4]}, "ranks: .* set model.adapter.rank to 4"),
        ("flexlora", {"strategy.ranks": [0, 2]}, "ranks: .* has one below 1"),
        ("hetlora", {"strategy.gamma": 0.0}, "gamma: 0.0 is not in"),
        ("lora_fair", {"strategy.lam": 0.0}, "lam: 0.0 is not positive"),
        ("feddpa_lora", {"client.weight": 2.0}, "weight: 2.0 is not in"),
    ],
)
def test_mistakes(name, settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        run(tmp_path, name, **settings)


@pytest.mark.parametrize("strategy", ["fedit", "ffa_lora", "fedex_lora"])
def test_a_lone_clients_trained_model_is_the_next_rounds_model(strategy, tmp_path):
    """With one client and full batches, training before the evaluation of round 0 is the training of round 1."""
    config = {
        "rounds": 2,
        "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 1, "samples": 40},
        "partition": "natural",
        "splits": {"val": 0.0, "test": 0.4},
        "model": {"name": "mlp", "hidden": [5], "adapter": {"name": "lora", "rank": 2}},
        "strategy": strategy,
        "client": {"steps": 3, "batch": "full", "lr": 0.1},
        "cohort": {"size": 1},
        "execution": {"executor": "serial"},
    }

    def losses(stage):
        result = fl.run(config, out=tmp_path / stage, **{"evaluation.stage": stage})
        return [row["clients/loss_mean"] for row in result.metrics]

    received, trained = losses("received"), losses("trained")
    assert received[0] != received[1] and trained[0] == pytest.approx(received[1], rel=1e-5)


def test_products_are_not_added_to_quantised_weights():
    """Weights of 4 bits are bytes of another shape."""
    model = fl.Params.of({"0.lora_A.default.weight": torch.zeros(2, 8), "0.lora_B.default.weight": torch.zeros(4, 2)})
    quantised = fl.Params.of({"0.base_layer.weight": torch.zeros(16, 1, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="model.bits: this strategy adds products"):
        lora.adapted_weights(model, quantised)
