"""Train three clients of a few samples before round 0, where the training code is a user's own.

    alone        one client after another, as the loop does     ->  the objective returns the loss of each sample?
    together     all three at once, as a batched plan does      ->  the same updates and states?

The clients have 5, 2 and 3 samples and batches of at most 2, so that batches are padded and clients finish one after
another. Each takes a few plain steps with a learning rate of 0.01, twice if it keeps a state. Everything works on
copies.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl import registry
from fl.data.dataset import tensors
from fl.data.views import View
from fl.errors import ConfigError, dotted
from fl.execution.hidden_state import HiddenStateWatch
from fl.execution.training import batched
from fl.execution.training.chunk import Chunk, Gradients
from fl.execution.training.customised import loss_of_outputs, overrides, users_loss, users_training
from fl.execution.training.flat import Flat
from fl.execution.training.kernels import LinearStack
from fl.execution.training.loop import train
from fl.execution.training.objective import name_of_objective, objective_error
from fl.execution.training.plan import Kind
from fl.execution.training.vmap import Vmap
from fl.execution.update_checks import stacked_values
from fl.method.context import ClientContext
from fl.method.facts import data_facts
from fl.method.local_training import LocalTraining
from fl.method.loss_of_outputs import WrongResult
from fl.method.messages import Broadcast
from fl.method.optimiser import SGD
from fl.method.phase import Phase
from fl.method.requests import Exchange
from fl.models.binding import Initial
from fl.simulation.requests import first_request
from fl.simulation.setup import RunSetup
from fl.tensors.generators import preserved_generators, seed_generators
from fl.tensors.trees import Tree, leaves, row, stack, tree_map

SIZES = np.array([5, 2, 3])  # samples of the clients
RATE, STEPS = 0.01, 2  # learning rate, and the most steps of a phase with a number of steps
BATCH = 2  # the largest batch: clients take 3, 1 and 2 steps in an epoch, and leave one after another
TOLERANCE = 1e-5  # relative to the largest element of a tensor
ROUNDING = 1e-6  # relative to the largest parameter: an update is a difference of parameters
# machine code runs the same hooks as `stacked` and `flat`, and is slow to load
BACKENDS: Mapping[Kind, type[Gradients]] = {
    "fused": Flat,
    "compiled": LinearStack,
    "stacked": LinearStack,
    "flat": Flat,
    "vmap": Vmap,
}


@dataclass(frozen=True)
class _Trained:
    """What a client ended with: groups of its update, its new state, and its carry."""

    groups: Mapping[str, Tree]
    state: Tree
    carry: Tree


class Trial:
    """A first training of a user's own client code. Call it with a kind of plan, as `make_plan` does.

    Args:
        run_setup: the run, with any plan.
        client: its client algorithm.
    """

    def __init__(self, run_setup: RunSetup, client: LocalTraining):
        self.run_setup, self.client, self.task = run_setup, client, run_setup.periods[0].task
        self.objective = name_of_objective(self.client, self.task)
        self.error: str | None = None  # why the objective does not return the loss of each sample
        self.changed: str | None = None  # how the client changes itself
        self.known: dict[type[Gradients], str | None] = {}

    @staticmethod
    def of(run_setup: RunSetup) -> Trial | None:
        """Return a trial, or `None` if no hook of local training, loss or optimiser is a user's own."""
        client = run_setup.config.client
        if not isinstance(client, LocalTraining) or not users_training(client, run_setup.periods[0].task):
            return None
        return Trial(run_setup, client)

    def __call__(self, kind: Kind) -> str | None:
        """Return why clients that train together in this way do not end as those that train alone, or `None`."""
        backend = BACKENDS[kind]
        if backend not in self.known:
            self.known[backend] = self._obstacle(backend)
        return self.known[backend]

    def check(self) -> None:
        """Check a user's own objective or loss.

        Raises:
            ConfigError: it does not return the loss of each sample, or the client changes itself.
        """
        if users_loss(self.client, self.task):
            # other errors may come from what only a run has; if not, the run shows them with their place
            with contextlib.suppress(Exception):
                self._alone  # noqa: B018  # computed and cached
            self._refuse()

    def release(self) -> None:
        """Free the copies of the model; what is known about plans is kept."""
        for name in ("_alone", "_one_module", "_arrays", "_broadcast"):
            vars(self).pop(name, None)

    def _refuse(self) -> None:
        if self.error:
            kind = type(self.client)
            owner = kind if loss_of_outputs(self.client) else registry.definer(kind, "objective")
            own = registry.is_users(owner)
            raise ConfigError("client" if own else "task", self.error)
        if self.changed:
            raise ConfigError("client", self.changed)

    # -- training ------------------------------------------------------------------------------------------------
    @preserved_generators()
    def _obstacle(self, backend: type[Gradients]) -> str | None:
        own = any(registry.is_users(cls) for cls in (type(self.client), type(self.client.optimiser)))
        name = type(self.client if own else self.task).__name__
        try:
            if not self._broadcast.uniform:
                return f"with {name}, clients receive different messages"
            alone = self._alone
        except _NoTrial as error:
            return f"{name} could not be tried before round 0: {error}"
        except Exception as error:
            self._refuse()
            return f"with {name}, a first training fails: {_in_words(error)}"
        self._refuse()
        try:
            together = self._together(backend)
        except Exception as error:
            return f"with {name}, clients cannot train together: {_in_words(error)}"
        difference = _difference(alone, together, ROUNDING * self._scale)
        return difference and f"with {name}, clients that train alone and together have {difference}"

    @cached_property
    def _broadcast(self) -> Broadcast:
        """What the strategy sends first."""
        setup = self.run_setup
        strategy = _copied(setup.config.strategy)
        state = strategy.init(setup.model.clone(), setup.server_context(0, np.empty(0, np.int64)))
        request = first_request(strategy, state, setup.server_context(0, np.arange(min(setup.trainable, 2))))
        if not isinstance(request, Exchange) or request.work != "train" or request.skeleton is not None:
            raise _NoTrial("the strategy's first exchange is not training")
        return Broadcast.of(request.broadcast)

    def _received(self, client: int, state: Tree) -> dict[str, Tree]:
        broadcast = self._broadcast
        shared = {name: tree for name, tree in broadcast.shared.items() if name not in broadcast.hidden}
        static = {name: value.value for name, value in broadcast.static.items()}
        return tree_map(lambda leaf: leaf.clone(), {**shared, **static, **broadcast.groups_for(client, state)})

    @cached_property
    def _alone(self) -> list[list[_Trained]]:
        """What each client ends with when it trains alone, in one exchange or two."""
        algorithm = self._short(checked=True)
        watch = HiddenStateWatch({"client": algorithm})
        try:
            found = [[self._work(algorithm, client, None)] for client in range(len(SIZES))]
        except WrongResult as error:
            self.error = str(error)
            raise
        if all(end.state is not None for (end,) in found):
            for _ in range(2):
                for client, state in enumerate(_states_after(found)):
                    found[client].append(self._work(algorithm, client, tree_map(lambda leaf: leaf.clone(), state)))
        self.changed = watch.changes("a first training")
        return found

    def _work(self, algorithm: LocalTraining, client: int, state: Tree) -> _Trained:
        reply = algorithm.work("train", self._context(algorithm, client, state), None)
        return _Trained(reply.update.groups, reply.state, reply.carry)

    def _context(self, algorithm: LocalTraining, client: int, state: Tree) -> ClientContext:
        """Return what a client knows that trains alone."""
        setup, config = self.run_setup, self._broadcast.config
        arrays = self._arrays
        rows = np.arange(SIZES[client]) + SIZES[:client].sum()
        received = self._received(client, state)
        seed_generators(client)
        return ClientContext(
            client=client,
            seed=setup.config.seed,
            round=0,
            rounds=setup.config.rounds,
            participation=0,
            received=received,
            config=config(client) if callable(config) else config,
            state=state,
            train=View(arrays, rows),
            val=View(arrays, rows[:0]),
            test=View(arrays, rows[:0]),
            initial=algorithm.initial_tensors(self._initial, received),
            module=self._module,
            task=self.task,
            augment=setup.config.data.augment,
            strong=setup.config.data.strong,
            module_facts=setup.facts,
            unlabelled=View(arrays, rows).without("y"),
            training_loop=train,
        )

    def _together(self, backend: type[Gradients]) -> list[list[_Trained]]:
        """What each client ends with when all train at once."""
        algorithm, count = self._short(checked=False), len(SIZES)
        setup, config = self.run_setup, self._broadcast.config
        assert not callable(config)
        received = self._received(0, None)
        chunk = Chunk(
            clients=np.arange(count),
            seed=setup.config.seed,
            round=0,
            rounds=setup.config.rounds,
            participation=0,
            received=received,
            config=config,
            states=[None] * count,
            arrays=self._arrays,
            rows=np.concatenate([np.tile(rows, 2) for rows in np.split(np.arange(SIZES.sum()), np.cumsum(SIZES)[:-1])]),
            starts=2 * (np.cumsum(SIZES) - SIZES),
            sizes=SIZES,
            unlabelled=SIZES,  # the same rows once more
            strong=setup.config.data.strong,
            initial=algorithm.initial_tensors(self._initial, received),
            module=self._module,
            task=self.task,
            augment=setup.config.data.augment,
            facts=self._facts,
            prepared=self._prepared(algorithm, [None] * count),
        )
        found: list[list[_Trained]] = [[] for _ in range(count)]
        while True:
            reply = batched.train(algorithm, chunk, backend)
            for client, ends in enumerate(found):
                ends.append(_Trained(*row([dict(reply.update.groups), reply.state, reply.carry], client)))
            if reply.state is None or len(found[0]) == 3:
                return found
            states = _states_after(found)
            prepared = self._prepared(algorithm, states)
            chunk = replace(chunk, received=self._received(0, None), states=states, prepared=prepared)

    def _prepared(self, algorithm: LocalTraining, states: list[Tree]) -> Tree:
        """Return what clients with these states prepare, stacked."""
        if not overrides(algorithm, "prepare"):
            return None
        contexts = [self._context(algorithm, client, state) for client, state in enumerate(states)]
        prepared = [algorithm.inputs(ctx).prepared for ctx in contexts]
        return stacked_values("prepare", type(algorithm).__name__, np.arange(len(states)), prepared)

    # -- what it works on ----------------------------------------------------------------------------------------
    @cached_property
    def _arrays(self) -> Mapping[str, Tensor]:
        """Rows of the first client, repeated if they are too few."""
        setup, partition = self.run_setup, self.run_setup.periods[0].partition
        rows = partition.rows_of("train") if partition.unlabelled.any() else partition.indices
        rows = rows if len(rows) else partition.indices
        return View(tensors(setup.dataset.train), np.resize(rows, SIZES.sum())).take()

    @property
    def _facts(self) -> Tree:
        """Facts of the data of all clients, stacked."""
        rows, outputs = np.split(np.arange(SIZES.sum()), np.cumsum(SIZES)[:-1]), self.run_setup.facts.outputs
        facts = [data_facts(self.client, View(self._arrays, own), self.task, outputs) for own in rows]
        return None if facts[0] is None else stack(facts)

    @property
    def _module(self) -> torch.nn.Module:
        """A copy of the module; another one for each client if training changes its state."""
        return copy.deepcopy(self.run_setup.module) if self.run_setup.facts.state else self._one_module

    @cached_property
    def _one_module(self) -> torch.nn.Module:
        return copy.deepcopy(self.run_setup.module)

    @property
    def _initial(self) -> Initial:
        initial = self.run_setup.initial
        return Initial(initial.trained.clone(), initial.frozen.clone())

    @cached_property
    def _scale(self) -> float:
        """The largest parameter."""
        return max((float(leaf.abs().max()) for leaf in leaves(self.run_setup.model) if leaf.numel()), default=0.0)

    def _short(self, checked: bool) -> LocalTraining:
        """A copy of the algorithm that takes a few plain steps; `checked`: its first objective is checked."""
        algorithm = _copied(self.client)
        needs_two = self.run_setup.facts.needs_two
        own, trial, pending = type(algorithm), self, [checked and users_loss(algorithm, self.task)]

        def phases(self: Any, round_: int, rounds: int) -> tuple[Phase, ...]:
            return tuple(_short(phase, needs_two) for phase in own.phases(self, round_, rounds))

        def phases_of(self: Any, inputs: Any, round_: int, rounds: int) -> tuple[Phase, ...]:
            return tuple(_short(phase, needs_two) for phase in own.phases_of(self, inputs, round_, rounds))

        def objective(self: Any, net: Any, batch: Any, at: Any, task: Any) -> Tensor:
            if pending[0]:
                pending[0] = False
                trial.error = objective_error(trial.objective, self, net, batch, at, task)
            return own.objective(self, net, batch, at, task)

        hooks = {"phases": phases, "phases_of": phases_of, "objective": objective}
        names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__slots__": ()}
        object.__setattr__(algorithm, "__class__", type(own.__name__, (own,), names | hooks))
        return algorithm


