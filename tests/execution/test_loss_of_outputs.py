"""Training with a loss of outputs and features equals plain torch training in every plan.

In one call, other clients of the chunk change no bits of a client. The last bits of whole runs may depend on the size
of chunks.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from torch import nn

import fl
from clients.moon import Moon
from clients.sgd import LocalSGD
from fl import LossOfOutputs
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.execution.training import batched
from fl.execution.training.chunk import Chunk
from fl.execution.training.compiled import Compiled
from fl.execution.training.kernels import LinearStack
from fl.execution.training.vmap import Vmap
from fl.models.architectures.linear import MLP
from fl.models.binding import Initial, module_params
from fl.simulation.build import set_up_run
from fl.tasks.supervised import Classification
from fl.tensors import random
from fl.tensors.params import match

SIZES, LR, OLD = np.array([13, 0, 41, 1, 20, 64]), 0.03, 3.0
IDS = np.array([3, 8, 21, 22, 60, 90])


@dataclass(frozen=True, kw_only=True)
class Near(LossOfOutputs):
    """Cross-entropy, plus a distance to features of the client's old model and to outputs of the received one."""

    def reference_models(self, inputs):
        return {"old": inputs.state, "received": inputs.received["model"]}

    def constants(self, references, config, task):
        return {"old": references["old"].features, "scores": references["received"].outputs}

    def sample_losses(self, own, constants, batch, config, task):
        far = (own.features - constants["old"]).square().mean(1)
        shift = (own.outputs - constants["scores"]).square().mean(1)
        return task.loss(own.outputs, batch) + config["weight"] * far + 0.5 * shift

    def finish(self, end):
        return {"model": end.delta}, end.params


def model(*widths, inputs=20, activation="relu", normalise="none", dropout=0.0):
    torch.manual_seed(0)
    settings = {"activation": activation, "normalise": normalise, "dropout": dropout}
    return MLP(hidden=widths, bias=normalise == "none", **settings).build((inputs,), 5)


def chunk(module, which=slice(None)) -> Chunk:
    """Return clients with SIZES samples and an old model each. Rows of nobody lie between theirs."""
    draw, n = np.random.default_rng(1), 2 * int(SIZES.sum())
    module = copy.deepcopy(module)  # training binds it
    x = draw.standard_normal((n, module_inputs(module)), np.float32)
    received = module_params(module)
    return Chunk(
        clients=IDS[which],
        seed=2,
        round=1,
        rounds=3,
        participation=4,
        received={"model": received},
        config={"weight": OLD},
        states=[received * (1 + 0.1 * c) for c in range(len(SIZES))][which],
        arrays={"x": torch.from_numpy(x), "y": torch.from_numpy(draw.integers(0, 5, n))},
        rows=draw.permutation(n),
        starts=(np.cumsum(2 * SIZES) - 2 * SIZES)[which],
        sizes=SIZES[which],
        initial=Initial.of(module),
        module=module,
        task=Classification(),
    )


def module_inputs(module) -> int:
    return next(layer.in_features for layer in module if isinstance(layer, nn.Linear))


def passes(module, x):
    """Return outputs and inputs of the last layer."""
    *below, last = module
    features = nn.Sequential(*below)(x).flatten(1)
    return last(features), features


