"""Carry out what a strategy's generators yield."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from typing import Any

import torch

from fl.execution.isolation import isolated
from fl.execution.workers.executor import Executor
from fl.method.requests import Evaluate, Exchange, ServerWork, Transfer
from fl.method.strategy import ServerContext, Strategy, checked_outcome
from fl.simulation.evaluation import assess
from fl.simulation.exchange import ExchangeRunner
from fl.simulation.totals import Row
from fl.tracking.spans import span


def run_generator(
    generator: Generator[Any, Any, tuple[Any, Mapping[str, Any]]], exchanges: ExchangeRunner, executor: Executor
) -> tuple[Any, Row]:
    """Run a strategy's generator to its end: (the strategy's new state, metrics).

    Raises:
        TypeError: the strategy's hook is no generator, yielded something that is no request, or returned no pair.
    """
    strategy = exchanges.run_setup.config.strategy
    _check_generator(strategy, generator)
    answer: Any = None
    while True:
        try:
            with span("server", "strategy"), isolated():
                request = generator.send(answer)
        except StopIteration as end:
            state, metrics = checked_outcome(strategy, getattr(generator, "__name__", "round"), end.value)
            return state, {k: float(v) if isinstance(v, torch.Tensor) else v for k, v in metrics.items()}
        if isinstance(request, Exchange):
            answer = exchanges.run(request)
        else:
            answer = _carry_out(request, exchanges, executor)


def _carry_out(request: Any, exchanges: ExchangeRunner, executor: Executor) -> Any:
    """Carry out a request other than an exchange, and return the answer for the generator."""
    if isinstance(request, Transfer):
        return exchanges.transfer(request)
    if isinstance(request, Evaluate):
        return assess(exchanges, request)
    if isinstance(request, ServerWork):
        start = time.perf_counter()
        with span("server", "work"):
            answer = executor.call(request.fn, *request.args)
        exchanges.totals.server_seconds += time.perf_counter() - start
        return answer
    name = type(exchanges.run_setup.config.strategy).__name__
    raise TypeError(f"{name} yielded {request!r}, not an Exchange, ServerWork, Transfer or Evaluate")


def _check_generator(strategy: Strategy, generator: Any) -> None:
    """Check that `round`, `setup` or `final` returned a generator."""
    if not isinstance(generator, Generator):
        raise TypeError(
            f"strategy {type(strategy).__name__}: round, setup or final returned {type(generator).__name__}, expected "
            "a generator: `outcome = yield Exchange(...)`, then `return state, metrics`"
        )


def first_request(strategy: Strategy, state: Any, context: ServerContext) -> Any:
    """Return what a strategy yields first in a round, `None` if nothing; the round is not run."""
    generator = strategy.round(state, context)
    _check_generator(strategy, generator)
    request = next(generator, None)
    generator.close()
    return request
