"""Ray on this machine, started by a process of its own: `python -m fl.execution.workers.ray_head WORKERS GPU`, which hires them too,
each with that much of a GPU.

It answers one line of JSON, {"address": ...} or {"error": ...}, and goes down with Ray when its standard input is closed. Threads of
the driver could not do that: what a fork does to a thread that is in the middle of a matrix product is to hang it.
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
    """Ray goes down as the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the driver's to say when it is over
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    import ray

    warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
    workers, gpu = int(sys.argv[1]), float(sys.argv[2])
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        # "local": never some other cluster that happens to run on this machine
        ray.init("local", num_cpus=workers, object_store_memory=OBJECT_STORE, namespace=NAMESPACE, **options)
        if select.select([sys.stdin], [], [], 0)[0]:  # closed already: nobody waits
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
