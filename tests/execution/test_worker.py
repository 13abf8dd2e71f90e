"""A worker's part of an exchange: the split and order of tasks change no bits; columns, errors, evaluation."""

import copy
import functools
import pickle
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from clients.sgd import LocalSGD
from fl.communication.codecs.identity import Identity
from fl.data.partition import Partition
from fl.data.sets.noise import LogNormal, RandomData
from fl.data.stream import Period
from fl.data.views import View
from fl.errors import ClientError
from fl.execution.columns import Columns
from fl.execution.dispatch import ExchangeDispatch
from fl.execution.job import Job
from fl.execution.training.loop import train
from fl.execution.training.plan import Plan
from fl.execution.worker import Worker
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.fold import Fold
from fl.method.messages import Broadcast, Update
from fl.method.reduction import Collect, Product, Stack, Sum, WeightedMean
from fl.models.binding import Initial, module_params
from fl.models.probe import ModuleFacts
from fl.storage.records import NO_RECORD
from fl.tasks.supervised import Classification
from fl.tensors.params import Params
from fl.tensors.serialise import digest
from partitions.natural import natural

CLIENTS = 11
DATASET = RandomData(
    shape=(6,), classes=3, clients=CLIENTS, samples=LogNormal(lognormal=0.7, mean=12, low=3, high=30)
).load()
PARTITION = Partition(*natural(DATASET.clients)).hold_out(0.2, 0.0, 0)
ARRAYS = {name: torch.from_numpy(array) for name, array in DATASET.train.items()}
torch.manual_seed(0)
MODULE = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
MODEL = module_params(MODULE)
TRAINING = LocalSGD(epochs=2, batch=4, lr=0.3)


@contextmanager
def workers(folder, count=1, algorithm=TRAINING, on_error="raise"):
    """Return workers 0..count-1 of one job."""
    job = Job(
        facts=ModuleFacts(),
        algorithm=algorithm,
        module=copy.deepcopy(MODULE),
        initial=Initial.of(MODULE),
        arrays=ARRAYS,
        server_arrays={},
        periods=(Period(1, PARTITION, Classification()),),
        seed=5,
        rounds=1,
        up=Identity(),
        down=Identity(),
        transforms=(),
        on_error=on_error,
        folder=folder / "clients",
        scratch=folder / "scratch",
    )
    team = [Worker(job, writer) for writer in range(count)]
    try:
        yield team
    finally:
        for worker in team:
            worker.close()


def dispatch(cohort, plan=Plan("loop", 1, ""), **fields) -> ExchangeDispatch:
    cohort = np.asarray(cohort)
    nowhere = np.tile(np.array(NO_RECORD), (len(cohort), 1))
    settings = {
        "kind": "work",
        "work": "train",
        "round": 0,
        "number": 4,
        "period": 0,
        "broadcast": Broadcast.of(MODEL),
        "reduction": Product({"model": WeightedMean()}),
        "states": nowhere,
        "carries": nowhere,
        "cost": np.ones(len(cohort)),
    }
    return ExchangeDispatch(cohort=cohort, plan=plan, **settings | fields)


@functools.cache
def alone(client: int) -> Update:
    """Return one client's reply to the exchange, computed by its algorithm alone."""
    views = {split: View(ARRAYS, PARTITION.view_rows(client, split)) for split in ("train", "val", "test")}
    ctx = ClientContext(
        client=client,
        seed=5,
        round=0,
        rounds=1,
        participation=4,
        received={"model": MODEL},
        config={},
        state=None,
        initial=Initial.of(MODULE),
        module=copy.deepcopy(MODULE),
        task=Classification(),
        training_loop=train,
        **views,
    )
    return TRAINING.work("train", ctx, None).update


