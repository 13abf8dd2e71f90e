"""The interfaces of methods, tested with `tests/toys.py`. Expected values are computed by hand or with torch."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.noise import LogNormal, RandomData
from fl.errors import ClientError, ConfigError
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments

TOYS = Path(__file__).with_name("toys.py")
DATA = RandomData(shape=(6,), classes=3, clients=6, samples=LogNormal(lognormal=0.7, mean=15, low=4, high=40))
SIZES = np.bincount(DATA.load().clients)  # no rows are held out
BASE = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 6, "samples": vars(DATA.samples)},
    "partition": "natural",
    "splits": {"val": 0.0},
    "model": "softmax",  # 6 x 3 + 3 = 21 parameters
    "cohort": {"name": "fixed", "clients": [0, 1, 2, 3, 4, 5]},
    "strategy": "fedavg",
    "execution": {"executor": "serial"},
}
ALL = np.arange(6)


def toy(name: str, **arguments) -> dict:
    return {"name": f"{TOYS}:{name}", **arguments}


CONSTANT = {"strategy": "fedavg", "client": toy("Constant")}


@pytest.fixture
def simulate(tmp_path):
    """Run a configuration; return the simulation, with its `result` and its `first` model."""

    def simulate(**overrides):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with Simulation(resolve(read(copy.deepcopy(BASE), overrides)), folder) as simulation:
            simulation.first = simulation.run_setup.model.clone()
            simulation.result = simulation.run()
        return simulation

    return simulate


def rows(simulation, direction: str, group: str) -> dict:
    """Return a dict: (round, exchange, client) -> encoded bytes."""
    table = simulation.result.ledger.to_pylist()
    found = [r for r in table if (r["direction"], r["group"]) == (direction, group)]
    return {(r["round"], r["exchange"], r["client"]): r["encoded_bytes"] for r in found}


def client_state(simulation, client: int):
    """Return the state of a client."""
    segments = Segments(simulation.directory / "clients")
    state = segments.read(simulation.states.locations(np.array([client]))[0])
    segments.close()
    return state


def model_change(simulation) -> torch.Tensor:
    return (simulation.result.model - simulation.first).compact()


def weighted_mean(values, clients=ALL):
    return float((np.asarray(values, float) * SIZES[clients]).sum() / SIZES[clients].sum())


def column(simulation, name):
    return [row[name] for row in simulation.result.metrics]


# -- exchanges --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", ["noise", "digits"])
def test_three_exchanges(simulate, data):
    settings = {"cohort": {"name": "cyclic", "size": 4}, "rounds": 3, "model": {"name": "mlp", "hidden": [4]}}
    if data == "digits":
        settings |= {"data": "digits", "partition": {"name": "iid", "clients": 6}}
    three = simulate(strategy=toy("ThreeExchanges"), client=toy("ThreeWorks"), **settings)
    x = three.run_setup.dataset.train["x"].astype(np.float64).reshape(len(three.run_setup.dataset), -1).sum(1)
    sums = np.array([x[three.run_setup.periods[0].partition.view_rows(c, "train")].sum() for c in ALL])
    cohorts = [[0, 1, 2, 3], [0, 1, 4, 5], [2, 3, 4, 5]]
    assert_allclose(column(three, "sum"), [sums[c].sum() for c in cohorts])
    assert_allclose(column(three, "square"), [(sums[c] ** 2).sum() for c in cohorts])
    assert_allclose(column(three, "carried"), 1.0)  # shares of the sum
    latest = {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2}
    for client, round_ in latest.items():
        state = client_state(three, client)
        assert state["visits"] == 2
        assert float(state["share"]) == pytest.approx(sums[client] / sums[cohorts[round_]].sum())
    fedavg = simulate(strategy="fedavg", client="sgd", **settings)
    # the third exchange of a round is FedAvg's exchange at another address, so it has other shuffles
    assert np.isfinite(column(three, "train/loss")).all()
    assert rows(three, "up", "model").keys() == {(r, 2, c) for r, _, c in rows(fedavg, "up", "model")}
    assert set(rows(three, "up", "sum").values()) == {8}


def test_two_exchanges_with_half_of_the_cohort_each(simulate):
    halves = simulate(strategy=toy("Halves"), client=toy("Constant"), rounds=1)
    assert_allclose(
        model_change(halves), weighted_mean([1, 2, 3], ALL[:3]) - weighted_mean([4, 5, 6], ALL[3:]), rtol=1e-5
    )
    assert column(halves, "first") == [3] and column(halves, "second") == [12]
    assert sorted(rows(halves, "down", "model")) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 1, 4), (0, 1, 5)]


def test_setup_and_final(simulate):
    staged = simulate(strategy=toy("Staged"), client=toy("Constant"))
    mean = weighted_mean(ALL + 1)
    setup, *rounds, final = staged.result.metrics
    assert setup["round"] == -1 and [row["start"] for row in rounds] == [3.5, 3.5]
    assert setup["uplink_bytes"] == 2 * len(ALL) * staged.first.nbytes  # two groups from each client
    assert (final["round"], final["stage"]) == (2, "final") and final["uplink_bytes"] == 2 * staged.first.nbytes
    assert_allclose(model_change(staged), 2 * mean + 3.5 + 1.0, rtol=1e-5)  # two rounds, the stored number, client 0
    assert_allclose(
        (staged.state.model - staged.first).compact(), 2 * mean, rtol=1e-5
    )  # a longer run continues from this state


def test_setup_is_not_run_again(simulate):
    config = {"strategy": toy("Staged"), "client": toy("Constant"), "rounds": 3}
    whole = simulate(**config)
    with Simulation(resolve(read(copy.deepcopy(BASE), config)), whole.directory / "again") as simulation:
        simulation.run(interrupt=lambda: True)
    resumed = fl.resume(whole.directory / "again")
    assert resumed.digest == whole.result.digest
    assert resumed.ledger.equals(whole.result.ledger)


def test_a_longer_run_does_not_contain_the_final_work(simulate):
    """The final work changes neither the model, nor the number of exchanges (so shuffles are equal), nor the bytes."""
    config = {"strategy": toy("Staged"), "client": {"lr": 0.1, "batch": 4}}
    two, three = simulate(**config, rounds=2), simulate(**config, rounds=3)
    again = fl.resume(two.directory)
    assert again.digest == two.result.digest and again.ledger.equals(two.result.ledger)
    longer = fl.resume(two.directory, rounds="+1")
    assert longer.digest == three.result.digest and longer.ledger.equals(three.result.ledger)


def test_training_on_the_server(simulate):
    fedavg = simulate(client={"lr": 0.1, "epochs": 1}, rounds=1)
    trained = simulate(strategy=toy("ServerTrained", steps=3, lr=0.5), client={"lr": 0.1, "epochs": 1}, rounds=1)
    assert_allclose(trained.result.model.compact(), 0.5**3 * fedavg.result.model.compact(), rtol=1e-6)
    assert trained.result.metrics[0]["server_seconds"] > 0 and "server_seconds" not in fedavg.result.metrics[0]


# -- broadcasts ---------------------------------------------------------------------------------------------------
def test_every_part_of_a_broadcast(simulate):
    mixed = simulate(strategy=toy("Mixed"), client=toy("Answers"), rounds=4)
    # each third of the positions goes to two clients, and each adds its received values: w -> w + 2 w
    assert_allclose(mixed.result.model.compact(), 3.0**4 * mixed.first.compact(), rtol=1e-6)
    for round_, row in enumerate(mixed.result.metrics):
        for client in ALL:
            assert row[f"seen/{client}"] == [10.0 * client, 20.0 * client, round_ // 2]
    every = [(r, 0, c) for r in range(4) for c in ALL]
    assert rows(mixed, "down", "part") == dict.fromkeys(every, 7 * 4)
    assert rows(mixed, "down", "own") == rows(mixed, "down", "scale") == dict.fromkeys(every, 2 * 4)
    assert rows(mixed, "down", "base") == {
        key: 5 * 4 for key in every if key[0] in (0, 2)
    }  # sent only when the version is new
    assert rows(mixed, "down", "model") == {}
    assert rows(mixed, "up", "part") == dict.fromkeys(every, 7 * 4 + 3)  # a bitmap of 21 bits
    assert column(mixed, "downlink_bytes") == [6 * (28 + 8 + 8 + 20), 6 * (28 + 8 + 8)] * 2


def test_a_hidden_model_is_evaluated(simulate):
    run = simulate(strategy=toy("Mixed"), client=toy("Answers"), rounds=1, **{"splits.val": 0.3})
    held = np.concatenate([run.run_setup.periods[0].partition.view_rows(c, "val") for c in ALL])
    x, y = (run.run_setup.dataset.train[name][held] for name in ("x", "y"))
    outputs = x @ run.result.model["1.weight"].numpy().T + run.result.model["1.bias"].numpy()
    assert run.result.metrics[0]["val/accuracy"] == pytest.approx((outputs.argmax(1) == y).mean())


def test_selected_elements_pass_the_codec(simulate):
    mixed = simulate(strategy=toy("Mixed"), client=toy("Answers"), rounds=1, **{"codec.down": "fp16"})
    received = mixed.first.compact().half().float()
    assert_allclose(mixed.result.model.compact(), mixed.first.compact() + 2 * received, rtol=1e-6)
    assert set(rows(mixed, "down", "part").values()) == {7 * 2}


def test_a_new_client_receives_the_static_group(simulate):
    mixed = simulate(strategy=toy("Mixed"), client=toy("Answers"), rounds=3, cohort={"name": "cyclic", "size": 4})
    # the cohorts are 0123, 4501, 2345; the version changes in round 2
    fresh = {0: [0, 1, 2, 3], 1: [4, 5], 2: [2, 3, 4, 5]}
    assert sorted(rows(mixed, "down", "base")) == [(r, 0, c) for r, clients in fresh.items() for c in clients]


def test_clients_train_another_module(simulate):
    """Clients take one full-batch step of the narrow network; expected values by plain torch."""
    settings = {"model": {"name": "mlp", "hidden": [4]}, "cohort.clients": [2], "rounds": 1}
    client = {"lr": 0.5, "batch": "full", "epochs": 1}
    narrow = simulate(strategy=toy("Narrow", width=2), client=client, **settings)
    w = {name: narrow.first[name].clone() for name in narrow.first}
    part = [w["1.weight"][:2], w["1.bias"][:2], w["3.weight"][:, :2], w["3.bias"]]
    leaves = [t.clone().requires_grad_() for t in part]
    mine = DATA.load().clients == 2
    x, y = (torch.from_numpy(DATA.load().train[name][mine]) for name in ("x", "y"))
    hidden = torch.relu(x @ leaves[0].T + leaves[1])
    F.cross_entropy(hidden @ leaves[2].T + leaves[3], y).backward()
    for old, leaf in zip(part, leaves):
        old -= 0.5 * leaf.grad
    for name in w:
        assert_allclose(narrow.result.model[name], w[name], rtol=1e-5, atol=1e-6)
    assert set(rows(narrow, "down", "model").values()) == {4 * (2 * 6 + 2 + 3 * 2 + 3)}


def test_another_module_with_a_config_per_client(simulate):
    """Odd clients take no step, so cohort {0, 1} moves by client 0's step times its share of the samples."""
    settings = {"model": {"name": "mlp", "hidden": [4]}, "rounds": 1, "strategy": toy("Narrow", per_client=True)}
    client = toy("ReadsConfig", lr=0.5, batch="full")
    both, even, odd = (simulate(client=client, **settings, **{"cohort.clients": c}) for c in ([0, 1], [0], [1]))
    assert not model_change(odd).any() and model_change(even).any()
    assert_allclose(model_change(both), model_change(even) * (SIZES[0] / SIZES[:2].sum()), rtol=1e-4, atol=1e-7)


