"""How a cohort is cut into chunks when nobody says it: so that workers have work, and calls are paid for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from clients.sgd import LocalSGD
from fl.execution.section import Execution
from fl.execution.training.plan import make_plan
from fl.models.binding import module_params
from fl.tasks.supervised import Classification


def chunk(parameters, cohort):
    """Of a linear model of so many parameters (a multiple of 10) for cohorts of that size."""
    module = nn.Sequential(nn.Linear(parameters // 10 - 1, 10))
    x = torch.zeros(2, parameters // 10 - 1)
    return make_plan(LocalSGD(), module, module_params(module), Classification(), x, Execution(), cohort).chunk


@given(parameters=st.integers(2, 30_000).map(lambda n: 10 * n), cohort=st.integers(1, 20_000))
def test_every_worker_has_work(parameters, cohort):
    size = chunk(parameters, cohort)
    assert size & (size - 1) == 0
    assert size * parameters <= 1 << 21 or size == 1  # fits into caches
    tasks = -(-cohort // size)
    assert tasks >= 2 or cohort == 1 or cohort * parameters <= 1 << 19  # a second one, unless it is all done at once
    assert (
        tasks >= min(8, cohort // 16) or size * parameters <= 1 << 19
    )  # eight, unless calls would cost more than that wins


@pytest.mark.parametrize(
    "parameters, cohort, expected",
    [
        (610, 1_000, 512),  # half of the cohort
        (610, 10_000, 1_024),  # the most
        (610, 50, 256),  # all of it at once
        (25_000, 100, 16),  # 2^19 / 25,000 = 21 clients pay for calls
        (209_660, 100, 8),  # 2^21 / 209,660 = 10 fit into caches
        (209_660, 2, 1),
    ],
)
def test_by_hand(parameters, cohort, expected):
    assert chunk(parameters, cohort) == expected