def plainly(module, given, c: int, epochs: int, batch: int, frozen=()):
    """Train client c by torch.optim; return its change and its mean loss. frozen: names of tensors."""
    trained, old, received = (copy.deepcopy(module) for _ in range(3))
    old.load_state_dict(dict(given.states[c]))
    learns = [tensor for name, tensor in trained.named_parameters() if name not in frozen]
    rule, n, losses = torch.optim.SGD(learns, lr=LR), int(given.sizes[c]), []
    for epoch in range(epochs):
        order = random.permutation(n, given.seed, int(given.clients[c]), given.participation, "shuffle", 0, epoch)
        for first in range(0, n, batch):
            at = torch.from_numpy(given.rows[given.starts[c] + order[first : first + batch]])
            x, y = given.arrays["x"][at], given.arrays["y"][at]
            (outputs, features), far = passes(trained, x), passes(old, x)[1].detach()
            loss = F.cross_entropy(outputs, y, reduction="none") + OLD * ((features - far) ** 2).mean(1)
            loss = loss + 0.5 * ((outputs - received(x).detach()) ** 2).mean(1)
            losses += loss.tolist()
            rule.zero_grad()
            loss.mean().backward()
            rule.step()
    return module_params(trained) - module_params(module), np.mean(losses) if losses else 0.0


NETS = {
    "softmax": model(),
    "narrow": model(7, activation="tanh"),
    "wide": model(40, 33, inputs=70),
    "sigmoid": model(16, 9, activation="sigmoid"),
    "features normalised": model(17, 9, normalise="feature"),
    "layers normalised": model(17, 9, normalise="layer"),
}


@pytest.mark.parametrize("backend", [Compiled, LinearStack, Vmap])
@pytest.mark.parametrize("name", NETS)
def test_it_is_plain_torch_training(name, backend):
    given = chunk(NETS[name])
    reply = batched.train(Near(lr=LR, epochs=2, batch=11), given, backend)
    for c in range(len(SIZES)):
        change, loss = plainly(NETS[name], given, c, 2, 11)
        for tensor, expected in change.items():
            assert_allclose(reply.update.groups["model"].row(c)[tensor], expected, rtol=1e-3, atol=5e-6)
            assert_allclose(
                reply.state.row(c)[tensor], given.received["model"][tensor] + expected, rtol=1e-3, atol=5e-6
            )
        assert float(reply.update.metrics["loss"][c]) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("backend", [Compiled, LinearStack])
@pytest.mark.parametrize("trains", [("1.*",), ("3.bias", "5.*"), ("5.*",)])
def test_with_frozen_tensors_it_is_plain_torch_training(trains, backend):
    module = NETS["wide"]
    given = chunk(module)
    reply = batched.train(Near(lr=LR, epochs=2, batch=11, trains=trains), given, backend)
    frozen = {*given.received["model"]} - {*match(given.received["model"], trains)}
    for c in range(len(SIZES)):
        change, _ = plainly(module, given, c, 2, 11, frozen)
        for tensor, expected in change.items():
            assert_allclose(reply.update.groups["model"].row(c)[tensor], expected, rtol=1e-3, atol=5e-6)
            assert tensor not in frozen or not reply.update.groups["model"].row(c)[tensor].any()


