"""Laws of client algorithms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import register_multi_grad_hook

from fl.check import runs
from fl.check.bench import TRAINING, Bench, fingerprint, own, with_methods
from fl.check.finding import Broken, Law, require_equal
from fl.check.ledger import the_ledger_counts_every_byte
from fl.check.runs import LOOP, WITH_DROPOUT
from fl.data.views import View
from fl.method.client import ClientAlgorithm
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.simulation.workload import workload_of
from fl.tensors.trees import Tree, leaves

BATCH = int(TRAINING["batch"])


def client_work_is_a_pure_function(bench: Bench) -> None:
    """Work that runs twice on the same message gives the same reply and changes nothing that it was given."""

    def work(self: ClientAlgorithm, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        given = [dict(ctx.received), ctx.state, carry, dict(ctx.train.arrays), ctx.initial.trained, dict(ctx.config)]
        before = fingerprint(given)
        first, again = (own(self).work(self, name, ctx, carry) for _ in range(2))
        if fingerprint(given) != before:
            raise Broken(
                "work changed what it received, its old state, its carry, the first model or the data: copy it"
            )
        one, other = ([dict(r.update.groups), dict(r.update.metrics), r.state, r.carry] for r in (first, again))
        require_equal(fingerprint(one), fingerprint(other), "two replies to the same message")
        return first

    config = bench.config(**LOOP)
    bench.run(replace(config, client=with_methods(config.client, work=work)))


def the_work_done_is_the_work_booked(bench: Bench) -> str | None:
    """Virtual time counts each sample whose gradient a method takes, also where a deadline cuts training short.

    The model has Dropout, unless the method needs a model of its own. A method that computes gradients by function
    transforms cannot be counted and is only run.
    """
    checked: set[tuple[str, int]] = set()

    def work(self: LocalTraining, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if max(len(ctx.train), len(ctx.unlabelled)) >= BATCH and len(checked) < 4:
            checked.add((name, ctx.client))
            _require_booked(self, name, ctx, carry)
        return own(self).work(self, name, ctx, carry)

    config = bench.config(**WITH_DROPOUT)
    if not isinstance(config.client, LocalTraining):
        bench.run(config)
        return "it takes no gradient steps"
    run = bench.run(replace(config, client=with_methods(config.client, work=work)))
    if not checked or not all(torch.isfinite(b).all() for b in run.model.buffers):
        raise Broken("no client trained, or the model is not finite")
    return None


def _require_booked(client: LocalTraining, name: str, ctx: ClientContext, carry: Tree) -> None:
    """Train fully and for half of the steps; compare the samples booked with those whose gradient was taken."""
    even = replace(ctx, train=_whole_batches(ctx.train), unlabelled=_whole_batches(ctx.unlabelled))
    n, unlabelled = len(even.train), len(even.unlabelled)
    about = np.array([n]), ctx.round, ctx.rounds, name
    steps, samples = (int(found[0]) for found in workload_of(client, about[0], np.array([unlabelled]), *about[1:]))
    (extra,) = client.extra_samples(*about)
    for limit in (None, max(1, int(steps) // 2)):
        with _gradients_counted(ctx.module) as taken:
            own(client).work(client, name, replace(even, limit=limit), carry)
        booked = samples if limit is None or not steps else extra + (samples - extra) * limit // steps
        if None not in taken:
            how = f"{name} on {n + unlabelled} samples, {'all' if limit is None else limit} of {steps} steps"
            counted = sum(count for count in taken if count is not None)
            require_equal(int(booked), counted, f"{how}: samples booked and samples whose gradient was taken")


def _whole_batches(view: View) -> View:
    """Return the first rows of a view that make batches of one size, so that each step takes as long."""
    return View(view.arrays, view.rows[: len(view) // BATCH * BATCH])


@contextmanager
def _gradients_counted(module: torch.nn.Module) -> Iterator[list[int | None]]:
    """The number of samples of each backward pass through the outputs of `module`; `None` where it is unknown."""
    taken: list[int | None] = []

    def forward(_: torch.nn.Module, __: Any, outputs: Any) -> None:
        tensors = leaves(outputs)  # a method's module may return a tuple or a dict
        if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors)):
            taken.append(None)
        elif differentiable := [tensor for tensor in tensors if tensor.requires_grad]:
            count = len(differentiable[0])
            register_multi_grad_hook(differentiable, lambda _: taken.append(count), mode="any")

    handle = module.register_forward_hook(forward)
    try:
        yield taken
    finally:
        handle.remove()


LAWS: list[Law] = [
    *runs.LAWS,
    client_work_is_a_pure_function,
    the_work_done_is_the_work_booked,
    the_ledger_counts_every_byte,
]
