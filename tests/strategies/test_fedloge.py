"""FedLoGe: sparse frames, three losses whose gradients do not meet, heads with equal rows, traffic."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.fedloge import FedLoGe, WithHeads
from fl import simplex, with_norms
from fl.data.views import View
from fl.errors import ConfigError
from fl.method.context import ClientContext
from fl.method.strategy import ServerContext
from fl.models.binding import Initial
from fl.models.probe import ModuleFacts
from fl.tasks.supervised import Classification
from fl.tensors.params import Params
from strategies.fedloge import FRAME
from strategies.fedloge import FedLoGe as Strategy
from strategies.sparse_frame import entries_kept, sparse_frame

IN, HIDDEN, OUT = 6, 8, 4
MLP = IN * HIDDEN + HIDDEN + HIDDEN * OUT + OUT  # |phi| + h C + C
SHAPES = {"weight": (OUT, HIDDEN), "bias": (OUT,)}
RUN = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [IN], "classes": OUT, "clients": 5, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.2},
    "model": {"name": "mlp", "hidden": [HIDDEN]},
    "strategy": {"name": "fedloge", "sparsity": 0.0},
    "cohort": {"size": 5},
    "client": {"epochs": 2, "batch": 8, "lr": 0.1, "norm": 1.0},
    "execution": {"executor": "serial", "plan": "loop"},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net() -> WithHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return WithHeads(nn.Sequential(nn.Linear(IN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT)), OUT)


# -- frames -----------------------------------------------------------------------------------------------------------
def angles(frame: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(frame.double(), dim=0)
    cosines = (unit.T @ unit)[~torch.eye(frame.shape[1], dtype=torch.bool)]
    return cosines.arccos().rad2deg()


def test_the_angles_of_a_dense_frame_are_arccos_of_minus_one_ninth():
    """arccos(-1/9) = 96.379 degrees for 10 classes."""
    found = angles(simplex(100, 10, generator()))
    assert math.degrees(math.acos(-1 / 9)) == pytest.approx(96.379, abs=1e-3)
    assert (found - 96.379).abs().max() < 1e-3


def test_a_sparse_frame_has_its_zeros_unit_columns_and_wide_angles():
    frame = simplex(64, 10, generator())
    kept = entries_kept(64, 10, 0.6, generator(1))
    fitted = sparse_frame(frame, kept, steps=500, lr=1e-3)
    assert int((fitted == 0).sum()) == 384 and (fitted[~kept] == 0).all()  # floor(.6 * 64 * 10)
    torch.testing.assert_close(fitted.norm(dim=0), torch.ones(10), rtol=0, atol=1e-3)
    assert angles(fitted).min() > angles(frame * kept).min() + 1
    assert int((~entries_kept(7, 3, 0.5, generator())).sum()) == 10  # floor(10.5)
    with pytest.raises(ValueError, match="leaves class . without an entry"):
        entries_kept(2, 4, 0.9, generator())


# -- training ---------------------------------------------------------------------------------------------------------
def test_the_three_losses_move_different_tensors():
    """By autograd on plain tensors: phi sees the frame's loss alone, each head its own."""
    module, x = net(), torch.randn(5, IN, generator=generator())
    y = torch.tensor([0, 1, 2, 3, 0])
    p = {name: t.detach() for name, t in module.named_parameters()}
    features = F.relu(x @ p["0.weight"].T + p["0.bias"])
    frame, shared, local = module(x, parts=True)
    torch.testing.assert_close(module(x), shared)
    torch.testing.assert_close(shared, features @ p["2.weight"].T + p["2.bias"])
    torch.testing.assert_close(local, features @ p["loge.local.weight"].T + p["loge.local.bias"])
    torch.testing.assert_close(frame, features @ p[FRAME].T)
    sum(F.cross_entropy(scores, y) for scores in (frame, shared, local)).backward()
    weight, bias = (p[f"0.{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    F.cross_entropy(F.relu(x @ weight.T + bias) @ p[FRAME].T, y).backward()
    assert torch.equal(module.get_parameter("0.weight").grad, weight.grad)
    for name in ("2", "loge.local"):
        own = p[f"{name}.weight"].clone().requires_grad_()
        F.cross_entropy(features @ own.T + p[f"{name}.bias"], y).backward()
        torch.testing.assert_close(module.get_parameter(f"{name}.weight").grad, own.grad)


class FrameAlone(FedLoGe):
    """Without the losses of the two heads."""

    def objective(self, net, batch, at, task):
        return task.loss(self.norm * net(batch["x"], parts=True)[0], batch)


def test_without_the_heads_losses_the_body_has_the_same_bits(tmp_path):
    settings = {"epochs": 2, "batch": 8, "lr": 0.1, "norm": 1.0}
    both, alone = (
        fl.run({**RUN, "client": client(**settings)}, out=tmp_path / client.__name__).model
        for client in (FedLoGe, FrameAlone)
    )
    for name in ("1.weight", "1.bias"):
        assert torch.equal(both[name], alone[name])


def test_traffic_frame_and_metrics_of_a_run(tmp_path):
    """4 (|phi| + h C + C) bytes each way; no private tensor, and a sparse frame once to each client: 4 h C bytes."""
    dense = fl.run(RUN, out=tmp_path / "dense")
    rows = dense.ledger.to_pylist()
    assert len(rows) == 2 * 2 * 5 and {(row["group"], row["payload_bytes"]) for row in rows} == {("model", 4 * MLP)}
    centred = OUT / (OUT - 1) * (torch.eye(OUT) - 1 / OUT)
    torch.testing.assert_close(dense.model[FRAME] @ dense.model[FRAME].T, centred, rtol=0, atol=1e-5)
    first = fl.run(RUN, out=tmp_path / "first", rounds=1).model
    for name in (FRAME, "loge.local.weight", "loge.local.bias"):  # the server's own are those of the start
        assert torch.equal(dense.model[name], first[name])
    norms = dense.model[f"{head(dense.model)}.weight"].norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(OUT))

    sparse = fl.run(RUN, out=tmp_path / "sparse", **{"strategy.sparsity": 0.5, "strategy.fit_steps": 10})
    rows = sparse.ledger.to_pylist()
    assert {(row["group"], row["payload_bytes"]) for row in rows if row["group"] == "frame"} == {
        ("frame", 4 * HIDDEN * OUT)
    }
    assert sorted(row["client"] for row in rows if row["group"] == "frame") == list(range(5))
    assert int((sparse.model[FRAME] == 0).sum()) == HIDDEN * OUT // 2
    cnn = {"data": "digits", "partition": {"name": "iid", "clients": 5}, "model": "cnn_tiny", "client.steps": 1}
    digits = fl.run(RUN, out=tmp_path / "cnn", **cnn, **{"client.epochs": None, "rounds": 1})
    assert {row["payload_bytes"] for row in digits.ledger.to_pylist()} == {4 * 6090}
    assert {"eval/accuracy", "frame/accuracy", "unaligned/accuracy"} <= set(digits.metrics[-1])


def head(model) -> str:
    return next(name for name in model if model[name].shape == (OUT, HIDDEN) and "loge" not in name)[:-7]


def test_loop_and_vmap_agree_with_a_sparse_frame(tmp_path):
    """Clients with one sample and with less than a batch are among them; the frame stays where the server fitted it."""
    owners = {"name": "file", "lists": [[0, 1, 2, 3, 4], [5], list(range(6, 40))]}
    data = {"name": "noise", "shape": [IN], "classes": OUT, "clients": 1, "samples": 80}
    more = {"data": data, "partition": owners, "cohort.size": 3, "strategy.sparsity": 0.5, "strategy.fit_steps": 10}
    more["splits"] = {"val": 0.0}
    loop, vmap = (fl.run(RUN, out=tmp_path / p, **more, **{"execution.plan": p}) for p in ("loop", "vmap"))
    for name in loop.model:
        torch.testing.assert_close(vmap.model[name], loop.model[name], rtol=1e-4, atol=1e-5)


# -- realignment ------------------------------------------------------------------------------------------------------
def test_realigned_rows_by_hand():
    """(3, 4) at norm 1 is (.6, .8); twice is once; the mean of the norms 5 and 7 is 6."""
    rows = torch.tensor([[3.0, 4.0], [0.0, 7.0]])
    torch.testing.assert_close(with_norms(rows, 1.0), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    for norms, expected in (("mean", 6.0), (1.7, 1.7)):
        once = with_norms(rows, norms)
        torch.testing.assert_close(once.norm(dim=1), torch.full((2,), expected))
        torch.testing.assert_close(with_norms(once, norms), once)
    assert torch.equal(with_norms(torch.zeros(1, 2), 1.0), torch.zeros(1, 2))


def test_a_client_adds_its_realigned_head_to_the_shared_one():
    """Rows |l_c| g_c / |g_c| and the biases of g; as trained with rho "off"; without a state, g alone."""
    module, x = net(), torch.randn(5, IN, generator=generator())
    arrays = {"x": x, "y": torch.tensor([0, 0, 1, 1, 3])}
    view, initial = View(arrays, np.arange(5)), Initial.of(module)
    p = {name: t.clone() for name, t in initial.trained.items()}
    own = Params.of({f"loge.local.{n}": torch.randn(s, generator=generator(3)) for n, s in SHAPES.items()})
    ctx = ClientContext(
        client=0, seed=0, round=0, rounds=1, participation=0, received={"model": initial.trained}, config={}, state=own,
        train=view, val=view, test=view, initial=initial, module=module, task=Classification(),
        module_facts=ModuleFacts(outputs=OUT),
    )  # fmt: skip
    features = F.relu(x @ p["0.weight"].T + p["0.bias"])

    def scores(weight, bias):
        return features @ weight.T + bias

    def unit(weight):
        return weight / weight.norm(dim=1, keepdim=True)

    weight, bias, (own_weight, own_bias) = p["2.weight"], p["2.bias"], own.values()
    plain = scores(weight, bias)
    trained = plain + scores(own_weight, own_bias)
    for rho, norms in (("mean", weight.norm(dim=1).mean()), (1.7, 1.7)):
        aligned = scores(norms * unit(weight), bias)
        aligned = aligned + scores(own_weight.norm(dim=1, keepdim=True) * unit(weight), bias)
        with torch.no_grad():
            torch.testing.assert_close(FedLoGe().predictor(replace(ctx, config={"rho": rho, "head": "2"}))(x), aligned)
    with torch.no_grad():
        torch.testing.assert_close(FedLoGe().predictor(replace(ctx, config={"rho": "off"}))(x), trained)
        torch.testing.assert_close(FedLoGe().predictor(replace(ctx, state=None))(x), plain)
        found = FedLoGe(absent="mask").predictor(ctx)(x)
    torch.testing.assert_close(found[:, [0, 1, 3]], trained[:, [0, 1, 3]])
    assert (found.argmax(1) != 2).all() and (found[:, 2] < found[:, [0, 1, 3]].min(1).values).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"model.freeze": ["loge.frame.*"]}, "strategy.name: fedloge trains the model's last linear layer"),
        ({"model.freeze": ["3.*"]}, "leave them out of model.freeze"),
        ({"model.hidden": [3]}, "client: .*dimensions: 3 is not at least 4"),
        ({"client.clip": 1.0}, "client.clip: 1.0 would mix the gradients"),
        ({"client.trains": ["loge.*"]}, "client.trains: .* is not for fedloge"),
        ({"strategy.sparsity": 0.95}, "strategy.sparsity: 0.95 leaves class . without an entry"),
        ({"strategy.rho": 0.0}, "strategy.rho: 0.0 is not positive"),
        ({"execution.plan": "flat"}, "'flat' is not possible: FedLoGe has its own objective"),
    ],
)
def test_wrong_combinations_are_refused_before_round_0(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(RUN, out=tmp_path / "run", **settings)


def test_other_clients_are_refused():
    ctx = ServerContext(0, 0, 1, 1, np.arange(1), Classification(), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="use client: fedloge"):
        Strategy().init(Params.of({"weight": torch.zeros(2, 2)}), ctx)
