"""A user's own client code: trained together only if that changes nothing; objectives that return a mean are refused.

Six rows with x = 1 and one weight w, which starts at 0: client 0 has two rows with y = 10, client 1 four with y = 20.
One step on L = (w - y)^2 / 2 with the learning rate 0.1 changes w by 1 and 2; the losses are 50 and 200.
"""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fl
from clients.sgd import LocalSGD
from fl import LocalTraining, SparseMean, Strategy
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ClientError, ConfigError
from fl.execution.update_checks import check_stacked
from fl.simulation.build import set_up_run
from fl.simulation.headline import headline
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import Params
from fl.tensors.sparse import Sparse, Table

X = np.ones((6, 1), np.float32)
Y = np.array([10, 10, 20, 20, 20, 20], np.float32)


class Weight(nn.Module):
    """One weight for each column, 0 at first."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.w = nn.Linear(shape[0], 1, bias=False)
        nn.init.zeros_(self.w.weight)

    def forward(self, x):
        return self.w(x)


def config(client=LocalSGD, **changes):
    base = {
        "rounds": 1,
        "data": (X, Y),
        "task": "regression",
        "partition": {"name": "file", "lists": [[0, 1], [2, 3, 4, 5]]},
        "model": Weight,
        "cohort": {"size": 2},
        "strategy": "fedavg",
        "client": client(batch="full", lr=0.1),
        "evaluation": {"server": False},
        "execution": {"executor": "serial"},
    }
    return read(base, changes)


def plan_of(client, **changes):
    return set_up_run(resolve(config(client, **changes))).plan


def weight_after(tmp_path, client, **changes):
    result = fl.run(config(client, **changes), out=tmp_path / "run")
    return result.model["w.weight"].flatten().tolist(), result.metrics[0]["train/loss"]


# -- trained alone and together ---------------------------------------------------------------------------------------
class Half(LocalTraining):
    """Works for one client and for many."""

    def finish(self, end):
        return {"model": 0.5 * end.delta}, None


class Kept(LocalTraining):
    """Adds half of what it remembers."""

    def first_state(self, inputs):
        return 0.0 * inputs.received["model"]

    def finish(self, end):
        return {"model": end.delta + 0.5 * end.state}, end.delta


class Scaled(LocalTraining):
    """Written for one client: the largest element of all clients is not that of each."""

    def finish(self, end):
        return {"model": end.delta / float(max(b.abs().max() for b in end.delta.buffers))}, None


class Changed(LocalTraining):
    """Sends the elements that changed: as many as the client's data have columns."""

    def finish(self, end):
        flat = end.delta.compact()
        positions = flat.nonzero()[:, -1]
        return {"model": Sparse(positions, flat[positions], flat.shape[-1])}, None


class PerSample(LocalTraining):
    """A state whose shape depends on the client."""

    def finish(self, end):
        return {"model": end.delta}, torch.zeros(int(end.num_examples))


class Normed(LocalTraining):
    """A gradient hook written for one client."""

    def gradient(self, grad, params, at):
        return grad / float(max(b.abs().max() for b in grad.buffers))


class Later(LocalTraining):
    """Written for one client, from the second step on."""

    def step(self, step):
        gradient = step.gradient(step.params)
        step.descend(gradient * float(fl.norm(gradient).numel()) if step.t else gradient)


class Leaves(LocalTraining):
    """Expects all clients in each step."""

    def gradient(self, grad, params, at):
        return grad * torch.ones(3) if grad.batch else grad


class Alone(Half):
    one_at_a_time: ClassVar[bool] = True


