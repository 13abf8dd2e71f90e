"""Carry out what a strategy's generator yields."""

from __future__ import annotations

import time
from typing import Any

from fl.execution.workers.executor import Executor
from fl.method.requests import Evaluate, ServerWork, Transfer
from fl.method.strategy import ServerContext, Strategy
from fl.simulation.evaluation import assess
from fl.simulation.exchange import ExchangeRunner
from fl.tracking.spans import span


def carry_out(request: Any, exchanges: ExchangeRunner, executor: Executor) -> Any:
    """Carry out a request other than an exchange, and return the answer that the generator is sent.

    Raises:
        TypeError: the strategy yielded something else.
    """
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


def first_request(strategy: Strategy, state: Any, context: ServerContext) -> Any:
    """Return what a strategy yields first in a round, `None` if nothing; the round is not run."""
    generator = strategy.round(state, context)
    request = next(generator, None)
    generator.close()
    return request
