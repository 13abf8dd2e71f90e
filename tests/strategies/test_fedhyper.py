"""FedHyper: its rates by hand, what travels, the plans that train its clients, and refusals."""

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.fedhyper import FedHyper as FedHyperClient
from clients.fedhyper import HypergradientSGD
from fl.errors import ConfigError
from fl.execution.training.compiled import Compiled
from fl.method.optimiser import SGD
from fl.method.requests import ExchangeResult
from fl.method.strategy import ServerContext
from fl.method.training_values import TrainingInputs
from fl.models.architectures.linear import MLP
from fl.models.binding import Initial, module_params
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import Params
from strategies.fedhyper import FedHyper, State

CONFIG = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [1, 8, 8], "classes": 4, "clients": 5, "samples": 14},
    "partition": "natural",
    "splits": {"val": 0.0},
    "model": {"name": "mlp", "hidden": [6]},
    "cohort": {"fraction": 1.0},
    "client": {"steps": 4, "batch": 5, "lr": 0.1},
    "evaluation": {"every": 3, "clients": 0},
    "execution": {"executor": "serial"},
}
SIZES = {"mlp": 65 * 6 + 7 * 4, "cnn_tiny": 16 * 10 + 32 * (9 * 16 + 1) + 4 * (32 * 4 + 1)}


def params(*w: float) -> Params:
    return Params.of({"w": torch.tensor(w)})


def context(clients=4) -> ServerContext:
    return ServerContext(0, 0, 10, clients, np.arange(clients), Regression(), nn.Identity())


def played(rule: FedHyper, means: list[Params]) -> list[tuple[State, dict]]:
    """Return (state, metrics) after each round, in which these are the clients' mean changes."""
    state, found = rule.init(0 * means[0], context()), []
    for mean in means:
        state, metrics = rule.step(state, mean, context())
        found.append((state, metrics))
    return found


# -- the server -------------------------------------------------------------------------------------------------------
def test_the_servers_rate_by_hand():
    found = played(FedHyper(), [params(1.0), params(0.5), params(-2.0)])
    assert [metrics["alpha"] for _, metrics in found] == [1.0, 1.5, 0.5]
    assert [metrics["inner"] for _, metrics in found] == [0.0, 0.5, -1.0]
    assert [state.model["w"].item() for state, _ in found] == [1.0, 1.75, 0.75]


def test_momentum_by_hand():
    """v = 1, then 1 + 1/2; alpha = 1, then 1 + <1, 1>."""
    found = played(FedHyper(momentum=0.5), [params(1.0), params(1.0)])
    assert [metrics["alpha"] for _, metrics in found] == [1.0, 2.0]
    assert [state.direction["w"].item() for state, _ in found] == [1.0, 1.5]
    assert [state.model["w"].item() for state, _ in found] == [1.0, 4.0]


def test_orthogonal_changes_leave_the_rate():
    found = played(FedHyper(), [params(1.0, 2.0), params(-4.0, 2.0), params(1.0, 2.0)])
    assert [metrics["alpha"] for _, metrics in found] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("mode", ["g", "sl"])
def test_the_rate_stays_within_its_bounds(mode):
    draw = np.random.default_rng(0)
    means = [params(*(10 ** draw.uniform(-2, 2) * draw.normal(size=3)).tolist()) for _ in range(50)]
    rates = [state.rate for state, _ in played(FedHyper(mode=mode, low=0.5, high=2.0), means)]
    assert min(rates) == 0.5 and max(rates) == 2.0


def test_a_round_without_answers_changes_nothing():
    rule = FedHyper()
    (state, _), *_ = played(rule, [params(1.0)])
    rounds = rule.round(state, context())
    next(rounds)
    with pytest.raises(StopIteration) as end:
        rounds.send(ExchangeResult(None, np.empty(0, np.int64), {}, {}))
    assert end.value.value == (state, {})


# -- the clients' rates -----------------------------------------------------------------------------------------------
def phase(client: FedHyperClient, broadcast):
    (found,) = client.phases_of(TrainingInputs(broadcast.shared, None, broadcast.config, None), 0, 10)
    return found


def test_the_server_scales_the_clients_rate():
    rule, client, rates = FedHyper(mode="sl"), FedHyperClient(lr=0.01), []
    state = rule.init(params(0.0), context())
    for mean in (1.0, 0.5, -2.0, 0.0):
        rates.append(phase(client, rule.broadcast(state, context())).lr)
        state, _ = rule.step(state, params(mean), context())
    assert rates == pytest.approx([0.01, 0.01, 0.015, 0.005])
    assert state.model["w"].item() == -0.5  # the plain sum of the changes


def test_the_clients_rate_has_bounds():
    rule = FedHyper(mode="sl", start=5.0)
    broadcast = rule.broadcast(rule.init(params(0.0), context()), context())
    assert phase(FedHyperClient(lr=0.05), broadcast).lr == 0.1
    assert phase(FedHyperClient(lr=0.05, lr_high=0.2), broadcast).lr == 0.2


def steps(direction: float, epsilon: float, changes: list[float], lr=1.0) -> list[float]:
    """Return b after each step; the gradients are such that w changes by `changes`."""
    rule, w = HypergradientSGD(params(direction), epsilon), params(0.0)
    memory, found = rule.state(w), []
    for t, change in enumerate(changes):
        factor = float(memory["factor"])
        rule.step(w, params(-change / (lr * factor)), memory, lr, t)
        found.append(float(memory["factor"]))
    assert w["w"].item() == pytest.approx(sum(changes))
    return found


