"""The law of the ledger: every byte of every message is counted."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from fl.check.bench import Bench, finish, own, with_methods
from fl.check.finding import Broken
from fl.check.runs import LOOP
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.strategy import ServerContext, State, Strategy
from fl.tensors.sparse import Sparse
from fl.tensors.trees import Tree, tree_map


def the_ledger_counts_every_byte(bench: Bench) -> None:
    """Without compression, each row of the ledger is the size of the tensors that a client received or sent.

    Exchanges of `setup` have the round -1. Those of evaluations are free, and an empty tree has no row. A static group
    that has patches may cost the last patches together, if they are not larger than its value.
    """
    expected: Counter[tuple[Any, ...]] = Counter()
    patches: defaultdict[str, list[int]] = defaultdict(list)  # static group -> bytes of its patches, newest first
    stage = [""]  # what the strategy does besides rounds: "setup" or "evaluation"

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        reply = own(self).work(self, name, ctx, carry)
        if stage[0] == "evaluation":  # free exchanges
            return reply
        round_ = -1 if stage[0] == "setup" else ctx.round
        for direction, groups in (("down", ctx.received), ("up", reply.update.groups)):
            expected.update((round_, ctx.client, direction, group, _nbytes(tree)) for group, tree in groups.items())
        for group, sizes in patches.items():
            totals = (total for total in accumulate(sizes) if total <= _nbytes(ctx.received[group]))
            expected.update((round_, ctx.client, "down", group, total) for total in totals)
        return reply

    def patched(self: ClientAlgorithm, group: str, value: Tree, patch: Tree) -> Tree:
        patches[group].insert(0, _nbytes(patch))
        return own(self).patched(self, group, value, patch)

    def during(name: str) -> Callable[..., Generator[Any, Any, Any]]:
        """Return a strategy's generator that notes its name while it runs."""

        def generator(self: Strategy, state: State, ctx: ServerContext) -> Generator[Any, Any, Any]:
            stage[0] = name
            result = yield from getattr(own(self), name)(self, state, ctx)
            stage[0] = ""
            return result

        return generator

    config = bench.config(**LOOP)
    noted = {name: during(name) for name in ("setup", "evaluation")}
    strategy = with_methods(config.strategy, **noted)
    client = with_methods(config.client, work=work, patched=patched)
    with bench.simulation(replace(config, strategy=strategy, client=client)) as simulation:
        rows = [row for row in finish(simulation).ledger if row["tier"] == "client"]
        static = set(simulation.exchanges.downlink.static.versions_seen)  # groups that clients keep: each is sent once
    found = Counter((r["round"], r["client"], r["direction"], r["group"], r["encoded_bytes"]) for r in rows)
    if found - expected:
        raise Broken(f"rows of bytes that nobody sent: {sorted(found - expected)[:5]}")
    missing = [row for row in sorted(expected - found) if row[3] not in static and row[4]]
    if missing:
        raise Broken(f"bytes that were sent and have no row: {missing[:5]}")


def _nbytes(tree: Tree) -> int:
    """Size of a tree's tensors; positions of sparse values take the shorter of an index list and a bitmap."""
    if isinstance(tree, Sparse):
        n, k = tree.size, len(tree.positions)
        return tree.values.nbytes + math.ceil(min(k * math.ceil(math.log2(n)), n) / 8)
    total = 0

    def add(leaf: Tensor) -> None:
        nonlocal total
        total += leaf.nbytes

    tree_map(add, tree)
    return total
