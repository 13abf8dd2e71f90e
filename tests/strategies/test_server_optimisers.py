"""Server optimisers: two rounds by hand, closed forms, and composition with other methods."""

from __future__ import annotations

import pytest
import torch
import yaml

import fl
from fl import Params
from fl.errors import ConfigError
from fl.method import optimiser
from fl.method.server_optimiser import Adagrad, Adam, Momentum, Plain, PseudoGradient, ServerOptimiser, Yogi
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedper import FedPer

RUN = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 6, "samples": 20},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [5]},
    "cohort": {"size": 3},
    "client": {"batch": 8, "lr": 0.1},
    "execution": {"executor": "serial"},
}


def params(*w: float) -> Params:
    return Params.of({"w": torch.tensor(w, dtype=torch.float64)})


def two_steps(rule: ServerOptimiser, start: float, first: float, second: float) -> list[float]:
    """Return the model after one and after two steps."""
    model, seen = params(start), []
    state = rule.init(model)
    for mean in (first, second):
        model, state = rule.step(model, params(mean), state)
        seen.append(model["w"].item())
    assert state.steps == 2
    return seen


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_plain_by_hand():
    assert two_steps(Plain(lr=0.5), 1.0, 4.0, -2.0) == [3.0, 2.0]


def test_momentum_by_hand():
    # u: 4, then 0.5 * 4 - 2 = 0
    assert two_steps(Momentum(lr=0.5, beta=0.5), 1.0, 4.0, -2.0) == [3.0, 3.0]


def test_nesterov_by_hand():
    # u: 4, then 0;  changes: 0.5 * (4 + 0.5 * 4) = 3, then 0.5 * (-2 + 0.5 * 0) = -1
    assert two_steps(Momentum(lr=0.5, beta=0.5, nesterov=True), 1.0, 4.0, -2.0) == [4.0, 3.0]


def test_adagrad_by_hand():
    # v: 1 + 8 = 9, then 9 + 16 = 25;  changes: 2 * sqrt(8) / (3 + 1), then 2 * 4 / (5 + 1)
    one, two = two_steps(Adagrad(lr=2.0, tau=1.0), 0.0, 8**0.5, 4.0)
    assert (one, two - one) == pytest.approx((8**0.5 / 2, 4 / 3))


def test_adam_by_hand():
    # v: 3/4 + 1/4 = 1, then 3/4 + 13/4 = 4;  m: 1/2, then 1/4 + sqrt(13)/2
    one, two = two_steps(Adam(lr=2.0, beta1=0.5, beta2=0.75, tau=1.0), 0.0, 1.0, 13**0.5)
    assert (one, two - one) == pytest.approx((0.5, 2 * (0.25 + 13**0.5 / 2) / 3))


def test_yogi_by_hand():
    # v: 1 + 13/4 = 4.25, then 4.25 - 1/4 = 4;  m: sqrt(13)/2, then sqrt(13)/4 + 1/2
    one, two = two_steps(Yogi(lr=2.0, beta1=0.5, beta2=0.75, tau=1.0), 0.0, 13**0.5, 1.0)
    assert (one, two - one) == pytest.approx((13**0.5 / (1 + 4.25**0.5), 2 * (13**0.5 / 4 + 0.5) / 3))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_torchs_sgd_along_minus_the_mean_update(nesterov):
    rule, model = Momentum(lr=0.3, beta=0.9, nesterov=nesterov), params(1.0, -2.0)
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    theirs, state = torch.optim.SGD([w], lr=0.3, momentum=0.9, nesterov=nesterov), rule.init(model)
    for seed in range(4):
        mean = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        model, state = rule.step(model, Params.of({"w": mean}), state)
        w.grad = -mean
        theirs.step()
    torch.testing.assert_close(model["w"], w.detach())


def test_a_pseudo_gradient_step_is_the_local_optimisers():
    rule, model = PseudoGradient(optimiser=optimiser.Adam(weight_decay=0.1), lr=0.2), params(1.0, -2.0)
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    theirs, state = torch.optim.AdamW([w], lr=0.2, weight_decay=0.1), rule.init(model)
    for seed in range(4):
        mean = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        change, _ = rule.change(model, Params.of({"w": mean}), state)
        last = model
        model, state = rule.step(model, Params.of({"w": mean}), state)
        torch.testing.assert_close(dict(last + change), dict(model))
        w.grad = -mean
        theirs.step()
    torch.testing.assert_close(model["w"], w.detach())


def test_steps_leave_their_arguments_alone():
    for rule in (Plain(lr=0.5), Momentum(), Momentum(nesterov=True), Adagrad(), Adam(), Yogi(), PseudoGradient()):
        model, mean = params(1.0, 2.0), params(0.5, -1.0)
        state = rule.init(model)
        before = {name: moment.clone() for name, moment in state.moments.items()}
        rule.step(model, mean, state)
        assert model["w"].tolist() == [1.0, 2.0] and mean["w"].tolist() == [0.5, -1.0]
        assert all(torch.equal(before[name]["w"], state.moments[name]["w"]) for name in before)