def _states_after(found: list[list[_Trained]]) -> list[Tree]:
    """The states with which clients go on: after two exchanges, those of one, none and two (a cohort is mixed)."""
    if len(found[0]) == 1:
        return [ends[0].state for ends in found]
    return [found[0][0].state, None, found[2][1].state]


class _NoTrial(ValueError):
    """There is nothing to try before round 0."""


class _Differs(ValueError):
    """Two values have different structures or shapes."""


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _copied(part: Any) -> Any:
    """A deep copy, or a shallow one if the part holds something that cannot be copied."""
    try:
        return copy.deepcopy(part)
    except Exception:
        return copy.copy(part)


def _short(phase: Phase, needs_two: bool) -> Phase:
    """The phase with few steps, all plain: Adam turns gradients that are zero but for rounding into whole steps.

    needs_two: the model cannot normalise one sample alone.
    """
    optimiser = phase.optimiser if registry.is_users(type(phase.optimiser)) else SGD()
    steps, epochs = None if phase.steps is None else min(phase.steps, STEPS), min(phase.epochs, 1)
    batch = phase.batch if phase.batch == "full" else min(phase.batch, BATCH)
    last = "merge_one" if needs_two and phase.last_batch == "keep" else phase.last_batch
    short = replace(phase, optimiser=optimiser, lr=RATE, decay=None, epochs=epochs, steps=steps)
    return replace(short, batch=batch, last_batch=last)


