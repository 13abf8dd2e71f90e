"""Personalised methods: shared and private parts, closed forms on a/2 (w - b)^2, and single steps by autograd."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients import apfl, fedala, fedrod, pfedme
from clients.ditto import Ditto
from clients.fedbabu import FedBABU
from clients.fedrep import FedRep
from clients.local import Local
from clients.per_fedavg import PerFedAvg
from clients.sgd import LocalSGD
from fl import registry
from fl.data.views import View
from fl.execution.training.loop import train
from fl.execution.training.steps import LocalSteps
from fl.method.context import ClientContext
from fl.method.strategy import ServerContext
from fl.models.binding import Initial
from fl.models.dropout import Dropout
from fl.models.layers import head_names, norm_names
from fl.models.probe import ModuleFacts
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import Params
from strategies.fedbn import FedBN
from strategies.pfedme import PFedMe

IN, HIDDEN, OUT = 6, 7, 4
BODY, HEAD = 4 * (IN + 1) * HIDDEN, 4 * (HIDDEN + 1) * OUT
A, B, LR = 2.0, 3.0, 0.1
RUN = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": 5},
    "partition": "natural",
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "cohort": {"name": "uniform", "size": 3},
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}


def params(w: float) -> Params:
    return Params.of({"weight": torch.tensor([[w]])})


def context(module, arrays, task, received, state=None, **more) -> ClientContext:
    view = View(arrays, np.arange(len(arrays["y"])))
    place = dict(client=3, seed=5, round=0, rounds=9, participation=0, config={})
    return ClientContext(
        **{**place, **more},
        received=received,
        state=state,
        train=view,
        val=view,
        test=view,
        initial=Initial.of(module),
        module=module,
        task=task,
        training_loop=train,
    )


def quadratic(w: float, state=None) -> ClientContext:
    """Return a context with one sample, whose loss is A/2 (w - B)^2; the initial model is w = 0."""
    root = A**0.5
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    arrays = {"x": torch.tensor([[root]]), "y": torch.tensor([[root * B]])}
    return context(module, arrays, Regression(), {"model": params(w)}, state)


def classifier(noise: float = 0.0, **more) -> ClientContext:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        hidden = nn.Sequential(nn.Tanh(), Dropout(noise))
        module = nn.Sequential(nn.Flatten(), nn.Linear(IN, HIDDEN), hidden, nn.Linear(HIDDEN, OUT))
        arrays = {"x": torch.randn(20, IN), "y": torch.randint(OUT - 1, (20,))}  # no sample has the last class
    return context(module, arrays, Classification(), {"model": Initial.of(module).trained}, **more)


def with_head(ctx: ClientContext) -> ClientContext:
    """Return the context with FedROD's head in its model."""
    module = fedrod.FedROD().extend(ctx.module, (IN,), OUT)
    return replace(ctx, module=module, initial=Initial.of(module), module_facts=ModuleFacts(outputs=OUT))


def extended(ctx: ClientContext, algorithm) -> ClientContext:
    return with_head(ctx) if isinstance(algorithm, fedrod.FedROD) else ctx


def same(p, q) -> bool:
    return set(p) == set(q) and all(torch.equal(p[n], q[n]) for n in p)


def sent(reply) -> Params:
    return reply.update.groups["model"]


# -- shared parts -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, nbytes",
    [("fedper", BODY), ("fedrep", BODY), ("fedbabu", BODY), ("lg_fedavg", HEAD)]
    + [(name, BODY + HEAD) for name in ("ditto", "pfedme", "apfl", "fedala", "fedrod", "per_fedavg")],
)
def test_bytes_are_of_the_shared_part_alone(name, nbytes, tmp_path):
    result = fl.run({**RUN, "strategy": name}, out=tmp_path / "run")
    rows = result.ledger.to_pylist()
    assert len(rows) == 2 * 3 * 3 and {(r["group"], r["payload_bytes"]) for r in rows} == {("model", nbytes)}