@pytest.mark.parametrize("client", [Half, Kept])
def test_hooks_that_work_for_many_clients_are_batched(client):
    for plan in ("auto", "flat", "vmap"):
        assert plan_of(client, **{"execution.plan": plan}).kind == plan.replace("auto", "flat")
    softmax = {"model": "softmax", "task": "classification", "data": (X, Y.astype(np.int64) // 10)}
    for plan in ("auto", "stacked"):
        assert plan_of(client, **softmax, **{"execution.plan": plan}).kind == plan.replace("auto", "compiled")


@pytest.mark.parametrize(
    "client, why",
    [
        (
            Scaled,
            r"with Scaled, clients that train alone and together have different updates \(model.w.weight is .* ap",
        ),
        (Normed, "with Normed, clients that train alone and together have different updates"),
        (Changed, "with Changed, clients (cannot train|that train alone and) together"),
        (PerSample, "with PerSample, clients cannot train together: ValueError: "),
        (Alone, "Alone sets one_at_a_time = True"),
    ],
)
def test_hooks_written_for_one_client_are_trained_in_the_loop(client, why, tmp_path):
    setup = set_up_run(resolve(config(client)))
    assert setup.plan.kind == "loop"
    assert f"training loop ({setup.plan.why}) in this process, configuration c0ffee" in headline(
        setup, tmp_path, "in this process", "c0ffee"
    )
    for plan in ("flat", "vmap"):
        with pytest.raises(ConfigError, match=f"execution.plan: '{plan}' is not possible: {why}.*Use 'loop' or 'auto'"):
            plan_of(client, **{"execution.plan": plan})


@pytest.mark.parametrize("client", [Later, Leaves])
def test_the_trial_takes_second_steps_and_steps_of_fewer_clients(client):
    plan = plan_of(lambda **_: client(batch=32, lr=0.1, epochs=2))
    assert plan.kind == "loop" and f"with {client.__name__}, clients " in plan.why
    assert plan_of(lambda **_: Half(batch=32, lr=0.1, epochs=2)).kind == "flat"


class Normalised(nn.Sequential):
    def __init__(self, shape, outputs):
        super().__init__(nn.BatchNorm1d(shape[0], track_running_stats=False), nn.Linear(shape[0], 1))


def test_the_trial_has_no_batches_of_one_sample_for_a_model_that_cannot_normalise_them():
    """The real batches have 2 and 4 samples; those of the trial have 2 and 3, not 1."""
    setup = set_up_run(resolve(config(Half, model=Normalised)))
    assert setup.facts.needs_two and "a first training fails" not in setup.plan.why
    kept = resolve(config(lambda **_: Half(batch=4, lr=0.1, last_batch="keep"), model=Normalised))
    assert "a first training fails" not in set_up_run(kept).plan.why


def test_an_update_written_for_one_client_is_right(tmp_path):
    assert weight_after(tmp_path, Scaled)[0] == [1.0]  # each client sends 1


class SparseStep(Strategy):
    def reduction(self, state, ctx):
        return SparseMean()

    def step(self, state, mean, ctx):
        return state + Params.expand(state.layout, mean), {}


def test_sparse_updates_of_different_lengths(tmp_path):
    x = np.array([[1, 0, 0]] * 2 + [[0, 1, 1]] * 4, np.float32)  # client 0 changes one element, client 1 two
    weights, _ = weight_after(tmp_path, Changed, data=(x, Y), strategy=SparseStep)
    np.testing.assert_allclose(weights, [2 / 6 * 1, 4 / 6 * 2, 4 / 6 * 2], rtol=1e-6)


class Late(LocalTraining):
    """Returns one client's update for all, at a learning rate that the trial does not use."""

    def finish(self, end):
        many = end.params.batch and float(end.lr_sum.max()) > 0.05
        return {"model": end.delta.row(0) if many else end.delta}, None


def test_a_batched_plan_checks_the_first_axis_of_every_leaf(tmp_path):
    with pytest.raises(
        ClientError, match=r"client Late: finish returned model.w.weight with shape \(1, 1\) for 2 clien"
    ):
        weight_after(tmp_path, Late, **{"execution.plan": "flat", "execution.chunk": 2})


@pytest.mark.parametrize(
    "groups, state, named",
    [
        (
            {"model": Sparse(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 3), 9)},
            None,
            r"model.values .* \(2, 3\)",
        ),
        ({"model": Table(torch.arange(3), torch.ones(3, 2), torch.ones(()))}, None, r"model.counts with shape \(\)"),
        ({"a": torch.ones(3), "b": [torch.ones(3), torch.ones(4)]}, None, r"b.1 with shape \(4,\)"),
        ({}, {"kept": torch.ones(1, 3)}, r"state.kept with shape \(1, 3\)"),
    ],
)
def test_leaves_without_an_axis_of_clients_are_named(groups, state, named):
    with pytest.raises(ValueError, match=f"client Mine: finish returned {named} .*execution.plan: loop.*one_at_a_time"):
        check_stacked(groups, state, None, 3, "Mine")


def test_carries_without_an_axis_of_clients_are_named():
    with pytest.raises(ValueError, match=r"client Mine: carry returned carry.w with shape \(1, 2\) for 3 clients"):
        check_stacked({}, None, {"w": torch.ones(1, 2)}, 3, "Mine")


def test_leaves_with_an_axis_of_clients_are_taken():
    params = Params.of({"w": torch.ones(2)}).layout.zeros(3)
    check_stacked({"model": params, "n": torch.ones(3)}, {"kept": (params, 5, None)}, params, 3, "Mine")


# -- objectives -------------------------------------------------------------------------------------------------------
class Double(LocalTraining):
    def objective(self, net, batch, at, task):
        return 2 * task.loss(net(batch["x"]), batch)


class Mean(LocalTraining):
    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]), batch).mean()


