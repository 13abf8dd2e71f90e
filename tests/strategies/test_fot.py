"""FOT: the paper's invariants, thresholds by hand, and bytes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.fot import FOT as FOTClient
from clients.fot import layer_statistics
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.method.context import ClientContext
from fl.models.binding import Initial, module_params
from fl.simulation.simulation import Simulation
from fl.tasks.task import Task
from fl.tensors import subspace
from fl.tensors.input_statistics import RATIOS
from strategies.fot import FOT
from tests.toys import fail_in_round
from tests.watching import AfterRound

RUN = {
    "data": {"name": "digits", "test": 0.6},
    "partition": {"name": "iid", "clients": 4},
    "splits": {"val": 0},
    "model": {"name": "mlp", "hidden": [12, 8]},
    "cohort": {"fraction": 1.0},
    "client": {"epochs": 1, "batch": 32, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}
STREAM = {"stream": {"name": "permuted", "tasks": 3, "rounds": 2}}
SIZES = {"1.weight": 64, "3.weight": 12, "5.weight": 8}  # name -> d of RUN's model
P = 64 * 12 + 12 + 12 * 8 + 8 + 8 * 10 + 10


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def basis(d, k, seed=0, dtype=torch.float64):
    return torch.linalg.qr(draw(d, k, seed=seed, dtype=dtype))[0]


# -- pure functions ---------------------------------------------------------------------------------------------------
def test_projection_removes_what_lies_in_the_subspace_and_nothing_else():
    u, delta = basis(6, 2), draw(5, 6, seed=1)
    kept = subspace.project(delta, u)
    assert (kept @ u).abs().max() < 1e-14
    torch.testing.assert_close(delta - kept, delta @ u @ u.T)
    orthogonal = delta - delta @ u @ u.T
    torch.testing.assert_close(subspace.project(orthogonal, u), orthogonal)


def test_a_convolution_is_projected_over_channel_and_kernel():
    u, delta = basis(2 * 3 * 3, 4), draw(5, 2, 3, 3, seed=1)
    kept = subspace.project(delta, u)
    assert kept.shape == delta.shape and (kept.flatten(1) @ u).abs().max() < 1e-14


def test_projecting_then_averaging_is_averaging_then_projecting():
    u, deltas, p = basis(7, 3), [draw(4, 7, seed=s) for s in range(3)], [0.2, 0.5, 0.3]
    each = sum(w * subspace.project(d, u) for w, d in zip(p, deltas))
    torch.testing.assert_close(each, subspace.project(sum(w * d for w, d in zip(p, deltas)), u))


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"padding": "same"}]
)
def test_columns_times_the_weight_are_the_convolution(settings):
    layer = nn.Conv2d(3, 4, (3, 5), bias=False, **settings).double()
    x = draw(2, 3, 7, 6)
    found = layer.weight.flatten(1) @ subspace.columns(layer, x)
    expected = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(found, expected.transpose(0, 1).flatten(1))


def test_grouped_convolutions_are_refused():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="protects: 0.weight belongs to a convolution with 2 groups"):
        subspace.protected(module, module_params(module), None, ())


def trained_and(module):
    return module, module_params(module)


@pytest.mark.parametrize(
    "module, named",
    [
        (nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5)), r"0.weight \(Conv1d\)"),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5)), r"0.weight \(Embedding\)"),
        (nn.ModuleDict({"r": nn.LSTM(3, 4), "l": nn.Linear(4, 5)}), r"r.weight_ih_l0 \(LSTM\)"),
        (nn.TransformerEncoderLayer(8, 2, 16), r"self_attn.in_proj_weight .*self_attn.out_proj.weight"),
    ],
)
def test_weights_whose_inputs_are_never_seen_are_refused(module, named):
    with pytest.raises(ValueError, match=f"protects: .*{named}.* cannot be protected"):
        subspace.protected(*trained_and(module), None, ())
    with pytest.raises(ValueError, match=f"protects: .*{named}.* cannot be protected"):
        subspace.protected(*trained_and(module), ("*weight*",), ())


def test_weights_that_cannot_be_protected_may_be_left_out():
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    assert subspace.protected(*trained_and(module), ("2.weight",), ()) == {"2.weight": 12}
    assert subspace.protected(*trained_and(module), None, ("0.*",)) == {"2.weight": 12}


def test_a_weight_that_two_layers_use_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    with pytest.raises(ValueError, match="protects: 0.weight is also .*2.weight"):
        subspace.protected(*trained_and(module), None, ())


def test_heads_are_left_out_and_patterns_choose():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    model = module_params(module)
    assert subspace.protected(module, model, None, ("3.*",)) == {"0.weight": 18, "2.weight": 12}
    assert subspace.protected(module, model, ("[23].weight",), ()) == {"2.weight": 12, "3.weight": 5}
    with pytest.raises(ValueError, match="pattern '7.*' matches no"):
        subspace.protected(module, model, ("7.*",), ())
    with pytest.raises(ValueError, match="protects: no weight is left"):
        subspace.protected(module, model, ("3.*",), ("3.*",))


def test_threshold_by_hand():
    assert subspace.threshold(1.0, 0.94) == pytest.approx(0.94)
    assert subspace.threshold(0.5, 0.94) == pytest.approx(0.44 / 0.5)
    assert subspace.threshold(0.05, 0.94) == pytest.approx(-0.2)


def test_count_by_hand():
    energies = torch.tensor([4.0, 3.0, 2.0, 1.0])  # shares .4, .7, .9, 1
    for tau, count in ((0.1, 1), (0.4, 2), (0.69, 2), (0.95, 4), (1.0, 4)):
        assert subspace.directions(energies, tau, 1) == subspace.directions(energies, tau, 0) == count
    assert subspace.directions(energies, -0.3, least=1) == 1  # the paper's program always adds one
    assert subspace.directions(energies, -0.3, least=0) == 0  # the energy criterion is met already
    assert subspace.directions(torch.zeros(4), 0.5, 1) == 0


def test_packing():
    matrix = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    assert subspace.packed(matrix).tolist() == [1, 2, 3, 4, 5, 6]
    assert torch.equal(subspace.unpacked(subspace.packed(matrix)), matrix)


def test_the_gram_matrix_gives_the_exact_principal_vectors():
    """Singular values 3, 2, 1 with known directions: energies 9, 4, 1 of 14.

    .95 of the energy needs all three directions, because two have .929; .9 needs two, .6 needs one.
    """
    u, v = basis(5, 3), basis(8, 3, seed=1)
    x = u @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ v.T
    for eps, k in ((0.95, 3), (0.9, 2), (0.6, 1)):
        found = subspace.extend_basis_from_gram(None, subspace.gram(x, None), eps)
        assert found.shape == (5, k)
        torch.testing.assert_close(found @ found.T, u[:, :k] @ u[:, :k].T)


@pytest.mark.parametrize("kind", ["sketch", "gram"])
def test_bases_stay_orthonormal_and_grow(kind):
    u = None
    for task in range(4):
        x = draw(20, 4, seed=task) @ draw(4, 50, seed=10 + task) + 0.01 * draw(20, 50, seed=20 + task)
        x = x.float()
        r = subspace.residual(x, u)
        tau = subspace.threshold(float(r.norm() / x.norm()), 0.95)
        if kind == "gram":
            new = subspace.extend_basis_from_gram(u, subspace.gram(x, u), tau)
        else:
            new = subspace.extend_basis_from_sketch(u, subspace.sketch(x, u, draw(50, 20, dtype=torch.float32)), tau)
        assert (new.T @ new - torch.eye(new.shape[1])).abs().max() < 1e-6
        if u is not None:
            assert new.shape[1] > u.shape[1]
            assert (u - new @ (new.T @ u)).abs().max() < 1e-6
        u = new
    for _ in range(30):  # the basis grows to all directions and then stops
        x = draw(20, 50, seed=99, dtype=torch.float32)
        u = subspace.extend_basis_from_gram(u, subspace.gram(x, u), 0.3)
    assert u.shape == (20, 20) and (u.T @ u - torch.eye(20)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["sketch", "gram"])
def test_with_eps_1_what_was_seen_never_changes(kind):
    """One linear layer without bias, inputs of rank 6 in 10 dimensions, and 50 rounds of random updates."""
    x, w = draw(10, 6, seed=1) @ draw(6, 40, seed=2), draw(3, 10, seed=3)
    if kind == "gram":
        u = subspace.extend_basis_from_gram(None, subspace.gram(x, None), 1.0)
    else:
        u = subspace.extend_basis_from_sketch(None, subspace.sketch(x, None, draw(40, 10, seed=4)), 1.0)
    assert u.shape == (10, 6)
    before = w @ x
    for s in range(50):
        w = w + subspace.project(draw(3, 10, seed=100 + s), u)
    assert ((w @ x) - before).abs().max() < 1e-11 and (w - draw(3, 10, seed=3)).norm() > 1


def test_residual_ratios_by_hand():
    """Two clients have ||R||^2, ||X||^2 = 9, 36 (n = 10) and 16, 64 (n = 30): both ratios are 1/2. No rows give 0."""
    a, b = torch.tensor([9.0, 36.0]), torch.tensor([16.0, 1600.0])
    total = sum(RATIOS["norm"].terms(*client) for client in ((a, 10), (b, 30), (torch.zeros(2), 0)))
    assert float(total[0] / total[1]) == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    total = sum(RATIOS["energy"].terms(*client) for client in ((a, 10), (b, 30)))
    assert float(total[0] / total[1]) == pytest.approx(25 / 1636)


# -- the client's statistics ------------------------------------------------------------------------------------------
def context(module, rows, client=0, basis=None, **config):
    x = draw(30, 6, dtype=torch.float32)
    view = View({"x": x}, np.asarray(rows))
    return ClientContext(
        client=client,
        seed=0,
        round=0,
        rounds=1,
        participation=0,
        received={"basis": basis or {}},
        config={"sizes": {"0.weight": 6, "2.weight": 5}, "factor": 0.0, "ratio": "energy", **config},
        state=None,
        train=view,
        val=view,
        test=view,
        initial=Initial.of(module),
        module=module,
        task=Task(),
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_the_inputs_of_layers_are_those_they_multiply():
    module = net()
    ctx = context(module, range(30))
    sent = layer_statistics(ctx, module_params(module))
    x = ctx.train.take()["x"]
    hidden = torch.relu(module[0](x)).detach()
    torch.testing.assert_close(sent["0.weight"]["y"], subspace.packed(x.T @ x))
    torch.testing.assert_close(sent["2.weight"]["y"], subspace.packed(hidden.T @ hidden))
    torch.testing.assert_close(sent["2.weight"]["norms"], hidden.square().sum().repeat(2))


def test_statistics_are_sums_over_clients():
    """If one client's rows are divided between two, their Gram matrices and norms add up to its own."""
    module, u = net(), {"0.weight": basis(6, 2, dtype=torch.float32)}
    model = module_params(module)
    one = layer_statistics(context(module, range(30), basis=u), model)
    a, b = (
        layer_statistics(context(module, rows, client, u), model)
        for client, rows in enumerate((range(11), range(11, 30)))
    )
    for name in one:
        for part in ("y", "norms"):
            torch.testing.assert_close(a[name][part] + b[name][part], one[name][part], rtol=1e-5, atol=1e-5)
    r = subspace.unpacked(one["0.weight"]["y"])
    assert (u["0.weight"].T @ r).abs().max() < 1e-4  # the sketch contains only the residual