@pytest.mark.parametrize("name, stays", [("fedper", "3."), ("fedrep", "3."), ("fedbabu", "3."), ("lg_fedavg", "1.")])
@pytest.mark.parametrize("stage", ["received", "trained"])
def test_the_server_sees_no_own_part(name, stays, stage, tmp_path):
    config = {**RUN, "strategy": name, "splits": {"test": 0.3}, "evaluation": {"stage": stage}}
    trained = fl.run(config, out=tmp_path / "run")
    first = fl.run(config, out=tmp_path / "first", **{"client.lr": 0.0, "rounds": 1}).model
    for tensor, value in trained.model.items():
        assert torch.equal(value, first[tensor]) == tensor.startswith(stays)
    assert 0 <= trained.metrics[-1]["clients/accuracy_mean"] <= 1


def test_heads_and_normalisations_are_found():
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(4))
    net = nn.Sequential(body, nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    names = [name for name, _ in net.named_parameters()]
    assert head_names(net, names) == ["3.weight"] and head_names(net, names[:-1]) == ["1.weight", "1.bias"]
    assert norm_names(net, names) == ["0.1.weight", "0.1.bias", "0.3.weight", "0.3.bias"]
    model = Initial.of(net).trained
    ctx = ServerContext(0, 0, 1, 1, np.arange(1), Classification(), net)
    state = FedBN().init(model, ctx)
    assert set(FedBN().broadcast(state, ctx).shared["model"]) == set(names) - set(norm_names(net, names))
    with pytest.raises(ValueError, match="no normalisation layer"):
        FedBN().init(model, replace(ctx, module=nn.Sequential(nn.Linear(2, 2))))


# -- part shared, part private ----------------------------------------------------------------------------------------
def test_fedrep_trains_the_head_then_the_body():
    """By autograd: two full-batch steps on the head, then one on the body with the new head."""
    ctx = classifier(config={"private": ["3.weight", "3.bias"]})
    whole = ctx.initial.trained
    head = whole.select(["3.*"]) * 0.5  # the client's own head, not the initial one
    ctx = replace(ctx, received={"model": whole.select(["1.*"])}, state=head)
    batch = ctx.train.take()
    w = {n: t.clone() for n, t in {**whole, **head}.items()}
    for trains in ("3.", "3.", "1."):
        leaf = {n: t.clone().requires_grad_(n.startswith(trains)) for n, t in w.items()}
        hidden = torch.tanh(batch["x"] @ leaf["1.weight"].T + leaf["1.bias"])
        F.cross_entropy(hidden @ leaf["3.weight"].T + leaf["3.bias"], batch["y"]).backward()
        w = {n: (t - LR * t.grad if t.requires_grad else t).detach() for n, t in leaf.items()}
    reply = FedRep(head_epochs=2, epochs=1, batch="full", lr=LR).work("train", ctx, None)
    assert set(sent(reply)) == {"1.weight", "1.bias"} and set(reply.state) == {"3.weight", "3.bias"}
    for name, tensor in {**(ctx.received["model"] + sent(reply)), **reply.state}.items():
        torch.testing.assert_close(tensor, w[name], rtol=1e-5, atol=1e-6)


def test_fedbabu_predicts_with_a_tuned_copy():
    private = ["3.weight", "3.bias"]
    ctx = classifier(config={"private": private})
    whole = ctx.initial.trained
    ctx = replace(ctx, received={"model": whole.replace(whole.select(["1.*"]) * 2.0)})
    x, settings = ctx.train.take()["x"], {"batch": "full", "lr": 0.5}
    untuned = torch.tanh(x @ (2 * whole["1.weight"]).T + 2 * whole["1.bias"]) @ whole["3.weight"].T + whole["3.bias"]
    torch.testing.assert_close(FedBABU(tune_epochs=0, **settings).predictor(ctx)(x).detach(), untuned)
    for tune, moves in (("head", "3."), ("body", "1."), ("all", "")):
        net = FedBABU(tune=tune, tune_epochs=2, **settings).predictor(ctx)
        moved = {
            n for n, p in net.named_parameters() if not torch.equal(p, (whole if n in private else 2.0 * whole)[n])
        }
        assert moved == {n for n in whole if n.startswith(moves)}


# -- a second, personal model -----------------------------------------------------------------------------------------
SETTINGS = {"epochs": 2, "batch": 8, "lr": LR}


def test_ditto_without_lam_is_fedavg_and_local_to_the_bit():
    ctx = classifier()
    ctx = replace(ctx, received={"model": 0.5 * ctx.initial.trained})
    reply = Ditto(lam=0.0, **SETTINGS).work("train", ctx, None)
    assert same(sent(reply), sent(LocalSGD(**SETTINGS).work("train", ctx, None)))
    assert same(reply.state, Local(**SETTINGS).work("train", ctx, None).state)


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_dittos_own_model_settles_between(lam):
    reply = Ditto(lam=lam, steps=200, batch="full", lr=LR).work("train", quadratic(-1.0), None)
    assert reply.state["weight"].item() == pytest.approx((A * B - lam) / (A + lam), abs=1e-5)
    assert sent(reply)["weight"].item() == pytest.approx(B + 1, abs=1e-5)


def test_apfl_at_its_ends():
    ctx = classifier()
    ctx = replace(ctx, received={"model": 0.5 * ctx.initial.trained})
    shared = sent(LocalSGD(**SETTINGS).work("train", ctx, None))
    none, all_ = (apfl.APFL(alpha=alpha, **SETTINGS).work("train", ctx, None) for alpha in (0.0, 1.0))
    torch.testing.assert_close(dict(sent(none)), dict(shared), rtol=0, atol=1e-6)
    assert same(sent(none), sent(all_)) and same(none.state["personal"], ctx.initial.trained)
    alone = Local(**SETTINGS).work("train", ctx, None).state
    torch.testing.assert_close(dict(all_.state["personal"]), dict(alone), rtol=0, atol=1e-6)


def test_apfl_one_step_by_hand():
    """w = 1, v = 0, alpha = 1/2: the mixture is 1/2, its gradient is 2 (1/2 - 3) = -5.

    v <- 0.25,  alpha <- 0.5 - .04 (0 - 1)(-5) = 0.3.
    """
    algorithm = apfl.APFL(alpha=0.5, adaptive=True, alpha_lr=0.04, steps=1, batch="full", lr=LR)
    reply = algorithm.work("train", quadratic(1.0), None)
    assert sent(reply)["weight"].item() == pytest.approx(0.4)
    assert reply.state["personal"]["weight"].item() == pytest.approx(0.25)
    assert float(reply.state["alpha"]) == pytest.approx(0.3)
    net = algorithm.predictor(quadratic(2.0, reply.state))
    assert net(torch.ones(1, 1)).item() == pytest.approx(0.3 * 0.25 + 0.7 * 2.0)
    assert apfl.adapted(0.1, params(0.0), params(1.0), params(-5.0), 1.0) == 0.0


def test_pfedme_steps_on_the_envelope():
    """theta -> (a b + lam w) / (a + lam) for the current w;  w <- w - eta lam (w - theta)."""
    eta, lam = 0.2, 3.0
    algorithm = pfedme.PFedMe(lam=lam, inner_steps=200, inner_lr=0.1, lr=eta, steps=3, batch="full")
    reply, w = algorithm.work("train", quadratic(-1.0), None), -1.0
    for _ in range(3):
        theta = (A * B + lam * w) / (A + lam)
        w -= eta * lam * (w - theta)
    assert sent(reply)["weight"].item() == pytest.approx(w + 1, abs=1e-5)
    assert reply.state["weight"].item() == pytest.approx(theta, abs=1e-5)
    assert sent(algorithm.work("train", quadratic(B), None))["weight"].item() == pytest.approx(0.0, abs=1e-6)
    assert PFedMe(beta=0.5).step(params(1.0), params(4.0), None)[0]["weight"].item() == 3.0


@pytest.mark.parametrize("kind, power", [("fo", 1), ("hf", 2)])
def test_per_fedavg_on_a_quadratic(kind, power):
    """The gradient after the inner step is a (1 - alpha a) (w - b); the Hessian adds another factor 1 - alpha a."""
    algorithm = PerFedAvg(kind=kind, alpha=0.1, delta=0.01, steps=1, batch="full", lr=LR)
    step = sent(algorithm.work("train", quadratic(1.0), None))["weight"].item()
    assert step == pytest.approx(-LR * A * (1 - 0.1 * A) ** power * (1 - B), rel=1e-3)
    predicted = algorithm.predictor(quadratic(1.0))(torch.ones(1, 1)).item()
    assert predicted == pytest.approx(1 - 0.1 * A * (1 - B))


def test_per_fedavg_without_alpha_is_fedavg_to_the_bit():
    ctx = classifier()
    for kind in ("fo", "hf"):
        ours = sent(PerFedAvg(alpha=0.0, kind=kind, **SETTINGS).work("train", ctx, None))
        assert same(ours, sent(LocalSGD(**SETTINGS).work("train", ctx, None)))


@pytest.mark.parametrize(
    "algorithm",
    [apfl.APFL(alpha=0.0, **SETTINGS), PerFedAvg(alpha=0.0, **SETTINGS), PerFedAvg(alpha=0.0, kind="hf", **SETTINGS)]
    + [fedala.FedALA(eta=0.0, **SETTINGS), fedrod.FedROD(balance=0.0, **SETTINGS), Ditto(lam=0.0, **SETTINGS)],
    ids=lambda a: type(a).__name__,
)
@pytest.mark.parametrize("limit", [None, 2])
def test_neutral_settings_are_fedavg_with_dropout_to_the_bit(algorithm, limit):
    ctx = classifier(noise=0.5, limit=limit)
    fedavg = sent(LocalSGD(**SETTINGS).work("train", ctx, None))
    assert same(sent(algorithm.work("train", extended(ctx, algorithm), None)), fedavg)


@pytest.mark.parametrize(
    "algorithm",
    [apfl.APFL(**SETTINGS), pfedme.PFedMe(**SETTINGS), PerFedAvg(kind="hf", **SETTINGS), fedrod.FedROD(**SETTINGS)],
    ids=lambda a: type(a).__name__,
)
def test_dropout_changes_what_is_trained_and_is_off_in_predictions(algorithm):
    ctx, noisy = (extended(classifier(noise=noise), algorithm) for noise in (0.0, 0.5))
    reply, other = algorithm.work("train", ctx, None), algorithm.work("train", noisy, None)
    assert not same(sent(reply), sent(other)) and same(sent(other), sent(algorithm.work("train", noisy, None)))
    x = ctx.train.take()["x"]
    outputs = [algorithm.predictor(replace(c, state=reply.state))(x) for c in (ctx, noisy)]
    assert torch.equal(*outputs)


def test_masks_are_drawn_once_for_each_batch():
    """Two gradients of the same batch and parameters are equal; the next batch has other masks."""
    ctx = classifier(noise=0.5)
    steps, found = LocalSteps(LocalSGD(batch="full", epochs=2, lr=LR), ctx), []
    for _ in steps:
        found.append([steps.gradient(ctx.received["model"]) for _ in range(2)])
    assert all(same(one, other) for one, other in found) and not same(found[0][0], found[1][0])
    with_noise_of_another = LocalSteps(LocalSGD(batch="full", lr=LR), ctx, index=1)
    for _ in with_noise_of_another:
        assert not same(with_noise_of_another.gradient(ctx.received["model"]), found[0][0])


def test_fedala_learns_its_weights_with_dropout():
    ctx = classifier(noise=0.5)
    algorithm = fedala.FedALA(first_epochs=2, **SETTINGS)
    state = algorithm.work("train", ctx, None).state
    later = replace(ctx, received={"model": 0.5 * ctx.initial.trained}, state=state)
    one, other = (algorithm.work("train", later, None) for _ in range(2))
    assert same(sent(one), sent(other)) and not same(one.state["weights"], state["weights"])


# -- counted gradients ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "algorithm, gradients",
    [
        (apfl.APFL(**SETTINGS), 2),
        (Ditto(**SETTINGS), 2),
        (pfedme.PFedMe(inner_steps=3, **SETTINGS), 3),
        (PerFedAvg(**SETTINGS), 2),
        (PerFedAvg(kind="hf", **SETTINGS), 4),
        (PerFedAvg(alpha=0.0, **SETTINGS), 1),
        (fedrod.FedROD(**SETTINGS), 1),
    ],
)
def test_virtual_time_counts_each_gradient(algorithm, gradients):
    """Clients with 20 and 8 samples take 6 and 2 steps over 40 and 16 samples in two epochs with batches of 8."""
    steps, samples = algorithm.workload(np.array([20, 8]), 0, 9)
    assert steps.tolist() == [6, 2] and samples.tolist() == [40 * gradients, 16 * gradients]


