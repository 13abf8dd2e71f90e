"""What clients answered in an exchange, and what the strategy is answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fl.execution.columns import Columns
from fl.execution.isolation import isolated
from fl.method.after_reduction import ReductionContext, apply_all
from fl.method.requests import Exchange, ExchangeResult
from fl.privacy.withheld import Withheld
from fl.simulation.totals import weighted_mean
from fl.tracking.spans import span

if TYPE_CHECKING:
    from fl.simulation.exchange import ExchangeRunner

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """What the clients of an exchange answered.

    Args:
        clients: ids of those that answered, (n,).
        num_examples: their numbers of training samples, (n,).
        pooled: means of their metrics, weighted by these numbers.
        metrics: their metrics, (n,) each.
    """

    clients: np.ndarray
    num_examples: np.ndarray
    pooled: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]


def answers_of(cohort: np.ndarray, columns: Columns, dropped: np.ndarray) -> Answers:
    """Return what clients answered.

    Args:
        cohort: ids of the clients, (n,).
        columns: what came of their work, in the order of `cohort`.
        dropped: whether each was left out, bool (n,).
    """
    n, good = len(cohort), ~dropped
    examples, metrics = columns.column("num_examples", n, 0), columns.metrics(n)
    if not dropped.any():
        pooled = {name: weighted_mean(values, examples) for name, values in metrics.items()}
        return Answers(cohort, examples, pooled, metrics)
    pooled = {name: weighted_mean(values, examples * good) for name, values in metrics.items()}
    return Answers(cohort[good], examples[good], pooled, {name: values[good] for name, values in metrics.items()})


def result_for(
    exchanges: ExchangeRunner, exchange: Exchange, number: int, value: Any, answers: Answers, tier: int = 0
) -> ExchangeResult:
    """Return what the strategy is answered, after the parts of `after_reduction`.

    Args:
        exchanges: the run's exchanges; its totals count what is done here.
        exchange: the strategy's request.
        number: number of the exchange in the run.
        value: group -> reduced value; None if no client answered.
        answers: what the clients answered.
        tier: tier of the clients, for a tiered server.
    """
    config, totals = exchanges.run_setup.config, exchanges.totals
    clients, examples = answers.clients, answers.num_examples
    if exchanges.private is not None:
        with span("server", "privacy"), isolated():
            value, figures = exchanges.private.release(exchange, value, clients)
        totals.after_reduction |= figures
    elif exchange.work == "train" and len(examples) and not examples.any():
        totals.unweighted += 1
        value = None
        log.warning(
            "round %d: no client of the cohort has a row to learn from; their updates have no weight",
            exchanges.round,
        )
    if config.after_reduction and value is not None:
        known: tuple[Any, Any] = (clients, examples)
        if exchanges.private is not None:
            known = (Withheld("ReductionContext.clients"), Withheld("ReductionContext.num_examples"))
        ctx = ReductionContext(config.seed, exchanges.round, number, exchange.work, *known)
        with span("server", "after reduction"), isolated():
            value, figures = apply_all(config.after_reduction, value, ctx)
        totals.after_reduction |= figures
    if exchanges.private is not None:
        return exchanges.private.result(exchange, value, clients, examples)
    return ExchangeResult(exchange.reduced(value), clients, examples, answers.pooled, tier)
