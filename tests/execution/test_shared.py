"""Shared memory: values keep their alignment, and each task is taken once."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl.execution.workers.folders import new_name
from fl.execution.workers.shared import QUEUE_BYTES, SMALL, Region, SharedFiles, SharedQueue
from fl.tensors.params import ALIGNMENT, Params


@pytest.fixture
def files():
    shared = SharedFiles(new_name())
    yield shared
    shared.remove()


@pytest.mark.parametrize("rows", [10, 100_000])  # small values are copied, large ones are mapped
def test_values_lie_aligned_and_are_the_readers_own(files, rows):
    """Kernels choose their code path by alignment, which changes last bits."""
    params = Params.of({"a": torch.randn(3, 5), "b": torch.randn(7)})
    value = {"params": params, "ids": np.arange(rows), "x": torch.randn(rows, 3)}
    region = Region(files)
    handle = region.write(value)
    assert (sum(handle.sizes) < SMALL) == (rows == 10)
    one, other = handle.open(), handle.open()
    for tensor in (one["params"]["a"], one["params"]["b"], one["x"]):
        assert tensor.data_ptr() % ALIGNMENT == 0
    one["x"].zero_()
    one["ids"][:] = 0
    assert torch.equal(other["x"], value["x"]) and np.array_equal(other["ids"], np.arange(rows))
    assert torch.equal(handle.open()["params"].buffers[0], params.buffers[0])


RUNS = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(
    lambda sizes: [(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes))]
)


@given(runs=RUNS, order=st.lists(st.integers(0, 3), max_size=60), steal=st.booleans())
def test_every_task_is_taken_once_whoever_comes_when(tmp_path_factory, runs, order, steal):
    path = tmp_path_factory.mktemp("queue") / "queue"
    queues = [SharedQueue(path) for _ in runs]
    workers = [queue.tasks(1, runs, me, steal) for me, queue in enumerate(queues)]
    taken = [[] for _ in runs]
    for me in [who % len(runs) for who in order] + list(range(len(runs))) * 40:
        taken[me] += itertools.islice(workers[me], 1)
    assert sorted(itertools.chain(*taken)) == [(task, task + 1) for task in range(runs[-1][1])]
    if not steal:
        assert taken == [[(task, task + 1) for task in range(a, b)] for a, b in runs]
    for queue in queues:
        queue.close()


def test_a_late_worker_takes_no_task_of_the_next_exchange(tmp_path):
    """The worker was declared dead but is alive."""
    late, living = SharedQueue(tmp_path / "queue"), SharedQueue(tmp_path / "queue")
    tasks = late.tasks(1, [(0, 2), (2, 4)], 0)
    assert next(tasks) == (0, 1)
    assert list(living.tasks(2, [(0, 3)], 0)) == [(0, 1), (1, 2), (2, 3)]
    assert list(tasks) == [] and list(late.tasks(1, [(0, 2), (2, 4)], 0)) == []
    assert (tmp_path / "queue").stat().st_size == QUEUE_BYTES


def test_half_of_the_longest_rest_is_taken_over(tmp_path):
    queue = SharedQueue(tmp_path / "queue")
    idle = queue.tasks(1, [(0, 0), (0, 5), (5, 7)], 0)
    assert [next(idle), next(idle), next(idle)] == [(2, 3), (3, 4), (4, 5)]  # the last three of five


@pytest.mark.slow
def test_what_the_dead_left_may_be_in_many_pieces(tmp_path):
    runs = [(2 * k, 2 * k + 1) for k in range(5_000)]
    queue = SharedQueue(tmp_path / "queue")
    assert sorted(queue.tasks(1, runs, 0)) == runs
