"""What a worker does with its part of an exchange; the serial executor is one worker that gets all of it.

    positions -> broadcast of each client -> client work -> client transforms -> codec ~~> server transforms -> lift -> fold

A worker is resident: it holds the data, the model's structure and the job; an exchange brings it a `ExchangeDispatch` and it answers
a `PartialResult`: the nodes of the reduction tree that it could fold, and columns of plain numbers by cohort position.
"""

from __future__ import annotations