# -- composition ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "method, composed",
    [
        (FedAvgM(lr=0.5, beta=0.8, nesterov=True), Momentum(lr=0.5, beta=0.8, nesterov=True)),
        (FedAdam(lr=0.3), Adam(lr=0.3)),
    ],
)
def test_fedavg_with_a_server_optimiser_has_the_bits_of_the_method(method, composed):
    plain = FedAvg(server_optimiser=composed)
    a, b = method.init(params(1.0, 2.0), None), plain.init(params(1.0, 2.0), None)
    for mean in ((0.3, -0.7), (1.1, 0.2), (-0.4, 0.9)):
        a, b = method.step(a, params(*mean), None)[0], plain.step(b, params(*mean), None)[0]
    assert torch.equal(a.model["w"], b.model["w"])


def test_lr_of_the_strategy_multiplies_the_step():
    rule = FedAvg(lr=0.5, server_optimiser=Momentum(beta=0.5))
    state = rule.init(params(0.0), None)
    for expected in (0.5, 1.25):  # u: 1, 1.5
        state, _ = rule.step(state, params(1.0), None)
        assert state.model["w"].item() == expected


def test_fedprox_with_momentum_moves_by_hand(tmp_path):
    """Three rounds of FedProx with momentum are three steps along the mean updates that its own broadcasts give."""
    clients = {"client": {**RUN["client"], "mu": 0.1}, "cohort": {"size": 6}}
    momentum = {"name": "fedprox", "server_optimiser": {"name": "momentum", "beta": 0.5}}
    one = fl.run({**RUN, **clients, "rounds": 1, "strategy": momentum}, out=tmp_path / "one").model
    plain = fl.run({**RUN, **clients, "rounds": 1, "strategy": "fedprox"}, out=tmp_path / "plain").model
    assert all(torch.equal(one[name], plain[name]) for name in one)  # the first velocity is the mean update
    two = fl.run({**RUN, **clients, "rounds": 2, "strategy": momentum}, out=tmp_path / "two").model
    two_plain = fl.run({**RUN, **clients, "rounds": 2, "strategy": "fedprox"}, out=tmp_path / "two_plain").model
    zero = fl.run(
        {**RUN, **clients, "rounds": 1, "strategy": {"name": "fedprox", "lr": 0.0}}, out=tmp_path / "zero"
    ).model
    for name in two:  # the second mean update is that of the plain run; half of the first one is added
        expected = two_plain[name] + 0.5 * (one[name] - zero[name])
        torch.testing.assert_close(two[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "fedbuff", "fedper", "fedbn", "flasc", "ditto", "fedlwf"])
def test_methods_take_a_server_optimiser(name, tmp_path):
    strategy = {"name": name, "server_optimiser": {"name": "yogi", "lr": 0.01}}
    if name == "fedbn":
        strategy["private"] = ["1.*"]
    adaptive = fl.run({**RUN, "strategy": strategy}, out=tmp_path / "adaptive")
    plain = fl.run({**RUN, "strategy": {**strategy, "server_optimiser": "plain"}}, out=tmp_path / "plain")
    assert adaptive.digest != plain.digest
    assert all(torch.isfinite(adaptive.model[tensor]).all() for tensor in adaptive.model)


def test_a_partial_method_moves_the_shared_part_only():
    rule = FedPer(private=("b",), server_optimiser=Momentum(beta=0.5))
    model = Params.of({"a": torch.tensor([1.0]), "b": torch.tensor([5.0])})
    state = rule.init(model, None)
    for expected in (2.0, 3.5):  # velocity 1, 1.5
        state, _ = rule.step(state, Params.of({"a": torch.tensor([1.0])}), None)
        assert (state.model["a"].item(), state.model["b"].item()) == (expected, 5.0)


# -- configuration ----------------------------------------------------------------------------------------------------
def test_a_configuration_names_it_and_is_written_back(tmp_path):
    strategy = {"name": "fedavg", "server_optimiser": {"name": "adam", "lr": 0.05}}
    fl.run({**RUN, "strategy": strategy, "rounds": 1}, out=tmp_path / "run")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["strategy"]["server_optimiser"]
    assert written == {"name": "adam", "lr": 0.05, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ("adm", "strategy.server_optimiser.*Did you mean 'adam'"),
        ({"name": "momentum", "beta": 1.0}, "strategy.server_optimiser.beta: 1.0 is not in"),
        ({"name": "adam", "tau": 0.0}, "strategy.server_optimiser.tau: 0.0 is not positive"),
        ({"name": "plain", "lr": -1.0}, "strategy.server_optimiser.lr: -1.0 is negative"),
    ],
)
def test_refusals_name_the_path(wrong, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        fl.run({**RUN, "strategy": {"name": "fedavg", "server_optimiser": wrong}}, out=tmp_path / "run")


def test_only_plain_steps_average():
    assert FedAvg().averages() and FedAvg(lr=0.5, server_optimiser=Momentum(beta=0.0)).averages()
    assert not any(
        FedAvg(server_optimiser=rule).averages() for rule in (Plain(lr=2.0), Momentum(), Adam(), PseudoGradient())
    )
