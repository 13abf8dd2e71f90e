"""The states of clients, as the driver reads them: payloads that depend on them have sizes that virtual time needs."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fl.execution.client_state import method_state
from fl.execution.job import Job
from fl.method.unknown_state import UnknownState
from fl.simulation.setup import RunSetup
from fl.storage.clients import ClientStates
from fl.storage.segments import Segments, states_of
from fl.tensors.trees import Tree


class StoredStates:
    """Reads the client algorithm's states, staged ones included.

    Args:
        run_setup: the run.
        states: where the states lie.
        remote: whether they are on other machines, as in a deployment.
    """

    def __init__(self, run_setup: RunSetup, states: ClientStates, remote: bool):
        self.run_setup, self.states, self.remote = run_setup, states, remote

    def of(self, client: int) -> Tree:
        """Return a client's state, None if it has none; `UnknownState` if only the client has it."""
        if self.remote:
            return UnknownState()
        locations = self.states.locations(np.array([client]))
        with states_of(np.array([client]), locations):
            record = self._segments.read(locations[0])
        return method_state(self._job, record)

    @cached_property
    def _job(self) -> Job:
        return self.run_setup.job(self.states.folder, self.states.folder)

    @cached_property
    def _segments(self) -> Segments:
        return Segments(self.states.folder)