# -- updates ----------------------------------------------------------------------------------------------------
def test_class_means_are_the_centralised_ones(simulate):
    run = simulate(
        strategy=toy("ClassMeans"),
        rounds=1,
        cohort={"name": "fixed", "clients": [0, 2, 5]},
        client=toy("OwnClassMeans"),
    )
    dataset = DATA.load()
    mine = np.isin(dataset.clients, [0, 2, 5])
    x, y = dataset.train["x"][mine].astype(np.float64), dataset.train["y"][mine]
    table = run.state.means
    assert_array_equal(table.keys, np.unique(y))
    assert_array_equal(table.counts, np.bincount(y)[np.unique(y)])
    assert_allclose(table.values, [x[y == k].mean(0) for k in np.unique(y)], rtol=1e-5, atol=1e-6)
    classes = {c: len(np.unique(dataset.train["y"][dataset.clients == c])) for c in (0, 2, 5)}
    assert rows(run, "up", "means") == {(0, 0, c): k * (8 + 6 * 4 + 8) for c, k in classes.items()}


def test_a_reduction_for_each_group(simulate):
    run = simulate(
        strategy=toy("MeanAndMedian"), client=toy("Constant"), rounds=1, **{"cohort.clients": [0, 1, 3, 4, 5]}
    )
    clients = np.array([0, 1, 3, 4, 5])
    assert_allclose(
        model_change(run), weighted_mean(clients + 1, clients) + 16, rtol=1e-5
    )  # the median of 1, 4, 16, 25, 36


