"""An exchange with attackers, in two stages on the workers.

    all train -> updates held in scratch files -> attack, by blocks of columns -> attackers send, all are reduced

Scratch needs n x P numbers for the n updates of an exchange, and A x P for its A attackers. Memory stays flat.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl.errors import ConfigError
from fl.execution.columns import Columns
from fl.execution.dispatch import DispatchResult, ExchangeDispatch
from fl.execution.held_uploads import Held, Hold
from fl.execution.submissions import Submission
from fl.execution.workers.executor import Executor
from fl.method.adversary import Adversary, AttackContext
from fl.method.reduction import GroupReduction, Product
from fl.simulation.setup import RunSetup
from fl.simulation.totals import RoundTotals
from fl.storage import files
from fl.storage.records import segment_path
from fl.storage.vector import Vector
from fl.tensors import random
from fl.tensors.generators import seeded_generators
from fl.tensors.serialise import flatten, raw_bytes, shapes
from fl.tensors.trees import Tree

COLUMNS = 1 << 16  # of a block, at most
ELEMENTS = 1 << 23  # of a block, about
CHUNK = 64  # clients per task of the second stage
ATTACKS = 10**11  # first number of the segments that attacks are written to, above those of all workers


@dataclass(frozen=True)
class Target:
    """One tensor of a group of the update, of all honest clients and of all attackers.

    honest and own have one vector per client, in the order of the ids.
    """

    ctx: AttackContext
    honest: tuple[Vector, ...]
    own: tuple[Vector, ...]
    received: Tensor | None


class AttackedExchanges:
    """Runs the exchanges of a run with an adversary.

    Attributes:
        adversary: writes the attackers' updates.
        attackers: whether each client of the run attacks, bool (N,).
    """

    def __init__(self, adversary: Adversary, run_setup: RunSetup, executor: Executor, scratch: Path):
        self.adversary, self.executor, self.scratch = adversary, executor, scratch
        self.seed = run_setup.config.seed
        self.attackers = adversary.attackers(self.seed, run_setup.trainable)

    @classmethod
    def of(cls, run_setup: RunSetup, executor: Executor, scratch: Path) -> AttackedExchanges | None:
        """Return what runs the exchanges of a run with an adversary; None if the run has none."""
        adversary = run_setup.config.adversary
        return None if adversary is None else cls(adversary, run_setup, executor, scratch)

    def run(self, dispatch: ExchangeDispatch, totals: RoundTotals) -> DispatchResult:
        """Run a dispatch; add the number of attacks to the round's totals. One without attackers is run as usual."""
        attacks = self.attackers[dispatch.cohort]
        if not attacks.any():
            totals.add_simulated({"attackers": 0})
            return self.executor.run(dispatch)
        assert isinstance(dispatch.reduction, GroupReduction)
        hold = Product({name: Hold() for name in dispatch.reduction.parts})
        first: DispatchResult = self.executor.run(replace(dispatch, reduction=hold, attackers=attacks))
        if first.value is None:  # no client answered
            return first
        held = _by_client(first.value)
        path = segment_path(self.scratch, ATTACKS + dispatch.number)
        targets = self._targets(dispatch, held, attacks)
        written = self.executor.call(write_attacks, self.adversary, targets, self.seed, path) if targets else {}
        totals.add_simulated({"attackers": len(written)})
        submissions = [
            Submission(held[client], written.get(client, {}) if attack else None) if client in held else None
            for client, attack in zip(dispatch.cohort.tolist(), attacks)
        ]
        plan = dispatch.plan.in_loop("the clients have worked already", CHUNK)
        second = replace(dispatch, kind="submit", plan=plan, submissions=submissions, pin=False)
        result = _joined(first, self.executor.run(second))
        files.remove(path)
        return result

    def _targets(
        self, dispatch: ExchangeDispatch, held: Mapping[int, Mapping[str, Held]], attacks: np.ndarray
    ) -> list[Target]:
        """Return the tensors to attack; an empty list if no attacker answered."""
        answered = np.array(sorted(held), np.int64)
        bad = np.isin(answered, dispatch.cohort[attacks])
        if not bad.any():
            return []
        clients, honest = answered[bad].tolist(), answered[~bad].tolist()
        groups = next(iter(held.values()))
        wanted = [name for name in groups if self.adversary.groups is None or name in self.adversary.groups]
        targets = []
        for name in wanted:
            pieces = {client: groups[name] for client, groups in held.items()}
            if len({piece.skeleton for piece in pieces.values()}) > 1:
                continue  # tensors of different shapes have no columns
            received = _received(dispatch, name, pieces[clients[0]].skeleton)
            for index, (dtype, _) in enumerate(shapes(pieces[clients[0]].skeleton)):
                own, others = (_vectors(pieces, ids, index) for ids in (clients, honest))
                if not dtype.is_floating_point or not own:
                    continue
                ctx = AttackContext(
                    seed=self.seed,
                    round=dispatch.round,
                    participation=dispatch.number,
                    work=dispatch.work,
                    group=name,
                    tensor=index,
                    first=0,
                    honest_clients=np.array(honest, np.int64),
                    honest_examples=np.array([pieces[client].num_examples for client in honest]),
                    clients=np.array(clients, np.int64),
                    num_examples=np.array([pieces[client].num_examples for client in clients]),
                )
                targets.append(Target(ctx, others, own, None if received is None else received[index].reshape(-1)))
        if not targets and dispatch.work == "train":
            raise ConfigError(
                "adversary.groups",
                f"none of the groups {wanted} has floating-point tensors of the same shapes for all clients; "
                "there is nothing to attack",
            )
        return targets


