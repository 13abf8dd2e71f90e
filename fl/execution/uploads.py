"""The way up, on a worker: from an update to a node of the reduction tree.

client's side:  update -> transforms -> difference, error feedback -> codec ~~bytes~~>
server's side:  ~~> decoded -> difference, transforms undone -> lift -> fold
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.communication.chain import find_wrapper
from fl.communication.codecs.delta import Delta, add_dense, same_dense_shapes, subtract_dense
from fl.communication.codecs.error_feedback import ErrorFeedback, Residuals, compression_error, stack_residuals
from fl.communication.codecs.identity import Identity
from fl.communication.keys import Key, up_key
from fl.communication.transmit import Sizes, transmit
from fl.execution.client_state import residuals_of
from fl.execution.exchange_worker import ExchangeWorker
from fl.execution.finite import is_finite, non_finite, non_finite_name, overflow
from fl.execution.stages import during
from fl.execution.update_checks import TensorsDiffer, check_numbers
from fl.method.messages import Update
from fl.method.reduction import Meta, Product, Reduction, Sum, WeightedMean
from fl.method.transform import TransformContext
from fl.tensors.trees import Tree, row
from fl.tracking.spans import span

Keep = Callable[[dict[str, Residuals]], None]


class Uploads:
    """The uploads of one dispatch on one worker."""

    def __init__(self, exchange: ExchangeWorker):
        # the exchange owns its uploads: a strong reference back would keep it, with 2 KB per client, until Python looks
        # for cycles, which it seldom does in a worker
        self.exchange: ExchangeWorker = weakref.proxy(exchange)
        self.job, self.dispatch = exchange.job, exchange.dispatch
        self.device = self.job.device
        self.feedback, self.delta = find_wrapper(self.job.up, ErrorFeedback), find_wrapper(self.job.up, Delta)
        reduction = self.dispatch.reduction
        # without a codec, transforms or a rule that needs the CPU, updates are added up on the device
        plain = isinstance(self.job.up, Identity) and not self.job.transforms
        self.on_device = plain and reduction.linear and not reduction.integer
        parts = reduction.parts if isinstance(reduction, Product) else {}
        only = self.on_device and all(map(_only_adds, parts.values()))
        self.sums: Mapping[str, Reduction] = parts if only else {}  # of updates that are only added up
        self.before_codec: Mapping[str, Tree] = {}  # the last update before the codec, to tell who made it infinite

    def upload(
        self,
        positions: np.ndarray,
        update: Update,
        received: Mapping[str, Tree],
        records: Sequence[Tree],
        stacked: bool,
        careful: bool,
        keep: Keep,
    ) -> bool:
        """Send the update of one client, or of several stacked, through codec and reduction.

        Args:
            positions: cohort positions, (n,), consecutive.
            update: the update, with a leading axis n if `stacked`.
            received: the groups that the clients received.
            records: what was kept of each client before.
            stacked: whether several clients' updates lie in `update`.
            careful: look for NaN and infinity client by client. Otherwise only in the sum; if it has any, nothing is
                reduced and the answer is False: train again and be careful.
            keep: writes what is kept of the clients, given what their codecs lost. It runs before the reduction, so
                that the sum stays as it was if it fails.
        """
        decoded, sizes, residuals = {}, {}, {}
        check_numbers(update, self.dispatch.cohort[positions])
        with span("encode", "update"), during("encode"):
            if not self.on_device:
                update, received = self.device.fetch(update), self.device.fetch(received)
            for name, tree in self.client_side(positions, update, stacked).items():
                sent = self.outgoing(name, tree, received, records, stacked)
                count = len(positions) if stacked else None
                arrived, sizes[name] = transmit(self.job.up, sent, count, self.key(positions, name))
                if self.feedback:
                    residuals[self.residual_name(name)] = compression_error(sent, arrived)
                decoded[name] = self.incoming(name, arrived, received, stacked)
            sizes = dict(self.dispatch.reduction.sizes(decoded, sizes, stacked))
        with span("data", "state"), during("state"):
            keep(residuals)
        with span("reduce", "update"):
            self.before_codec = update.groups
            arrived_update = Update(decoded, update.num_examples, update.metrics, update.owned)
            done = self.server_side(positions, arrived_update, sizes, stacked, careful)
            self.before_codec = {}
            return done

    # -- the client's side ----------------------------------------------------------------------------------------
    def client_side(self, positions: np.ndarray, update: Update, stacked: bool) -> Mapping[str, Tree]:
        """Return the groups as the clients hand them to the codec."""
        groups, ctx = update.groups, self._transform_context(positions, update, stacked)
        for transform in self.job.transforms:
            with during(type(transform).__name__):
                groups = transform.client(groups, ctx)
        return groups

    def outgoing(
        self, name: str, tree: Tree, received: Mapping[str, Tree], records: Sequence[Tree], stacked: bool
    ) -> Tree:
        """Return a group as it goes into the codec: as a difference, plus what was lost before."""
        reference = self._reference(name, tree, received, stacked)
        tree = tree if reference is None else subtract_dense(tree, reference)
        if self.feedback is None:
            return tree
        residuals = [residuals_of(record, self.residual_name(name)) for record in records]
        return self.feedback.add_residuals(tree, stack_residuals(residuals, tree) if stacked else residuals[0])

    def residual_name(self, group: str) -> str:
        """Return the name under which residuals of a group are kept."""
        return f"{self.dispatch.work}/{group}"

    def key(self, positions: np.ndarray, group: str) -> Key:
        """Return the addresses of the codec's draws; 0 for a codec without any."""
        if not self.job.up.draws:
            return 0
        return up_key(self.job.seed, self.dispatch.cohort[positions], self.dispatch.number, group)

    def _reference(self, name: str, tree: Tree, received: Mapping[str, Tree], stacked: bool) -> Tree:
        """Return the received group that this one is sent as a difference to, or `None`."""
        reference = received.get(self.job.algorithm.delta_reference.get(name, name))
        if self.delta is None or name == "model" or reference is None or not self.delta.covers(name):
            return None
        return reference if same_dense_shapes(tree, reference, stacked) else None

    # -- the server's side ----------------------------------------------------------------------------------------
    def incoming(self, name: str, decoded: Tree, received: Mapping[str, Tree], stacked: bool) -> Tree:
        """Return the group that a decoded one stands for."""
        reference = self._reference(name, decoded, received, stacked)
        return decoded if reference is None else add_dense(decoded, reference)

    def server_side(
        self, positions: np.ndarray, update: Update, sizes: Mapping[str, Sizes], stacked: bool, careful: bool
    ) -> bool:
        """Reduce decoded groups. `sizes`: what each took; the rest as in `upload`."""
        dispatch, groups = self.dispatch, update.groups
        ctx = self._transform_context(positions, update, stacked)
        for transform in reversed(self.job.transforms):
            name = type(transform).__name__
            with span("encode", name), during(name):
                groups = transform.server(groups, ctx)
        with during("reduce"):
            ids: Any = dispatch.cohort[positions]
            ids = torch.from_numpy(ids) if stacked else int(ids[0])
            together = stacked and dispatch.reduction.batched and not careful
            meta = Meta(ids, update.num_examples, 0, update.owned and (together or not stacked), self._spill)
            if together:
                fold = self.exchange.fold
                if dispatch.reduction.integer and not is_finite(groups):
                    return False
                node = fold.lifted(groups, meta, len(positions))
                if not is_finite(node):
                    return False
                fold.add_stacked(int(positions[0]), len(positions), node)
                bad = np.zeros(len(positions), bool)
            else:
                bad = non_finite(groups, len(positions)) if stacked else np.array([not is_finite(groups)])
                self._add_each(positions, groups, meta, bad, stacked)
            self._account(positions, update, sizes, bad)
        return True

    def _add_each(
        self, positions: np.ndarray, groups: Mapping[str, Tree], meta: Meta, bad: np.ndarray, stacked: bool
    ) -> None:
        """Add leaves one by one. All are lifted before any is added, so that an error leaves the fold as it was."""
        clients, reduction = self.dispatch.cohort[positions], self.dispatch.reduction
        if bad.any() and self.job.on_error == "raise":
            first = int(np.flatnonzero(bad)[0])
            sent, arrived = (row(dict(g), first) if stacked else g for g in (self.before_codec, groups))
            diverged = f"tensor {non_finite_name(arrived)}; a smaller learning rate or a `clip` may help"
            cause = overflow(self.job.up, sent, arrived) or diverged
            raise FloatingPointError(f"the update of client {clients[first]} is not finite: {cause}")
        accs: list[Any] = []
        for i, is_bad in enumerate(bad):
            if is_bad:
                accs.append(None)
            elif stacked:
                own = replace(meta, client=int(clients[i]), num_examples=int(torch.as_tensor(meta.num_examples)[i]))
                accs.append(reduction.lift(row(groups, i), own))
            else:
                accs.append(reduction.lift(groups, meta))
        for position, client, acc in zip(positions, clients, accs):
            try:
                self.exchange.fold.add(0, int(position), acc)
            except Exception as error:  # the sum is lost, and not only this client's part
                raise TensorsDiffer(f"the update of client {client} does not fit to the others: {error}") from error
        self.exchange.errors += [f"client {client}: update not finite" for client in clients[bad]]

    def _account(
        self, positions: np.ndarray, update: Update, sizes: Mapping[str, Sizes], bad: np.ndarray | None
    ) -> None:
        """Enter bytes and metrics into the columns; clients marked `bad`, (n,), are dropped; None: no client is."""
        columns = self.exchange.columns
        for name, of_group in sizes.items():
            self.exchange.count("up", name, positions, of_group)
        metrics = {f"metric/{name}": _array(value) for name, value in update.metrics.items()}
        columns.add(positions, {"num_examples": _array(update.num_examples)})
        if bad is None or not bad.any():
            columns.add(positions, metrics)
            return
        good, whole = ~bad, len(positions)
        columns.add(positions[good], {name: np.broadcast_to(v, whole)[good] for name, v in metrics.items()})
        columns.add(positions, {"dropped": bad})

    # -- updates that were added up as they were trained ----------------------------------------------------------
    def weights(self, sizes: np.ndarray) -> Mapping[str, Tensor] | None:
        """Return the weights of clients with `sizes` samples, (n,), by group; None unless updates are only added up."""
        if not self.sums:
            return None
        meta = Meta(0, torch.from_numpy(sizes))
        found = {name: _factors(part, meta) for name, part in self.sums.items()}
        return {name: each for name, each in found.items() if each is not None}

    def upload_sums(self, positions: np.ndarray, update: Update, weights: Mapping[str, Tensor], keep: Keep) -> bool:
        """Send the weighted sums of several clients' updates; see `upload` for `keep` and the answer."""
        with span("encode", "update"), during("encode"):
            sizes = {name: transmit(self.job.up, group)[1] for name, group in update.groups.items()}
        with span("reduce", "update"), during("reduce"):
            if not all(map(is_finite, update.groups.values())):
                return False
        with span("data", "state"), during("state"):
            keep({})
        with span("reduce", "update"), during("reduce"):
            fold, count, node = self.exchange.fold, len(positions), dict[str, Any]()
            for name, group in update.groups.items():
                mean = isinstance(self.sums[name], WeightedMean)
                node[name] = (group, fold.summed(weights[name])) if mean else group
            fold.add_stacked(int(positions[0]), count, node)
            self._account(positions, update, sizes, None)
        return True

    def _transform_context(self, positions: np.ndarray, update: Update, stacked: bool) -> TransformContext:
        job, d = self.job, self.dispatch
        return TransformContext(job.seed, d.round, d.number, d.cohort[positions], update.num_examples, stacked)

    def _spill(self, vector: Tensor) -> Any:
        return self.exchange.worker.scratch.append_vector(vector)


def _only_adds(reduction: Reduction) -> bool:
    """Return whether a reduction only adds up updates times weights."""
    return type(reduction) is Sum or (isinstance(reduction, WeightedMean) and reduction.plain)


def _factors(reduction: Reduction, meta: Meta) -> Tensor | None:
    """Return the weights with which a reduction only adds up updates; None if it does anything else."""
    if type(reduction) is Sum:
        return torch.ones_like(torch.as_tensor(meta.num_examples), dtype=torch.float64)
    return reduction.factors(meta) if isinstance(reduction, WeightedMean) else None


def _array(value: Any) -> np.ndarray:
    """Return a number or a tensor (C,) as an array (1,) or (C,)."""
    return np.atleast_1d(value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value))
