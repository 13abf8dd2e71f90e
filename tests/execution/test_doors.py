"""Nobody else gets into a run: sockets, Ray's token, local sockets, shared files. Real Ray, real processes.

`make newest` runs this file with the newest Ray, `make oldest` with the oldest.
"""

import contextlib
import os
import pickle
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

import fl
from fl.execution.workers.actor import Actor
from fl.execution.workers.byte_stream import ByteStream
from fl.execution.workers.channel import Channel, connected, serve
from fl.execution.workers.folders import MEMORY, PrivateFolder, memory_folder, new_name
from fl.execution.workers.handshake import accept
from fl.execution.workers.limits import cpu_quota, memory_limit
from fl.execution.workers.ray_access import check_doors, outside_listeners
from fl.execution.workers.ray_pool import keep_workers
from tests.execution import test_ray_pool
from tests.process import python
from tests.watching import AfterRound, AtReady

CONFIG = {**test_ray_pool.CONFIG, "rounds": 2}
WORKERS_STAY = False
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
KEY = b"k" * 32
SMALL_MEMORY = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'  # of a container that Docker starts


def listening(pids):
    """Return (name, address, port) of the listening sockets of processes."""
    sockets = ((process.name(), s) for process in map(psutil.Process, pids) for s in process.net_connections("tcp"))
    return [(name, s.laddr.ip, s.laddr.port) for name, s in sockets if s.status == psutil.CONN_LISTEN]


# -- Ray --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a run on Ray looked like at the end of round 0, and its digest. Ray lives until `stop` is called."""
    found = {}

    def look(row):
        if "sockets" not in found:
            import ray

            executor = found.pop("run").executor
            folder = executor.files.folder.path
            found["heads"] = [child.pid for child in psutil.Process(executor.pool.head.pid).children(recursive=True)]
            found["sockets"] = listening([executor.pool.head.pid, *found["heads"]])
            found["workers"] = {member.pid for member in executor.members}
            found["shared"] = folder, stat.S_IMODE(folder.stat().st_mode)
            found["files"] = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
            found["session"] = Path(ray._private.worker._global_node.get_session_dir_path())
            found["address"], found["token"] = ray.get_runtime_context().gcs_address, executor.pool.token

    with contextlib.ExitStack() as ray_lives:
        ray_lives.enter_context(keep_workers())
        found["stop"] = ray_lives.close
        before = set(listening([os.getpid()]))
        found["digest"] = fl.run(
            CONFIG,
            out=tmp_path_factory.mktemp("ray") / "run",
            callbacks=[AtReady(lambda run: found.update(run=run)), AfterRound(look)],
        ).digest
        found["driver"] = set(listening([os.getpid()])) - before
        yield found


@pytest.mark.ray
def test_a_default_run_listens_on_loopback_only(seen, tmp_path):
    sockets = [*seen["sockets"], *seen["driver"]]
    assert {address for _, address, _ in sockets} <= LOOPBACK
    assert any("gcs_server" in name for name, _, _ in sockets) and len(sockets) >= 5
    assert seen["workers"] <= set(seen["heads"])  # so the workers were among the processes
    assert seen["digest"] == fl.run(CONFIG, out=tmp_path / "run", **{"execution.executor": "serial"}).digest


INTRUDER = """
import sys, ray
from fl.execution.workers.ray_access import forget_token, on_loopback, with_token
from contextlib import nullcontext
for token in sys.argv[2:]:
    try:
        with on_loopback(), with_token(token) if token else nullcontext():
            ray.init(sys.argv[1], log_to_driver=False, logging_level=50)
        print("in")
        ray.shutdown()
    except ConnectionError:
        print("refused")
    forget_token()
"""


