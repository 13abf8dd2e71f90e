"""The audit with canaries: its bound is below epsilon, far below with noise, and large without noise or with an error.

Statements about single runs hold with probability 95 %; the seeds are fixed.
"""

import pytest

from fl.check.bench import Bench, finish
from fl.errors import ConfigError
from fl.simulation.simulation import Simulation

CANARIES = {"canaries": 200}


def last_row(folder, rounds=8, **section):
    bench = Bench({"name": "fedavg"}, {"name": "sgd", "epochs": 1, "batch": 8, "lr": 0.1}, folder)
    with bench.simulation(**private(rounds, **section)) as run:
        return run.run().metrics[-1]


def private(rounds=8, **section):
    defaults = {"sampling": {"rate": 0.5}, "clipping": {"bound": 0.3}, "delta": 1e-5, "audit": CANARIES}
    return {
        "privacy": {**defaults, **section},
        "cohort": None,
        "rounds": rounds,
        "evaluation.every": 100,
        "model.hidden": [200],
    }


@pytest.mark.parametrize(
    "mechanism",
    [
        {},
        {"mechanism": {"name": "banded"}, "sampling": {"name": "min_separation", "separation": 4, "rate": 0.5}},
    ],
    ids=["gaussian", "banded"],
)
def test_the_bound_is_far_below_epsilon_with_noise_and_large_without(mechanism, tmp_path):
    noisy = last_row(tmp_path / "noisy", noise_multiplier=2.0, **mechanism)
    assert noisy["empirical_epsilon"] < 0.5 * noisy["epsilon"]
    bare = last_row(tmp_path / "bare", noise_multiplier=0.0, **mechanism)
    assert bare["epsilon"] is None and bare["empirical_epsilon"] > 1.5


def test_the_bound_is_not_far_from_epsilon_for_one_gaussian_release(tmp_path):
    """One round with everybody, noise multiplier 0.5: epsilon is about 11, and the canaries show more than 1."""
    row = last_row(tmp_path, rounds=1, noise_multiplier=0.5, sampling={"rate": 1.0})
    assert 1 < row["empirical_epsilon"] < row["epsilon"]


def test_a_resumed_audit_has_the_same_bits(tmp_path):
    bench = Bench({"name": "fedavg"}, {"name": "sgd", "epochs": 1, "batch": 8, "lr": 0.1}, tmp_path)
    settings = private(3, noise_multiplier=1.0, clipping={"name": "adaptive", "sigma_b": 2.0})
    plain = bench.run(**settings)
    with bench.simulation(**settings) as first:
        first.run(interrupt=lambda: True)
    with Simulation(first.config, first.directory, resumed=True) as last:
        finish(last).require_same(plain, "resumed")


def test_samplers_that_tie_clients_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="canaries take part independently"):
        last_row(tmp_path, noise_multiplier=1.0, mechanism={"name": "tree"}, sampling={"name": "cyclic", "size": 2})


def test_directions_that_are_too_much_alike_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="privacy.audit.canaries: 2000 random directions .* use at most 551"):
        last_row(tmp_path, rounds=1, noise_multiplier=1.0, audit={"canaries": 2000})
