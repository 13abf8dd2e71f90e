"""What workers need for a whole run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl.communication.chain import find_wrapper
from fl.communication.codec import Codec
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback
from fl.data.augment import Augment
from fl.data.parties import PartyArrays
from fl.data.stream import Period
from fl.data.views import placed
from fl.execution.dispatch import DispatchGroup, ExchangeDispatch
from fl.execution.stored_records import stored_records
from fl.execution.training.device import Device
from fl.execution.worker import Worker
from fl.execution.workers.process import trim
from fl.method.client import ClientAlgorithm
from fl.method.transform import Transform
from fl.models.binding import Initial
from fl.models.client_models import ClientModel, ClientModels
from fl.models.probe import ModuleFacts
from fl.storage.segments import Segments

LARGE = 1 << 24  # bytes of frozen tensors, from which the driver maps those of its workers


@dataclass(frozen=True)
class Job:
    """What does not change during a run.

    Attributes:
        algorithm: the client algorithm.
        module: the model's structure.
        facts: what the module does beside computing outputs.
        initial: the module's tensors as the run began.
        arrays: all clients' data by name, first axis the sample; `y` is -1 or NaN where clients have no label.
        true_labels: the data's own `y`, for evaluations on rows without labels; None without such evaluations.
        server_arrays: the server's test set, likewise.
        parties: arrays of each client of a vertical partition, in place of `arrays`; None if clients hold rows.
        periods: the learning problems of the stream; one without a stream.
        seed: the run's seed.
        rounds: rounds planned.
        up: codec of updates.
        down: codec of broadcasts.
        transforms: what is done to updates on both sides of the codec.
        on_error: raise a client's error, or drop the client from the round.
        folder: where client states are written.
        scratch: where files that last one round are written.
        adapt: how clients adapt before an evaluation of the stage "adapted".
        shots: training samples to adapt to (default: all).
        augment: random changes of training batches.
        strong: the chain `data.strong`.
        statistics: names of the running statistics that each client keeps for itself.
        device: where clients train.
        micro_batch: samples that pass through the model at once in the loop (default: all).
        graphs: whether the loop's gradients are CUDA graphs.
        machine_code: modules of the folder native/ that workers load before the first round.
        seeded: whether users' code may run, or the model draws: then global generators are seeded for each client, and
            torch's settings are compared.
        by_client: the clients' models, if they have different architectures; `module`, `facts` and `initial` are then
            those of the first one.
    """

    algorithm: ClientAlgorithm
    module: torch.nn.Module
    facts: ModuleFacts
    initial: Initial
    arrays: Mapping[str, Tensor]
    server_arrays: Mapping[str, Tensor]
    periods: tuple[Period, ...]
    seed: int
    rounds: int
    up: Codec
    down: Codec
    transforms: tuple[Transform, ...]
    on_error: Literal["raise", "drop"]
    folder: Path
    scratch: Path
    parties: PartyArrays | None = None
    adapt: ClientAlgorithm | None = None
    shots: int | None = None
    augment: tuple[Augment, ...] = ()
    strong: tuple[Augment, ...] = ()
    statistics: tuple[str, ...] = ()
    device: Device = Device()
    micro_batch: int | None = None
    graphs: bool = False
    machine_code: tuple[str, ...] = ()
    seeded: bool = True
    true_labels: Tensor | None = None
    by_client: ClientModels | None = None

    @cached_property
    def has_engine_state(self) -> bool:
        """Whether the engine stores client state beside the method's own state (fl/execution/client_state.py)."""
        wraps = find_wrapper(self.up, ErrorFeedback) or find_wrapper(self.down, Delta)
        return bool(self.statistics or wraps or self.keeps_optimisers)

    @property
    def keeps_optimisers(self) -> bool:
        """Whether clients keep their optimisers' memory."""
        return getattr(self.algorithm, "optimiser_state", "reset") == "kept"

    def arrays_of(self, client: int) -> Mapping[str, Tensor]:
        """Return the data in which the rows of a client lie: those of all clients, or its own columns."""
        return self.arrays if self.parties is None else self.parties.of(client)

    @property
    def watched(self) -> dict[str, object]:
        """The parts that work on clients, by what they are used as (fl/execution/hidden_state.py)."""
        return {
            "client": [self.algorithm, self.adapt],
            "codec": [self.up, self.down],
            "transform": self.transforms,
            "augment": [self.augment, self.strong],
            "task": [period.task for period in self.periods],
        }

    @cached_property
    def models(self) -> tuple[ClientModel, ...]:
        """The architectures of the run."""
        one = ClientModel("", self.module, self.facts, self.initial)
        return (one,) if self.by_client is None else self.by_client.models

    def _placed(self, model: ClientModel) -> ClientModel:
        put, initial = self.device.put, model.initial
        first = Initial(put(initial.trained), put(initial.frozen))
        return replace(model, module=self.device.put_module(model.module), initial=first)

    def hold_shared(self, shared: Callable[[], Job]) -> None:
        """Use the large frozen tensors of this job's copy in shared memory, so that they are on a machine once."""
        if sum(model.initial.frozen.nbytes for model in self.models) < LARGE:
            return
        for own, copied in zip(self.models, shared().models):
            own.initial.frozen.buffers = copied.initial.frozen.buffers
            own.initial.hold(own.module)
        gc.collect()  # models have cycles of references
        trim()

    @property
    def stores(self) -> tuple[Path, Path]:
        """The folders of segments that workers read and write."""
        return self.folder, self.scratch

    def records(self, dispatch: ExchangeDispatch | DispatchGroup, tasks: np.ndarray) -> np.ndarray:
        """Return the stored records that some tasks, (m,), read; see `stored_records`."""
        return stored_records(self, dispatch, tasks)

    def worker(self, writer: int, open_store: Callable[[Path], Segments] = Segments) -> Worker:
        """Make a worker.

        Args:
            writer: numbers the segments that it writes.
            open_store: opens one of the `stores`.
        """
        return Worker(self, writer, open_store)

    def placed(self) -> Job:
        """Return the job with its tensors on its device."""
        if self.device.kind == "cpu":
            return self
        by_client = None if self.by_client is None else self.by_client.changed(self._placed)
        first = self._placed(self.models[0]) if by_client is None else by_client.models[0]
        return replace(
            self,
            module=first.module,
            initial=first.initial,
            by_client=by_client,
            arrays=placed(self.device.resident(self.arrays), self.arrays),
            server_arrays=self.device.resident(self.server_arrays),
        )