def test_clip(simulate):
    """Client c sends c + 1 in 21 coordinates, of norm (c + 1) sqrt(21). The bound 3 sqrt(21) clips to min(c + 1, 3)."""
    run = simulate(**CONSTANT, rounds=1, transforms=[{"name": "clip", "bound": 3 * 21**0.5}])
    assert_allclose(model_change(run), weighted_mean(np.minimum(ALL + 1, 3)), rtol=1e-5)


CODECS = {
    # the server averages decoded values of 0.1 (c + 1); of equal numbers top_k keeps the first
    "fp16": (["fp16"], lambda v, i: float(np.float16(v)), 21 * 2),
    "top_k": ([{"name": "top_k", "ratio": 0.25}], lambda v, i: v * (i < 5), 5 * 4 + 3),  # a bitmap of 21 bits
    "both": ([{"name": "top_k", "ratio": 0.25}, "fp16"], lambda v, i: float(np.float16(v)) * (i < 5), 5 * 2 + 3),
}


@pytest.mark.parametrize("name", CODECS)
def test_the_server_sees_what_was_decoded(simulate, name):
    codec, decoded, size = CODECS[name]
    run = simulate(strategy="fedavg", client=toy("Constant", value=0.1), rounds=1, **{"codec.up": codec})
    expected = [weighted_mean([decoded(np.float32(0.1) * np.float32(c + 1), i) for c in ALL]) for i in range(21)]
    assert_allclose(model_change(run), expected, rtol=1e-5, atol=1e-7)
    assert set(rows(run, "up", "model").values()) == {size}
    assert set(rows(run, "down", "model").values()) == {21 * 4}
    assert run.result.metrics[0]["uplink_bytes"] == 6 * 2 * size  # "model" and "extra"


