"""Views: steps over rows with and without labels, received rows, and what a client trains on this time."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pyarrow import parquet

import fl
from fl import Beside, ConfigError, LocalTraining, View
from fl.check.check import check
from fl.config.config import resolve
from fl.data.augment import Flip
from fl.method.phase import Phase
from fl.simulation.build import set_up_run
from fl.simulation.simulation import Simulation
from fl.simulation.workload import workload_of

DIGITS = {
    "rounds": 2, "data": {"name": "digits", "augment": [{"name": "crop", "padding": 1}], "strong": ["cutout"]},
    "partition": {"name": "iid", "clients": 6}, "labels": {"name": "budget", "share": 0.1}, "model": "softmax",
    "strategy": "fedavg", "cohort": {"size": 4}, "execution": {"executor": "serial"},
}  # fmt: skip


FILE = Path(__file__).resolve()


@dataclass(frozen=True, kw_only=True)
class FixMatch(LocalTraining):
    example_config = {"labels": {"name": "budget", "share": 0.5}, "data.strong": ["noise"]}
    threshold: float = 0.8
    ratio: int = 2

    def phases(self, round_, rounds):
        many = Beside("unlabelled", batch=self.ratio * self.batch, changes={"weak": "weak", "strong": "strong"})
        return tuple(replace(phase, beside={"many": many}) for phase in super().phases(round_, rounds))

    def objective(self, net, batch, at, task):
        supervised = task.loss(net(batch["x"]), batch)
        if not len(batch["many/weak"]):
            return supervised
        surest, label = net(batch["many/weak"]).detach().softmax(-1).max(-1)
        pseudo = task.loss(net(batch["many/strong"]), {"y": label})
        return supervised + (pseudo * (surest > self.threshold)).mean()


TOY = FixMatch(lr=0.5, batch=10, steps=3, threshold=0.2)


# -- the arrays of a step ---------------------------------------------------------------------------------------------
def context(labelled=12, unlabelled=7, received=(), **more):
    """Return the context of a client with samples x = 0, 1, ...; the first ones have labels."""
    n = labelled + unlabelled
    y = torch.arange(n) % 3
    y[labelled:] = -1
    arrays = {"x": torch.arange(float(n)).view(n, 1), "y": y}
    rows = np.arange(n)
    return fl.ClientContext(
        client=5, seed=0, round=0, rounds=1, participation=0, received=dict(received), config={}, state=None,
        train=View(arrays, rows[:labelled]), val=View(arrays, rows[:0]), test=View(arrays, rows[:0]),
        unlabelled=View(arrays, rows[labelled:]).without("y"), initial=None, module=None, task=None, **more,
    )  # fmt: skip


def steps(ctx, **phase):
    from fl.execution.training.client_batches import mini_batches

    return list(mini_batches(ctx, Phase(fl.SGD(), lr=0.1, **phase), 0))


def test_samples_beside_a_step_are_cycled():
    batches = steps(context(), batch=4, epochs=2, beside={"u": Beside("unlabelled", batch=5)})
    assert len(batches) == 6 and set(batches[0]) == {"x", "y", "u/x"}  # two epochs of 12 labelled samples
    seen = torch.cat([batch["u/x"] for batch in batches]).flatten().tolist()
    assert len(seen) == 30
    for epoch in range(4):  # four whole passes over the 7 samples, and two samples more
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(12, 19))
    orders = {tuple(seen[7 * epoch : 7 * epoch + 7]) for epoch in range(4)}
    assert len(orders) == 4
    plain = steps(context(), batch=4, epochs=2)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(batches, plain))  # the main view is as without it


def test_views():
    assert sorted(torch.cat([b["x"] for b in steps(context(), batch=4, view="unlabelled")]).flatten()) == list(
        range(12, 19)
    )
    (all_,) = steps(context(), batch="full", view="all")
    assert sorted(all_["x"].flatten().tolist()) == list(range(19)) and (all_["y"] == -1).sum() == 7
    (few,) = steps(context(), batch="full", view="unlabelled", beside={"few": Beside("train", batch=2)})
    assert few["few/x"].shape == (2, 1) and (few["few/y"] == few["few/x"][:, 0] % 3).all() and "y" not in few
    (none,) = steps(context(unlabelled=0), batch="full", beside={"u": Beside("unlabelled", batch="full")})
    assert none["u/x"].shape == (0, 1)


def test_received_rows():
    group = {"x": torch.full((3, 1), 50.0), "label": torch.arange(3)}
    ctx = context(received={"synthetic": group, "points": torch.full((2, 1), 60.0)})
    beside = {"old": Beside("received:synthetic", batch=2), "p": Beside("received:points", batch="full")}
    (batch,) = steps(ctx, batch="full", beside=beside)
    assert batch["old/x"].tolist() == [[50.0], [50.0]] and len(set(batch["old/label"].tolist())) == 2
    assert batch["p/x"].tolist() == [[60.0], [60.0]]
    with pytest.raises(ValueError, match="received:nothing: the broadcast's group 'nothing' is nothing; send a tensor"):
        steps(ctx, batch="full", beside={"n": Beside("received:nothing")})


def test_each_version_of_a_sample_has_its_own_draws():
    ctx = context(augment=(fl.data.augment.GaussianNoise(std=0.1),), strong=(fl.data.augment.GaussianNoise(std=5.0),))
    changes = {"x": "weak", "x2": "weak", "strong": "strong", "as_is": ()}
    first, again = (steps(ctx, batch=4, changes=changes) for _ in range(2))
    for one, other, plain in zip(first, again, steps(ctx, batch=4)):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert torch.equal(one["x"], plain["x"])  # "x" has the draws that it has in other phases
        weak, weak2, strong = (one[name] - one["as_is"] for name in ("x", "x2", "strong"))
        assert not torch.equal(weak, weak2) and max(weak.abs().max(), weak2.abs().max()) < 1 < strong.abs().max()


# -- runs -------------------------------------------------------------------------------------------------------------
def same(a, b):
    return torch.equal(a.model.buffers[0], b.model.buffers[0])


def test_without_pseudo_labels_it_is_labelled_only(tmp_path):
    off = fl.run(DIGITS | {"client": replace(TOY, threshold=1.0)}, out=tmp_path / "off")
    plain = {"name": "sgd", "lr": 0.5, "batch": 10, "steps": 3}
    loop = DIGITS | {"client": plain, "execution": {"executor": "serial", "plan": "loop"}}
    assert same(off, fl.run(loop, out=tmp_path / "loop"))
    on = fl.run(DIGITS | {"client": TOY}, out=tmp_path / "on")
    assert not same(on, off)
    up = on.ledger.to_pylist()  # FedAvg's bytes: 650 parameters of 4 bytes, each way, 4 clients and 2 rounds
    assert sum(row["payload_bytes"] for row in up) == 2 * 2 * 4 * 650 * 4


def test_a_resumed_run_has_the_same_bits(tmp_path):
    config = DIGITS | {"client": TOY}
    whole = fl.run(config | {"rounds": 3}, out=tmp_path / "whole")
    with Simulation(resolve(config | {"rounds": 3}), tmp_path / "cut") as run:
        run.start_workers()
        run.before_rounds()
        run.one_round()
        run.commit()
    with Simulation(resolve(config | {"rounds": 3}), tmp_path / "cut", resumed=True) as run:
        assert same(whole, run.run())


@pytest.mark.ray
def test_ray_has_the_same_bits(tmp_path):
    serial = fl.run(DIGITS | {"client": TOY}, out=tmp_path / "serial")
    ray = fl.run(DIGITS | {"client": TOY, "execution": {"executor": "ray", "workers": 2}}, out=tmp_path / "ray")
    assert same(serial, ray) and serial.ledger.to_pylist() == ray.ledger.to_pylist()


@pytest.mark.slow
def test_laws():
    findings = {finding.law: finding for finding in check(f"{FILE}:FixMatch", threshold=0.2)}
    assert [finding for finding in findings.values() if not finding.ok] == []
    assert findings["loop_and_batched_training_agree"].detail == "vmap"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_deployment_has_the_simulators_bits(tmp_path):
    pytest.importorskip("flwr", minversion="1.22")
    from tests.flower.test_deploy import same_run

    client = {"name": f"{FILE}:FixMatch", "lr": 0.5, "batch": 10, "steps": 3, "threshold": 0.2}
    execution = {"executor": "serial", "plan": "loop"}
    same_run(resolve(DIGITS | {"rounds": 1, "client": client, "execution": execution}), tmp_path)


def test_virtual_time_counts_all_samples_of_a_step():
    labelled, unlabelled = np.array([20, 20, 0]), np.array([50, 0, 50])
    steps_, samples = workload_of(replace(TOY, steps=None, epochs=2), labelled, unlabelled, 0, 1, "train")
    assert steps_.tolist() == [4, 4, 0] and samples.tolist() == [40 + 4 * 20, 40, 0]


# -- what a client trains on ------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Half(LocalTraining):
    all_rows: bool = False

    def samples(self, ctx):
        return ctx.train if self.all_rows else View(ctx.train.arrays, ctx.train.rows[: len(ctx.train) // 2])


@dataclass(frozen=True, kw_only=True)
class Weighted(LocalTraining):
    weight_view = "all"


def test_a_client_may_choose_its_samples(tmp_path):
    loop = {"execution": {"executor": "serial", "plan": "loop"}}
    plain = fl.run(DIGITS | loop, out=tmp_path / "plain")
    assert same(plain, fl.run(DIGITS | loop | {"client": Half(all_rows=True)}, out=tmp_path / "all"))
    setup = set_up_run(resolve(DIGITS))
    fl.run(DIGITS | {"client": Half()}, out=tmp_path / "half")
    sizes, rows = setup.periods[0].partition.train_slices()[1], parquet.read_table(tmp_path / "half/clients.parquet")
    rows = [row for row in rows.to_pylist() if row["split"] == "train"]
    assert len(rows) == 8 and all(row["num_examples"] == sizes[row["client"]] // 2 for row in rows)
    assert setup.plan.kind == "stacked" and set_up_run(resolve(DIGITS | {"client": Half()})).plan.kind == "loop"


def test_clients_train_together_where_shapes_agree(tmp_path):
    """Clients of 21 to 30 samples in batches of 10: short batches are padded, samples beside them are cycled."""
    config = DIGITS | {"partition": {"name": "dirichlet", "alpha": 5.0, "clients": 6}, "client": replace(TOY, steps=4)}
    config["rounds"] = 1
    models = {}
    for plan in ("loop", "vmap"):
        setup = config | {"execution": {"executor": "serial", "plan": plan}}
        models[plan] = fl.run(setup, out=tmp_path / plan).model.buffers[0]
    torch.testing.assert_close(models["vmap"], models["loop"], rtol=0, atol=1e-5)
    assert not torch.equal(models["loop"], set_up_run(resolve(config)).model.buffers[0])


def test_plans():
    assert set_up_run(resolve(DIGITS | {"client": TOY})).plan.kind == "loop"
    few = {"name": "clients", "labelled": 3}
    for change, why in (
        ({"client": TOY, "labels": few}, "FixMatch takes steps over several views, and some clients have no rows"),
        ({"client": Half()}, "Half chooses its samples itself"),
        ({"client": Weighted()}, "Weighted counts other rows than labelled ones"),
        (
            {"client": Needs(beside=Beside(batch="full"))},
            "Needs takes steps over several views with all samples of one",
        ),
        ({"client": Other()}, "Other takes steps over rows without labels"),
    ):
        assert set_up_run(resolve(DIGITS | change)).plan.why.startswith(why)
        with pytest.raises(ConfigError, match=f"plan: 'vmap' is not possible: {why}"):
            set_up_run(resolve(DIGITS | change | {"execution": {"executor": "serial", "plan": "vmap"}}))


# -- rounds without weight --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "strategy",
    ["fedavgm", {"name": "fedavg", "weights": "uniform"}, "median", "scaffold", {"name": "hierarchical", "edges": 2}],
)
def test_a_round_without_weight_leaves_the_model(strategy, tmp_path, caplog):
    cohort = {"name": "fixed", "clients": [0, 1, 2]}
    config = DIGITS | {"strategy": strategy, "cohort": cohort, "labels": {"name": "clients", "labelled": [5]}}
    with Simulation(resolve(config), tmp_path / "run") as run:
        before = run.config.strategy.model(run.state).clone()
        run.start_workers()
        row = run.one_round()
        assert torch.equal(run.config.strategy.model(run.state).buffers[0], before.buffers[0])
    assert row["unweighted"] == 1 and "no client of the cohort has a row to learn from" in caplog.text


def test_evaluations_on_rows_without_labels_use_the_true_labels(tmp_path):
    """The pooled loss is the cross-entropy of the saved model, computed with torch."""
    config = DIGITS | {"evaluation": {"splits": ["unlabelled"], "server": False}, "data": "digits"}
    result = fl.run(config, out=tmp_path / "run")
    setup = set_up_run(resolve(config))
    rows = setup.periods[0].partition.rows_of("unlabelled")
    x, y = (torch.tensor(setup.dataset.train[name][rows]) for name in "xy")
    weight, bias = (next(t for t in result.model.values() if t.ndim == n) for n in (2, 1))
    logits = x.flatten(1) @ weight.T + bias
    row = result.metrics[-1]
    assert row["unlabelled_rows/loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert row["unlabelled_rows/accuracy"] == pytest.approx((logits.argmax(1) == y).float().mean().item())


@pytest.mark.parametrize("labels, message", [(None, "all rows have labels"), ({"name": "given"}, "nobody knows")])
def test_rows_without_labels_or_without_true_labels_are_not_evaluated(labels, message):
    with pytest.raises(ConfigError, match=f"evaluation.splits: unlabelled: {message}"):
        set_up_run(resolve(DIGITS | {"labels": labels, "evaluation": {"splits": ["unlabelled"]}}))


def test_a_method_may_count_all_rows(tmp_path):
    config = DIGITS | {"cohort": {"name": "fixed", "clients": [0, 1]}, "labels": {"name": "clients", "labelled": [0]}}
    weighted = fl.run(config | {"client": Weighted(), "rounds": 1}, out=tmp_path / "all")
    alone = fl.run(config | {"rounds": 1}, out=tmp_path / "labelled")
    initial = set_up_run(resolve(config)).model.buffers[0]
    sizes = np.diff(set_up_run(resolve(config | {"splits": {"val": 0.1}})).periods[0].partition.offsets)[:2]
    share = (sizes - sizes // 10)[0] / (sizes - sizes // 10).sum()  # client 1 sends a change of zero with its weight
    torch.testing.assert_close(
        weighted.model.buffers[0] - initial, share * (alone.model.buffers[0] - initial), rtol=1e-4, atol=1e-6
    )


# -- mistakes ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Needs(LocalTraining):
    beside: Beside = Beside("received:synthetic")

    def phases(self, round_, rounds):
        return tuple(replace(phase, beside={"more": self.beside}) for phase in super().phases(round_, rounds))


@dataclass(frozen=True, kw_only=True)
class Other(LocalTraining):
    def phases(self, round_, rounds):
        return tuple(replace(phase, view="unlabelled") for phase in super().phases(round_, rounds))

    def objective(self, net, batch, at, task):
        return net(batch["x"]).square().sum(-1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None, "client": TOY}, "labels: missing; client FixMatch takes steps on rows without labels"),
        ({"data": "digits", "client": TOY}, "data.strong: missing; client FixMatch uses the strong chain"),
        ({"client": Needs()}, "client.name: .* client 'Needs' does not receive \\['synthetic'\\]"),
        ({"data": {"name": "digits", "strong": [{"name": "crop", "padding": 9}]}}, "padding: 9 is not smaller"),
    ],
)
def test_mistakes_before_round_0(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(DIGITS | change, out=tmp_path / "run")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Phase(fl.SGD(), 0.1, 4, view="test"), "view: 'test' is not one of"),
        (lambda: Beside("other"), "view: 'other' is not one of .*received:GROUP"),
        (lambda: Beside(batch=0), "batch: 0 is not positive"),
        (lambda: Beside(changes={"x": "string"}), "'string' is not one of .*tuple of augmentations"),
        (lambda: Beside(changes={"x": [Flip()]}), "is not 'weak', 'strong' or a tuple of augmentations"),
    ],
)
def test_mistakes_in_a_phase(make, message):
    with pytest.raises(ValueError, match=message):
        make()
