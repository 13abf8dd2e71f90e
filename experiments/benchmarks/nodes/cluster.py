"""A Ray cluster of several nodes on this machine. Each node has folders of its own, and a guard keeps it there.

The guard is an audit hook of Python on `open`: it raises for a path in the folders of another node or of the driver, in
their shared memory, and it writes the path to a file. A run on such nodes shows that it needs no shared file system.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GUARD = """
import os, re, sys

ROOT, OWN, SEEN = os.environ["FL_ROOT"], os.environ["FL_OWN"], set()
SHARED = re.compile(r"/dev/shm/fl-[0-9a-f]{16}(-[0-9a-f]{8})?/")
FILE = os.open(os.path.join(OWN, "violations"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

def guard(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes, os.PathLike)):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    shared = SHARED.match(path)
    if shared:
        SEEN.add(shared[1])  # ends in the node's name; the driver's folder has no such end
    foreign = path.startswith(ROOT + "/") and not path.startswith((OWN + "/", os.path.join(ROOT, "guard")))
    if foreign or (shared and (None in SEEN or len(SEEN) > 1)):
        os.write(FILE, (path + "\\n").encode())
        raise PermissionError(13, "a file of another node", path)

sys.addaudithook(guard)
"""
STORE_BYTES = 256 << 20


@dataclass
class Nodes:
    """A running cluster.

    Attributes:
        address: for `execution.address`.
        root: folder of all its folders; runs belong into `runs`.
        cluster: Ray's own object.
        added: nodes beside the driver's.
    """

    address: str
    root: Path
    cluster: Any
    added: list[Any] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        """Folder for run directories, which only the driver may open."""
        return self.root / "runs"

    def add(self, cores: int = 1) -> None:
        """Add a node with folders of its own, and wait for it."""
        own = self.root / f"node-{len(self.added) + 1}"
        for name in ("tmp", "ray"):
            (own / name).mkdir(parents=True, exist_ok=True)
        paths = [str(self.root / "guard"), os.environ.get("PYTHONPATH", "")]
        guarded = {
            "TMPDIR": str(own / "tmp"),
            "FL_ROOT": str(self.root),
            "FL_OWN": str(own),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        self.added.append(
            self.cluster.add_node(
                num_cpus=cores, object_store_memory=STORE_BYTES, temp_dir=str(own / "ray"), env_vars=guarded
            )
        )

    def lose(self, index: int) -> None:
        """Kill all processes of an added node."""
        self.cluster.remove_node(self.added[index], allow_graceful=False)

    def guarded(self) -> int:
        """Return the number of nodes on which the guard has run."""
        return len(list(self.root.glob("node-*/violations")))

    def violations(self) -> list[str]:
        """Return the paths of other nodes that processes of guarded nodes tried to open."""
        files = self.root.glob("node-*/violations")
        return [line for file in files for line in file.read_text().splitlines()]


@contextlib.contextmanager
def started(nodes: int, cores: int = 1, head_cores: int | None = None) -> Iterator[Nodes]:
    """Start a cluster and connect this process to it; the first node is the driver's.

    Args:
        nodes: number of nodes.
        cores: of each node, as Ray counts them.
        head_cores: of the driver's node, if it has others.
    """
    import ray
    from ray.cluster_utils import Cluster

    Path("/tmp/ray").mkdir(exist_ok=True)  # Cluster wants it, whatever the folders of its nodes
    root = Path(tempfile.mkdtemp(prefix="n", dir="/tmp"))  # a short path: the names of Ray's sockets are long
    (root / "guard").mkdir()
    (root / "runs").mkdir()
    (root / "guard" / "sitecustomize.py").write_text(GUARD)
    head: dict[str, Any] = {"num_cpus": cores if head_cores is None else head_cores}
    head |= {"object_store_memory": STORE_BYTES, "temp_dir": str(root / "head")}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        found = Nodes(cluster.address, root, cluster)
        for _ in range(nodes - 1):
            found.add(cores)
        cluster.wait_for_nodes()
        ray.init(cluster.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        yield found
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(root, ignore_errors=True)
