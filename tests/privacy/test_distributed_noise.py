"""Distributed discrete Gaussian noise: the law of the draws, the bound of the paper, and whole runs."""

import math

import numpy as np
import pytest

import fl
from fl.errors import ConfigError
from fl.privacy.distributed_discrete_gaussian import concentrated_epsilon, discrete_gaussian
from fl.privacy.secure.quantiser import smallest_width

CONFIG = {
    "seed": 3,
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 20},
    "model": "softmax",
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "evaluation": {"every": 2, "server": False, "clients": 0},
    "execution": {"executor": "serial", "plan": "flat"},
    "privacy": {
        "sampling": {"name": "uniform", "size": 12},
        "clipping": {"bound": 0.5},
        "mechanism": {"name": "distributed_discrete_gaussian", "survivors": 0.5},
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "accountant": "rdp",
    },
    "secure_aggregation": {"protocol": {"name": "secagg", "threshold": 0.5}},
}


@pytest.mark.parametrize("std", [0.5, 1.0, 7.3])
def test_draws_have_the_discrete_normal_law(std):
    draws = discrete_gaussian(std, 60_000, np.random.default_rng(1))
    support = np.arange(-12 * math.ceil(std), 12 * math.ceil(std) + 1)
    weights = np.exp(-(support**2) / (2 * std**2))
    expected = 60_000 * weights / weights.sum()
    likely = expected > 5
    found = np.array([(draws == k).sum() for k in support])
    chi_square = ((found - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < likely.sum() + 5 * math.sqrt(2 * likely.sum())


def test_the_bound_of_the_paper():
    """tau = 10 sum_(k < n) exp(-2 pi^2 s^2 k / (k + 1)); fine noise is as good as one normal number."""
    n, std, d, sensitivity = 3, 0.8, 50, 2.0
    tau = 10 * sum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in (1, 2))
    ratio = sensitivity / (math.sqrt(n) * std)
    expected = min(math.sqrt(ratio**2 + 0.5 * tau * d), ratio + tau * math.sqrt(d))
    assert concentrated_epsilon(sensitivity, std, n, n, d) == pytest.approx(expected, rel=1e-12)
    assert concentrated_epsilon(100.0, 20.0, 25, 30, 10**6) == pytest.approx(1.0, rel=1e-12)


def test_the_noise_of_a_run_is_that_of_its_clients(tmp_path):
    """Runs with and without noise have the same first sum, so their difference is noise: z bound sqrt(n / t) / size."""
    one = {"rounds": 1}
    noisy = fl.run(CONFIG, out=tmp_path / "noisy", **one)
    again = fl.run(CONFIG, out=tmp_path / "again", **one, **{"secure_aggregation.masks": False})
    quiet = fl.run(CONFIG, out=tmp_path / "quiet", **one, **{"privacy.noise_multiplier": 1e-3})
    assert noisy.digest == again.digest
    difference = np.concatenate([(noisy.model[k] - quiet.model[k]).numpy().ravel() for k in noisy.model])
    expected = 1.0 * 0.5 * math.sqrt(12 / 6) / 12
    assert abs(difference.std() - expected) < 5 * expected / math.sqrt(2 * len(difference))
    row = noisy.metrics[0]
    assert "clipped" not in row  # no number of clients is opened without noise
    # rho = 1 / (2 z^2): epsilon is at most rho + 2 sqrt(rho log(1 / delta)) (Bun, Steinke 2016, Proposition 1.3)
    rho = 1 / (2 * (1 - 1e-3) ** 2)
    assert 0.5 * rho < row["epsilon"] < rho + 2 * math.sqrt(rho * math.log(1e3))


def test_epsilon_counts_participations_and_too_few_clients_abort(tmp_path):
    everybody = {"privacy.sampling": {"name": "uniform", "size": 20}}
    rows = fl.run(CONFIG, out=tmp_path / "all", **everybody).metrics
    assert rows[1]["epsilon"] > rows[0]["epsilon"] > 0
    system = {"devices": {"name": "identical", "ms_per_sample": 1.0, "up_mbps": 1.0, "down_mbps": 1.0}, "dropout": 0.5}
    aborted = fl.run(
        CONFIG,
        out=tmp_path / "few",
        system=system,
        **{"privacy.mechanism.survivors": 1.0, "secure_aggregation.protocol.threshold": 0.1},
    )
    quiet = fl.run(CONFIG, out=tmp_path / "none", system=system, **{"secure_aggregation.protocol.threshold": 1.0})
    assert all(row["secure/aborted"] == 1 and row["epsilon"] == 0 for row in aborted.metrics)
    assert any("noise of" in line for line in aborted.metrics[0]["errors"])
    assert aborted.digest == quiet.digest  # nothing was opened: the model is the first one


def test_the_modulus_has_room_for_the_noise():
    assert smallest_width(8, 10, 1, noise_std=1000.0) > smallest_width(8, 10, 1)
    assert 10 * 128 + 12 * math.sqrt(10) * 1000 < 2 ** (smallest_width(8, 10, 1, noise_std=1000.0) - 1)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"secure_aggregation": None}, "privacy.mechanism: 'distributed_discrete_gaussian' has a share of the noise"),
        ({"privacy.accountant": "pld"}, "privacy.accountant: 'pld' has no bound"),
        ({"secure_aggregation.bits": 4}, "secure_aggregation.bits: rounding 650 elements could exceed the clip bound"),
        (
            {"secure_aggregation.bits": 9, "privacy.noise_multiplier": 0.005},
            "secure_aggregation.bits: a client's noise has a standard deviation of 0.521 steps",
        ),
    ],
)
def test_what_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError) as error:
        fl.run(CONFIG, out=tmp_path / "run", **overrides)
    assert message in str(error.value)