def test_a_loss_of_outputs_alone_is_plain_torch_training():
    class OutputsOnly(Near):
        def reference_models(self, inputs):
            return {}

        def sample_losses(self, own, constants, batch, config, task):
            assert not constants
            return task.loss(own.outputs, batch)

    module = NETS["wide"]
    given = replace(chunk(module), states=[None] * len(SIZES))
    own = batched.train(OutputsOnly(lr=LR, epochs=2, batch=11), given, Compiled).update
    plain = batched.train(LocalSGD(lr=LR, epochs=2, batch=11), given, Compiled).update
    assert_allclose(own.groups["model"].buffers[0], plain.groups["model"].buffers[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_other_clients_of_the_chunk_change_no_bits(name):
    algorithm = Near(lr=LR, epochs=2, batch=20)
    together = batched.train(algorithm, chunk(NETS[name]), Compiled).update
    for c in range(len(SIZES)):
        alone = batched.train(algorithm, chunk(NETS[name], slice(c, c + 1)), Compiled).update
        assert torch.equal(together.groups["model"].buffers[0][c], alone.groups["model"].buffers[0][0])


@pytest.mark.parametrize("backend", [Compiled, LinearStack])
def test_new_clients_share_passes_of_the_received_model_and_change_no_bits(backend, monkeypatch):
    """Clients 0, 2 and 4 have no state; the others' old models come first in one of the methods, and share nothing."""

    class New(Near):
        def first_state(self, inputs):
            return inputs.received["model"]

    class Shares(New):
        def reference_models(self, inputs):
            return {"received": inputs.received["model"], "old": inputs.state}

    module, shares, passes = NETS["wide"], [], Compiled.model_passes

    def counted(*arguments):
        shares.append([] if arguments[-1] is None else arguments[-1][0].tolist())
        return passes(*arguments)

    monkeypatch.setattr(Compiled, "model_passes", staticmethod(counted))
    given = chunk(module)
    received = given.received["model"]
    given = replace(given, states=[None if c % 2 == 0 else state for c, state in enumerate(given.states)])
    alone = batched.train(New(lr=LR, epochs=2, batch=11), given, backend)
    shared = batched.train(Shares(lr=LR, epochs=2, batch=11), given, backend)
    assert torch.equal(alone.update.groups["model"].buffers[0], shared.update.groups["model"].buffers[0])
    new = [c % 2 == 0 for c in range(len(SIZES))]
    assert shares == ([[], [], [], new] if backend is Compiled else [])
    known = replace(given, states=[received if state is None else state for state in given.states])
    for c in range(len(SIZES)):
        change, _ = plainly(module, known, c, 2, 11)
        for tensor, expected in change.items():
            assert_allclose(shared.update.groups["model"].row(c)[tensor], expected, rtol=1e-3, atol=5e-6)


def test_a_sum_has_the_bits_of_its_updates():
    given, weights = chunk(NETS["wide"]), torch.from_numpy(SIZES / 7).float()
    algorithm = Near(lr=LR, epochs=1, batch=20)
    each = batched.train(algorithm, given, Compiled)
    summed = batched.train(algorithm, given, Compiled, {"model": weights})
    expected = fl_sum([each.update.groups["model"].row(c) for c in range(len(SIZES))], weights)
    assert batched.is_summed(summed.update)
    assert torch.equal(summed.update.groups["model"].compact(), expected.compact())
    assert torch.equal(summed.state.buffers[0], each.state.buffers[0])


def fl_sum(updates, weights):
    """Add weighted updates in the order of a binary tree over positions."""
    totals = []
    for c, (update, weight) in enumerate(zip(updates, weights)):
        total = update * float(weight)
        while c & 1:
            total, c = totals.pop() + total, c >> 1
        totals.append(total)
    while len(totals) > 1:
        last = totals.pop()
        totals[-1] = totals[-1] + last
    return totals[0]


@pytest.mark.parametrize(
    "algorithm, module, why",
    [
        (Moon(), model(4), None),
        (Moon(features="1"), model(4), "Moon compares the outputs of the layer '1'"),
        (
            Moon(clip=1.0),
            model(4),
            "Moon has its own loss, and its steps are not those of plain SGD",
        ),
        (Moon(), model(4, dropout=0.5), "Moon has its own loss, and the model has Dropout"),
    ],
)
def test_covers(algorithm, module, why):
    assert Compiled.covers(algorithm, module, Classification()) == why


@pytest.mark.parametrize("change", [{}, {"client.optimiser": {"name": "sgd", "momentum": 0.9}}, {"model.dropout": 0.5}])
def test_runs_end_where_those_of_the_loop_end(tmp_path, change):
    config = {
        "rounds": 3,
        "data": "digits",
        "partition": {"name": "dirichlet", "clients": 12, "alpha": 0.5, "min_size": 4},
        "model": {"name": "mlp", "hidden": [40, 20]},
        "strategy": "moon",
        "client": {"lr": 0.1, "batch": 10, "epochs": 2, "mu": 2.0},
        "cohort": {"size": 8},
        "execution": {"executor": "serial"},
    }

    def run(**more):
        return fl.run(read(config, change | more), out=tmp_path / str(len([*tmp_path.iterdir()])))

    one, two, loop = run(), run(**{"execution.workers": 2}), run(**{"execution.plan": "loop"})
    assert one.digest == two.digest != loop.digest
    assert one.metrics[-1]["train/loss"] == pytest.approx(loop.metrics[-1]["train/loss"], rel=1e-4)


# -- rows without labels ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class WithViews(Near):
    """Takes samples without labels beside the labelled ones, and ignores them."""

    def phases(self, round_, rounds):
        return tuple(replace(phase, beside={"u": fl.Beside(batch=2)}) for phase in super().phases(round_, rounds))


def with_unlabelled(given: Chunk) -> Chunk:
    """Return the chunk with rows without labels behind the training rows of clients that have training rows."""
    return replace(given, unlabelled=SIZES)  # `chunk` leaves as many rows behind each client's


@pytest.mark.parametrize("backend", [Compiled, LinearStack, Vmap])
def test_rows_without_labels_change_nothing(backend):
    module, algorithm = NETS["narrow"], Near(lr=LR, epochs=2, batch=11)
    alone = batched.train(algorithm, chunk(module), backend)
    beside = batched.train(algorithm, with_unlabelled(chunk(module)), backend)
    assert torch.equal(alone.update.groups["model"].buffers[0], beside.update.groups["model"].buffers[0])
    change, _ = plainly(module, chunk(module), 0, 2, 11)
    assert_allclose(beside.update.groups["model"].row(0)["1.weight"], change["1.weight"], rtol=1e-3, atol=5e-6)


def test_with_several_views_the_passes_are_made_for_each_batch():
    module, algorithm = NETS["narrow"], WithViews(lr=LR, epochs=1, batch=11)
    given = with_unlabelled(chunk(module))
    reply = batched.train(algorithm, given, Vmap)
    for c in (0, 2, 5):
        change, _ = plainly(module, given, c, 1, 11)
        for tensor, expected in change.items():
            assert_allclose(reply.update.groups["model"].row(c)[tensor], expected, rtol=1e-3, atol=5e-6)
    for backend in (Compiled, LinearStack):
        with pytest.raises(ValueError, match="take steps over several views"):
            batched.train(algorithm, given, backend)


# -- a user's class ---------------------------------------------------------------------------------------------------
class Distilled(LossOfOutputs):
    """Local training towards the received model's outputs, as in docs/methods.md."""

    def reference_models(self, inputs):
        return {"received": inputs.received["model"]}

    def constants(self, references, config, task):
        return {"target": references["received"].outputs.softmax(-1)}

    def sample_losses(self, own, constants, batch, config, task):
        distilled = -(constants["target"] * own.outputs.log_softmax(-1)).sum(-1)
        return task.loss(own.outputs, batch) + distilled


def digits(client, **changes):
    base = {
        "rounds": 1,
        "data": "digits",
        "partition": {"name": "iid", "clients": 4},
        "model": {"name": "mlp", "hidden": [13]},
        "strategy": "fedavg",
        "client": client,
        "cohort": {"size": 4},
        "execution": {"executor": "serial"},
    }
    return read(base, changes)


@pytest.mark.parametrize(
    "client, strategy", [(Distilled(lr=0.1, batch=10), "fedavg"), (Moon(lr=0.1, batch=10, epochs=2), "moon")]
)
@pytest.mark.parametrize("labels", [None, {"name": "clients", "labelled": 3}, {"name": "budget", "share": 0.3}])
def test_auto_compiles_it_and_ends_where_the_loop_ends(tmp_path, client, strategy, labels):
    changes = {"strategy": strategy, "labels": labels}
    assert set_up_run(resolve(digits(client, **changes))).plan.kind == "compiled"
    auto = fl.run(digits(client, **changes), out=tmp_path / "auto")
    loop = fl.run(digits(client, **changes, **{"execution.plan": "loop"}), out=tmp_path / "loop")
    assert auto.metrics[-1]["train/loss"] == pytest.approx(loop.metrics[-1]["train/loss"], rel=1e-4)
    for name, tensor in loop.model.items():
        assert_allclose(auto.model[name], tensor, rtol=1e-4, atol=1e-4 * float(tensor.abs().max()))


def wrong(hook, found):
    """Return `Distilled` with a hook that returns `found(what it returns else)`."""

    def hooked(self, *args):
        return found(getattr(Distilled, hook)(self, *args))

    return type("Wrong", (Distilled,), {hook: hooked})


NAMES = "the groups of the broadcast are \\['model'\\], and the names of its config \\[\\]"
WRONG = [
    ("reference_models", lambda r: None, "Wrong: reference_models returned a NoneType, expected a mapping"),
    ("reference_models", lambda r: {"received": None}, "Wrong: reference_models returned None for 'received'"),
    ("reference_models", lambda r: {"received": 3}, "Wrong: reference_models returned a int for 'received'"),
    (
        "reference_models",
        lambda r: {"a": r["old"]},
        "Wrong: reference_models asks for 'old', which is missing; " + NAMES,
    ),
    ("constants", lambda r: r["target"], "Wrong: constants returned a Tensor, expected a mapping"),
    (
        "constants",
        lambda r: {"target": 3.0},
        "Wrong: constants returned a float for 'target', expected a tensor with 5",
    ),
    ("constants", lambda r: {"target": r["target"].sum()}, "Wrong: constants returned 'target' without rows for 5"),
    (
        "constants",
        lambda r: {"target": r["target"][:3]},
        "Wrong: constants returned 'target' with 3 rows for 5 samples",
    ),
    ("sample_losses", lambda r: r.mean(), r"sample_losses of Wrong returned shape \(\) for 2 samples, expected \(2,\)"),
    ("sample_losses", lambda r: r.detach(), "sample_losses of Wrong returned losses without a gradient"),
    ("sample_losses", lambda r: r.tolist(), r"sample_losses of Wrong returned a list, expected a tensor \(2,\)"),
    ("sample_losses", lambda r: r / len(r), "sample_losses of Wrong divides the losses by the number .* the mean$"),
]


@pytest.mark.parametrize("plan", ["auto", "loop"])
@pytest.mark.parametrize("hook, found, said", WRONG)
def test_wrong_results_are_refused_before_round_0(hook, found, said, plan):
    with pytest.raises(ConfigError, match=f"client: {said}"):
        set_up_run(resolve(digits(wrong(hook, found)(lr=0.1), **{"execution.plan": plan})))


@pytest.mark.parametrize("backend", [Compiled, LinearStack, Vmap])
@pytest.mark.parametrize(
    "hook, found, said",
    [
        ("constants", lambda r: {"target": r["target"].repeat(2, 1)}, "'target' with [0-9]+ rows for [0-9]+ samples"),
        ("sample_losses", lambda r: r.mean(), r"sample_losses of Wrong returned shape \(\) for [0-9]+ samples"),
        ("sample_losses", lambda r: r.detach(), "sample_losses of Wrong returned losses without a gradient"),
    ],
)
def test_wrong_results_are_refused_in_chunks(hook, found, said, backend):
    given = replace(chunk(NETS["narrow"]), states=[None] * len(SIZES))
    with pytest.raises(ValueError, match=said):
        batched.train(wrong(hook, found)(lr=LR, batch=11), given, backend)


@pytest.mark.parametrize("strategy, client", [("moon", "moon"), ("fedproto", "fedproto")])
def test_an_unknown_layer_is_refused_before_round_0(strategy, client):
    with pytest.raises(ConfigError, match="client.features: 'head' is not a layer of the model; it has"):
        set_up_run(resolve(digits({"name": client, "features": "head"}, strategy=strategy)))
