"""FedAdagrad, FedYogi, FedNova, q-FedAvg, FedExP, median, MOON, IFCA, FedProto and clipping by hand or closed form."""

import logging
import math
from dataclasses import dataclass, replace
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clients.fedlwf import FedLwF as LwFClient
from clients.fednova import FedNova as FedNovaClient
from clients.fednova import effective_steps
from clients.fedproto import FedProto as FedProtoClient
from clients.fedproto import nearness, pull
from clients.fedprox import FedProx as FedProxClient
from clients.ifca import IFCA as IFCAClient
from clients.local import Local
from clients.measure import representations
from clients.moon import Moon as MoonClient
from clients.moon import away, contrast
from clients.q_fedavg import QFedAvg as QFedAvgClient
from clients.sgd import LocalSGD
from fl.data.augment import Augment
from fl.data.items import Reader
from fl.data.redrawn import RedrawnArrays, RowSource
from fl.data.views import View
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.fold import Fold
from fl.method.messages import Broadcast
from fl.method.optimiser import SGD, Adam
from fl.method.reduction import Meta, Product, Reduction
from fl.method.requests import ExchangeResult
from fl.method.server_optimiser import OptimiserState
from fl.method.strategy import ServerContext
from fl.models.binding import Initial, module_params
from fl.privacy.clip import Clip
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import Params
from fl.tensors.prototypes import class_means
from fl.tensors.sparse import Table
from strategies.fedadagrad import FedAdagrad
from strategies.fedavg import FedAvg, State
from strategies.fedavgm import FedAvgM
from strategies.fedexp import FedExP, extrapolation
from strategies.fednova import FedNova
from strategies.fedproto import FedProto, renewed
from strategies.fedyogi import FedYogi
from strategies.ifca import IFCA, reordered
from strategies.median import Median, median
from strategies.q_fedavg import QFedAvg
from strategies.trimmed_mean import TrimmedMean


def params(*w: float, dtype=torch.float32) -> Params:
    return Params.of({"weight": torch.tensor(w, dtype=dtype)})


def averaging(w: float) -> State:
    """Return the state of a strategy with a plain server optimiser."""
    return State(params(w), OptimiserState())


def one(p: Params) -> float:
    return p["weight"].item()


# -- a small federation -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class InMemory:
    """Scratch storage in memory."""

    vector: Tensor

    def open(self) -> Tensor:
        return self.vector


def server(round_=0, population=2, task=None):
    return ServerContext(0, round_, 1000, population, np.arange(population), task or Regression(), nn.Identity())


def answered(strategy, state, answers, ctx=None):
    """Return (state, metrics) after one exchange; answers is a list of (num_examples, groups), or broadcast -> list."""
    rounds = strategy.round(state, ctx or server())
    exchange = next(rounds)
    replies = answers(Broadcast.of(exchange.broadcast)) if callable(answers) else answers
    plain = isinstance(exchange.reduction, Reduction)
    reduction = Product({"model": exchange.reduction} if plain else exchange.reduction)
    fold = Fold(reduction, len(replies))
    for k, (n, groups) in enumerate(replies):
        fold.add(0, k, reduction.lift(groups, Meta(k, n, spill=InMemory)))
    value = fold.finish()
    clients, sizes = np.arange(len(replies)), np.array([n for n, _ in replies])
    try:
        rounds.send(ExchangeResult(value["model"] if plain and value else value, clients, sizes, {}))
    except StopIteration as end:
        return end.value
    raise AssertionError("one exchange a round")


def context(module, arrays, task, received, state=None, rows=None, **more) -> ClientContext:
    view = View(arrays, np.arange(len(arrays["x"])) if rows is None else np.asarray(rows))
    settings = dict(client=0, seed=0, round=0, rounds=1000, participation=0, config={}) | more
    initial = Initial.of(module)
    return ClientContext(
        received=received,
        state=state,
        train=view,
        val=view,
        test=view,
        initial=initial,
        module=module,
        task=task,
        training_loop=train,
        **settings,
    )