def write_attacks(
    adversary: Adversary, targets: Sequence[Target], seed: int, path: Path
) -> dict[int, dict[str, dict[int, Vector]]]:
    """Have the adversary write the attackers' updates to a file, block by block.

    Args:
        adversary: writes them.
        targets: the tensors to attack.
        seed: seed of the run.
        path: the file.

    Returns:
        client -> group -> index of the tensor -> its vector in the file.
    """
    written: dict[int, dict[str, dict[int, Vector]]] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    file = files.open_file(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)  # an earlier attempt may have left a part
    sources: dict[str, int] = {}
    try:
        for name in {vector.path for target in targets for vector in (*target.own, *target.honest)}:
            sources[name] = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
        offset = 0
        for target in targets:
            vectors = [replace(own, path=str(path), offset=offset + k * own.length) for k, own in enumerate(target.own)]
            block = max(min(COLUMNS, ELEMENTS // (len(target.own) + len(target.honest))), 1)
            for first in range(0, vectors[0].numel, block):
                last = min(first + block, vectors[0].numel)
                sent = _attack(adversary, target, first, last, seed, sources)
                for vector, row in zip(vectors, sent):
                    _write(file, raw_bytes(row.contiguous()), vector.offset + first * sent.element_size())
            for client, vector in zip(target.ctx.clients.tolist(), vectors):
                written.setdefault(client, {}).setdefault(target.ctx.group, {})[target.ctx.tensor] = vector
            offset = vectors[-1].offset + vectors[-1].length
    finally:
        for each in (file, *sources.values()):
            os.close(each)
    return written


def _attack(
    adversary: Adversary, target: Target, first: int, last: int, seed: int, sources: Mapping[str, int]
) -> Tensor:
    """Return the attackers' numbers in columns `first` up to `last`, (A, block). `sources`: open files by path.

    Raises:
        ValueError: the adversary returned something else.
    """
    received = None if target.received is None else target.received[first:last]
    ctx = replace(target.ctx, first=first, received=received)

    def read(vectors: Sequence[Vector]) -> Tensor:
        return torch.stack([vector.read(first, last, sources[vector.path]) for vector in vectors])

    own = read(target.own)
    honest = read(target.honest) if target.honest else own[:0]
    address = (ctx.participation, "adversary", ctx.group, ctx.tensor, ctx.first)
    with seeded_generators(int(random.hash64(seed, *address))), torch.no_grad():
        sent = adversary.attack(honest, own, ctx)
    if not isinstance(sent, Tensor) or sent.shape != own.shape:
        came = tuple(sent.shape) if isinstance(sent, Tensor) else type(sent).__name__
        raise ValueError(
            f"adversary {type(adversary).__name__}: attack returned {came}, expected a tensor {tuple(own.shape)}"
        )
    return sent.to(own.dtype)


def _write(file: int, data: memoryview, offset: int) -> None:
    """Write bytes at a place of a file."""
    while len(data):  # one call writes 2 GiB at most
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _by_client(value: Mapping[str, Sequence[Held]]) -> dict[int, dict[str, Held]]:
    """Return client -> group -> what is held of it."""
    held: dict[int, dict[str, Held]] = {}
    for name, pieces in value.items():
        for piece in pieces:
            held.setdefault(piece.client, {})[name] = piece
    return held


def _vectors(pieces: Mapping[int, Held], clients: Sequence[int], index: int) -> tuple[Vector, ...]:
    """Return one tensor of each client; () if it has no elements."""
    found = (pieces[client].vectors[index] for client in clients)
    return tuple(vector for vector in found if vector is not None)


def _received(dispatch: ExchangeDispatch, group: str, skeleton: str) -> list[Tensor] | None:
    """Return the tensors of the group of this name in the broadcast, if it has the form of the update's."""
    tree: Tree = dispatch.broadcast.shared.get(group)
    if tree is None:
        return None
    form, tensors = flatten(tree)
    return tensors if form == skeleton else None


def _joined(first: DispatchResult, second: DispatchResult) -> DispatchResult:
    """Join the results of both stages; the second one has the value, and the bytes of attackers."""
    columns = Columns()
    columns.extend(first.columns)
    columns.extend(second.columns)
    return DispatchResult(
        second.value,
        columns,
        sorted(first.errors + second.errors),
        first.busy_seconds + second.busy_seconds,
        first.retried + second.retried,
    )