def test_sketches_are_of_the_clients_own_stream_and_lie_in_what_the_inputs_span():
    module = net()
    model = module_params(module)
    again, same, other = (
        layer_statistics(context(module, range(4), c, factor=2.0), model)["0.weight"]["y"] for c in (0, 0, 1)
    )
    assert torch.equal(again, same) and not torch.equal(again, other) and again.shape == (6, 12)
    span = torch.linalg.qr(context(module, range(4)).train.take()["x"].T)[0]
    torch.testing.assert_close(span @ (span.T @ again), again)


def test_a_client_without_rows_sends_zeros():
    module = net()
    sent = layer_statistics(context(module, [], factor=1.0, ratio="norm"), module_params(module))
    assert all(not t.any() for parts in sent.values() for t in parts.values())


# -- runs -------------------------------------------------------------------------------------------------------------
def states(tmp_path, **overrides):
    """Return the strategy's state after each round, and the result."""
    seen = []
    with Simulation(resolve(read(RUN | STREAM, overrides)), tmp_path) as simulation:
        seen.append(simulation.state)
        result = simulation.run([AfterRound(lambda _: seen.append(simulation.state))])
    return seen, result


SERVERS = [
    {},
    {"strategy.weights": "uniform"},
    {"cohort": {"name": "fixed", "clients": [0, 2]}},
    {"strategy.server_optimiser": "momentum", "strategy.lr": 0.5},
    {"strategy.server_optimiser": {"name": "adam", "lr": 0.03}},
    {"client.optimiser": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}},
    {"strategy.gpse": "gram", "strategy.residual_ratio": "energy", "strategy.global_inputs": True},
    {"model": "cnn_tiny", "stream.tasks": 2},
]


