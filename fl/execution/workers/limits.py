"""How many cores and how much memory this process may use: control groups of containers and batch systems count.

A group limits all groups below it, so the smallest limit on the way to the root holds. Files of the kernel:

    version 2    cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD"    memory.max: bytes, or "max"
    version 1    cpu.cfs_quota_us (-1: none), cpu.cfs_period_us              memory.limit_in_bytes (huge: none)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

WORKER_BYTES = 512 << 20  # memory of a worker process with torch, before it trains
BASE_BYTES = 1 << 30  # memory of the driver and of Ray's own processes
STORE_BYTES, LEAST_STORE_BYTES = 256 << 20, 80 << 20  # Ray's object store: the usual size, about the least allowed
NO_LIMIT = 1 << 60  # bytes

log = logging.getLogger(__name__)


def cores() -> int:
    """Return the number of cores: those that the process may run on, and no more than its quota, rounded down.

    At least 1.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(affinity, cpu_quota())))


def default_workers() -> int:
    """Return the number of worker processes: one per core, and no more than a memory limit has room for.

    Logs a line if memory is what limits it.
    """
    count, memory = cores(), memory_limit()
    room = max(1, int((min(memory, NO_LIMIT) - BASE_BYTES) // WORKER_BYTES))
    if room >= count:
        return count
    log.warning(
        "the memory limit of %d MB has room for %d of %d workers; execution.workers sets their number",
        memory / (1 << 20),
        room,
        count,
    )
    return room


def warn_if_memory_is_small() -> None:
    """Log a line if a memory limit has no room for Ray: the kernel may kill the run, which then says nothing."""
    memory = memory_limit()
    if memory < BASE_BYTES:
        log.warning(
            "the memory limit of %d MB is less than Ray needs, about %d MB; execution.executor=serial needs less",
            memory / (1 << 20),
            BASE_BYTES >> 20,
        )


def object_store_bytes() -> int:
    """Return the size of Ray's object store: at most an eighth of a memory limit."""
    return int(max(LEAST_STORE_BYTES, min(STORE_BYTES, memory_limit() / 8)))


def cpu_quota(system: Path = Path("/")) -> float:
    """Return the limit of processor time, in cores; infinity if there is none.

    Args:
        system: the root folder, for tests.
    """
    found = [float("inf")]
    for group in _groups(system, "cpu"):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
            found.append(int(quota) / int(period))
    return min(found)


def memory_limit(system: Path = Path("/")) -> float:
    """Return the limit of memory, in bytes; infinity if there is none.

    Args:
        system: the root folder, for tests.
    """
    found = [float("inf")]
    for group in _groups(system, "memory"):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if limit.isdecimal() and int(limit) < NO_LIMIT:
            found.append(int(limit))
    return min(found)


def _groups(system: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it, for versions 2 and 1.

    In a container the path may not exist, because the container sees its own group as the root.
    """
    root = system / "sys/fs/cgroup"
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if not names:
            top = root
        elif controller in names.split(","):
            top = root / controller
        else:
            continue
        group = top / path.lstrip("/")
        yield top
        while group != top and top in group.parents:
            yield group
            group = group.parent


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
