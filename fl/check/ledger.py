"""The law of the ledger: every byte of every message is counted."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import accumulate
from typing import Any

from torch import Tensor

from fl.check.bench import Bench, finish, own, with_methods
from fl.check.finding import Broken
from fl.check.runs import LOOP
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.simulation.exchange import EVALUATIONS
from fl.tensors.sparse import Sparse
from fl.tensors.trees import Tree, tree_map


def the_ledger_counts_every_byte(bench: Bench) -> None:
    """Without compression, each row of the ledger is the size of the tensors that a client received or sent.

    Free exchanges of evaluations have no rows. A static group that has patches may cost the last patches together, if
    they are not larger than its value.
    """
    expected: Counter[tuple[Any, ...]] = Counter()
    patches: defaultdict[str, list[int]] = defaultdict(
        list
    )  # static group -> bytes of its patches so far, newest first

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        reply = own(self).work(self, name, ctx, carry)
        if ctx.participation & 0xFFFF >= EVALUATIONS:  # an exchange that costs nothing
            return reply
        for direction, groups in (("down", ctx.received), ("up", reply.update.groups)):
            expected.update((ctx.round, ctx.client, direction, group, _nbytes(tree)) for group, tree in groups.items())
        for group, sizes in patches.items():
            totals = (total for total in accumulate(sizes) if total <= _nbytes(ctx.received[group]))
            expected.update((ctx.round, ctx.client, "down", group, total) for total in totals)
        return reply

    def patched(self: ClientAlgorithm, group: str, value: Tree, patch: Tree) -> Tree:
        patches[group].insert(0, _nbytes(patch))
        return own(self).patched(self, group, value, patch)

    config = bench.config(**LOOP)
    with bench.simulation(
        replace(config, client=with_methods(config.client, work=work, patched=patched))
    ) as simulation:
        rows = [row for row in finish(simulation).ledger if row["tier"] == "client"]
        static = set(simulation.exchanges.downlink.static.versions_seen)  # groups that clients keep: each is sent once
    found = Counter((r["round"], r["client"], r["direction"], r["group"], r["encoded_bytes"]) for r in rows)
    if found - expected:
        raise Broken(f"rows of bytes that nobody sent: {sorted(found - expected)[:5]}")
    missing = [row for row in sorted(expected - found) if row[3] not in static]
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