@pytest.mark.parametrize("overrides", SERVERS, ids=lambda o: " ".join(map(str, o.values())) or "plain")
def test_no_step_enters_the_protected_subspace(tmp_path, overrides):
    """This holds for all weights, cohorts and optimisers. Bases are orthonormal and contain earlier bases."""
    seen, _ = states(tmp_path, **{"strategy": {"name": "fot"}, **overrides})
    moved = 0
    for old, new in zip(seen, seen[1:]):
        for name, u in old.bases.items():
            w = old.model[name].flatten(1)
            step = new.model[name].flatten(1) - w
            assert (step @ u).abs().max() <= 1e-6 * w.norm()
            moved += bool(step.any())
            assert torch.equal(new.bases[name][:, : u.shape[1]], u)
            assert (u.T @ u - torch.eye(u.shape[1])).abs().max() < 1e-6
    assert moved


def test_the_first_task_is_fedavg_to_the_bit(tmp_path):
    one = {"stream": None, "rounds": 3}
    fedavg = fl.run(RUN | one, out=tmp_path / "a", strategy="fedavg")
    for i, optimiser in enumerate(({}, {"gpse": "gram", "freeze_biases": True})):
        fot = fl.run(RUN | one, out=tmp_path / str(i), strategy={"name": "fot", **optimiser})
        assert fot.digest == fedavg.digest
    stream = {"strategy": {"name": "fot"}}
    seen, _ = states(tmp_path / "s", **stream)
    plain, _ = states(tmp_path / "p", strategy="fedavg")
    assert torch.equal(seen[2].model.buffers[0], plain[2].model.buffers[0])
    assert not torch.equal(seen[3].model.buffers[0], plain[3].model.buffers[0])


