"""FedSelect: masks, means and traffic by hand; own entries stay with their client."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.fedselect import FedSelect, grown
from clients.local import Local
from fl import Params, Sparse, pack_mask, unpack_mask
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.method.context import ClientContext
from fl.method.reduction import Meta
from fl.method.training_values import TrainingInputs
from fl.models.binding import Initial, module_params
from fl.tasks.supervised import Regression
from strategies.fedselect import FedSelect as Server
from strategies.fedselect import Overlap, shared_positions
from tests.interfaces.laws import check_resumed

CONFIG = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [6], "classes": 4, "clients": 5, "samples": 20},
    "partition": "natural",
    "splits": {"val": 0.0, "test": 0.2},
    "model": "softmax",
    "cohort": {"size": 5},
    "strategy": "fedselect",
    "client": {"epochs": 1, "batch": 5, "lr": 0.1, "share": 0.25, "limit": 0.5, "every": 1},
    "evaluation": {"server": False},
    "execution": {"executor": "serial"},
}


def vector(*values: float) -> Params:
    return Params.of({"w": torch.tensor(values, dtype=torch.float32)})


def mask(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.bool)


# -- by hand ----------------------------------------------------------------------------------------------------------
def test_a_round_by_hand():
    """Two clients received w = 0 and hold (9, 2, 4, 6) and (7, 5, 6, 8), with masks 1000 and 1100."""
    held, masks, acc = ((9.0, 2.0, 4.0, 6.0), (7.0, 5.0, 6.0, 8.0)), (mask(1, 0, 0, 0), mask(1, 1, 0, 0)), None
    rule = Overlap()
    for i, (theta, own) in enumerate(zip(held, masks)):
        positions = shared_positions(4, i, {"own": pack_mask(own)})
        lifted = rule.lift(Sparse(positions, torch.tensor(theta)[positions], 4), Meta(i, 10 * i + 1))
        acc = lifted if acc is None else rule.merge(acc, lifted)
    w, metrics = Server().step(vector(0, 0, 0, 0), {"model": rule.finish(acc), "grown": 0}, None)
    assert w["w"].tolist() == [0, 2, 5, 7] and metrics == {"uplink_values_bytes": 4 * (3 + 2)}
    initial = Initial(vector(0, 0, 0, 0), Params.of({}))
    for i, expected in enumerate(([9, 2, 5, 7], [7, 5, 5, 7])):
        state = {"model": vector(*held[i]), "own": pack_mask(masks[i])}
        part = w["w"][shared_positions(4, i, state)]
        assert FedSelect().start(TrainingInputs({"part": part}, state, {}, initial))["w"].tolist() == expected


@pytest.mark.parametrize("limit, sizes", [(1.0, [2, 4, 5, 6]), (0.5, [2, 4, 5, 5])])
def test_a_mask_grows_by_a_quarter_of_the_shared_entries(limit, sizes):
    own, found = mask(*10 * [0]), []
    for seed in range(4):
        after = grown(torch.randn(10, generator=torch.Generator().manual_seed(seed)), own, 0.25, limit)
        assert (after | ~own).all()  # masks only grow
        found.append(int(after.sum()))
        own = after
    assert found == sizes


def test_entries_that_have_not_moved_stay_shared_and_of_equal_ones_the_first_grow():
    still = torch.tensor([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])  # the cut is at 0: not all of them become own
    assert grown(still, mask(*8 * [0]), 0.5, 1.0).nonzero()[:, 0].tolist() == [2]
    equal = torch.tensor([-1.0, 1.0, 1.0, -1.0])
    assert grown(equal, mask(1, 0, 0, 0), 0.7, 1.0).tolist() == [True, True, True, False]
    assert grown(equal, mask(0, 0, 0, 0), 0.1, 1.0).tolist() == 4 * [False]  # floor(.4) entries
    assert int(grown(torch.arange(1.0, 101.0), mask(*100 * [0]), 0.29, 1.0).sum()) == 29  # 0.29 * 100 < 29 in floats


# -- a client ---------------------------------------------------------------------------------------------------------
def context(client=0, state=None, rows=12, w=None) -> ClientContext:
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    model = module_params(module)
    arrays = {"x": torch.randn(12, 5), "y": torch.randn(12, 3)}
    view = View(arrays, np.arange(rows))
    w = model.compact() if w is None else w
    part = w[shared_positions(18, client, state if isinstance(state, dict) else None)]
    own = {"config": {}, "state": state, "initial": Initial.of(module), "module": module, "task": Regression()}
    own["training_loop"] = train
    return ClientContext(client, 0, 0, 1, 0, {"part": part}, train=view, val=view, test=view, **own)


SELECT = FedSelect(batch="full", steps=2, every=1, share=0.25, limit=0.5)


def test_own_entries_are_not_sent_and_keep_their_bits():
    first = SELECT.work("train", context(), None)
    assert first.update.groups["model"].positions.tolist() == list(range(18))  # nothing is own yet
    own = unpack_mask(first.state["own"], 18)
    assert int(own.sum()) == 3 + 0  # floor(15 / 4) of the weight, floor(3 / 4) of the bias
    elsewhere = torch.full((18,), 7.0)
    ctx = context(state=first.state, w=elsewhere)
    start = SELECT.start(SELECT.inputs(ctx)).compact()
    assert torch.equal(start[own], first.state["model"].compact()[own]) and (start[~own] == 7).all()
    second = SELECT.work("train", ctx, None)
    sent = second.update.groups["model"]
    assert sent.positions.tolist() == (~own).nonzero()[:, 0].tolist()
    after = second.state["model"].compact()
    torch.testing.assert_close(sent.values, after[~own] - 7)
    assert not torch.equal(after[own], start[own])  # own entries train, too
    assert (unpack_mask(second.state["own"], 18) | ~own).all()


def test_each_phase_moves_its_entries_alone():
    """One full step in each phase, in numpy: the gradient at the start, then at what the own phase left."""
    own = torch.arange(18) % 3 == 0
    ctx = context()
    start = ctx.initial.trained
    state = {"model": start, "own": pack_mask(own), "ref": start, "participations": 0}
    end = FedSelect(batch="full", steps=1, lr=0.1, every=9).work("train", context(state=state), None).state["model"]
    x, y = (ctx.train.arrays[name].double().numpy() for name in "xy")
    w = start.compact().double().numpy()
    for moved in (own.numpy(), ~own.numpy()):
        error = (x @ w[:15].reshape(3, 5).T + w[15:] - y) / 12
        w = w - 0.1 * moved * np.concatenate([(error.T @ x).reshape(-1), error.sum(0)])
    np.testing.assert_allclose(end.compact().numpy(), w, rtol=1e-5, atol=1e-6)


def test_a_client_that_owns_all_entries_trains_as_local_does():
    model = context().initial.trained
    state = {"model": model, "own": pack_mask(mask(*18 * [1])), "ref": model, "participations": 1}
    ours = FedSelect(steps=4, batch=5, lr=0.1).work("train", context(state=state, w=torch.zeros(18)), None)
    alone = Local(steps=4, batch=5, lr=0.1).work("train", context(state=model), None)
    assert torch.equal(ours.state["model"].compact(), alone.state.compact())
    assert not len(ours.update.groups["model"].values)


def test_equal_clients_have_equal_masks_and_a_client_without_samples_has_none():
    one, other = (SELECT.work("train", context(client), None) for client in (0, 1))
    assert torch.equal(one.state["own"], other.state["own"]) and one.state["own"].dtype == torch.uint8
    assert len(one.state["own"]) == 3  # ceil(18 / 8) bytes
    nothing = SELECT.work("train", context(rows=0), None)
    assert not nothing.state["own"].any() and not nothing.update.groups["model"].values.any()


def test_the_reference_of_a_change():
    """At the first growth `growth` measures from the run's first model, `round` from what was received."""
    w = torch.zeros(18)
    w[4] = 100.0  # far from the first model; local training moves it less than others
    masks = {}
    for ref in ("growth", "round"):
        rule = FedSelect(batch="full", steps=1, every=1, share=0.1, ref=ref)
        state = rule.work("train", context(w=w), None).state
        masks[ref] = unpack_mask(state["own"], 18)
        assert ("ref" in state) == (ref == "growth")
    assert masks["growth"][4] and int(masks["growth"].sum()) == 1
    x, y = (context().train.arrays[name] for name in "xy")
    error = x @ w[:15].view(3, 5).T - y
    assert masks["round"][:15].nonzero()[0].item() == (error.T @ x).reshape(-1).abs().argmax()