# client k has n_k copies of 1/2 a (w - b)^2
def line(a: float, b: float, n: int = 1):
    x = torch.full((n, 1), sqrt(a))
    return {"x": x, "y": x * b}


def at(arrays, w: float, **more) -> ClientContext:
    return context(
        nn.Linear(1, 1, bias=False), arrays, Regression(), {"model": Params.of({"weight": torch.tensor([[w]])})}, **more
    )


# -- adaptive server optimisers ---------------------------------------------------------------------------------------
def two_steps(rule, first: float, second: float):
    start = rule.init(params(0.0, dtype=torch.float64), None)
    first, second = (params(d, dtype=torch.float64) for d in (first, second))
    one, _ = rule.step(start, first, None)
    return one, rule.step(one, second, None)[0]


def second_moment(state) -> float:
    return one(state.optimiser.moments["v"])


def test_fedadagrad_two_rounds_by_hand():
    first, second = two_steps(FedAdagrad(lr=2.0, tau=1.0), sqrt(3), sqrt(5))
    assert second_moment(first) == pytest.approx(4) and one(first.model) == pytest.approx(2 * sqrt(3) / 3)  # v: 1 + 3
    assert second_moment(second) == pytest.approx(9) and one(second.model) == pytest.approx(
        2 * sqrt(3) / 3 + 2 * sqrt(5) / 4
    )


def test_fedyogi_two_rounds_by_hand():
    first, second = two_steps(FedYogi(lr=2.0, beta1=0.5, beta2=0.75, tau=1.0), sqrt(13), 1.0)
    assert second_moment(first) == pytest.approx(4.25)  # d^2 > v: 1 + 13/4
    assert one(first.model) == pytest.approx(sqrt(13) / (1 + sqrt(4.25)))  # m = sqrt(13)/2
    assert second_moment(second) == pytest.approx(4.0)  # d^2 < v: 4.25 - 1/4
    assert one(second.model) - one(first.model) == pytest.approx(2 * (sqrt(13) / 4 + 0.5) / 3)


def test_yogi_forgets_a_large_update_at_the_pace_of_the_small_ones():
    first, second = two_steps(FedYogi(), 10.0, 0.1)
    assert second_moment(first) - second_moment(second) == pytest.approx(0.01 * 0.01)  # Adam's v would fall by 1 %


# -- FedNova ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_effective_steps_are_those_of_the_paper(steps):
    rho, alpha = 0.9, 0.02
    assert effective_steps(steps)[-1] == steps
    momentum = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert effective_steps(steps, momentum=rho)[-1] == pytest.approx(momentum)
    assert effective_steps(steps, shrink=alpha)[-1] == pytest.approx((1 - (1 - alpha) ** steps) / alpha)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_effective_steps_are_the_way_that_torch_goes_along_a_constant_slope(momentum, nesterov):
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=0.5, momentum=momentum, nesterov=nesterov)
    for _ in range(6):
        optimiser.zero_grad()
        w.sum().backward()
        optimiser.step()
    assert effective_steps(6, momentum, nesterov)[-1] == pytest.approx(-w.item() / 0.5)


def test_fednova_by_hand():
    answers = [
        (1, {"model": params(2.0), "steps": torch.tensor(1.0)}),
        (3, {"model": params(-1.0), "steps": torch.tensor(5.0)}),
    ]
    state, metrics = answered(FedNova(), averaging(10.0), answers)
    assert metrics["effective_steps"] == 4.0  # (1 + 3 * 5) / 4
    assert one(state.model) == pytest.approx(10 + 4 * (2 - 3) / 4)


def sent(algorithm, ctx):
    """Return (num_examples, groups), with the model's weight as a vector of one element."""
    update = algorithm.work("train", ctx, None).update
    return update.num_examples, {**update.groups, "model": params(update.groups["model"]["weight"].item())}


def settled(strategy, algorithm, clients, rounds=100) -> float:
    """Return the model after `rounds` rounds, when it has converged."""
    state = strategy.init(params(0.0), server())
    for r in range(rounds):

        def train(broadcast, r=r):
            w = one(broadcast.shared["model"])
            return [sent(algorithm, at(a, w, participation=r, client=k)) for k, a in enumerate(clients)]

        state, _ = answered(strategy, state, train)
    return one(strategy.model(state))


