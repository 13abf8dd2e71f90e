"""Which node is which client, on any Grid (ours or Flower's).

Flower draws node ids at random. Users number clients by `partition-id`, and only the node itself knows its own.

    answer_hello(app, **facts)          the ClientApp answers `query.hello` with its partition-id and the facts
    nodes_by_partition(grid, timeout)   {partition-id: node id}; it asks every node
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

HELLO = "hello"
# errors that the SuperLink reports in place of a node that has gone
LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)


def answer_hello(app: ClientApp, **facts: Any) -> ClientApp:
    """Make an app answer hello messages.

    Args:
        app: The app; it is changed and returned.
        facts: What the answer holds besides the partition-id. A callable is called with the node's Context.
    """

    @app.query(HELLO)
    def hello(message: Message, context: Context) -> Message:
        answer = {name: value(context) if callable(value) else value for name, value in facts.items()}
        answer["partition-id"] = partition_id(context.node_config)
        return Message(RecordDict({HELLO: ConfigRecord(answer)}), reply_to=message)

    return app


def partition_id(facts: Mapping[str, Any]) -> int:
    """Return the partition-id in a node config or in an answer; a ValueError if there is none."""
    if "partition-id" not in facts:
        raise ValueError("the node has no partition-id; start its SuperNode with --node-config partition-id=NUMBER")
    return int(facts["partition-id"])


def ask_hello(
    grid: Grid, nodes: Iterable[int], timeout: float | None = None
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Ask nodes; yields (node, answer) for those that answered within `timeout` seconds and are still connected."""
    hellos = [Message(RecordDict(), dst_node_id=node, message_type=f"query.{HELLO}") for node in nodes]
    for reply in grid.send_and_receive(hellos, timeout=timeout) if hellos else ():
        if reply.has_error() and reply.error.code in LOST:
            continue
        if reply.has_error():
            raise RuntimeError(f"node {reply.metadata.src_node_id} does not answer: {reply.error.reason}")
        yield reply.metadata.src_node_id, reply.content[HELLO]


def nodes_by_partition(grid: Grid, timeout: float | None = 60.0) -> dict[int, int]:
    """Return {partition-id: node id} in the order of partitions; a TimeoutError if a node does not answer in time."""
    nodes = list(grid.get_node_ids())
    found: dict[int, int] = {}
    for node, answer in ask_hello(grid, nodes, timeout):
        partition = partition_id(answer)
        other = found.setdefault(partition, node)
        if other != node:
            raise ValueError(f"nodes {other} and {node} are both partition {partition}; give each its own")
    if silent := sorted(set(nodes) - set(found.values())):
        raise TimeoutError(f"{len(silent)} of {len(nodes)} nodes did not answer in {timeout} s, the first {silent[:5]}")
    return dict(sorted(found.items()))