def tree_sum(values: list[Params]) -> Params:
    """Add values in a fixed tree. A node's left part has the largest power of two below the node's size."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return tree_sum(values[:half]) + tree_sum(values[half:])


# -- bits -------------------------------------------------------------------------------------------------------------
@given(st.data())
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
def test_the_division_of_tasks_among_workers_changes_no_bits(tmp_path_factory, data):
    """Each worker gets runs of tasks in any order; the sum equals that of the tree, leaf by leaf."""
    n = data.draw(st.integers(1, CLIENTS))
    clients = sorted(data.draw(st.permutations(range(CLIENTS)))[:n])
    chunk = data.draw(st.sampled_from([1, 2, 4]))
    work = dispatch(clients, Plan("loop", chunk, ""))
    tasks = data.draw(st.permutations(range(work.tasks)))
    count = data.draw(st.integers(1, 3))
    owner = data.draw(st.lists(st.integers(0, count - 1), min_size=work.tasks, max_size=work.tasks))
    with workers(tmp_path_factory.mktemp("run"), count) as team:
        parts = [w.run(work, [(t, t + 1) for t in tasks if owner[t] == k], k) for k, w in enumerate(team)]
    done = work.gather(parts)
    updates = [alone(c) for c in clients]
    weights = [u.num_examples for u in updates]
    mean = tree_sum([u.groups["model"] * float(n) for u, n in zip(updates, weights)]) * (1.0 / sum(weights))
    assert digest(done.value["model"]) == digest(mean)
    assert_array_equal(done.columns.column("num_examples", n, 0), weights)
    assert_array_equal(done.columns.column("metric/loss", n, 0.0), [u.metrics["loss"] for u in updates])


@pytest.mark.parametrize("kind", ["compiled", "stacked", "flat", "vmap"])
@pytest.mark.parametrize("n", [1, 4, 6, 7, CLIENTS])
def test_together_placement_changes_nothing(tmp_path, kind, n):
    work = dispatch(range(n), Plan(kind, 4, ""))
    values = []
    for shares in ([[(0, work.tasks)]], [[(t, t + 1)] for t in reversed(range(work.tasks))]):
        with workers(tmp_path / str(len(values)), len(shares)) as team:
            values.append(work.gather([w.run(work, share, k) for k, (w, share) in enumerate(zip(team, shares))]).value)
    assert digest(values[0]["model"]) == digest(values[1]["model"])
    updates = [alone(c) for c in range(n)]
    weights = np.array([u.num_examples for u in updates])
    mean = sum(u.groups["model"].compact() * float(w) for u, w in zip(updates, weights)) / weights.sum()
    assert_allclose(values[0]["model"].compact(), mean, rtol=1e-4, atol=1e-6)


@given(n=st.integers(1, 200), a=st.integers(0, 199), length=st.integers(1, 200))
def test_a_run_of_positions_is_a_few_nodes(n, a, length):
    a = min(a, n - 1)
    b = min(a + length, n)
    fold = Fold(Sum(), n)
    for k in range(a, b):
        fold.add(0, k, torch.ones(()))
    assert sum(int(acc) for acc in fold.nodes.values()) == b - a
    assert len(fold.nodes) <= 2 * max(1, (b - a).bit_length())
    assert [edge for pair in fold.covered() for edge in pair][:1] == [a] and fold.covered()[-1][1] == b


def test_an_empty_cohort(tmp_path):
    work = dispatch(np.array([], np.int64))
    with workers(tmp_path) as (worker,):
        done = work.gather([worker.run(work, [(0, work.tasks)], 0)])
    assert done.value is None and len(done.columns.column("num_examples", 0, 0)) == 0


# -- columns ----------------------------------------------------------------------------------------------------------
def test_columns_are_by_position():
    columns, more = Columns(), Columns()
    columns.add(np.array([3, 1]), {"loss": np.array([0.3, 0.1]), "place": np.array([[1, 2], [3, 4]])})
    more.add(np.array([0]), {"loss": 0.5, "dropped": True})
    columns.extend(more)
    for each in (columns, columns.packed(), pickle.loads(pickle.dumps(columns.packed()))):
        assert_array_equal(each.column("loss", 5, np.nan), [0.5, 0.1, np.nan, 0.3, np.nan])
        assert_array_equal(each.column("dropped", 3, False), [True, False, False])
        assert_array_equal(each.column("place", 4, -1), [[-1, -1], [3, 4], [-1, -1], [1, 2]])
        assert_array_equal(each.column("absent", 2, 0), [0, 0])


def test_columns_of_a_worker_are_copied_because_it_writes_its_memory_again():
    memory = np.array([0.5, 1.5])
    part, columns = Columns(), Columns()
    part.add(np.array([0, 1]), {"loss": memory})
    columns.extend(part)
    memory[:] = -1
    assert_array_equal(columns.column("loss", 2, np.nan), [0.5, 1.5])


# -- errors -----------------------------------------------------------------------------------------------------------
class Sends(ClientAlgorithm):
    """Sends `value(client)` in every coordinate, or raises it if it is an exception."""

    def __init__(self, value):
        self.value = value

    def work(self, name, ctx, carry):
        return Reply(Update({"model": 0.0 * MODEL + self.value(ctx.client)}, 1, {"loss": 1.0}), {"client": ctx.client})


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ClientError(np.array([3, 4]), 7, "clip", "ValueError: no")))
    assert str(error) == "one of the clients [3, 4], round 7, stage 'clip': ValueError: no"
    assert str(ClientError(np.array([3]), 7, "train", "x")) == "client 3, round 7, stage 'train': x"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_updates_that_are_not_finite_are_dropped(tmp_path, bad):
    with workers(tmp_path, algorithm=Sends(lambda c: bad if c == 2 else 1.0), on_error="drop") as (worker,):
        done = dispatch([1, 2, 5]).gather([worker.run(dispatch([1, 2, 5]), [(0, 3)], 0)])
    assert_array_equal(done.columns.column("dropped", 3, False), [False, True, False])
    assert done.errors == ["client 2: update not finite"]
    assert (done.value["model"].compact() == 1.0).all()


def test_large_numbers_are_finite(tmp_path):
    """The sum of the elements overflows, but no element does."""
    with workers(tmp_path, algorithm=Sends(lambda c: 3e38)) as (worker,):
        work = dispatch([1, 2], reduction=Product({"model": Stack()}))
        done = work.gather([worker.run(work, [(0, 2)], 0)])
    assert [meta.client for _, meta in done.value["model"]] == [1, 2]


def test_scratch_does_not_grow_from_round_to_round(tmp_path):
    """A spilled vector is 53 floats in four 64-byte lines; it is kept until the next round."""
    collect = Product({"model": Collect()})
    with workers(tmp_path, algorithm=Sends(lambda c: float(c))) as (worker,):
        for number in range(3):
            work = dispatch([1, 2, 6], reduction=collect, round=number, number=number)
            first = worker.run(work, [(0, 2)], 0)
            second = worker.run(work, [(2, 3)], 0)  # the same exchange: tasks that another worker did not finish
            assert (work.gather([first, second]).value["model"].compact() == 3.0).all()
            assert sum(p.stat().st_size for p in (tmp_path / "scratch").iterdir()) == 3 * 4 * 64
    assert not [file for file in psutil.Process().open_files() if tmp_path in Path(file.path).parents]


def test_states_are_written_and_read(tmp_path):
    with workers(tmp_path, algorithm=Sends(float)) as (worker,):
        part = worker.run(dispatch([2, 9]), [(0, 2)], 6)
        places = part.columns.column("state", 2, -1)
        with closing(worker.states):
            assert [worker.states.read(place) for place in places] == [{"client": 2}, {"client": 9}]
        assert places[:, 0].tolist() == [6, 6]


# -- evaluation -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_evaluation_pools_exactly(tmp_path, chunk):
    metrics = Product(Classification().metrics())
    work = dispatch(
        range(CLIENTS), Plan("loop", chunk, ""), kind="evaluate", work="received", reduction=metrics, split="val"
    )
    with workers(tmp_path) as (worker,):
        done = work.gather([worker.run(work, [(0, work.tasks)], 0)])
    losses, hits, counts = [], [], []
    for client in range(CLIENTS):
        held = torch.from_numpy(PARTITION.view_rows(client, "val"))
        with torch.no_grad():
            outputs = MODULE(ARRAYS["x"][held])
        losses.append(float(F.cross_entropy(outputs, ARRAYS["y"][held], reduction="sum")))
        hits.append(int((outputs.argmax(1) == ARRAYS["y"][held]).sum()))
        counts.append(len(held))
    assert 0 in counts and max(counts) > 1
    assert_array_equal(done.columns.column("num_examples", CLIENTS, 0), counts)
    assert done.value["loss"] == pytest.approx(sum(losses) / sum(counts), rel=1e-6)
    assert done.value["accuracy"] == sum(hits) / sum(counts)
    with np.errstate(invalid="ignore"):
        assert_allclose(done.columns.column("metric/accuracy", CLIENTS, 0.0), np.divide(hits, counts))
        assert_allclose(done.columns.column("metric/loss", CLIENTS, 0.0), np.divide(losses, counts), rtol=1e-5)


def test_the_server_set_is_evaluated_in_blocks(tmp_path):
    """2,500 rows are three blocks; the accuracy of a model that always predicts class 0 is the share of zeros."""
    n = 2500
    y = torch.arange(n) % 7 % 3
    always = 0.0 * MODEL
    always["3.bias"][0] = 1.0
    with workers(tmp_path) as (worker,):
        worker.job = replace(worker.job, server_arrays={"x": torch.zeros(n, 6), "y": y})
        work = dispatch(
            range(3),
            kind="evaluate_server",
            work="received",
            reduction=Product(Classification().metrics()),
            broadcast=Broadcast.of(always),
            rows=np.arange(n),
        )
        done = work.gather([worker.run(work, [(0, 3)], 0)])
    assert_array_equal(done.columns.column("num_examples", 3, 0), [1024, 1024, 452])
    assert done.value["accuracy"] == float((y == 0).double().mean())
