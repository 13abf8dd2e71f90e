"""Which SuperNode is which client: new nodes are asked for their partition-id, and lost ones are forgotten."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flwr.serverapp import Grid

from fl.errors import ConfigError
from fl.flower.hello import ask_hello, partition_id


class SuperNodes:
    """The SuperNodes of a deployment.

    Args:
        grid: Flower's connection to the SuperNodes.
        digest: Digest of the configuration. A client with another one is refused.
        wait: Seconds to wait for missing SuperNodes.
        timeout: Seconds to wait for replies; None waits without limit.

    Attributes:
        of: client -> node.
    """

    def __init__(self, grid: Grid, digest: str, wait: float, timeout: float | None) -> None:
        self.grid, self.digest, self.wait, self.timeout = grid, digest, wait, timeout
        self.of: dict[int, int] = {}
        self._known: set[int] = set()  # nodes that have told their client

    def find(self, clients: Iterable[int], drops: bool = False) -> None:
        """Wait until every one of these clients has a SuperNode.

        Args:
            clients: the clients.
            drops: do not wait for clients without a SuperNode while any client has one.
        """
        end = time.monotonic() + self.wait
        patience = self.wait if self.timeout is None or not drops else min(self.wait, self.timeout)
        missing = [client for client in clients if client not in self.of]
        while missing:
            online = list(self.grid.get_node_ids())
            new = [node for node in online if node not in self._known]
            for node, facts in ask_hello(self.grid, new, patience):
                self._add(node, facts, online)
            missing = [client for client in missing if client not in self.of]
            if not missing or (drops and self.of):
                return
            if time.monotonic() > end:
                raise TimeoutError(
                    f"no SuperNode for {len(missing)} clients, the first {missing[:5]}; "
                    f"start them with --node-config partition-id={missing[0]}"
                )
            if not new:
                time.sleep(0.5)

    def _add(self, node: int, facts: Mapping[str, Any], online: Collection[int]) -> None:
        """Take a SuperNode that has answered hello. `online`: all nodes that are connected."""
        self._known.add(node)
        client = partition_id(facts)
        if facts["config"] != self.digest:
            raise ConfigError(
                "",
                f"client {client} runs another configuration than the server: digest {str(facts['config'])[:12]}, the "
                f"server's is {self.digest[:12]}. Install the same app on both; `fl run` prints the digest, too",
            )
        if self.of.get(client, node) in set(online) - {node}:
            raise ConfigError(
                "", f"two SuperNodes have partition-id={client} ({self.of[client]}, {node}); give each its own"
            )
        self.of[client] = node

    def forget(self, node: int) -> int | None:
        """Forget a node that did not answer, so that it is asked again; returns its client."""
        self._known.discard(node)
        client = next((client for client, home in self.of.items() if home == node), None)
        if client is not None:
            del self.of[client]
        return client
