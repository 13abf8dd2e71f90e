"""The way down, on a worker: what each client receives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta, add_dense, same_dense_shapes, subtract_dense
from fl.communication.codecs.identity import Identity
from fl.communication.keys import Key, down_key
from fl.communication.transmit import Sizes, transmit
from fl.execution.dispatch import ExchangeDispatch
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.execution.job import Job


class Downloads:
    """The broadcast of one dispatch, decoded and on the device.

    Attributes:
        common: groups that every client receives, by name.
        differences: names of the groups that each client receives as a difference to what it last had.
    """

    def __init__(self, job: Job, dispatch: ExchangeDispatch):
        self.job, self.dispatch, broadcast = job, dispatch, dispatch.broadcast
        visible = {name: tree for name, tree in broadcast.shared.items() if name not in broadcast.hidden}
        static = {name: static.value for name, static in broadcast.static.items()}
        self.common: dict[str, Tree] = job.device.put({**visible, **static})
        delta = find_wrapper(job.down, Delta) if dispatch.kind == "work" else None
        self.differences = [name for name in visible if delta and delta.covers(name)]

    def of(
        self, client: int, last_received: Mapping[str, Tree], state: Tree
    ) -> tuple[dict[str, Tree], Mapping[str, Any], dict[str, Sizes]]:
        """Return what one client receives: (groups, config, sizes of the groups that are encoded for it alone).

        Args:
            client: its id.
            last_received: the groups that it had before, for differences.
            state: its state, on which its own groups may depend.
        """
        broadcast, received, sizes = self.dispatch.broadcast, dict(self.common), {}
        config = broadcast.config(client) if callable(broadcast.config) else broadcast.config
        for name, tree in broadcast.groups_for(client, state).items():
            arrived, sizes[name] = transmit(self.job.down, tree, None, self.own_key(client, name))
            received[name] = self.job.device.put(arrived)
        for name in self.differences:
            tree, old = self.job.device.fetch(received[name]), last_received.get(name)
            if old is not None and same_dense_shapes(tree, old):
                arrived, sizes[name] = transmit(
                    self.job.down, subtract_dense(tree, old), None, self.own_key(client, name)
                )
                received[name] = self.job.device.put(add_dense(arrived, old))
            else:
                sizes[name] = transmit(Identity(), tree)[1]
        return received, config, sizes

    def own_key(self, client: int, group: str) -> Key:
        """Return the address of the codec's draws for a group that one client alone receives."""
        return down_key(self.job.seed, self.dispatch.number, group, client)
