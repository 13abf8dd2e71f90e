"""MAS: groupings against brute force, affinities on paper and by autograd, probes without a trace, exact bytes."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients import mas as client_side
from clients.mas import MAS as Client
from fl import ClientContext, LocalSteps, LocalTraining, Params, View
from fl.errors import ConfigError
from fl.execution.training.loop import train
from fl.models.architectures.linear import MLP
from fl.models.architectures.multihead import MultiHead
from fl.models.binding import Initial
from fl.models.section import Factory
from fl.tasks.multitask import Multitask
from strategies import mas
from strategies.task_groups import choices, grouping, partitions, score, serving, value

CLASSES = {"digit": 4, "noise": 2, "parity": 2}
NAMES, n = list(CLASSES), len(CLASSES)


# -- groupings --------------------------------------------------------------------------------------------------------
def by_hand(S: np.ndarray, groups: list[list[int]], overlap: bool) -> float:
    """The value of a grouping, written out from the definition."""
    n, total = len(S), 0.0
    for j in range(n):
        best = -math.inf
        for group in groups:
            if j not in group:
                continue
            others = [S[j, i] for i in group if i != j]
            if others:
                found = sum(others) / len(others)
            elif overlap:
                found = -1e6
            else:
                found = sum(S[j, i] + S[i, j] for i in range(n) if i != j) / (2 * (n - 1))
            best = max(best, found)
        total += best
    return total / n


def brute_force(S: np.ndarray, most: int) -> float:
    """The best value over all ways to give each task a number of a group."""
    n, best = len(S), -math.inf
    for numbers in itertools.product(range(most), repeat=n):
        groups = [[j for j in range(n) if numbers[j] == g] for g in range(most)]
        best = max(best, by_hand(S, [g for g in groups if g], False))
    return best


def brute_force_overlap(S: np.ndarray, most: int) -> float:
    """The same where a task may be in several groups: all choices of `most` subsets, also equal ones."""
    n = len(S)
    subsets = [[j for j in range(n) if bits >> j & 1] for bits in range(1, 2**n)]
    choices = itertools.combinations_with_replacement(subsets, most)
    return max(by_hand(S, list(c), True) for c in choices if set().union(*c) == set(range(n)))


@pytest.mark.parametrize("size, most", [(2, 1), (3, 2), (4, 2), (4, 4), (5, 3), (6, 2), (6, 3)])
def test_groupings_equal_brute_force(size, most):
    for seed in range(3):
        S = np.random.default_rng(seed).normal(size=(size, size))
        groups = grouping(torch.tensor(S), most)
        assert sorted(j for g in groups for j in g) == list(range(size)) and len(groups) <= most
        assert value(S.tolist(), groups) == pytest.approx(by_hand(S, groups, False), rel=1e-12)
        assert by_hand(S, groups, False) == pytest.approx(brute_force(S, most), rel=1e-12)


@pytest.mark.parametrize("size, most", [(3, 2), (4, 2), (4, 3)])
def test_overlapping_groupings_equal_brute_force(size, most):
    for seed in range(3):
        S = np.random.default_rng(seed).normal(size=(size, size))
        groups = grouping(torch.tensor(S), most, overlap=True)
        assert by_hand(S, groups, True) == pytest.approx(brute_force_overlap(S, most), rel=1e-12)
        assert all(len(group) > 1 for group in groups)
        for j, g in enumerate(serving(torch.tensor(S), groups, True)):
            own = [score(S.tolist(), j, group, True) for group in groups if j in group]
            assert j in groups[g] and score(S.tolist(), j, groups[g], True) == max(own)


def test_what_changes_a_disjoint_grouping_and_what_does_not():
    for seed in range(5):
        S = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double()
        found = grouping(S, 3)
        off = 1 - torch.eye(5)
        assert grouping(S + 0.7 * off, 3) == found  # a constant beside the diagonal
        assert grouping(3.5 * S, 3) == found
        assert grouping(S + torch.diag(torch.randn(5).double() * 100), 3) == found
        order = torch.tensor([3, 0, 4, 1, 2])  # tasks in another order
        renamed = {frozenset(int(order[j]) for j in g) for g in grouping(S[order][:, order], 3)}
        assert renamed == {frozenset(g) for g in found}


def test_the_measured_example_of_the_digits():
    """Affinities of class, parity, >= 5, intensity, random; the best two groups and the second best, by hand."""
    S = torch.zeros(5, 5)
    S[0, 1], S[0, 2], S[1, 0], S[2, 0] = 0.45, 0.37, 1.61, 1.06
    rest = lambda j: (S[j].sum() + S[:, j].sum()) / 8  # noqa: E731
    pair, triple = [(0, 1), (2, 3, 4)], [(0, 1, 2), (3, 4)]
    assert value(S.tolist(), pair) == pytest.approx((0.45 + 1.61 + 0) / 5)
    assert value(S.tolist(), triple) == pytest.approx(((0.45 + 0.37) / 2 + 1.61 / 2 + 1.06 / 2) / 5)
    assert score(S.tolist(), 2, (2,)) == pytest.approx(float(rest(2)))
    assert grouping(S, 1) == ((0, 1, 2, 3, 4),)
    assert len(list(partitions(tuple(range(5)), 5))) == choices(5, 5, False) == 52  # the Bell number
    assert len(list(partitions(tuple(range(6)), 3))) == choices(6, 3, False) == 1 + 31 + 90  # Stirling numbers
    assert grouping(torch.zeros(1, 1), 1) == ((0,),)


def test_too_many_choices_are_refused():
    for size, most, overlap in ((13, 5, False), (10, 3, True)):
        with pytest.raises(ValueError, match="too many to compare; name them"):
            grouping(torch.zeros(size, size), most, overlap)


# -- affinities -------------------------------------------------------------------------------------------------------
def context(rows: int = 12, **more) -> tuple[ClientContext, Params]:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = MultiHead(encoder=MLP(hidden=(5,), activation="tanh"), features=4, heads=CLASSES).build((6,), 8)
    labels = {f"y_{t}": torch.randint(count, (rows,), generator=draw) for t, count in CLASSES.items()}
    arrays = {"x": torch.randn(rows, 6, generator=draw), **labels}
    view, initial = View(arrays, np.arange(rows)), Initial.of(module)
    received = initial.trained.clone()
    empty = View(arrays, np.arange(0))
    ctx = ClientContext(client=0, seed=0, round=0, rounds=2, participation=0, received={"model": received}, config={},
                        state=None, train=view, val=empty, test=empty, initial=initial, module=module,
                        task=Multitask(classes=CLASSES), training_loop=train, **more)  # fmt: skip
    return ctx, received


def affinities(lr: float, decay: float = 0.0) -> tuple[torch.Tensor, ClientContext, Params]:
    ctx, received = context()
    client = Client(lr=lr, batch=12, optimiser=fl.SGD(weight_decay=decay))
    steps = LocalSteps(client, ctx)
    return client.affinities(steps, ctx.train.take(), received, received, lr), ctx, received


def losses(ctx: ClientContext, params: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    batch = ctx.train.take()
    out = torch.func.functional_call(ctx.module, params, (batch["x"],))
    parts = {"digit": slice(0, 4), "noise": slice(4, 6), "parity": slice(6, 8)}
    return [F.cross_entropy(out[:, part], batch[f"y_{t}"]) for t, part in parts.items()]


def test_small_steps_give_inner_products_of_gradients():
    S, ctx, received = affinities(lr=0.002)
    leaves = {name: t.clone().requires_grad_() for name, t in received.items()}
    found = losses(ctx, leaves)
    encoder = [t for name, t in leaves.items() if name.startswith("encoder.")]
    flat = [torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, encoder, retain_graph=True)]) for loss in found]
    expected = torch.tensor([[float(flat[j] @ flat[i]) / found[j].item() for i in range(n)] for j in range(n)])
    torch.testing.assert_close(S, expected, rtol=0.02, atol=2e-3)
    assert (S.diagonal() > 0).all()


def test_an_affinity_by_hand_with_weight_decay():
    lr, decay = 0.3, 0.5
    S, ctx, received = affinities(lr, decay)
    leaves = {name: t.clone().requires_grad_() for name, t in received.items()}
    before = losses(ctx, leaves)
    encoder = {name: t for name, t in leaves.items() if name.startswith("encoder.")}
    for i in range(n):
        step = torch.autograd.grad(before[i], list(encoder.values()), retain_graph=True)
        moved = {k: t - lr * (g + decay * t) for (k, t), g in zip(encoder.items(), step)}
        after = losses(ctx, {**leaves, **moved})
        for j in range(n):  # row j receives
            assert float(S[j, i]) == pytest.approx((1 - after[j].item() / before[j].item()) / lr, abs=2e-5)


def test_a_loss_of_0_counts_as_1e_8():
    gain = client_side.gains(torch.tensor([0.0, 1.0]), torch.tensor([1e-8, 0.5]), lr=0.5)
    assert gain.tolist() == pytest.approx([0.0, 1.0])


def test_edge_clients():
    client = Client(lr=0.1, batch=8, every=1)
    for rows in (0, 1, 3):
        ctx, _ = context(rows)
        update = client.work("probe/3", ctx, None).update
        assert update.num_examples == rows and torch.isfinite(update.groups["affinity"]).all()
        assert bool(update.groups["affinity"].any()) == (rows > 0)
        assert float(update.groups["model"].compact().abs().max() if rows else 0) == pytest.approx(0) or rows
    ctx, _ = context(5)
    for name, y in ctx.train.arrays.items():
        if name != "x":
            y.zero_()  # one class
    assert torch.isfinite(client.work("probe/3", ctx, None).update.groups["affinity"]).all()


def test_a_client_without_probes_does_not_count():
    ctx, received = context(6)
    still = Client(lr=0.0).work("probe/3", ctx, None).update
    assert not still.groups["affinity"].any()
    state = mas.State((received,), (0, 0, 0), torch.zeros(3, 3, dtype=torch.float64))
    one = mas._with_affinity(state, [(still.groups["affinity"], 6), (torch.ones(3, 3), 6), (3 * torch.ones(3, 3), 1)])
    assert one.probed == 1 and torch.equal(one.affinity, torch.full((3, 3), 2.0, dtype=torch.float64))
    assert mas._with_affinity(state, [(still.groups["affinity"], 6)]) is state


def test_probes_are_booked():
    """Ten samples in batches of four, two epochs: steps of 4 4 2 4 4 2; probes before steps 0, 2 and 4: 4 + 2 + 4."""
    client = Client(batch=4, epochs=2, every=2)
    sizes = np.array([10, 0, 3])
    steps, samples = client.workload(sizes, 0, 1, "probe/5")
    assert steps.tolist() == [6, 0, 2] and samples.tolist() == [20 + 5 * 10, 0, 6 + 5 * 3]
    assert client.workload(sizes, 0, 1)[1].tolist() == [20, 0, 6]


# -- runs -------------------------------------------------------------------------------------------------------------
CONFIG = {
    "rounds": 4,
    "data": {
        "name": "tasks",
        "of": {"name": "noise", "shape": [6], "classes": 4, "clients": 6, "samples": 20},
        "targets": {"digit": {"kind": "label"}, "noise": {"kind": "random"}, "parity": {"kind": "parity"}},
    },
    "task": {"name": "multitask", "classes": CLASSES},
    "model": {"name": "multihead", "encoder": {"name": "mlp", "hidden": [5]}, "features": 4},
    "partition": "natural",
    "splits": {"val": 0.2},
    "cohort": {"size": 3},
    "strategy": {"name": "mas", "groups": 2, "merged": 2, "probes": 2},
    "client": {"batch": 8, "epochs": 2, "lr": 0.1, "every": 2},
    "execution": {"executor": "serial"},
}


def encoder_and_heads(hidden: list[int], features: int) -> tuple[int, dict[str, int]]:
    """Bytes of the encoder and of each head."""
    widths = [6, *hidden, features]
    return 4 * sum((a + 1) * b for a, b in zip(widths, widths[1:])), {t: 4 * (features + 1) * CLASSES[t] for t in NAMES}


@pytest.mark.parametrize("hidden, features", [([5], 4), ([3, 4], 2)])
def test_the_ledger_has_the_closed_form(hidden, features, tmp_path):
    groups = [["parity", "digit"], ["noise"]]
    encoder, heads = encoder_and_heads(hidden, features)
    model = {**CONFIG["model"], "encoder": {"name": "mlp", "hidden": hidden}, "features": features}
    result = fl.run({**CONFIG, "model": model}, out=tmp_path / "run", **{"strategy.groups": groups})
    found = {}
    for row in result.ledger.to_pylist():
        key = (row["round"], row["exchange"], row["direction"], row["group"])
        found.setdefault(key, []).append(row["payload_bytes"])
    merged, each = encoder + sum(heads.values()), [encoder + sum(heads[t] for t in g) for g in groups]
    expected = {}
    for r in range(4):
        for e, size in enumerate([merged] if r < 2 else each):
            expected |= {(r, e, "down", "model"): [size] * 3, (r, e, "up", "model"): [size] * 3}
        if r < 2:
            expected[r, 0, "up", "affinity"] = [4 * n * n] * 3
    assert found == expected
    # the encoders of m groups have m / n of the bytes of one-by-one
    alone = fl.run({**CONFIG, "model": model}, out=tmp_path / "alone", rounds=1,
                   **{"strategy.groups": "alone", "strategy.merged": 0, "strategy.probes": 0})  # fmt: skip
    down = [row["payload_bytes"] for row in alone.ledger.to_pylist() if row["direction"] == "down"]
    assert sum(down) == 3 * (n * encoder + sum(heads.values()))
    assert sum(each) - sum(heads.values()) == 2 / n * (sum(down) / 3 - sum(heads.values()))


class WithBatchNorm(nn.Sequential):
    """An encoder with running statistics, which probes must not change."""

    def __init__(self, shape: tuple[int, ...], outputs: int):
        super().__init__(nn.Linear(*shape, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, outputs))


PLAIN = {
    "rounds": 2,
    "strategy.groups": 1,
    "client.optimiser": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.01},
    "client.clip": 1.0,
    "client.rates": {"heads.*": 2.0},
}


@pytest.mark.parametrize(
    "more",
    [
        {"model.encoder": {"name": "mlp", "hidden": [5], "dropout": 0.3}},
        {"model.batch_norm": "local", "evaluation.server": False},
        {"client.trains": ["encoder.*", "heads.digit.*"], "client.lr": {"start": 0.2, "schedule": "linear"}},
    ],
    ids=["dropout", "statistics", "some tensors"],
)
def test_probes_leave_no_trace(more, tmp_path):
    if "model.batch_norm" in more:
        more = {**more, "model.encoder": Factory(WithBatchNorm, {})}
    runs = [fl.run(CONFIG, out=tmp_path / str(p), **PLAIN, **more, **{"strategy.probes": p}) for p in (0, 2)]
    assert runs[0].digest == runs[1].digest
    without, with_probes = (
        [{k: v for k, v in row.items() if k.startswith(("val/", "train/"))} for row in run.metrics] for run in runs
    )
    assert without == with_probes
    assert with_probes and "affinity/digit/parity" in runs[1].metrics[0]


def test_all_in_one_is_fedavg(tmp_path):
    mine = fl.run(CONFIG, out=tmp_path / "mas", **{"strategy.groups": 1})
    fedavg = fl.run({**CONFIG, "strategy": "fedavg", "client": {"batch": 8, "epochs": 2, "lr": 0.1}},
                    out=tmp_path / "fedavg", **{"execution.plan": "loop"})  # fmt: skip
    assert mine.digest == fedavg.digest
    assert mine.metrics[-1]["val/loss/parity"] == fedavg.metrics[-1]["val/loss/parity"]


@dataclass(frozen=True, kw_only=True)
class Only(LocalTraining):
    """FedAvg's training of one task."""

    task: str

    def objective(self, net, batch, at, task):
        return F.cross_entropy(net(batch["x"])[:, task.columns[self.task]], batch[f"y_{self.task}"], reduction="none")


