"""The process that starts Ray on this machine: `python -m fl.execution.workers.ray_head WORKERS GPU`.

It creates the actors too, each with the share GPU of a GPU. It answers one line of JSON, {"address": ...} or
{"error": ...}, and shuts Ray down when its standard input is closed. A thread of the driver could not do this: a fork
hangs when another thread is in the middle of a matrix product.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import sys
import warnings

from fl.execution.workers.actor import create_actors

NAMESPACE = NAME = "fl"
OBJECT_STORE = 256 << 20  # bytes; on one node Ray's object store carries next to nothing


def main() -> None:
    """Start Ray, answer, and wait; Ray ends with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides when to stop
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries is no answer
    import ray

    warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
    workers, gpu = int(sys.argv[1]), float(sys.argv[2])
    try:
        # "local": never some other cluster that happens to run on this machine
        ray.init(
            "local",
            num_cpus=workers,
            object_store_memory=OBJECT_STORE,
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        if select.select([sys.stdin], [], [], 0)[0]:  # closed already: no driver is waiting
            return
        actors = create_actors(workers, gpu, NAME)
        imports = [actor.where.remote() for actor in actors]
        answer = {"address": ray.get_runtime_context().gcs_address}
    except Exception as error:
        imports, answer = [], {"error": f"{type(error).__name__}: {error}"}
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(answer), file=out, flush=True)
        sys.stdin.read()
    del imports


if __name__ == "__main__":
    main()
