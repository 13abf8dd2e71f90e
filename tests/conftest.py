"""Settings of all tests."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from fl.execution.workers.ray_pool import keep_workers

torch.set_num_threads(1)  # sums depend on the number of threads

settings.register_profile("fl", deadline=None)  # a first call may import or compile
settings.load_profile("fl")


@pytest.fixture(autouse=True, scope="module")
def workers_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ray comes up once for all the runs of a module (10 seconds each otherwise), except where that is what is tested."""
    if getattr(request.module, "WORKERS_STAY", True):
        with keep_workers():
            yield
    else:
        yield
