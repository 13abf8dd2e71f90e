"""Free exchanges: part of an evaluation, so that nothing is booked and clients keep the states that they had."""

from __future__ import annotations

import numpy as np

from fl.method.messages import Broadcast
from fl.method.reduction import Product
from fl.method.requests import Exchange, ExchangeResult
from fl.simulation.answers import answers_of
from fl.simulation.exchange import ExchangeRunner


def run_free(exchanges: ExchangeRunner, exchange: Exchange) -> ExchangeResult:
    """Carry out an exchange of an evaluation. It has the number of an evaluation, so later draws stay the same."""
    cohort, place = exchanges.largest_first(exchange), exchanges.evaluation_place()
    broadcast = exchanges.downlink.send_free(exchange.work, Broadcast.of(exchange.broadcast), place)
    result = exchanges.dispatch(
        kind="work",
        number=place.number,
        work=exchange.work,
        cohort=cohort,
        broadcast=broadcast,
        reduction=Product(exchange.reductions),
        plan=exchanges.plan(exchange, broadcast),
        carries=exchanges.carries_of(cohort),
        skeleton=exchange.skeleton,
        pin=exchange.pin,
    )
    columns = result.columns.reordered(np.argsort(cohort))
    dropped = columns.column("dropped", len(cohort), False)
    exchanges.remember_carries(np.sort(cohort), columns, dropped)
    answers = answers_of(np.sort(cohort), columns, dropped)
    return ExchangeResult(exchange.reduced(result.value), answers.clients, answers.num_examples, answers.pooled)