@pytest.mark.slow
def test_fednova_converges_to_a_point_that_does_not_depend_on_steps():
    """a = 1 for both; with batch 1, client k takes n_k steps and moves by (1 - q^n_k) (b_k - w), q = 1 - lr."""
    lr, sizes, centres = 0.01, (2, 20), (0.0, 1.0)
    clients = [line(1.0, b, n) for b, n in zip(centres, sizes)]
    gains = [1 - (1 - lr) ** n for n in sizes]
    averaged = gains[1] / sum(gains)
    rates = [gain / n for gain, n in zip(gains, sizes)]
    normalised = rates[1] / sum(rates)
    assert averaged == pytest.approx(0.9015, abs=1e-4) and normalised == pytest.approx(0.4778, abs=1e-4)  # optimum: 1/2
    settings = {"batch": 1, "lr": lr}
    assert settled(FedAvg(weights="uniform"), LocalSGD(**settings), clients) == pytest.approx(averaged, abs=1e-3)
    assert settled(FedNova(weights="uniform"), FedNovaClient(**settings), clients) == pytest.approx(
        normalised, abs=1e-3
    )


@pytest.mark.parametrize(
    "more", [{}, {"mu": 1.0}, {"optimiser": SGD(momentum=0.9)}, {"optimiser": SGD(momentum=0.9, nesterov=True)}]
)
def test_fednova_with_equal_steps_is_fedavg(more):
    clients, settings = [line(1.0, 0.0, 3), line(4.0, 1.0, 9)], {"steps": 4, "batch": "full", "lr": 0.05} | more
    plain = FedNovaClient(**settings)

    def moved_by(ctx):
        return (
            plain.context_after_training(ctx, plain.work("train", ctx, None)).received["model"]["weight"].item() - 0.7
        )

    moved = [moved_by(at(arrays, 0.7)) for arrays in clients]
    answers = [sent(plain, at(arrays, 0.7)) for arrays in clients]
    state, _ = answered(FedNova(), averaging(0.7), answers)
    assert one(state.model) == pytest.approx(0.7 + (3 * moved[0] + 9 * moved[1]) / 12, abs=1e-6)


def test_fednova_after_is_the_trained_model():
    ctx, settings = at(line(2.0, 1.0), 0.0), {"steps": 5, "lr": 0.1, "batch": "full"}
    algorithm = FedNovaClient(**settings)
    after = algorithm.context_after_training(ctx, algorithm.work("train", ctx, None)).received["model"]["weight"].item()
    assert after == pytest.approx(1 - 0.8**5, abs=1e-6)


def test_fednova_refuses_adam():
    with pytest.raises(ValueError, match="optimiser: 'adam' rescales gradients.*use 'sgd'"):
        FedNovaClient(optimiser=Adam())


# -- q-FedAvg ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 2.0])
def test_q_fedavg_is_the_papers_update(q):
    """After one full-batch step, L (w - w_k) is the gradient. The numbers follow Algorithm 2."""
    w, lr, lines = 0.3, 0.1, [(1.0, 0.0), (10.0, 1.0)]
    numerator = denominator = 0.0
    for a, b in lines:
        loss, gradient = a / 2 * (w - b) ** 2, a * (w - b)
        numerator += loss**q * gradient
        denominator += q * loss ** (q - 1) * gradient**2 + loss**q / lr
    algorithm = QFedAvgClient(q=q, steps=1, batch="full", lr=lr)
    answers = [sent(algorithm, at(line(a, b), w)) for a, b in lines]
    state, _ = answered(QFedAvg(), params(w), answers)
    assert one(state) == pytest.approx(w - numerator / denominator, rel=1e-5)


def test_q_fedavg_leaves_the_client_with_its_trained_model():
    ctx, algorithm = at(line(2.0, 1.0), 0.0), QFedAvgClient(q=2.0, steps=5, batch="full", lr=0.1)
    reply = algorithm.work("train", ctx, None)
    assert reply.update.metrics["received_loss"] == pytest.approx(1.0)
    assert algorithm.context_after_training(ctx, reply).received["model"]["weight"].item() == pytest.approx(
        1 - 0.8**5, abs=1e-6
    )