def test_biases_can_be_frozen_after_the_first_task(tmp_path):
    settings = {"name": "fot", "freeze_biases": True, "head": ["5.weight"]}
    seen, _ = states(tmp_path, strategy=settings)
    first, last = seen[2].model, seen[-1].model
    assert torch.equal(first["1.bias"], last["1.bias"]) and torch.equal(first["3.bias"], last["3.bias"])
    assert not torch.equal(first["5.bias"], last["5.bias"]) and not torch.equal(
        seen[0].model["1.bias"], first["1.bias"]
    )
    assert "5.weight" not in seen[-1].bases and "3.weight" in seen[-1].bases


def test_what_is_reported_when_a_task_ends(tmp_path):
    seen, result = states(tmp_path, strategy="fot")
    for round_, row in enumerate(result.metrics):
        assert ("basis/1" in row) == (round_ % 2 == 1)
    row = result.metrics[1]
    for name, d in SIZES.items():
        layer = name.removesuffix(".weight")
        k = seen[2].bases[name].shape[1]
        assert row[f"basis/{layer}"] == k >= 1 and row[f"capacity/{layer}"] == k / d


@pytest.mark.parametrize(
    "settings, up",
    [
        ({}, sum(d * d + 2 for d in SIZES.values())),
        ({"sketch": 1.5}, sum(d * d * 3 // 2 + 2 for d in SIZES.values())),
        ({"gpse": "gram"}, sum(d * (d + 1) // 2 + 2 for d in SIZES.values())),
        ({"gpse": "gram", "global_inputs": True}, sum(d * (d + 1) // 2 + 2 for d in SIZES.values())),
    ],
    ids=["sketch", "wide", "gram", "global"],
)
def test_every_float_is_counted(tmp_path, settings, up):
    """A round costs P floats per client and direction.

    The last round of a task also sends the statistics up, and from the second task on the basis down.
    """
    seen, result = states(tmp_path, strategy={"name": "fot", **settings})
    again = P if settings.get("global_inputs") else 0
    for round_, row in enumerate(result.metrics):
        ends = round_ % 2 == 1
        known = sum(u.numel() for u in seen[round_].bases.values())
        assert row["uplink_bytes"] == 4 * 4 * (P + ends * up)
        assert row["downlink_bytes"] == 4 * 4 * (P + ends * (again + known))


def test_eps_grows_by_its_increment_up_to_1(tmp_path):
    seen, _ = states(tmp_path, strategy={"name": "fot", "eps": 0.9, "eps_increment": 0.07})
    assert [s.eps for s in seen[::2]] == pytest.approx([0.9, 0.97, 1.0, 1.0])


@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ({"eps": 0.0}, "eps: 0.0 is not in"),
        ({"sketch": 0.0}, "sketch: 0.0 is not positive"),
        ({"gpse": "svd"}, "gpse: 'svd' is not one of"),
        ({"eps_increment": -0.1}, "eps_increment: -0.1 is negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        FOT(**wrong)


@pytest.mark.slow
def test_fot_forgets_less_than_fedavg(tmp_path):
    """On two tasks of permuted digits the paper's claim holds with a margin."""
    overrides = {"stream.tasks": 2, "stream.rounds": 10, "model.hidden": [40], "client.epochs": 2}
    runs = {s: fl.run(RUN | STREAM, out=tmp_path / s, strategy=s, **overrides).metrics[-1] for s in ("fedavg", "fot")}
    assert runs["fot"]["stream/acc"] > runs["fedavg"]["stream/acc"] + 0.03
    assert runs["fot"]["stream/fgt"] < 0.6 * runs["fedavg"]["stream/fgt"]


# -- layers that forward does not call --------------------------------------------------------------------------------
READS_A_WEIGHT = """
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.a, self.b = nn.Linear(shape[0], 6), nn.Linear(6, outputs)
    def forward(self, x):
        return self.b(F.relu(F.linear(x.flatten(1), self.a.weight, self.a.bias)))
"""


def reads_a_weight(tmp_path, evaluates: bool) -> dict:
    (tmp_path / "m.py").write_text(READS_A_WEIGHT)
    x = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    tests = {} if not evaluates else {"x_test": x, "y_test": np.arange(40) % 3}
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(40) % 3, **tests)
    own = {"data": str(tmp_path / "d.npz"), "model": f"{tmp_path}/m.py:Net", "strategy": {"name": "fot"}}
    return {**RUN, **own, "evaluation": {"server": evaluates}, "rounds": 1}


def test_a_weight_that_forward_only_reads_is_refused_before_round_0(tmp_path):
    with pytest.raises(fl.ConfigError, match="forward does not call the layers of .'a.weight'."):
        fl.run(reads_a_weight(tmp_path, True), out=tmp_path / "out")


def test_without_a_test_set_the_first_boundary_names_it(tmp_path, caplog):
    fl.run(reads_a_weight(tmp_path, False), out=tmp_path / "out")
    assert "the weights ['a.weight'] are not protected" in caplog.text


# -- a boundary without answers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("fails, covered", [({"train"}, [0, 0, 1, 1, 2]), ({"train", "gpse"}, [0, 0, 0, 1, 2])])
def test_a_boundary_without_answers_is_taken_with_the_next(tmp_path, monkeypatch, fails, covered):
    """In round 1, the last of the first task, all clients fail at some work; the bases come with the next answers."""
    fail_in_round(monkeypatch, FOTClient, 1, fails)
    settings = {"name": "fot", "eps": 1.0, "gpse": "gram", "residual_ratio": "energy"}
    overrides = {"stream.tasks": 2, "execution.on_client_error": "drop"}
    seen, _ = states(tmp_path, strategy=settings, **overrides)
    assert [state.tasks for state in seen] == covered
    assert [bool(state.bases) for state in seen] == [bool(tasks) for tasks in covered]
    if fails == {"train"}:  # the bases hold all inputs of the first task, up to float32 noise
        config = resolve(read(RUN | STREAM, {"strategy": "fedavg", **overrides}))
        with Simulation(config, tmp_path / "again") as simulation:
            setup = simulation.run_setup
        first, second = (
            torch.from_numpy(setup.dataset.train["x"][period.partition.indices]).flatten(1) for period in setup.periods
        )
        u = seen[2].bases["1.weight"]
        outside = [float((x - x @ u @ u.T).norm() / x.norm()) for x in (first, second)]
        assert outside[0] < 0.005 < 0.02 < outside[1]