# -- local training ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", ["loop", "flat", "vmap"])
def test_phases_alternate(simulate, plan):
    """By plain torch: a full-batch step of the head with the old body, then one of the body with the new head."""
    client = toy("HeadThenBody", lr=0.5, batch="full")
    settings = {"model": {"name": "mlp", "hidden": [4]}, "cohort.clients": [2], "rounds": 1, "execution.plan": plan}
    run = simulate(client=client, **settings)
    mine = DATA.load().clients == 2
    x, y = (torch.from_numpy(DATA.load().train[name][mine]) for name in ("x", "y"))
    w = {name: run.first[name].clone().requires_grad_() for name in run.first}
    for part in ("3", "1"):
        hidden = torch.relu(x @ w["1.weight"].T + w["1.bias"])
        loss = F.cross_entropy(hidden @ w["3.weight"].T + w["3.bias"], y)
        names = [f"{part}.weight", f"{part}.bias"]
        for name, grad in zip(names, torch.autograd.grad(loss, [w[n] for n in names])):
            w[name] = (w[name] - 0.5 * grad).detach().requires_grad_()
    for name in w:
        assert_allclose(run.result.model[name], w[name].detach(), rtol=1e-5, atol=1e-6)
    still = simulate(client={**client, "body": ["3.*"]}, **settings)
    for name in ("1.weight", "1.bias"):
        assert torch.equal(still.result.model[name], still.first[name])  # to the bit


