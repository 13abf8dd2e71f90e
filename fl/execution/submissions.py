"""Second stage of an exchange with attackers: their updates are sent, and all updates are reduced.

honest client:  scratch -> reduction
attacker:       scratch -> transforms -> codec ~~> decoded -> server's side -> reduction
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl.execution.client_work import ClientWork
from fl.execution.held_uploads import Held
from fl.execution.isolation import as_error
from fl.execution.stages import during
from fl.execution.update_checks import TensorsDiffer
from fl.method.messages import Update
from fl.method.reduction import Meta
from fl.storage.vector import Vector
from fl.tracking.spans import span


@dataclass(frozen=True)
class Submission:
    """What one client sends.

    Attributes:
        groups: groups of its update.
        attack: group -> index of a tensor -> what the attacker sends in its place. None for an honest client.
    """

    groups: Mapping[str, Held]
    attack: Mapping[str, Mapping[int, Vector]] | None = None


class SubmitWork(ClientWork):
    """Reduces the updates of honest clients, and sends those of attackers."""

    @property
    def runs_client_code(self) -> bool:
        """The clients have done their work."""
        return False

    def chunk(self, positions: np.ndarray) -> None:
        """Submit the updates at `positions`."""
        assert self.dispatch.submissions is not None
        for position in positions:
            at, submission = position[None], self.dispatch.submissions[position]
            if submission is None:
                self.fold.add(0, int(position), None)
                continue
            try:
                self._submit(at, submission)
            except BaseException as error:
                self.failed(at, as_error(error))

    def _submit(self, at: np.ndarray, submission: Submission) -> None:
        client, examples = int(self.dispatch.cohort[at[0]]), next(iter(submission.groups.values())).num_examples
        attack = submission.attack
        with span("data", "held update"), during("reduce"):
            read, attacked = self.worker.scratch.read_vector, attack or {}
            groups = {name: held.read(read, attacked.get(name)) for name, held in submission.groups.items()}
        if attack is not None:
            update = Update(groups, examples, owned=True)
            self.uploads.upload(at, update, {}, [None], stacked=False, careful=True, keep=lambda residuals: None)
            return
        with span("reduce", "update"), during("reduce"):
            meta = Meta(client, examples, owned=True, spill=self.worker.scratch.append_vector)
            acc = self.dispatch.reduction.lift(groups, meta)
            try:
                self.fold.add(0, int(at[0]), acc)
            except Exception as error:
                raise TensorsDiffer(f"the update of client {client} does not fit to the others: {error}") from error