class Divided(LocalTraining):
    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]), batch) / len(batch["x"])


class DividedInWork(Divided):
    def work(self, name, ctx, carry):
        return super().work(name, ctx, carry)


class Column(LocalTraining):
    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]), batch)[:, None]


class Contrast(LocalTraining):
    """Depends on the batch without being divided by its size."""

    def objective(self, net, batch, at, task):
        losses = task.loss(net(batch["x"]), batch)
        return losses + (losses - losses.mean()).abs()


class WholeBatch(Mean):
    loss_over_batch: ClassVar[bool] = True


class DividedLoss(Regression):
    def loss(self, outputs, batch):
        return super().loss(outputs, batch) / len(outputs)


class OwnObjective(Classification):
    """Trains on another number than the hand-written kernel that it inherits."""

    def objective(self, net, batch):
        return 3 * self.loss(net(batch["x"]), batch)


class Tripled(Classification):
    """Its loss is not that of the hand-written kernel that it inherits."""

    def loss(self, outputs, batch):
        return 3 * super().loss(outputs, batch)


@pytest.mark.parametrize("plan", ["auto", "loop", "vmap"])
@pytest.mark.parametrize(
    "client, said",
    [
        (Mean, r"client: objective of Mean returned shape \(\) for 2 samples, expected \(2,\).*loss_over_batch = True"),
        (Column, r"client: objective of Column returned shape \(2, 1\) for 2 samples, expected \(2,\)"),
        (
            Divided,
            "client: objective of Divided divides .* is (100 in a batch of 2 and 50|25 in a batch of 2 and 12.5) in",
        ),
        (DividedInWork, "client: objective of DividedInWork divides the losses"),
    ],
)
def test_objectives_that_return_a_mean_are_refused(client, said, plan):
    with pytest.raises(ConfigError, match=said):
        plan_of(client, **{"execution.plan": plan})


def test_a_task_that_divides_its_loss_is_refused():
    with pytest.raises(ConfigError, match="task: loss of DividedLoss divides the losses by the number of samples"):
        plan_of(LocalSGD, task=DividedLoss)