def test_the_rate_of_steps_by_hand():
    assert steps(0.0, 0.1, [0.2, 0.3]) == pytest.approx([1.0, 1.06])
    assert steps(1.0, 0.1, [0.2, 0.3, 0.1]) == pytest.approx([1.0, 1.09, 1.09 * 1.04])
    assert steps(0.0, 0.1, [1.0, 1.0, 1.0]) == pytest.approx([1.0, 1.1, 1.21])  # the factor is at most 1.1
    assert steps(0.0, 0.1, [1.0, -2.0]) == pytest.approx([1.0, 0.1])  # b is at least 0.1
    assert steps(0.0, 0.1, [1.0] * 40)[-1] == 10.0


def test_steps_of_many_clients_are_those_of_each():
    torch.manual_seed(0)
    start, gradients, v = torch.randn(3, 4), torch.randn(5, 3, 4), params(*torch.randn(4).tolist())
    together = Params.of({"w": torch.zeros(4)}).layout.zeros(3)
    together["w"].copy_(start)
    rule = HypergradientSGD(v, 0.2)
    memory, grad = rule.state(together), together.clone()
    alone = [params(*row.tolist()) for row in start]
    memories = [rule.state(w) for w in alone]
    for t, gradient in enumerate(gradients):
        grad["w"].copy_(gradient)
        rule.step(together, grad, memory, 0.3, t)
        for c, w in enumerate(alone):
            rule.step(w, params(*gradient[c].tolist()), memories[c], 0.3, t)
    assert torch.allclose(together["w"], torch.stack([w["w"] for w in alone]), rtol=1e-6, atol=1e-7)
    assert memory["factor"].tolist() == pytest.approx([float(m["factor"]) for m in memories], rel=1e-6)


# -- runs -------------------------------------------------------------------------------------------------------------
def play(tmp_path, strategy, **changes):
    name = f"run{len(list(tmp_path.iterdir()))}"
    return fl.run({**CONFIG, "strategy": strategy, **changes}, out=tmp_path / name)


@pytest.mark.parametrize("mode, groups", [("g", 1), ("sl", 1), ("cl", 2), ("sl+cl", 2)])
@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [6]}, {"name": "cnn_tiny"}])
def test_bytes_and_plans(tmp_path, model, mode, groups):
    """g and sl send d numbers each way, cl 2d down; training together ends where training one by one does."""
    plans = ("loop", "compiled" if model["name"] == "mlp" else "flat")
    results = [
        play(tmp_path, {"name": "fedhyper", "mode": mode}, model=model, execution={"executor": "serial", "plan": plan})
        for plan in plans
    ]
    numbers = 3 * 5 * SIZES[model["name"]]
    for result in results:
        assert result.summary["total_uplink_bytes"] == 4 * numbers
        assert result.summary["total_downlink_bytes"] == groups * 4 * numbers
        sent = {row["group"] for row in result.ledger.to_pylist() if row["direction"] == "up"}
        assert sent == {"model"}
    assert torch.allclose(results[0].model.compact(), results[1].model.compact(), rtol=0, atol=1e-5)


def test_fixed_rates_are_fedavg(tmp_path):
    fedavg = play(tmp_path, {"name": "fedavg", "weights": "uniform"})
    fixed = [play(tmp_path, {"name": "fedhyper", "mode": m, "start": 1, "low": 1, "high": 1}) for m in ("g", "sl")]
    assert {result.digest for result in fixed} == {fedavg.digest}


def test_g_and_sl_train_compiled_and_cl_does_not():
    module = MLP(hidden=(6,)).build((8,), 4)
    client, model = FedHyperClient(lr=0.05), module_params(module)
    assert Compiled.covers(client, module, Classification()) is None
    for mode, optimiser in (("g", SGD), ("sl", SGD), ("cl", HypergradientSGD)):
        rule = FedHyper(mode=mode)
        broadcast = rule.broadcast(rule.init(model, context()), context())
        inputs = TrainingInputs(broadcast.shared, None, broadcast.config, Initial.of(module))
        (found,) = client.phases_of(inputs, 0, 10)
        assert type(found.optimiser) is optimiser


# -- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "strategy, client, message",
    [
        ({"mode": "sr"}, {}, "strategy.mode"),
        ({"start": 0.1}, {}, r"strategy.start: 0.1 is not in \[0.2, 5.0\]"),
        ({"low": 2.0, "high": 1.0}, {}, "strategy.high"),
        ({"mode": "sl"}, {"name": "sgd"}, "client.name: mode: sl needs the client 'fedhyper'"),
        ({"mode": "sl"}, {"lr": 0.5}, r"client.lr: 0.5 is not in \[0.001, 0.1\]"),
        (
            {"mode": "sl"},
            {"lr": {"start": 0.1, "schedule": "cosine", "by": "step", "over": 9}},
            "client.lr: a schedule by step",
        ),
        ({"mode": "cl"}, {"optimiser": {"name": "sgd", "momentum": 0.9}}, "client.optimiser: mode: cl scales"),
        ({"mode": "g+cl"}, {"rates": {"3.*": 2.0}}, "client.rates"),
    ],
)
def test_refusals(tmp_path, strategy, client, message):
    with pytest.raises(ConfigError, match=message):
        play(tmp_path, {"name": "fedhyper", **strategy}, client={**CONFIG["client"], **client})