@pytest.mark.ray
def test_ray_admits_only_who_has_the_token(seen):
    """A process of another user of this machine finds the port, but not the token."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    clean["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # Ray tries for 20 seconds otherwise
    command = [sys.executable, "-W", "ignore", "-c", INTRUDER, seen["address"], "", "0" * 64, seen["token"]]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.stdout.split() == ["refused", "refused", "in"], done.stderr[-2000:]
    assert done.stderr.count("InvalidAuthToken") >= 2


@pytest.mark.ray
def test_folders_are_private(seen):
    folder, mode = seen["shared"]
    assert mode == 0o700 and seen["files"] - {0o755} == {0o600}  # 0755: the sockets, which lie in the folder, too
    assert re.fullmatch("fl-[0-9a-f]{16}", folder.name) and folder.parent == memory_folder()
    session = seen["session"].parent.parent  # Ray opens its own folder inside to all
    assert stat.S_IMODE(session.stat().st_mode) == 0o700 and re.fullmatch("fl-[0-9a-f]{16}", session.name)
    assert not folder.exists()  # the run has ended; Ray has not


@pytest.mark.ray
def test_the_error_that_ends_a_workers_serve_is_known(seen):
    """No driver listens."""
    import ray

    serving = ray.remote(num_cpus=0)(Actor).remote().serve.remote("/missing/socket", KEY)
    ray.wait([serving])
    assert Channel(serving, None).trouble() == "FileNotFoundError: [Errno 2] No such file or directory"


@pytest.mark.ray
def test_the_end_of_ray_leaves_no_file(seen):
    assert seen["session"].exists()
    seen["stop"]()
    deadline = time.monotonic() + 300
    while seen["session"].parent.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not seen["session"].parent.parent.exists()


def test_ray_without_a_folder_says_so():
    done = python(
        "from fl.execution.workers.ray_pool import RayPool; RayPool(1, None).acquire(1)", RAY_TMPDIR="/missing"
    )
    line = done.stderr.splitlines()[-1]
    assert re.search("Ray did not start: FileNotFoundError: .*/missing/fl-.*execution.executor=serial", line)


def test_a_socket_for_other_machines_is_found_and_stops_ray_without_token():
    code = "import socket; s = socket.create_server(('0.0.0.0', 0)); print(s.getsockname()[1], flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        port = int(process.stdout.readline())
        (found,) = outside_listeners([process.pid, 2**22 + 1])  # the second one does not exist
        process.stdin.write("\n")
    assert found.endswith(f"on 0.0.0.0 port {port}")
    with pytest.raises(RuntimeError, match=rf"{port}\) and asks for no token; .*serial"):
        check_doors(False, [found])
    check_doors(True, [found])
    check_doors(False, [])


# -- local sockets ----------------------------------------------------------------------------------------------------
class Bomb:
    """A pickle that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Worker:
    """A worker that doubles numbers."""

    def double(self, number):
        return 2 * number


def connect(path):
    caller = socket.socket(socket.AF_UNIX)
    caller.connect(str(path))
    return Connection(caller.detach())


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(2)
        listener.settimeout(60)
        yield listener


def obey(address):
    """Answer a driver as a worker does."""
    with contextlib.closing(connected(address, KEY)) as stream:
        serve(Worker(), stream)


def test_a_driver_unpickles_nothing_of_a_stranger(listener, tmp_path):
    bomb = tmp_path / "exploded"
    with connect(tmp_path / "socket") as stranger:
        stranger.send_bytes(pickle.dumps((True, Bomb(bomb))))
        assert accept(listener, KEY) is None
    honest = threading.Thread(target=obey, args=(str(tmp_path / "socket"),))
    honest.start()
    with contextlib.closing(Channel(None, ByteStream(accept(listener, KEY)))) as channel:  # the next one is the worker
        assert channel.ask("double", 21) == 42
    honest.join()
    assert not bomb.exists()


