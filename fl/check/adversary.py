"""Laws of adversaries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fl.check.bench import fingerprint
from fl.check.finding import Broken, Law, require_equal
from fl.method.adversary import Adversary, AttackContext
from fl.tensors import random

EXAMPLES = {"share": 0.25}
HONEST, ATTACKERS = np.array([0, 2, 3, 5]), np.array([1, 4])
COLUMNS = (0, 7, 12)  # where the blocks of an update of 12 numbers begin and end


def _updates(rows: int, name: str) -> Tensor:
    """Updates of some clients, (rows, 12)."""
    return torch.randn(rows, COLUMNS[-1], generator=random.torch_generator("check", "adversary", name))


def _context(first: int, honest: np.ndarray) -> AttackContext:
    """An exchange of four honest clients or none, and two attackers."""
    return AttackContext(
        seed=0,
        round=2,
        participation=5,
        work="train",
        group="model",
        tensor=0,
        first=first,
        honest_clients=honest,
        honest_examples=10 + np.arange(len(honest)),
        clients=ATTACKERS,
        num_examples=np.array([3, 30]),
        received=torch.zeros(1),
    )


def _attacked(part: Adversary, blocks: Sequence[int] = (0, 1), honest: np.ndarray = HONEST) -> Tensor:
    """What the attackers send, (2, 12), computed block by block in this order."""
    sent: dict[int, Tensor] = {}
    for block in blocks:
        columns = slice(COLUMNS[block], COLUMNS[block + 1])
        seen, own = (_updates(n, name)[:, columns] for n, name in ((len(honest), "honest"), (len(ATTACKERS), "own")))
        before = fingerprint([seen, own])
        sent[block] = part.attack(seen, own, _context(columns.start, honest))
        require_equal(fingerprint([seen, own]), before, "the updates that attack() was given, before and after,")
        if sent[block].shape != own.shape or sent[block].dtype != own.dtype:
            raise Broken(f"attack() returned {sent[block].dtype} {tuple(sent[block].shape)}, own is {tuple(own.shape)}")
    return torch.cat([sent[block] for block in sorted(sent)], 1)


def attackers_send_finite_updates_of_their_own_form(part: Adversary) -> None:
    """An attack returns (A, block) of the dtype of `own`, finite; it does not modify what it was given."""
    if not _attacked(part).isfinite().all():
        raise Broken("an attacker sends numbers that are not finite")


def the_same_exchange_is_attacked_in_the_same_way(part: Adversary) -> None:
    """An attack that is repeated, or computed in another order of blocks, gives the same bits."""
    once = _attacked(part)
    require_equal(fingerprint(_attacked(part)), fingerprint(once), "updates attacked twice")
    require_equal(fingerprint(_attacked(part, (1, 0))), fingerprint(once), "blocks attacked in another order: updates")


def a_cohort_of_attackers_is_possible(part: Adversary) -> None:
    """Without honest clients the attackers still send finite updates."""
    if not _attacked(part, honest=HONEST[:0]).isfinite().all():
        raise Broken("without honest clients, an attacker sends numbers that are not finite")


def the_seed_determines_the_attackers(part: Adversary) -> None:
    """The attackers are the given clients, or the rounded share, drawn from the seed."""
    chosen = part.attackers(0, 20)
    require_equal(chosen.tolist(), part.attackers(0, 20).tolist(), "attackers drawn twice")
    expected = len(part.clients or ()) if part.share is None else round(part.share * 20)
    require_equal(int(chosen.sum()), expected, "the number of attackers and the expected number")


LAWS: list[Law] = [
    attackers_send_finite_updates_of_their_own_form,
    the_same_exchange_is_attacked_in_the_same_way,
    a_cohort_of_attackers_is_possible,
    the_seed_determines_the_attackers,
]