def test_fedala_books_one_epoch_of_learning():
    algorithm, sizes = fedala.FedALA(sample=0.8, **SETTINGS), np.array([20, 1, 0])
    assert algorithm.workload(sizes, 0, 9)[1].tolist() == [40, 2, 0]  # in round 0 no client has an old model
    assert algorithm.workload(sizes, 1, 9)[1].tolist() == [56, 3, 0]
    assert algorithm.extra_samples(sizes, 1, 9).tolist() == [16, 1, 0]
    assert algorithm.num_sampled(sizes).tolist() == [16, 1, 0]


def test_a_budget_of_steps_counts_short_batches():
    """Five steps in batches of 8 on 20 samples take 8 + 8 + 4 + 8 + 8 samples."""
    steps, samples = LocalSGD(steps=5, batch=8).workload(np.array([20, 3, 0]), 0, 1)
    assert steps.tolist() == [5, 5, 0] and samples.tolist() == [36, 15, 0]


@pytest.mark.parametrize("name", ["fedavg", "apfl", "pfedme", "per_fedavg", "fedrod", "ditto", "fedala"])
def test_a_deadline_cuts_the_steps_that_are_taken(name, tmp_path):
    """20 samples are five steps of 4. A gradient takes 8 ms, so 40 ms are enough for five of FedAvg's steps."""
    gradients = {"apfl": 2, "ditto": 2, "per_fedavg": 2, "pfedme": 5}.get(name, 1)
    client = {"name": registry.lookup("strategy", name).client, "epochs": 1, "batch": 4, "lr": 0.01}
    system = {"devices": {"name": "identical", "ms_per_sample": 2}}
    config = RUN | {"strategy": name, "rounds": 1, "data": RUN["data"] | {"samples": 20}, "system": system}
    config |= {
        "server": {"name": "sync", "deadline_seconds": 0.0405, "partial": True},
        "cohort": {"name": "fixed", "clients": [1]},
    }
    one = fl.run(config | {"client": client}, out=tmp_path / "deadline")
    fits = 40 // (8 * gradients)
    table = pq.read_table(tmp_path / "deadline" / "clients.parquet").to_pylist()
    assert [row["local_steps"] for row in table if row["local_steps"] is not None] == [fits]
    del config["server"], config["system"]
    other = fl.run(config | {"client": client | {"epochs": None, "steps": fits}}, out=tmp_path / "steps")
    assert same(one.model, other.model)


