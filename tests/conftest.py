"""Settings and fixtures of all tests: Ray, a clock."""

import time
from collections.abc import Generator
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import settings

from fl.execution.workers.ray_pool import keep_workers

torch.set_num_threads(1)  # sums depend on the number of threads

settings.register_profile("fl", deadline=None)  # a first call may import or compile
settings.load_profile("fl")


# -- Ray --------------------------------------------------------------------------------------------------------------
_keeping: list[AbstractContextManager[None]] = []  # the context that keeps Ray, if there is one


@pytest.fixture(autouse=True, scope="module")
def workers_stay(request: pytest.FixtureRequest) -> None:
    """Start Ray once per test process (10 seconds each otherwise).

    A module with WORKERS_STAY = False starts Ray itself; it finds none and leaves none.
    """
    if not getattr(request.module, "WORKERS_STAY", True):
        _stop_ray()
    elif not _keeping:
        _keeping.append(keep_workers())
        _keeping[0].__enter__()


def _stop_ray() -> None:
    while _keeping:
        _keeping.pop().__exit__(None, None, None)


@pytest.fixture
def no_ray() -> None:
    """Stop the shared Ray, because its workers hold all cores and the test starts its own."""
    _stop_ray()


def pytest_sessionfinish() -> None:
    """Stop Ray."""
    _stop_ray()


@pytest.hookimpl(wrapper=True)  # marks and order before xdist reads them, names after it
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    """Mark tests with Ray as slow and run them in one process. Order: modules that start Ray, slow modules, others."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group("ray"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def place(item: pytest.Item) -> tuple[bool, bool]:
        module = item.getparent(pytest.Module)
        return getattr(module and module.obj, "WORKERS_STAY", True), item.path not in slow

    items.sort(key=place)
    result = yield
    if getattr(config.option, "loadgroup", False):
        _name_groups(items)
    return result


def _name_groups(items: list[pytest.Item]) -> None:
    """End the name of each test with its group: `--dist loadgroup` reads it there.

    pytest-xdist 3.8 does this by an attribute that pytest 9.2 does not read (issue 1386 of pytest-xdist).
    """
    for item in items:
        groups = {mark.args[0] for mark in item.iter_markers("xdist_group")}
        suffix = "@" + "_".join(sorted(groups))
        if groups and not item.nodeid.endswith(suffix):
            item._id = type(item.id).parse(item.nodeid + suffix)


# -- time -------------------------------------------------------------------------------------------------------------
class Clock:
    """A clock that advances by one millisecond at each reading, and by the argument of `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Seconds since the clock was made."""
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock without waiting."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace `time.perf_counter` and `time.sleep` by a clock that does not depend on the machine's speed."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock
