"""One run: rounds of exchanges, each committed as a whole.

sample a cohort -> the strategy's round (each Exchange: broadcast, train, reduce; then step) -> evaluate -> commit
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fl.communication.ledger import Ledger
from fl.config.config import Config
from fl.config.digest import config_digest
from fl.errors import ConfigError, located
from fl.execution.hidden_state import HiddenStateWatch
from fl.execution.isolation import isolated
from fl.execution.job import Job
from fl.execution.workers.choose import Choice, asked_for, new_executor
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.process import ServerMemory, configure_process
from fl.method.requests import Exchange
from fl.method.strategy import ServerContext, Strategy
from fl.simulation import unchanged
from fl.simulation.agreement import check_asynchronous, check_finite, check_groups, check_state
from fl.simulation.asynchronous import AsynchronousRunner
from fl.simulation.build import set_up_run
from fl.simulation.candidates import choose_cohort
from fl.simulation.evaluation import add_period, all_evaluated
from fl.simulation.exchange import EMPTY_COHORT, ExchangeRunner
from fl.simulation.final_work import run_final
from fl.simulation.headline import headline
from fl.simulation.optimiser_average import OptimiserAverage
from fl.simulation.private_checks import check_private_rounds, withhold_clients
from fl.simulation.record import record_of, restore
from fl.simulation.requests import first_request, run_evaluation, run_generator
from fl.simulation.result import Result, save_result
from fl.simulation.samples import check_samples, write_samples
from fl.simulation.secure_exchanges import check_secure
from fl.simulation.setup import RunSetup
from fl.simulation.stopping import Stopping, check_metric_names, names_in
from fl.simulation.totals import Row
from fl.simulation.workload import choose_executor
from fl.storage.clients import ClientStates
from fl.storage.lock import locked
from fl.storage.run import RunDirectory, committed, open_run
from fl.system.asynchronous import Asynchronous, Buffered
from fl.tensors import random
from fl.tensors.generators import seeded_generators
from fl.tensors.params import Params
from fl.tensors.trees import Tree
from fl.tracking.callback import Callback, Callbacks
from fl.tracking.spans import span

SETUP = -1  # the ledger's round for work before round 0
INIT = -2  # address of draws in `Strategy.init`
UNPROTECTED = "a crash or a hang of client code ends a serial run"
NO_CALLBACKS = Callbacks()
Steps = Generator[Row, None, Result]


class Simulation:
    """A run in progress. What lasts from round to round is in its record (record.py).

    Args:
        config: the resolved configuration.
        directory: the run directory.
        resumed: continue from the last commit in `directory`.
        executor: runs the clients' work, in place of the one that the configuration asks for.
        changed: resume although something that results depend on has changed.

    Raises:
        ConfigError: the parts do not fit together, or `directory` holds a run and `resumed` is False.
    """

    # what lasts from round to round, and what a round needs
    round: int
    setup_done: bool  # whether the strategy has done its work before round 0
    state: Any  # the strategy's
    sampler: Tree  # the sampler's state
    exchanges: ExchangeRunner
    folder: RunDirectory
    states: ClientStates
    executor: Executor
    digest: str  # of the configuration
    choice: Choice | None  # of the executor; None if it was given

    def __init__(
        self,
        config: Config,
        directory: Path,
        resumed: bool = False,
        executor: Executor | None = None,
        changed: bool = False,
    ):
        self.config, self.directory, self.changed = config, directory, changed
        self.digest = config_digest(config)
        self.memory = ServerMemory()
        with ExitStack() as stack:
            stack.enter_context(locked(directory))
            if not resumed and committed(directory):
                raise ConfigError("out", f"{directory} holds a run already; `fl resume {directory}` continues it")
            configure_process()
            self.choice = asked_for(config.execution) if executor is None else None
            given = executor if self.choice is None else new_executor(self.choice, config.execution)
            if given is not None:  # Ray starts while the run is set up
                self._prepare(given, stack)
            self.run_setup = set_up_run(config)
            if given is None:
                self.choice = choose_executor(self.run_setup)
                self._prepare(new_executor(self.choice, config.execution), stack)
            self._set_up(resumed, stack)
            self._closing = stack.pop_all()

    def _prepare(self, executor: Executor, stack: ExitStack) -> None:
        """Take an executor, and begin its start."""
        self.executor = executor
        stack.callback(executor.close)
        executor.prepare()

    # -- the run --------------------------------------------------------------------------------------------------
    def run(self, callbacks: Iterable[Callback] = (), interrupt: Callable[[], bool] = lambda: False) -> Result:
        """Run all rounds that are left; see fl/simulation/run.py for `callbacks` and `interrupt`."""
        return exhausted(self.steps(Callbacks(callbacks), interrupt))

    def steps(self, callbacks: Callbacks, interrupt: Callable[[], bool]) -> Steps:
        """Run all rounds that are left; yield the row of each committed round. Closing the generator interrupts."""
        callbacks = Callbacks([*callbacks.all, *self.config.tracking])
        try:
            callbacks.start(self)
            self.start_workers()
            callbacks.ready(self)
            self.before_rounds()
            interrupted = False
            while not (self.finished or interrupted):
                with span("server", "round", self.round):
                    row = self.one_round(callbacks)
                    interrupted = interrupt()
                    committed_rows = self.commit() if interrupted or self.due else []
                callbacks.computed(row)
                for row in committed_rows:
                    callbacks.round(row)
                    yield row
            result = self._interrupted() if interrupted and not self.finished else self._finish(callbacks)
            callbacks.end(result)
            return result
        except GeneratorExit:
            if self.pending:  # the caller stops in the middle of several rounds of one commit
                self.commit()
            callbacks.end(self._interrupted())
            raise
        except BaseException as error:
            callbacks.failure(error)
            raise

    def stop(self, reason: str) -> None:
        """End the run after the present round, as a condition of the section `stop` does."""
        self.stopping.reason = reason or "stopped"

    @property
    def model(self) -> Params:
        """A copy of the server's model after the last round that was computed, so that callbacks cannot change it."""
        return self.config.strategy.model(self.state).clone()

    def _interrupted(self) -> Result:
        model = self.config.strategy.model(self.state)
        return save_result(self.folder, self.round, "interrupted", model, self.digest)

    def _finish(self, callbacks: Callbacks) -> Result:
        """Let the strategy work after the last round, and write the result."""
        if self.stopping.reason != self.committed_reason:  # the caller has stopped the run between two rounds
            self.commit()
        state, final_row = run_final(self)
        if final_row is not None:
            self.folder.keep_final(final_row, {"round": self.round, "state": state}, self.states)
            callbacks.final(final_row)
        model = self.config.strategy.model(state)
        return save_result(self.folder, self.round, self.stopping.reason or "all rounds done", model, self.digest)

    def one_round(self, callbacks: Callbacks = NO_CALLBACKS) -> Row:
        """Run one round: sample a cohort, broadcast, train, reduce, step, evaluate. Return the round's metrics."""
        start, strategy = time.perf_counter(), self.config.strategy
        with self.hidden_state.during(f"round {self.round}", partial(self._draws, self.round)):
            cohort = self._sample()
            generator = strategy.round(self.state, self.context(cohort))
            self.state, metrics = run_generator(generator, self.exchanges, self.executor)
            check_finite(strategy, self.state)
            if self.exchanges.observed is not None:
                self.sampler = self.exchanges.observed.learn(self.config.cohort, self.sampler)
        row = {"round": self.round, **self.exchanges.totals.summary(), "cohort_size": len(cohort), **metrics}
        evaluated = (self.round + 1) % self.config.evaluation.every == 0 or self.round + 1 in self.run_setup.ends
        if evaluated:
            row |= self.evaluate(self.state, cohort)
            if self.round + 1 in self.run_setup.ends:
                row |= add_period(self.accuracy_matrix, row, self.exchanges.period)
        with span("evaluate", "samples"):
            write_samples(self.run_setup, strategy, self.state, self.round, self.directory)
        row |= self.folder.ledger.totals(self.round)
        private = self.exchanges.private
        epsilon = None if private is None else private.next_epsilon
        is_best = self.stopping.check(row, evaluated, self.exchanges.time.now, epsilon)
        self.best_pending |= is_best and self.config.checkpoint.best
        self.memory.after_round()
        row |= self._measured(callbacks, row)
        row["wall_seconds"] = time.perf_counter() - start
        self.round += 1
        self.pending.append(row)
        return row

    def _measured(self, callbacks: Callbacks, row: Row) -> dict[str, float]:
        """Return the metrics of the user's callbacks. What they draw and set does not reach the run."""
        if not callbacks.measures:
            return {}
        with seeded_generators(int(random.hash64(self.config.seed, self.round, "callbacks"))), isolated():
            return callbacks.measure(self, row)

    @property
    def finished(self) -> bool:
        """Whether all rounds are done, or a target, the patience or the virtual time has ended the run."""
        return self.round >= self.config.rounds or bool(self.stopping.reason)

    @property
    def due(self) -> bool:
        """Whether the rounds since the last commit have to be committed now."""
        return self.finished or self.best_pending or self.round % rounds_per_commit(self.config) == 0

    def start_workers(self) -> None:
        """Give the workers what they need."""
        with span("server", "workers start"):
            self.executor.start(self.job, self.states)

    def before_rounds(self) -> None:
        """Let the strategy do its work before round 0, once; booked as round -1 if there is any."""
        if self.setup_done:
            return
        with span("server", "setup"), self.hidden_state.during("its work before round 0", partial(self._draws, SETUP)):
            start = time.perf_counter()
            self.exchanges.begin(self.round, SETUP, EMPTY_COHORT)
            generator = self.config.strategy.setup(self.state, self.context(EMPTY_COHORT))
            try:
                self.state, metrics = run_generator(generator, self.exchanges, self.executor)
            except ConfigError:
                raise
            except ValueError as error:
                raise located("strategy", error) from error
            if self.exchanges.index or metrics:
                totals = {**self.exchanges.totals.summary(), **metrics, **self.folder.ledger.totals(SETUP)}
                self.pending.append({"round": SETUP, **totals, "wall_seconds": time.perf_counter() - start})
            self.setup_done = True
        if type(self.config.strategy).setup is not Strategy.setup:
            self._check_state()

    def _check_state(self) -> None:
        """Check the state with which round 0 starts, and the first request that the strategy makes from it."""
        check_state(self.config.strategy, self.state)
        request = self.first_request()
        check_groups(self.config, request)
        if isinstance(request, Exchange):
            OptimiserAverage(self.config).extend(request)  # it refuses some exchanges
        check_asynchronous(self.config, request)
        check_secure(self.run_setup, request)
        if self.private_clients:
            check_private_rounds(self)

    # -- parts of a round -----------------------------------------------------------------------------------------
    def _sample(self) -> np.ndarray:
        """Draw the cohort, and begin the round at the virtual time at which it starts."""
        sizes = self.run_setup.trainable_sizes(self.round)
        with span("server", "sample"):
            self.sampler, cohort, starts = self.exchanges.sample(self.sampler, self.first_request, self.round, sizes)
        self.exchanges.begin(self.round, self.round, cohort)
        self.exchanges.wait(starts)
        return choose_cohort(self, cohort) if self.config.cohort.chooses else cohort

    def evaluate(self, state: Any, cohort: np.ndarray) -> Row:
        """Return the metrics of the strategy's evaluation of a state."""
        evaluated = all_evaluated(self.run_setup, self.exchanges.period)
        context = replace(self.context(cohort), cohort=cohort, evaluated=evaluated)
        with span("evaluate", "evaluation"):
            return run_evaluation(self.config.strategy.evaluation(state, context), self.exchanges, self.executor)

    def _draws(self, round_: int) -> int:
        """Return the seed of the global generators, from which a user's code on the server may draw."""
        return int(random.hash64(self.config.seed, round_, "server"))

    def context(self, cohort: np.ndarray) -> ServerContext:
        """Return what the strategy may know in the present round."""
        context = self.run_setup.server_context(self.round, cohort)
        return withhold_clients(context) if self.private_clients else context

    @property
    def private_clients(self) -> bool:
        """Whether the run protects whole clients."""
        plan = self.run_setup.privacy
        return plan is not None and plan.section.unit == "client"

    # -- set-up ---------------------------------------------------------------------------------------------------
    def _set_up(self, resumed: bool, stack: ExitStack) -> None:
        """Make the state of the run, and take over the last commit of a resumed one. `stack` closes what it opens."""
        self.config = config = self.run_setup.config
        self.round, self.setup_done, self.best_pending = 0, False, False
        check_metric_names(self.run_setup, names_in(config.evaluation.select, config.stop.target))
        check_samples(self.run_setup)
        self.stopping = Stopping(config)
        self.accuracy_matrix: list[list[float]] = []  # of a stream: accuracy on each task after each task
        self.pending: list[Row] = []  # rounds that are not committed yet
        self.committed_reason = ""  # of the end, as the last commit has it
        with seeded_generators(self._draws(INIT)):
            self.sampler = config.cohort.init(self.run_setup.trainable)
            try:
                self.state = config.strategy.init(self.run_setup.model, self.context(EMPTY_COHORT))
            except ValueError as error:
                raise located("strategy", error) from error
        self.hidden_state = HiddenStateWatch(
            {"strategy": config.strategy, "cohort": config.cohort, "server": config.server, "codec": config.down}
            | {"adversary": config.adversary, "after_reduction": config.after_reduction}
            | ({} if config.privacy is None else {"privacy": [config.privacy.mechanism, config.privacy.clipping]})
        )
        if type(config.strategy).setup is Strategy.setup:  # otherwise rounds start from a state that `setup` makes
            self._check_state()
        self.states = ClientStates(self.directory / "clients", self.run_setup.population)
        stack.callback(self.states.close)
        self.folder, record = open_run(self.directory, Ledger, self.states, resumed)
        stack.callback(self.folder.close)
        self.exchanges = new_runner(self.run_setup, self.executor, self.states, self.folder)
        private = self.exchanges.private
        if record:
            unchanged.require_unchanged(self.folder, self.run_setup, record["round"], self.changed)
            restore(self, record)
            if private is not None:
                self.stopping.reason = self.stopping.reason or self.stopping.exceeded(private.next_epsilon())
            self.committed_reason = self.stopping.reason
        elif private is not None:
            self.stopping.check_first_round(private.next_epsilon())
        self.folder.begin(self.states)
        if not record:
            unchanged.describe(self.folder, self.run_setup)
        self.folder.configure(config.to_dict())  # a resumed run may have more rounds

    def first_request(self) -> Any:
        """Return what the strategy yields first in the present round; None if nothing. The round is not run."""
        context = self.context(np.arange(min(self.run_setup.trainable, 2)))
        return first_request(self.config.strategy, self.state, context)

    @property
    def rounds(self) -> int:
        """Rounds planned."""
        return self.config.rounds

    @property
    def every(self) -> int:
        """Rounds from one evaluation to the next."""
        return self.config.evaluation.every

    @property
    def job(self) -> Job:
        """What workers need for the whole run."""
        return self.run_setup.job(self.directory / "clients", self.directory / "scratch")

    @property
    def headline(self) -> str:
        """One line that tells what runs."""
        place = "" if self.choice is None else self.choice.words(self.run_setup.plan.kind)
        line = headline(self.run_setup, self.directory, place, self.digest)
        return f"{line}. Note: {UNPROTECTED}" if isinstance(self.executor, Serial) else line

    # -- commits --------------------------------------------------------------------------------------------------
    def commit(self) -> list[Row]:
        """Write everything up to the present round to disk, in one step; return the metrics of the new rounds."""
        with span("server", "commit"):
            self.folder.commit(self.pending, record_of(self), self.states, self.best_pending)
            rows, self.pending, self.best_pending = self.pending, [], False
            self.committed_reason = self.stopping.reason
        return [row for row in rows if row["round"] != SETUP]

    def __enter__(self) -> Simulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()


def exhausted(steps: Steps) -> Result:
    """Take all steps of a run, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def new_runner(run_setup: RunSetup, executor: Executor, states: ClientStates, folder: RunDirectory) -> ExchangeRunner:
    """Make what carries out the exchanges of a run."""
    kind = AsynchronousRunner if isinstance(run_setup.config.server, Asynchronous) else ExchangeRunner
    return kind(run_setup, executor, states, folder)


def rounds_per_commit(config: Config) -> int:
    """Return the rounds between commits: more for a buffered server, whose commit waits for all clients in flight."""
    server = config.server
    in_flight = server.concurrency // server.buffer if isinstance(server, Buffered) else 1
    return config.checkpoint.every or max(1, in_flight)