def test_fedala_by_hand():
    """With old 0 and received 1 the start is W, and a full batch with eta .1 gives W <- W - .1 * 2 (W - 3) * 1.

    W is clipped to 1 from above. With old 4, W falls.
    """
    algorithm = fedala.FedALA(eta=0.1, layers=("weight",), sample=1.0, batch="full", lr=LR, steps=1)
    first = algorithm.work("train", quadratic(1.0), None)
    assert sent(first)["weight"].item() == pytest.approx(-LR * A * (1 - B)) and first.state["trainings"] == 1
    ctx = quadratic(1.0, {"personal": params(4.0), "weights": params(1.0), "trainings": torch.tensor(2)})
    found = algorithm.inputs(ctx).prepared  # gradient 2 (1 - 3) = -4, received - old = -3:  W = 1 - .1 * 12 < 0 -> 0
    assert (found["start"]["weight"].item(), found["weights"]["weight"].item()) == (4.0, 0.0)
    found = replace(algorithm, eta=0.05).inputs(ctx).prepared  # W = 1 - .05 * 12 = .4, start = 4 - .4 * 3
    assert found["weights"]["weight"].item() == pytest.approx(0.4)
    assert found["start"]["weight"].item() == pytest.approx(2.8)
    up = quadratic(1.0, {"personal": params(0.0), "weights": params(0.5), "trainings": torch.tensor(2)})
    assert algorithm.inputs(up).prepared["weights"]["weight"].item() == pytest.approx(1.0)  # .5 + .1 * 5
    reply = replace(algorithm, eta=0.05).work("train", ctx, None)  # from 2.8: gradient -.4
    assert sent(reply)["weight"].item() == pytest.approx(2.84 - 1.0)
    assert reply.state["personal"]["weight"].item() == pytest.approx(2.84)