def _difference(alone: list[list[_Trained]], together: list[list[_Trained]], floor: float) -> str | None:
    """How the ends of clients differ, in words, or `None`. `floor`: absolute difference that is rounding."""
    for one, other in zip(alone, together):
        if len(one) != len(other):
            return "a state in one way and none in the other"
        for a, b in zip(one, other):
            try:
                for path, x, y in (
                    *_pairs("", a.groups, b.groups),
                    *_pairs("state", a.state, b.state),
                    *_pairs("carry", a.carry, b.carry),
                ):
                    x, y = x.double(), y.double()
                    apart, largest = (float(z.abs().max()) if z.numel() else 0.0 for z in (x - y, x))
                    if not apart <= TOLERANCE * largest + floor and not torch.allclose(x, y, equal_nan=True):
                        return f"different updates ({path} is {apart:.2g} apart, its largest element {largest:.2g})"
            except _Differs as error:
                return f"updates of different form ({error})"
    return None


def _pairs(path: str, a: Tree, b: Tree) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Tensors and numbers at the same place in two trees, with their dotted names."""
    if isinstance(a, (Tensor, np.ndarray, int, float)) and isinstance(b, (Tensor, np.ndarray, int, float)):
        x, y = torch.as_tensor(a), torch.as_tensor(b)
        if x.shape != y.shape:
            raise _Differs(f"{path} has shape {tuple(x.shape)} alone and {tuple(y.shape)} together")
        yield path, x, y
        return
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        a, b = ({f.name: getattr(tree, f.name) for f in dataclasses.fields(tree)} for tree in (a, b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        a, b = (dict(enumerate(tree)) for tree in (a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            raise _Differs(f"{path or 'the update'} has {list(a)} alone and {list(b)} together")
        for key in a:
            yield from _pairs(dotted(path, key), a[key], b[key])
    elif type(a) is not type(b) or a != b:
        raise _Differs(f"{path} is {type(a).__name__} alone and {type(b).__name__} together")