def test_tensors_that_grow():
    own = unpack_mask(FedSelect(every=1, grows=("bias",), share=0.5).work("train", context(), None).state["own"], 18)
    assert int(own.sum()) == 1 and not own[:15].any()
    with pytest.raises(ValueError, match="pattern 'none' matches no parameter"):
        FedSelect(grows=("none",)).work("train", context(), None)


# -- runs -------------------------------------------------------------------------------------------------------------
def sizes_by_round(tensors: list[int], share: float, limit: float) -> list[int]:
    """Own entries before each of three rounds, if all entries move and masks grow in each round."""
    own, found = [0] * len(tensors), []
    for _ in range(4):
        found.append(sum(own))
        grow = (min(math.floor(share * (m - k)), math.floor(limit * m) - k) for m, k in zip(tensors, own))
        own = [k + a for k, a in zip(own, grow)]
    return found


@pytest.mark.parametrize(
    "model, tensors", [("softmax", [24, 4]), ({"name": "mlp", "hidden": [9], "activation": "tanh"}, [54, 9, 36, 4])]
)
def test_the_ledger_has_the_closed_form(tmp_path, model, tensors):
    d, own = sum(tensors), sizes_by_round(tensors, 0.25, 0.5)
    result = fl.run(CONFIG | {"model": model}, out=tmp_path / "run")

    def positions(k: int) -> int:
        return math.ceil(min(k * math.ceil(math.log2(d)), d) / 8)

    for row, before, after in zip(result.metrics, own, own[1:]):
        assert row["downlink_bytes"] == 5 * 4 * (d - before)
        assert row["uplink_bytes"] == 5 * (4 * (d - before) + positions(d - before) + positions(after - before))
        assert row["uplink_values_bytes"] == 5 * 4 * (d - before)
    assert {(row["direction"], row["group"]) for row in result.ledger.to_pylist()} == {
        ("down", "part"),
        ("up", "model"),
        ("up", "grown"),
    }


