"""Laws of client algorithms."""

from __future__ import annotations

from dataclasses import replace

from fl.check import runs
from fl.check.bench import Bench, fingerprint, own, with_methods
from fl.check.finding import Broken, Law, require_equal
from fl.check.ledger import the_ledger_counts_every_byte
from fl.check.runs import LOOP
from fl.method.client import ClientAlgorithm, ClientContext, Reply
from fl.tensors.trees import Tree


def client_work_is_a_pure_function(bench: Bench) -> None:
    """Work that runs twice on the same message gives the same reply and changes nothing that it was given."""

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        given = [dict(ctx.received), ctx.state, carry]
        before = fingerprint(given)
        first, again = (own(self).work(self, name, ctx, carry) for _ in range(2))
        if fingerprint(given) != before:
            raise Broken("work changed what it received, its old state or its carry; make new ones")
        one, other = ([dict(r.update.groups), dict(r.update.metrics), r.state, r.carry] for r in (first, again))
        require_equal(fingerprint(one), fingerprint(other), "two replies to the same message")
        return first

    config = bench.config(**LOOP)
    bench.run(replace(config, client=with_methods(config.client, work=work)))


LAWS: list[Law] = [*runs.LAWS, client_work_is_a_pure_function, the_ledger_counts_every_byte]
