"""The client algorithm: what a client does with a broadcast.

`ClientAlgorithm.work` receives a `ClientContext` and returns a `Reply`. Most methods train by gradient steps, and
subclass `LocalTraining` (fl/method/local_training.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import add
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from fl.method.context import ClientContext, Reply
from fl.models.binding import Initial
from fl.tensors.trees import Tree, tree_map

if TYPE_CHECKING:
    from fl.tasks.task import Task


class ClientAlgorithm:
    """Base of client algorithms. Subclasses are frozen dataclasses of hyper-parameters.

    The names of groups are checked against the strategy before round 0.

    Attributes:
        sends: groups of the update.
        optional: groups of `sends` that some settings leave out.
        receives: groups and config values of the broadcast that the algorithm uses.
        delta_reference: group of the update -> received group of the same shape, from which the codec `delta` encodes
            the difference.
        statistics: groups of `sends` that are statistics of the client's rows, such as squared gradients, and no
            changes of parameters. `privacy` refuses them: clipping and noise would make them meaningless.
        one_at_a_time: True: the hooks are written for one client, so clients are never trained together. Set it if the
            shape of an update or a state differs between clients.
        loss_over_batch: True: the objective is one loss of the whole batch, such as a contrastive loss. It may return a
            number () in place of the loss of each sample. Batches are not padded and not split, so clients are never
            trained together.
        classes_only: True: the method needs a class for each sample, so other tasks are refused before round 0.
        private_models: True: each client's model is its state and no parameters are exchanged, so clients may have
            different architectures (`model: {by_client: ...}`).
        example_config: settings by dotted path for a small example run; `fl check` uses them.
    """

    sends: ClassVar[tuple[str, ...]] = ("model",)
    optional: ClassVar[tuple[str, ...]] = ()
    receives: ClassVar[tuple[str, ...]] = ("model",)
    delta_reference: ClassVar[Mapping[str, str]] = {}
    statistics: ClassVar[tuple[str, ...]] = ()
    one_at_a_time: ClassVar[bool] = False
    loss_over_batch: ClassVar[bool] = False
    classes_only: ClassVar[bool] = False
    private_models: ClassVar[bool] = False
    example_config: ClassVar[Mapping[str, Any]] = {}

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the run's model with parts that the method adds, such as a projection head. Default: the model.

        It is called once, when the model is built: after a warm start by `model.init`, before `freeze` and adapters.
        The added tensors are drawn from seeded generators. They lie under one prefix, and the model's own tensors keep
        their names; `fl.Extended` does both. From then on they are tensors like any other: sent, kept, frozen,
        evaluated, checkpointed and adapted by name.

        Args:
            module: the model; it may be changed in place.
            sample_shape: shape of a sample, without the batch's axis.
            outputs: number of outputs that the task needs.
        """
        return module

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        """Do the client's work in one exchange.

        Args:
            name: the work that the strategy asks for, `Exchange.work`.
            ctx: the client's data, state and received groups.
            carry: the `Reply.carry` of the client's last exchange in this round, or None.
        """
        raise NotImplementedError

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (local steps, samples) of clients, int64 (C,) each. Virtual time is computed from them.

        A sample counts once per gradient (one forward and one backward pass). Forward passes alone do not count.

        Args:
            sizes: numbers of training samples, (C,).
            round_: the round, from 0.
            rounds: number of rounds of the run.
            name: the work that the strategy asks for.
        """
        return np.ones_like(sizes), sizes

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        """Return the samples in `workload` that belong to no local step, (C,). A deadline does not cut them.

        The arguments are those of `workload`.
        """
        return np.zeros_like(sizes)

    def check_task(self, task: Task) -> None:
        """Check before round 0 that the method can learn the task. Default: any, or a classification: `classes_only`.

        It is also called for the client algorithm of `evaluation.adapt`.

        Args:
            task: the run's task; with a stream, the task of each period.

        Raises:
            ValueError: it cannot; the message names the tasks that it can learn.
        """
        if self.classes_only and task.kernel != "cross_entropy":
            raise ValueError(
                f"client {type(self).__name__} needs a class for each sample, and {type(task).__name__} is no "
                "classification; use task: classification (a stream: head: joint or shared)"
            )

    def check_models(self, modules: Mapping[str, nn.Module], x: Tensor) -> None:
        """Check before round 0 that the architectures of the clients fit the method, and each other. Default: any do.

        Args:
            modules: name -> module, in evaluation mode.
            x: some inputs, (B, ...).

        Raises:
            ValueError: they do not; the message says what differs and names the way out.
        """

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        """Return the model that this client predicts with: x (B, ...) -> outputs (B, ...). Default: the received model.

        For the server's evaluation the context has no data and no state.
        """
        return ctx.net(ctx.received["model"])

    def patched(self, group: str, value: Tree, patch: Tree) -> Tree:
        """Return the next version of a static group from the last version and a patch. Default: their sum.

        See `Static`. `value` is None for a client that has received nothing yet; the default is then the patch.
        """
        return patch if value is None else tree_map(add, value, patch)

    def initial_tensors(self, initial: Initial, received: Mapping[str, Tree]) -> Initial:
        """Return the tensors that the model has where training and prediction set no others. Default: `initial`.

        A method whose server changes frozen weights adds the received change to them. The engine calls it for each
        client, and once for clients that train together. It must be pure.

        Args:
            initial: the model's tensors at the start of the run.
            received: groups of the broadcast by name.
        """
        return initial

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        """Return the context for predictions after the client's own training, before the server merges updates."""
        model = ctx.received["model"] + reply.update.groups["model"]
        state = ctx.state if reply.state is None else reply.state
        return replace(ctx, received={**ctx.received, "model": model}, state=state)
