"""Statistics of a partition of columns, on a design whose figures are known, and `fl partition`."""

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from fl.cli.app import app
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.party_stats import PartyStats
from fl.simulation.build import load_data


@pytest.fixture(scope="module")
def design(tmp_path_factory):
    """All eight signs of three columns, and y = 3 a + 2 b + c."""
    x = np.array(list(product([-1.0, 1.0], repeat=3)), np.float32)
    path = tmp_path_factory.mktemp("data") / "design.npz"
    np.savez(path, x=x, y=x @ np.array([3, 2, 1], np.float32))
    return path


def settings(path) -> dict:
    return {
        "data": str(path),
        "task": "regression",
        "partition": {"name": "vertical", "columns": [[0], [2, 1]]},
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"fraction": 1.0},
        "strategy": "splitnn",
    }


def test_importance_and_correlation_of_an_orthogonal_design(design):
    """|phi_j| = |w_j|, so both parties have one half. Columns do not correlate, so Pcor is 0."""
    dataset, (period,) = load_data(resolve(read(settings(design))))
    stats = PartyStats.of(dataset, period.partition)
    assert_allclose(stats.importance, [0.5, 0.5], atol=1e-12)
    assert stats.alpha > 1e6 and stats.icor == pytest.approx(0, abs=1e-12)
    assert_allclose(stats.correlation, np.eye(3), atol=1e-12)
    assert [own.tolist() for own in stats.columns] == [[0], [2, 1]] and stats.rows == (8, 0, 0)


def test_the_command_prints_and_draws(design, tmp_path):
    config, picture = tmp_path / "config.yaml", tmp_path / "parties.png"
    import yaml

    config.write_text(yaml.safe_dump(settings(design)))
    done = CliRunner().invoke(app, ["partition", str(config), "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "active party      importance 0.500, 1 columns: 0" in done.output
    assert "client 0          importance 0.500, 2 columns: 2, 1" in done.output
    assert picture.read_bytes()[:4] == b"\x89PNG"