def test_clients_that_are_absent_come_back_and_a_resumed_run_has_the_same_bits(tmp_path):
    """In a cyclic cohort each client misses rounds; all have fewer samples than a batch."""
    config = CONFIG | {"cohort": {"name": "cyclic", "size": 2}, "rounds": 5}
    config["client"] = config["client"] | {"batch": 32}
    config["evaluation"] = {"server": True, "stage": ["received", "trained"]}
    straight = fl.run(config, out=tmp_path / "straight")
    check_resumed(config, straight, tmp_path)
    assert straight.metrics[-1]["trained/clients/loss_mean"] < straight.metrics[-1]["clients/loss_mean"]
    down = {}
    for row in straight.ledger.to_pylist():
        if row["direction"] == "down":
            down.setdefault(row["client"], []).append(row["payload_bytes"])
    assert all(sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 2 for sizes in down.values())


def test_limit_0_has_one_phase_and_fedavgs_traffic(tmp_path):
    ours = fl.run(CONFIG, out=tmp_path / "ours", **{"client.limit": 0.0, "rounds": 2})
    fedavg = {"strategy": {"name": "fedavg", "weights": "uniform"}, "client": {"epochs": 1, "batch": 5, "lr": 0.1}}
    plain = fl.run(CONFIG | fedavg, out=tmp_path / "plain", rounds=2)
    torch.testing.assert_close(ours.model.compact(), plain.model.compact(), rtol=1e-6, atol=1e-7)
    assert [r["uplink_bytes"] for r in ours.metrics] == [r["uplink_bytes"] for r in plain.metrics]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("share", 1.5, "client.share: 1.5 is not in"),
        ("limit", -0.1, r"client.limit: -0.1 is not in \[0, 1\]; 0 is FedAvg"),
        ("every", 0, "client.every: 0 is not at least 1"),
        ("trains", ["1.*"], "client.trains: fedselect chooses"),
        ("optimiser", {"name": "sgd", "weight_decay": 0.1}, "client.optimiser: .* set weight_decay: 0"),
    ],
)
def test_refusals(tmp_path, key, value, message):
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "run", **{f"client.{key}": value})
