"""`make test` runs tests with one `xdist_group` in one process: they share Ray, runs and compiled code."""

import pytest


@pytest.mark.xdist_group("one")
def test_the_name_of_a_test_ends_with_its_group(request):
    """pytest-xdist reads the group there; if it is missing, each process makes all runs and starts a Ray."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith("@one")