def test_q_fedavg_does_not_ask_a_client_without_data():
    nothing = at(line(1.0, 0.0), 0.5, rows=np.empty(0, np.int64))
    groups = QFedAvgClient().work("train", nothing, None).update.groups
    assert groups["h"].item() == 0 and groups["model"]["weight"].item() == 0


# -- FedExP -----------------------------------------------------------------------------------------------------------
def test_fedexp_by_hand():
    rule = FedExP(epsilon=0.5, average=True)
    updates = [(1, {"model": params(4.0, 0.0)}), (9, {"model": params(0.0, 4.0)})]
    first, metrics = answered(rule, rule.init(params(1.0, 1.0), None), updates)
    eta = 32 / (2 * 2 * (8 + 0.5))  # < 1
    assert eta < 1 and metrics["server_lr"] == 1.0
    assert first.latest["weight"].tolist() == [3.0, 3.0] and rule.model(first)["weight"].tolist() == [2.0, 2.0]
    second, metrics = answered(rule, first, [(1, {"model": params(5.0, 0.0)}), (9, {"model": params(-4.0, 0.0)})])
    assert metrics["server_lr"] == pytest.approx(41 / (2 * 2 * (0.25 + 0.5)))
    assert second.latest["weight"][0].item() == pytest.approx(3 + 0.5 * 41 / 3)
    assert second.previous["weight"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("clients", [2, 10, 50])
def test_fedexp_steps_by_half_the_cohort_where_updates_are_orthogonal(clients):
    rows = np.eye(clients) * 3
    square, mean = (rows**2).sum(1).mean(), (rows.mean(0) ** 2).sum()
    assert extrapolation(square, mean, 0.0) == pytest.approx(max(1, clients / 2))


def test_fedexp_does_not_extrapolate_where_all_agree_or_nobody_moves():
    assert extrapolation(4.0, 4.0, 0.0) == 1.0
    assert extrapolation(0.0, 0.0, 0.0) == 1.0


def test_fedexp_weighs_both_means_alike():
    rule = FedExP(epsilon=0.0, weights="examples")
    _, metrics = answered(
        rule, rule.init(params(0.0), None), [(1, {"model": params(4.0)}), (3, {"model": params(-1.0)})]
    )
    assert metrics["server_lr"] == pytest.approx((16 + 3) / 4 / (2 * (1 / 4) ** 2))


# -- median -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 6, 11])
def test_median_is_numpys(n):
    rows = torch.randn(n, 40, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert np.array_equal(median(rows, torch.ones(n)).numpy(), np.median(rows.numpy(), axis=0))


def test_two_attackers_of_five_move_the_median_no_farther_than_the_honest():
    values = [1.0, 1.2, 0.8, 1e6, -1e6]
    state, _ = answered(Median(), params(10.0), [(1, {"model": params(v)}) for v in values])
    assert one(state) == pytest.approx(11.0)
    state, _ = answered(Median(), params(10.0), [(1, {"model": params(v)}) for v in [1.0, 1.2, 0.8, 1e6, 1e6]])
    assert one(state) == pytest.approx(11.2)


# -- MOON -------------------------------------------------------------------------------------------------------------
def test_contrast_by_hand():
    z, near, across = torch.tensor([[3.0, 0.0]]), torch.tensor([[7.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert contrast(z, away(near, across, 0.5)).item() == pytest.approx(log(1 + exp(-2)))  # cosines 1 and 0
    assert contrast(z, away(across, near, 0.5)).item() == pytest.approx(2 + log(1 + exp(-2)))
    assert contrast(z, away(across, -near, 1.0)).item() == pytest.approx(log(1 + exp(-1)))


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 0, 1, 2, 0])


def network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def classifying(received, state=None, rows=None, module=None):
    return context(module or network(0), {"x": X, "y": Y}, Classification(), received, state, rows)


def test_representations_are_what_goes_into_the_last_layer_or_comes_out_of_the_one_named():
    module = network(3)
    weights, ctx = module_params(module), classifying({})
    inside = X @ weights["0.weight"].T + weights["0.bias"]
    torch.testing.assert_close(representations(ctx, weights, None), inside.tanh())
    torch.testing.assert_close(representations(ctx, weights, "0"), inside)
    with pytest.raises(ValueError, match="features: 'head' is not a layer of the model; it has .*'0', '1', '2'"):
        representations(ctx, weights, "head")


def test_moon_steps_along_loss_plus_contrast():
    received, previous = module_params(network(1)), module_params(network(2))
    algorithm = MoonClient(mu=3.0, temperature=0.7, steps=2, batch="full", lr=0.1)
    reply = algorithm.work("train", classifying({"model": received}, previous), None)

    weights = {n: t.clone().requires_grad_() for n, t in received.items()}

    def inside(p):
        return torch.tanh(X @ p["0.weight"].T + p["0.bias"])

    for _ in range(2):
        z = inside(weights)
        total = nn.functional.cross_entropy(z @ weights["2.weight"].T + weights["2.bias"], Y)
        unit = [v / v.norm(dim=1, keepdim=True) for v in (z, inside(received), inside(previous))]
        near, far = ((unit[0] * other).sum(1) / 0.7 for other in unit[1:])
        total = total + 3.0 * torch.log(1 + (far - near).exp()).mean()
        grads = torch.autograd.grad(total, list(weights.values()))
        weights = {n: (w - 0.1 * g).detach().requires_grad_() for (n, w), g in zip(weights.items(), grads)}
    for name, w in weights.items():
        torch.testing.assert_close(reply.state[name], w.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            reply.update.groups["model"][name], (w - received[name]).detach(), atol=1e-6, rtol=1e-5
        )
    assert reply.update.metrics["loss"] > 0


def test_moon_without_a_past_trains_as_fedavg_does():
    received, settings = module_params(network(1)), {"epochs": 2, "batch": 2, "lr": 0.1}
    moon = MoonClient(mu=5.0, **settings).work("train", classifying({"model": received}), None)
    plain = LocalSGD(**settings).work("train", classifying({"model": received}), None)
    for name, moved in plain.update.groups["model"].items():
        torch.testing.assert_close(moon.update.groups["model"][name], moved, atol=1e-6, rtol=1e-5)


class Doubled(Augment):
    """An augmentation without randomness."""

    def apply(self, x, words):
        return 2 * x


@pytest.mark.parametrize("name", ["moon", "fedlwf"])
def test_references_see_the_augmented_batch(name):
    """Training on doubled batches of X equals training on 2 X. A reference pass over X would break that.

    The same holds if a user's data set gives 2 X at each access, and X is what was stored.
    """
    models = [module_params(network(seed)) for seed in (1, 2)]
    settings = {"steps": 4, "batch": 4, "lr": 0.1}
    if name == "moon":
        algorithm, received, state = MoonClient(mu=3.0, **settings), {"model": models[0]}, models[1]
    else:
        algorithm, received, state = LwFClient(**settings), {"model": models[0], "teacher": models[1]}, None
    config = {"weight": 2.0, "temperature": 2.0}

    def trained(x, augment, arrays=None):
        arrays = {"x": x, "y": Y} if arrays is None else arrays
        ctx = context(network(0), arrays, Classification(), received, state, config=config, augment=augment)
        return algorithm.work("train", ctx, None).update.groups["model"]

    augmented, doubled, plain = trained(X, (Doubled(),)), trained(2 * X, ()), trained(X, ())
    source = RowSource(Reader([(2 * x, y) for x, y in zip(X, Y)], "train", {"x": 0, "y": 1}))
    redrawn = trained(X, (), RedrawnArrays({"x": X, "y": Y}, source))
    for name in doubled:
        torch.testing.assert_close(augmented[name], doubled[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(redrawn[name], doubled[name], atol=1e-6, rtol=1e-5)
    assert float((augmented["0.weight"] - plain["0.weight"]).norm()) > 1e-3


# -- IFCA -------------------------------------------------------------------------------------------------------------
def test_ifca_two_rounds_by_hand():
    """Targets are -1, -1.2 and 1; models start at -0.5 and 0.4; a full step with lr 1/2 halves the distance."""
    rule, algorithm = IFCA(clusters=2), IFCAClient(steps=1, batch="full", lr=0.5)
    state = replace(rule.init(params(-0.5), server()), models=(params(-0.5), params(0.4)))
    centres = [-1.0, -1.2, 1.0]

    def train(broadcast):
        models = tuple(Params.of({"weight": m["weight"].view(1, 1)}) for m in broadcast.shared["models"])
        replies = []
        for b in centres:
            ctx = replace(at(line(1.0, b), 0.0), received={"models": models})
            update = algorithm.work("train", ctx, None).update
            replies.append((1, update.groups))
        return replies

    first, metrics = answered(rule, state, train)
    assert (metrics["cluster0"], metrics["cluster1"]) == (2.0, 1.0)
    assert [one(m) for m in first.models] == pytest.approx([-0.5 + (-0.25 - 0.35) / 2, 0.7])
    second, _ = answered(rule, first, train)
    assert [one(m) for m in second.models] == pytest.approx([-0.8 + (-0.1 - 0.2) / 2, 0.85])


def test_ifca_weights_and_models_that_nobody_chose():
    own = Table(torch.tensor([1]), torch.tensor([[2.0]]), torch.tensor([1]))
    other = Table(torch.tensor([1]), torch.tensor([[-2.0]]), torch.tensor([3]))
    for weights, expected in (("uniform", 5.0), ("examples", 4.0)):
        rule = IFCA(clusters=3, weights=weights)
        start = replace(rule.init(params(0.0), server()), models=(params(1.0), params(5.0), params(9.0)))
        state, _ = answered(rule, start, [(1, {"clusters": own}), (3, {"clusters": other})])
        assert [one(m) for m in state.models] == [1.0, expected, 9.0]


def test_ifca_predicts_with_what_fits_the_training_data():
    models = tuple(Params.of({"weight": torch.tensor([[w]])}) for w in (3.0, -1.0))
    ctx = replace(at(line(1.0, -2.0), 0.0), received={"models": models})
    assert IFCAClient().predictor(ctx)(torch.ones(1, 1)).item() == -1.0
    nothing = replace(at(line(1.0, -2.0), 0.0, rows=np.empty(0, np.int64)), received={"models": models})
    assert IFCAClient().predictor(nothing)(torch.ones(1, 1)).item() == 3.0


def test_ifca_after_moves_the_model_that_was_trained():
    models = tuple(Params.of({"weight": torch.tensor([[w]])}) for w in (3.0, -1.0))
    ctx, algorithm = (
        replace(at(line(1.0, -2.0), 0.0), received={"models": models}),
        IFCAClient(steps=1, batch="full", lr=0.5),
    )
    after = algorithm.context_after_training(ctx, algorithm.work("train", ctx, None)).received["models"]
    assert [m["weight"].item() for m in after] == [3.0, -1.5]


def test_reordered_models_have_the_same_values_elsewhere():
    model = module_params(nn.Linear(20, 30))
    other = reordered(model, torch.Generator().manual_seed(0))
    for name in model:
        assert torch.equal(model[name].flatten().sort().values, other[name].flatten().sort().values)
        assert not torch.equal(model[name], other[name])


# -- FedProto ---------------------------------------------------------------------------------------------------------
def table(keys, values, counts) -> Table:
    return Table(torch.tensor(keys), torch.tensor(values), torch.tensor(counts))


def test_prototypes_of_a_client_are_class_means():
    own = class_means(torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]]), torch.tensor([4, 4, 1]))
    assert (own.keys.tolist(), own.values.tolist(), own.counts.tolist()) == ([1, 4], [[10, 0], [2, 3]], [1, 2])


def test_the_pull_is_summed_over_classes_that_have_a_prototype():
    z, y = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0], [5.0, 5.0]]), torch.tensor([4, 4, 1, 3])
    prototypes = table([1, 2, 4], [[10.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [1, 1, 1])
    assert pull(z, y, prototypes).item() == pytest.approx((0 + 4) / 2 + (4 + 9) / 2)


def test_the_nearest_prototype_wins_and_classes_without_one_never_do():
    scores = nearness(torch.tensor([[1.0, 0.0], [0.0, 5.0]]), table([0, 2], [[0.0, 0.0], [0.0, 4.0]], [1, 1]), 4)
    assert scores.tolist() == [[-1.0, -47.0, -17.0, -47.0], [-25.0, -55.0, -1.0, -55.0]]


def test_fedproto_two_rounds_by_hand():
    rule = FedProto()
    start = rule.init(params(1.0), server())
    assert len(start.prototypes.keys) == 0
    sent = [table([0, 1], [[1.0], [5.0]], [1, 2]), table([0], [[4.0]], [3])]
    first, _ = answered(rule, start, [(9, {"prototypes": t}) for t in sent])
    assert first.prototypes.keys.tolist() == [0, 1]
    assert first.prototypes.values.flatten().tolist() == [3.25, 5.0]  # (1 + 3 * 4) / 4
    second, _ = answered(rule, first, [(9, {"prototypes": table([1, 7], [[6.0], [8.0]], [1, 1])})])
    assert second.prototypes.keys.tolist() == [0, 1, 7]
    assert second.prototypes.values.flatten().tolist() == [3.25, 6.0, 8.0]  # class 0 keeps its last prototype
    assert renewed(second.prototypes, second.prototypes) is second.prototypes
    assert one(second.model) == 1.0


def test_fedproto_with_uniform_weights_averages_the_clients_that_have_a_class():
    rule = FedProto(weights="uniform")
    sent = [table([0, 1], [[1.0], [5.0]], [1, 2]), table([0, 1], [[4.0], [9.0]], [3, 0])]
    state, _ = answered(rule, rule.init(params(1.0), server()), [(9, {"prototypes": t}) for t in sent])
    assert state.prototypes.values.flatten().tolist() == [2.5, 5.0]  # (1 + 4) / 2; only one client has class 1
    assert state.prototypes.counts.tolist() == [2, 1]
    with pytest.raises(ValueError, match="weights"):
        answered(FedProto(weights="even"), state, [(9, {"prototypes": sent[0]})])


NO_PROTOTYPES = Table(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))


def test_fedproto_sends_the_class_means_of_the_trained_model():
    algorithm, own = FedProtoClient(epochs=1, batch=2, lr=0.1), module_params(network(1))
    reply = algorithm.work("train", classifying({"prototypes": NO_PROTOTYPES}, own), None)
    z = torch.tanh(X @ reply.state["0.weight"].T + reply.state["0.bias"])
    sent = reply.update.groups["prototypes"]
    assert sent.counts.tolist() == [3, 2, 1]
    for k in range(3):
        torch.testing.assert_close(sent.values[k], z[Y == k].mean(0))


def test_fedproto_steps_along_loss_plus_pull():
    own, targets = module_params(network(1)), torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    prototypes = Table(torch.arange(3), targets, torch.ones(3, dtype=torch.int64))
    algorithm = FedProtoClient(lam=2.0, steps=1, batch="full", lr=0.1)
    reply = algorithm.work("train", classifying({"prototypes": prototypes}, own), None)
    weights = {n: t.clone().requires_grad_() for n, t in own.items()}
    z = torch.tanh(X @ weights["0.weight"].T + weights["0.bias"])
    total = nn.functional.cross_entropy(z @ weights["2.weight"].T + weights["2.bias"], Y)
    for k in range(3):
        total = total + 2.0 * nn.functional.mse_loss(z[Y == k].mean(0), targets[k])
    grads = torch.autograd.grad(total, list(weights.values()))
    for (name, w), g in zip(weights.items(), grads):
        torch.testing.assert_close(reply.state[name], (w - 0.1 * g).detach(), atol=1e-6, rtol=1e-5)


def test_fedproto_without_prototypes_or_lam_trains_as_local_does():
    own, settings = module_params(network(1)), {"epochs": 2, "batch": 2, "lr": 0.1}
    plain = Local(**settings).work("train", classifying({}, own), None).state
    some = table([0, 1, 2], [[1.0] * 4] * 3, [1, 1, 1])
    for lam, prototypes in ((1.0, NO_PROTOTYPES), (0.0, some)):
        ours = (
            FedProtoClient(lam=lam, **settings).work("train", classifying({"prototypes": prototypes}, own), None).state
        )
        assert all(torch.equal(ours[name], plain[name]) for name in plain)
    pulled = FedProtoClient(lam=1.0, **settings).work("train", classifying({"prototypes": some}, own), None).state
    assert not torch.equal(pulled["0.weight"], plain["0.weight"])


def test_fedproto_of_a_client_without_data_sends_no_class():
    reply = FedProtoClient().work("train", classifying({"prototypes": NO_PROTOTYPES}, rows=np.empty(0, np.int64)), None)
    assert reply.update.groups["prototypes"].values.shape == (0, 4)


# -- all of these methods ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make, note",
    [
        (lambda: MoonClient(mu=0.0), "mu=0: this is fedavg"),
        (lambda: QFedAvgClient(q=0.0), "q=0: this is fedavg with weights=uniform"),
        (lambda: IFCA(clusters=1), "clusters=1: this is fedavg with weights=uniform"),
        (lambda: FedProtoClient(lam=0.0), "lam=0: this trains as local does"),
        (lambda: FedProxClient(mu=0.0), "mu=0: this is fedavg"),
        (lambda: FedAvgM(beta=0.0), "beta=0: this is fedavg with lr=1"),
        (lambda: TrimmedMean(beta=0.0), "beta=0: this is fedavg with weights=uniform"),
    ],
)
def test_a_setting_that_makes_another_method_of_it_is_noted(make, note, caplog):
    with caplog.at_level(logging.WARNING):
        make()
    assert note in caplog.text


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: FedAdagrad(tau=0.0), "tau: 0.0"),
        (lambda: FedYogi(beta2=2.0), "beta2: 2.0"),
        (lambda: QFedAvgClient(q=-1.0), "q: -1.0"),
        (lambda: QFedAvgClient(lr=0.0), "lr: 0"),
        (lambda: FedExP(epsilon=-1.0), "epsilon: -1.0"),
        (lambda: MoonClient(mu=-1.0), "mu: -1.0"),
        (lambda: MoonClient(temperature=0.0), "temperature: 0.0"),
        (lambda: IFCA(clusters=0), "clusters: 0"),
        (lambda: FedProtoClient(lam=-1.0), "lam: -1.0"),
        (lambda: FedProtoClient(predict="both"), "predict: 'both'"),
        (lambda: Clip(bound=0.0), "bound: 0.0"),
        (lambda: Clip(bound=math.nan), "bound: nan"),
        (lambda: Clip(bound=1.0, side="wire"), "side: 'wire'"),
    ],
)
def test_impossible_values_are_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# -- clipping ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side, other", [("client", "server"), ("server", "client")])
def test_clipping_on_either_side(side, other):
    clip, groups = Clip(bound=2.5, side=side), {"model": params(3.0, 4.0), "steps": torch.tensor(9.0)}
    assert getattr(clip, other)(groups, None) is groups
    clipped = getattr(clip, side)(groups, None)
    assert clipped["model"]["weight"].tolist() == [1.5, 2.0] and clipped["steps"] is groups["steps"]
    assert getattr(Clip(bound=6.0, side=side), side)(groups, None)["model"]["weight"].tolist() == [3.0, 4.0]


def test_clipping_of_a_group_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"group: 'head' is not one of the update's groups of parameters, \['model'\]"):
        Clip(bound=1.0, group="head").client({"model": params(1.0), "steps": torch.tensor(1.0)}, None)


def test_clipping_of_an_update_without_parameters_names_the_way_out():
    with pytest.raises(
        ValueError, match=r"parameters, \[\]; clip is not for methods with such updates, so leave it out"
    ):
        Clip(bound=1.0).client({"rows": torch.tensor(1.0)}, None)