def test_fedrod_losses():
    draw = torch.Generator().manual_seed(0)
    z, h = torch.randn(5, 3, generator=draw), torch.randn(5, 2, generator=draw)
    y, counts = torch.tensor([0, 2, 2, 0, 2]), torch.tensor([2.0, 0.0, 3.0])
    weighted = counts * z.exp()
    expected = -(weighted[torch.arange(5), y] / weighted.sum(-1)).log()
    torch.testing.assert_close(F.cross_entropy(fedrod.balanced(z, counts, 1.0), y, reduction="none"), expected)
    names = fedrod.WEIGHT, fedrod.BIAS
    head = Params.of(dict(zip(names, (torch.randn(3, 2, generator=draw), torch.randn(3, generator=draw)))))
    weight, bias = (head[n].clone().requires_grad_() for n in names)
    F.cross_entropy(z + h @ weight.T + bias, y).backward()
    torch.testing.assert_close(
        dict(fedrod.head_gradient(head, h, z, y)), dict(zip(names, (weight.grad, bias.grad))), rtol=1e-5, atol=1e-6
    )


def test_fedrod_keeps_a_head_and_predicts_with_both():
    ctx = classifier()
    shared = sent(LocalSGD(**SETTINGS).work("train", ctx, None))
    ctx = with_head(ctx)
    plain, balanced = (fedrod.FedROD(balance=b, **SETTINGS).work("train", ctx, None) for b in (0.0, 1.0))
    torch.testing.assert_close(dict(sent(plain)), dict(shared), rtol=0, atol=1e-6)
    assert not same(sent(balanced), sent(plain)) and torch.isfinite(balanced.state.compact()).all()
    w, head, x = ctx.received["model"], balanced.state, ctx.train.take()["x"]
    h = torch.tanh(x @ w["1.weight"].T + w["1.bias"])
    expected = h @ (w["3.weight"] + head[fedrod.WEIGHT]).T + w["3.bias"] + head[fedrod.BIAS]
    with torch.inference_mode():
        outputs = fedrod.FedROD(**SETTINGS).predictor(replace(ctx, state=head))(x)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="classification"):
        fedrod.FedROD(**SETTINGS).work("train", quadratic(0.0), None)


