"""The process that starts Ray on this machine: `python -m fl.execution.workers.ray_head WORKERS GPU TOTAL`.

It creates the actors too, each with the share GPU of a GPU. TOTAL is the number of GPUs; "" lets Ray count them. It
answers two lines of JSON, and shuts Ray down when its standard input is closed:

    {"address": ...} or {"error": ..., "logs": ...}    as soon as Ray runs
    {"token": ..., "outside": [...]}                   once the actors' processes run: whether Ray asks for a token,
                                                       and the sockets on which other machines can connect

A thread of the driver could not do this: a fork hangs when another thread is in the middle of a matrix product.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any

from fl.execution.workers.actor import create_actors
from fl.execution.workers.folders import PrivateFolder, new_name
from fl.execution.workers.limits import object_store_bytes
from fl.execution.workers.ray_access import LOOPBACK, asks_for_token, on_loopback, outside_listeners, process_tree

NAMESPACE = NAME = "fl"
LONGEST_PARENT = 20  # characters; paths of Ray's sockets are 87 longer, and the system allows 107


def main() -> None:
    """Start Ray, answer, and wait; Ray ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is no answer
    session = None
    try:
        session = PrivateFolder(_parent(), new_name())
        gpus = int(sys.argv[3]) if sys.argv[3] else None
        _start(int(sys.argv[1]), gpus, session.path / "r")  # Ray makes its folder accessible to all users
        closed = select.select([sys.stdin], [], [], 0)[0]  # no driver is waiting
        actors = [] if closed else create_actors(int(sys.argv[1]), float(sys.argv[2]), NAME)
    except Exception as error:  # the folder stays, for a look at the logs
        _answer(out, {"error": f"{type(error).__name__}: {error}", "logs": str(session.path) if session else None})
        return
    if not closed:
        with contextlib.suppress(BrokenPipeError):
            _serve(out, actors)
    import ray

    ray.shutdown()
    session.remove()


def _start(workers: int, gpus: int | None, folder: Path) -> None:
    """Start Ray on the loopback address; its files lie in the folder."""
    import ray

    warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
    with on_loopback():
        ray.init(
            "local",  # never some other cluster that happens to run on this machine
            num_cpus=workers,
            num_gpus=gpus,
            object_store_memory=object_store_bytes(),
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
            # on one node the object store carries next to nothing; it must not take room in a small /dev/shm
            _plasma_directory=str(folder.parent),
            # the actors start their processes; if one that Ray starts beforehand dies, `ray.init` waits without end
            _system_config={"prestart_worker_first_driver": False},
        )


def _serve(out: IO[str], actors: list[Any]) -> None:
    """Answer, and wait for the driver's end."""
    import ray

    running = [actor.clock.remote() for actor in actors]
    imports = [actor.where.remote() for actor in actors]
    _answer(out, {"address": ray.get_runtime_context().gcs_address})
    ray.wait(running, num_returns=len(running))
    _answer(out, {"token": asks_for_token(), "outside": outside_listeners(process_tree())})
    sys.stdin.read()
    del imports


def _answer(out: IO[str], answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=out, flush=True)


def _parent() -> Path:
    """Return the folder of Ray's files: RAY_TMPDIR, or else that of temporary files if its path is short enough."""
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return parent if len(str(parent)) <= LONGEST_PARENT else Path("/tmp")


if __name__ == "__main__":
    main()
