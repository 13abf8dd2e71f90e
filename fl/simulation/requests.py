"""Carry out what a strategy's generators yield."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fl.execution.isolation import isolated
from fl.execution.workers.executor import Executor
from fl.method.messages import Broadcast
from fl.method.requests import Evaluate, EvaluateModel, Exchange, ServerWork, Transfer
from fl.method.strategy import ServerContext, Strategy, checked_metrics, checked_outcome
from fl.simulation.evaluation import assess, evaluate
from fl.simulation.exchange import EVALUATIONS, ExchangeRunner
from fl.simulation.free_exchange import run_free
from fl.simulation.totals import Row
from fl.tracking.spans import span


class Requests:
    """The requests of a strategy's generator, as an iterator. Set `answer` to the answer of each.

    Args:
        generator: what the strategy's hook returned.
        users: whether it is a user's code, which is isolated.

    Attributes:
        answer: what the generator gets for its last request.
        value: what the generator returned.
    """

    def __init__(self, generator: Generator[Any, Any, Any], users: bool):
        self.generator = generator
        self.guard: AbstractContextManager[None] = isolated() if users else nullcontext()
        self.answer: Any = None
        self.value: Any = None

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Any:
        answer, self.answer = self.answer, None
        try:
            with span("server", "strategy"), self.guard:
                return self.generator.send(answer)
        except StopIteration as end:
            self.value = end.value
            raise StopIteration from None


def run_generator(
    generator: Generator[Any, Any, tuple[Any, Mapping[str, Any]]], exchanges: ExchangeRunner, executor: Executor
) -> tuple[Any, Row]:
    """Run a strategy's generator to its end: (the strategy's new state, metrics).

    Raises:
        TypeError: the strategy's hook is no generator, yielded something that is no request, or returned no pair.
        ValueError: it yielded a free exchange.
    """
    strategy, hook = exchanges.run_setup.config.strategy, getattr(generator, "__name__", "round")
    _check_generator(strategy, generator, "round, setup or final")
    requests = Requests(generator, exchanges.users_strategy)
    for request in requests:
        if isinstance(request, Exchange):
            if request.free:
                raise ValueError(
                    f"strategy {type(strategy).__name__}: {hook} yielded Exchange(free=True); only `evaluation` may, "
                    "because the bytes of a round are counted"
                )
            if exchanges.index == EVALUATIONS:
                raise ValueError(f"a round has at most {EVALUATIONS} exchanges; use larger batches, or shorter rounds")
            requests.answer = exchanges.run(request)
        elif isinstance(request, Transfer):
            requests.answer = exchanges.transfer(request)
        else:
            allowed = "an Exchange, ServerWork, Transfer or Evaluate"
            requests.answer = _carry_out(request, exchanges, executor, allowed, evaluating=False)
    state, metrics = checked_outcome(strategy, hook, requests.value)
    return state, _numbers(metrics)


def run_evaluation(
    generator: Generator[Any, Any, Mapping[str, Any]], exchanges: ExchangeRunner, executor: Executor
) -> Row:
    """Run a strategy's generator `evaluation` to its end, and return its metrics.

    Raises:
        TypeError: it is no generator, yielded something that is no request of an evaluation, or returned no mapping.
        ValueError: it yielded an exchange that is not free, or evaluated two models under one name.
    """
    strategy, names = exchanges.run_setup.config.strategy, set[str]()
    who = f"strategy {type(strategy).__name__}: evaluation"
    _check_generator(strategy, generator, "evaluation")
    exchanges.carries = {}  # those of the round
    requests = Requests(generator, exchanges.users_strategy)
    for request in requests:
        if isinstance(request, Exchange):
            if not request.free:
                raise ValueError(f"{who} yielded an exchange that costs bytes; set Exchange(..., free=True)")
            requests.answer = run_free(exchanges, request)
        elif isinstance(request, EvaluateModel):
            if request.name in names:
                raise ValueError(f"{who} evaluated two models with the name {request.name!r}; set EvaluateModel(name=)")
            names.add(request.name)
            requests.answer = evaluate(exchanges, Broadcast.of(request.broadcast), request.name)
        else:
            allowed = "an Exchange, ServerWork, Evaluate or EvaluateModel"
            requests.answer = _carry_out(request, exchanges, executor, allowed, evaluating=True)
    return _numbers(checked_metrics(strategy, "evaluation", requests.value))


def _numbers(metrics: Mapping[str, Any]) -> Row:
    return {name: float(value) if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}


def _carry_out(request: Any, exchanges: ExchangeRunner, executor: Executor, allowed: str, *, evaluating: bool) -> Any:
    """Carry out a request that all generators may yield, and return the answer.

    Args:
        request: what the generator yielded.
        exchanges: the run's exchanges.
        executor: carries out work of the server.
        allowed: the requests that the generator may yield, in words.
        evaluating: whether the generator is `evaluation`.
    """
    if isinstance(request, Evaluate):
        return assess(exchanges, request, evaluating)
    if isinstance(request, ServerWork):
        start = time.perf_counter()
        with span("server", "work"):
            answer = executor.call(request.fn, *request.args)
        exchanges.totals.server_seconds += time.perf_counter() - start
        return answer
    name = type(exchanges.run_setup.config.strategy).__name__
    raise TypeError(f"{name} yielded {request!r}, not {allowed}")


def _check_generator(strategy: Strategy, generator: Any, hooks: str) -> None:
    """Check that a hook returned a generator. `hooks`: the names of the hooks that it may come from."""
    if not isinstance(generator, Generator):
        returned = "metrics" if hooks == "evaluation" else "state, metrics"
        raise TypeError(
            f"strategy {type(strategy).__name__}: {hooks} returned {type(generator).__name__}, expected "
            f"a generator: `outcome = yield Exchange(...)`, then `return {returned}`"
        )


def first_request(strategy: Strategy, state: Any, context: ServerContext) -> Any:
    """Return what a strategy yields first in a round, `None` if nothing; the round is not run."""
    generator = strategy.round(state, context)
    _check_generator(strategy, generator, "round, setup or final")
    request = next(generator, None)
    generator.close()
    return request
