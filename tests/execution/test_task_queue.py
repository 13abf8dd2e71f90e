"""The task queue: shares have equal cost, each task is taken once, neighbouring tasks go to the same worker."""

import threading
import time
from threading import Event, Timer

import numpy as np
import pytest

from fl.execution.workers.executor import Serial, _Helper
from fl.execution.workers.task_queue import TaskQueue, next_task, split


def test_shares_are_of_about_equal_cost_and_in_order():
    tasks = np.array([0, 1, 2, 5, 6, 9])
    assert split(np.array([3.0, 1, 1, 1, 1, 5]), tasks, 2) == [[(0, 3), (5, 6)], [(6, 7), (9, 10)]]
    assert split(np.ones(2), np.arange(2), 3) == [[(0, 1)], [], [(1, 2)]]


@pytest.mark.parametrize("runs", [[[0, 2], [2, 9]], np.array([[0, 2], [2, 9]])], ids=["lists", "array"])
def test_who_is_done_takes_the_longer_half_of_the_longest_other(runs):
    assert [next_task(runs, 0) for _ in range(2)] == [0, 1]
    assert next_task(runs, 1) == 2 and next_task(runs, 0, steal=False) is None
    assert [next_task(runs, 0) for _ in range(3)] == [6, 7, 8]  # the last three of 3 ... 8
    assert next_task(runs, 0) == 4 and next_task(runs, 1) == 3
    assert next_task(runs, 1) == 5 and next_task(runs, 1) is next_task(runs, 0) is None


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_take_every_task_once(workers):
    runs = TaskQueue(np.ones(1000), workers)
    taken: list[list[int]] = [[] for _ in range(workers)]

    def work(me: int) -> None:
        taken[me] += [a for a, _ in runs.tasks(me)]

    threads = [threading.Thread(target=work, args=(me,)) for me in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(task for mine in taken for task in mine) == list(range(1000))


def test_nobody_takes_any_more_when_it_is_stopped():
    runs = TaskQueue(np.ones(4), 2)
    mine = runs.tasks(0)
    assert next(mine) == (0, 1)
    runs.stop()
    assert [*mine] == [*runs.tasks(1)] == []


def test_after_an_interrupt_no_thread_works():
    """Ctrl-C while the first thread waits for the others: they end their present tasks and take no more."""
    started, ended, release = [], [], Event()

    class Tasks:
        tasks = 6

        def costs(self):
            return np.ones(6)

    class Threads(Serial):
        def _part(self, k, dispatch, tasks):
            if k == 0:
                return None
            for task in tasks:
                started.append(task)
                release.wait(5)
                ended.append(task)

    def interrupted():
        while not started:
            time.sleep(0.001)
        Timer(0.05, release.set).start()
        raise KeyboardInterrupt

    serial = Threads(2)
    serial.helpers.append(_Helper())
    with pytest.raises(KeyboardInterrupt):
        serial._in_threads(Tasks(), 2, interrupted)
    assert len(started) == len(ended) == 1
    serial.close()
    assert not serial.helpers[0].thread.is_alive()