def test_a_task_with_another_loss_than_its_kernel_does_not_use_the_kernel():
    changes = {"task": Tripled, "data": (X, Y.astype(np.int64) // 10), "model": "softmax"}
    plan = plan_of(LocalSGD, **changes)
    assert plan.kind == "flat" and "with Tripled, clients that train alone and together have different" in plan.why
    with pytest.raises(ConfigError, match="'stacked' is not possible: with Tripled, "):
        plan_of(LocalSGD, **changes, **{"execution.plan": "stacked"})


def test_the_objective_of_a_task_is_trained_in_every_plan(tmp_path):
    """One step on 3 L is a step on L with three times the learning rate."""
    changes = {"data": (X, Y.astype(np.int64) // 10), "model": "softmax"}
    assert plan_of(LocalSGD, **changes, task=OwnObjective).kind == "flat"
    with pytest.raises(ConfigError, match="'stacked' is not possible: OwnObjective has its own objective"):
        plan_of(LocalSGD, **changes, task=OwnObjective, **{"execution.plan": "stacked"})
    tripled = fl.run(config(**changes, task=OwnObjective), out=tmp_path / "tripled").model
    faster = fl.run(config(lambda **_: LocalSGD(batch="full", lr=0.3), **changes, task="classification"), out=tmp_path)
    for name, tensor in faster.model.items():
        torch.testing.assert_close(tripled[name], tensor)


@pytest.mark.parametrize(
    "client, weight, loss",
    [
        (LocalSGD, (2 * 1 + 4 * 2) / 6, (2 * 50 + 4 * 200) / 6),
        (Double, (2 * 2 + 4 * 4) / 6, (2 * 100 + 4 * 400) / 6),
        (WholeBatch, (2 * 1 + 4 * 2) / 6, (2 * 50 + 4 * 200) / 6),
    ],
)
def test_losses_and_weights_by_hand(client, weight, loss, tmp_path):
    (w,), found = weight_after(tmp_path, client)
    assert (w, found) == pytest.approx((weight, loss), rel=1e-6)


def test_objectives_over_the_batch_are_trained_one_client_at_a_time():
    assert plan_of(Double, **{"execution.plan": "vmap"}).kind == "vmap"
    assert (plan_of(Contrast).kind, plan_of(WholeBatch).kind) == ("loop", "loop")
    with pytest.raises(ConfigError, match="'vmap' is not possible: with Contrast, clients that train alone and toget"):
        plan_of(Contrast, data=(X, np.arange(6, dtype=np.float32)), **{"execution.plan": "vmap"})
    with pytest.raises(ConfigError, match="'vmap' is not possible: WholeBatch sets loss_over_batch = True"):
        plan_of(WholeBatch, **{"execution.plan": "vmap"})


# -- what the trial leaves alone --------------------------------------------------------------------------------------
class Fails(LocalTraining):
    def finish(self, end):
        raise KeyError("nosuch")


def test_an_error_of_the_users_code_is_shown_by_the_run(tmp_path):
    assert "with Fails, a first training fails: KeyError: 'nosuch'" in plan_of(Fails).why
    with pytest.raises(ClientError, match="client 1, round 0, stage 'train': KeyError"):
        weight_after(tmp_path, Fails)


def test_registered_parts_are_not_tried():
    assert set_up_run(resolve(config())).trial is None


class Writes(LocalTraining):
    """Changes what it received, which is the server's own model in one process."""

    def finish(self, end):
        delta = end.delta
        end.received["model"].buffers[0].add_(1.0)
        return {"model": delta}, None


def test_the_trial_works_on_copies():
    setup = set_up_run(resolve(config(Writes)))
    assert not setup.model["w.weight"].any() and not dict(setup.module.named_parameters())["w.weight"].any()


def test_writes_into_shared_values_are_noticed_in_the_compiled_plan(tmp_path):
    softmax = {"model": "softmax", "task": "classification", "data": (X, Y.astype(np.int64) // 10)}
    assert plan_of(Writes, **softmax).kind == "compiled"
    with pytest.raises(ClientError, match="SharedValueWritten: it wrote into ctx.received.model"):
        fl.run(config(Writes, **softmax), out=tmp_path / "run")