def test_one_by_one_is_fedavg_on_each_task_and_predictions_are_composed(tmp_path):
    """In full batches, because the shuffles of a round's exchanges differ."""
    alone = {"strategy.groups": "alone", "strategy.merged": 0, "strategy.probes": 0, "client.batch": "full"}
    last = fl.run(CONFIG, out=tmp_path / "alone", **alone, **{"evaluation.stage": ["received", "trained"]}).metrics[-1]
    assert last["groups"] == 3 and [last[f"group/{t}"] for t in NAMES] == [0, 1, 2]
    for name in NAMES:
        config = {**CONFIG, "strategy": "fedavg", "client": Only(task=name, batch="full", epochs=2, lr=0.1)}
        single = fl.run(config, out=tmp_path / name).metrics[-1]
        for metric in (f"val/loss/{name}", f"val/accuracy/{name}"):
            assert last[metric] == pytest.approx(single[metric], rel=1e-5)
    assert last["val/loss"] == pytest.approx(sum(last[f"val/loss/{t}"] for t in NAMES), rel=1e-6)
    assert last["trained/val/loss"] != last["val/loss"]


def test_a_task_in_two_groups_is_predicted_by_the_one_that_serves_it(tmp_path, caplog):
    groups = {"strategy.groups": [["digit", "parity"], ["noise", "digit"]], "strategy.overlap": True}
    last = fl.run(CONFIG, out=tmp_path / "run", **groups).metrics[-1]
    S = torch.tensor([[last[f"affinity/{j}/{i}"] for i in NAMES] for j in NAMES])
    best = 0 if S[0, 2] > S[0, 1] else 1
    assert [last[f"group/{t}"] for t in NAMES] == [best, 1, 0]
    elsewhere = ", ".join(["digit", "noise"][1 - best :])  # the saved model has the encoder of group 0
    assert caplog.text.count("the saved model has the encoder of group 0") == 1
    assert f"the heads of {elsewhere} are trained with encoders of other groups" in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "classification", "model": "softmax"}, "task: client MAS learns several tasks.*use task: multitask"),
        ({"client": {"name": "sgd"}}, "client.name: GradientSteps|client.name: .* measures no affinities"),
        ({"model": {"name": "mlp", "hidden": [4]}}, "strategy.name: mas trains tensors heads.digit.*multihead"),
        ({"model.freeze": ["heads.parity.*"]}, "strategy.name: mas trains tensors heads.parity"),
        ({"strategy.groups": 4}, "strategy.groups: 4 groups of 3 tasks"),
        ({"strategy.groups": [["digit"], ["noise"]]}, "strategy.groups: .* do not have each of the tasks .* exactly"),
        ({"strategy.groups": [["digit", "noise"], ["noise", "parity"]]}, "exactly once"),
        ({"strategy.probes": 0}, "strategy.probes: 0 rounds measure no affinities"),
        ({"strategy.merged": 0}, "strategy.merged: 0 rounds measure no affinities"),
        ({"client.every": 0}, "client.every: 0 is not at least 1"),
        (
            {
                "server": {"name": "buffered", "concurrency": 2, "buffer": 1},
                "system.devices": {"name": "identical", "ms_per_sample": 1},
            },
            "server: an asynchronous server .* MAS sets cohort, skeleton or pin",
        ),
    ],
)
def test_wrong_settings_are_refused_before_round_0(change, message, tmp_path):
    if change.get("client") == {"name": "sgd"}:
        config, change = {**CONFIG, "client": {"name": "sgd", "batch": 8}}, {}
    elif "model" in change and "name" in change["model"]:
        config, change = {**CONFIG, **change}, {}
    else:
        config = CONFIG
    with pytest.raises(ConfigError, match=message):
        fl.run(config, out=tmp_path / "run", **change)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