def test_evaluation_after_local_training(simulate):
    """stage: trained. The server's model stays (lr=0). A client's loss is measured after one full-batch step."""
    settings = {"strategy": {"name": "fedavg", "lr": 0.0}, "rounds": 1, "splits": {"val": 0.3}}
    client = {"lr": 0.5, "batch": "full"}
    run = simulate(client=client, **settings, **{"evaluation.stage": "trained"})
    total = correct = count = 0.0
    for c in ALL:
        w, b = (run.first[name].clone().requires_grad_() for name in ("1.weight", "1.bias"))
        (x, y), (x_val, y_val) = (
            [
                torch.from_numpy(
                    run.run_setup.dataset.train[name][run.run_setup.periods[0].partition.view_rows(c, view)]
                )
                for name in ("x", "y")
            ]
            for view in ("train", "val")
        )
        F.cross_entropy(x @ w.T + b, y).backward()
        outputs = x_val @ (w - 0.5 * w.grad).T + b - 0.5 * b.grad
        total += float(F.cross_entropy(outputs, y_val, reduction="sum").detach())
        correct, count = correct + float((outputs.argmax(1) == y_val).sum()), count + len(y_val)
    row = run.result.metrics[0]
    assert row["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert row["val/accuracy"] == pytest.approx(correct / count)
    assert run.result.digest == simulate(client=client, **settings).result.digest
    assert not model_change(run).any()


# -- errors -----------------------------------------------------------------------------------------------------------
def test_an_error_names_client_round_and_stage(simulate):
    with pytest.raises(ClientError, match=r"client 3, round 1, stage 'train': RuntimeError: out of battery"):
        simulate(strategy="fedavg", client=toy("Constant", fails=[3]))
    with pytest.raises(ClientError, match=r"client 3, round 1, stage 'reduce': .*the update of client 3 is not finite"):
        simulate(strategy="fedavg", client=toy("Constant", fails=[3], how="nan"))


@pytest.mark.parametrize(
    "stage, who",
    [
        ("received", r"block 0 of the server's data, round 0, stage 'evaluate/received'"),
        ("trained", r"client 3, round 0, stage 'evaluate/trained'"),
        ("adapted", r"client 3, round 0, stage 'evaluate/adapted'"),
    ],
)
def test_an_error_in_an_evaluation_names_its_place(simulate, stage, who):
    client = toy("FailsToPredict", fails=[-1 if stage == "received" else 3])
    evaluation = {"stage": stage} | ({"adapt": client} if stage == "adapted" else {})
    digits = {"data": "digits", "partition": {"name": "iid", "clients": 6}}  # the server has a test set
    with pytest.raises(ClientError, match=who + ": RuntimeError: out of memory"):
        simulate(strategy="fedavg", client=client, splits={"test": 0.3}, evaluation=evaluation, **digits)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_client_that_fails_is_dropped(simulate, how):
    run = simulate(
        strategy="fedavg", client=toy("Constant", fails=[3], how=how), rounds=2, **{"execution.on_client_error": "drop"}
    )
    others = ALL[ALL != 3]
    assert_allclose(model_change(run), weighted_mean(ALL + 1) + weighted_mean(others + 1, others), rtol=1e-5)
    first, second = run.result.metrics
    assert (first["dropped"], second["dropped"]) == (0, 1) and "errors" not in first
    assert len(second["errors"]) == 1 and "client 3" in second["errors"][0]
    assert second["train/loss"] == pytest.approx(weighted_mean(others + 1, others))
    assert client_state(run, 3) == {"visits": 1, "round": 0}  # the state of its last successful round
    assert client_state(run, 2) == {"visits": 2, "round": 1}


def test_all_may_fail(simulate):
    run = simulate(
        strategy="fedavg", client=toy("Constant", fails=ALL.tolist()), rounds=3, **{"execution.on_client_error": "drop"}
    )
    assert column(run, "dropped") == [0, 6, 0]
    assert_allclose(model_change(run), 2 * weighted_mean(ALL + 1), rtol=1e-5)


@pytest.mark.parametrize("codec", ["identity", {"name": "top_k", "ratio": 0.5}])  # top_k raises on a NaN
@pytest.mark.parametrize("plan", ["loop", "compiled", "stacked", "flat", "vmap"])
def test_one_client_of_a_chunk_is_dropped(simulate, plan, codec):
    settings = {"data": toy("Poisoned"), "rounds": 1, "codec.up": codec, "client": {"lr": 0.1, "batch": 4, "epochs": 2}}
    run = simulate(**settings, **{"execution.plan": plan, "execution.on_client_error": "drop"})
    assert column(run, "dropped") == [1] and "client 3" in run.result.metrics[0]["errors"][0]
    alone = simulate(**settings, **{"execution.plan": plan, "cohort.clients": [0, 1, 2, 4, 5]})
    assert_allclose(model_change(run), model_change(alone), rtol=1e-4, atol=1e-6)
    assert np.isfinite(column(run, "train/loss")).all()


def test_groups_that_do_not_fit_are_refused(simulate):
    with pytest.raises(ConfigError, match="extra"):
        simulate(strategy=toy("MeanAndMedian"), client="sgd")
    with pytest.raises(ConfigError, match="fedavg|model"):
        simulate(strategy="fedavg", client=toy("OwnClassMeans"))


def test_overrides_leave_the_dict_alone(tmp_path):
    config = copy.deepcopy(BASE)
    read(config, {"cohort.clients": [1], "client.lr": 0.5})
    assert config == BASE