def test_fedrod_extends_a_model_whose_layer_is_called_head():
    module = nn.Sequential()
    module.add_module("head", nn.Linear(IN, OUT))
    x = torch.randn(3, IN)
    torch.testing.assert_close(fedrod.FedROD().extend(module, (IN,), OUT)(x), module.get_submodule("head")(x))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Ditto(lam=-1.0), "lam: -1.0 is negative"),
        (lambda: apfl.APFL(alpha=2.0), "alpha: 2.0 is not in"),
        (lambda: pfedme.PFedMe(inner_lr=1.0), "inner_lr: 1.0 times lam"),
        (lambda: PerFedAvg(kind="maml"), "kind: 'maml' is not one of"),
        (lambda: FedBABU(tune="none"), "tune: 'none' is not one of"),
        (lambda: FedRep(head_epochs=0), "head_epochs: 0 is not positive"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make, remark",
    [
        (lambda: Ditto(lam=0.0), "lam=0 is local training beside FedAvg"),
        (lambda: apfl.APFL(alpha=1.0), "as local training does"),
        (lambda: PerFedAvg(alpha=0.0), "alpha=0 is FedAvg"),
        (lambda: fedala.FedALA(eta=0.0), "this is FedAvg"),
        (lambda: fedrod.FedROD(balance=0.0), "as FedAvg does"),
    ],
)
def test_degenerate_values_leave_a_line_in_the_log(make, remark, caplog):
    make()
    assert remark in caplog.text