def test_a_worker_obeys_no_stranger(listener, tmp_path):
    bomb, errors = tmp_path / "exploded", []

    def work():
        try:
            obey(str(tmp_path / "socket"))
        except (AuthenticationError, AssertionError) as error:  # Python 3.11 asserts
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    accepted, _ = listener.accept()
    with Connection(accepted.detach()) as stranger:
        stranger.send_bytes(pickle.dumps(("double", (Bomb(bomb),))))
        worker.join()
    assert len(errors) == 1 and not bomb.exists()


# -- shared files -----------------------------------------------------------------------------------------------------
HOLD = """
import sys
from pathlib import Path
from fl.execution.workers.folders import PrivateFolder
folder = PrivateFolder(Path(sys.argv[1]), sys.argv[2])
(folder.path / "value").write_text("alive")
print("ready", flush=True)
input()
"""


def container(*command, **options):
    """Start a process in a container of its own, which shares the file system; skip if the machine forbids it."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*isolated, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no containers on this machine")
    return subprocess.Popen([*isolated, *map(str, command)], text=True, **options)


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}


def test_a_live_container_keeps_its_files_and_a_dead_one_leaves_none(tmp_path):
    """The process has id 1 in its container, so that process ids say nothing about it."""
    (tmp_path / "fl-regression-1").mkdir()  # of somebody else
    name, second = new_name(), new_name()
    with container(sys.executable, "-c", HOLD, tmp_path, name, **PIPES) as process:
        assert process.stdout.readline() == "ready\n"
        PrivateFolder(tmp_path, second).remove()
        assert (tmp_path / name / "value").read_text() == "alive"
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while (tmp_path / name).exists() and time.monotonic() < deadline:  # the process ends after its parent
        PrivateFolder(tmp_path, second).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["fl-regression-1"]


def test_a_folder_prepared_by_a_stranger_is_not_used(tmp_path):
    name, trap = new_name(), tmp_path / "trap"
    trap.mkdir()
    (tmp_path / name).symlink_to(trap)
    with pytest.raises(OSError):
        PrivateFolder(tmp_path, name)
    open_to_all = new_name()
    (tmp_path / open_to_all).mkdir()
    (tmp_path / open_to_all).chmod(0o777)
    with pytest.raises(PermissionError, match="not a private folder"):
        PrivateFolder(tmp_path, open_to_all)
    assert trap.exists() and (tmp_path / open_to_all).exists()


WRITE = """
import logging
import numpy as np
from fl.execution.workers.folders import new_name
from fl.execution.workers.shared import Region, SharedFiles
logging.basicConfig(format="%(message)s")
files = SharedFiles(new_name())
one, other = Region(files), Region(files)
values = [np.arange(n, dtype=np.float64) for n in (5_000_000, 6_000_000, 2_000)]  # 40 MB, 48 MB, 16 kB
handles = [one.write(values[0]), other.write(values[1]), Region(files).write(values[2])]
print([handle.path.startswith("/dev/shm") for handle in handles])
print([bool((handle.open() == value).all()) for handle, value in zip(handles, values)])
large = np.arange(8_000_000, dtype=np.float64)
handle = one.write(large)  # grows to 64 MB, and moves
print(handle.path.startswith("/dev/shm"), bool((handle.open() == large).all()))
files.remove()
print(files.folder.path.exists(), files.disk.path.exists())
"""


def test_values_without_room_in_memory_lie_on_disk():
    command = ["sh", "-c", SMALL_MEMORY, "sh", sys.executable, "-c", WRITE]
    with container(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert out.splitlines() == ["[True, False, True]", "[True, True, True]", "False True", "False False"], err
    assert err.count("\n") == 1 and err.startswith("/dev/shm has ") and "--shm-size" in err


@pytest.mark.ray
def test_a_run_in_a_container_of_docker(tmp_path):
    """A /dev/shm of 64 MB; the training data take 80 MB. Ray's files lie in a short path, which stays empty."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.random((20_000, 1_000), np.float32), y=rng.integers(0, 3, 20_000))
    changes = {"data": str(tmp_path / "data.npz"), "model": "softmax", "rounds": 1}
    config = {**CONFIG, **changes, "partition": {"name": "iid", "clients": 20}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "run"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x") as short:
        command = [sys.executable, "-m", "fl", "run", tmp_path / "config.yaml", "--out", out]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": os.environ | {"TMPDIR": short}}
        with container("sh", "-c", SMALL_MEMORY, "sh", *command, **pipes) as process:
            told, errors = process.communicate()
        assert process.returncode == 0, errors
        assert not list(Path(short).iterdir())
    assert (told + errors).count("--shm-size") == 1
    again = fl.run(config, out=tmp_path / "serial", **{"execution.executor": "serial"})
    assert fl.resume(out).digest == again.digest  # it has ended: nothing is computed


# -- limits of containers ---------------------------------------------------------------------------------------------
GB = 1 << 30
FULL = "4:memory:/jobs/7\n3:cpu,cpuacct:/jobs/7\n1:name=systemd:/x\n"
GROUPS = {
    "none": ({}, float("inf"), float("inf")),
    "version 2, Docker": ({"": "0::/\n", "cpu.max": "150000 100000", "memory.max": str(2 * GB)}, 1.5, 2 * GB),
    "version 2, no limit": ({"": "0::/\n", "cpu.max": "max 100000", "memory.max": "max"}, float("inf"), float("inf")),
    "version 2, the smallest on the way": (
        {"": "0::/a/b\n", "a/cpu.max": "400000 200000", "a/b/cpu.max": "max 100000", "a/b/memory.max": str(GB)},
        2.0,
        GB,
    ),
    "version 1": (
        {
            "": FULL,
            "cpu/jobs/7/cpu.cfs_quota_us": "300000",
            "cpu/jobs/7/cpu.cfs_period_us": "100000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/jobs/7/memory.limit_in_bytes": str(3 * GB),
            "memory/memory.limit_in_bytes": "9223372036854771712",
        },
        3.0,
        3 * GB,
    ),
    "version 1, in a container": (
        {
            "": FULL,
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
            "memory/memory.limit_in_bytes": str(GB),
        },
        0.5,
        GB,
    ),
}


@pytest.mark.parametrize("group", GROUPS)
def test_limits_of_control_groups(group, tmp_path):
    """Files and values as the kernel documents them (cgroup-v2.rst; cgroup-v1/memory.rst; sched-bwc.rst)."""
    files, cpu, memory = GROUPS[group]
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name if name else tmp_path / "proc/self/cgroup"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert (cpu_quota(tmp_path), memory_limit(tmp_path)) == (cpu, memory)


def test_default_workers_follow_the_limits(monkeypatch, caplog):
    from fl.execution.workers import limits

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for quota, memory, workers, store in (
        (float("inf"), float("inf"), 16, 256 << 20),
        (2.5, float("inf"), 2, 256 << 20),
        (0.5, float("inf"), 1, 256 << 20),
        (8.0, 3 * GB, 4, 256 << 20),  # (3 GB - 1 GB) / 512 MB
        (8.0, GB, 1, 128 << 20),
    ):
        monkeypatch.setattr(limits, "cpu_quota", lambda value=quota: value)
        monkeypatch.setattr(limits, "memory_limit", lambda value=memory: value)
        assert (limits.default_workers(), limits.object_store_bytes()) == (workers, store)
    assert caplog.messages[0].startswith("the memory limit of 3072 MB has room for 4 of 8 workers")
    caplog.clear()
    limits.warn_if_memory_is_small()
    monkeypatch.setattr(limits, "memory_limit", lambda: GB / 2)
    limits.warn_if_memory_is_small()
    (line,) = caplog.messages
    assert line.startswith("the memory limit of 512 MB is less than Ray needs") and "serial" in line


def test_the_memory_file_system_is_used():
    assert memory_folder() == (MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir()))
