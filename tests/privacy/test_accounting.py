"""Noise multipliers and epsilons against the values of dp-accounting 0.6.0, and against closed forms."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fl.method.sampler import Poisson
from fl.privacy import accounting
from fl.privacy.gaussian import Gaussian
from fl.privacy.laplace import Laplace
from fl.privacy.mechanism import Sampling


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "cache_folder", lambda: tmp_path)


def sampling(rate, releases):
    return Sampling(Poisson(rate=rate), rate, 1000, releases)


@pytest.mark.parametrize(
    "releases, accountant, expected",
    [(1500, "pld", 0.6161), (1500, "rdp", 0.7138), (3000, "pld", 0.6328), (3000, "rdp", 0.7247)],
)
def test_noise_multipliers(releases, accountant, expected):
    """Poisson sampling q = 1e-3, epsilon 2, delta 1e-6, add or remove one client."""

    def make_event(z):
        return Gaussian().event(z, sampling(1e-3, releases), releases)

    assert accounting.noise_multiplier(make_event, 2.0, 1e-6, accountant) == pytest.approx(expected, rel=0.01)


def test_noise_multipliers_are_kept_on_disk(monkeypatch):
    def make_event(z):
        return Gaussian().event(z, sampling(0.1, 20), 20)

    first = accounting.noise_multiplier(make_event, 1.0, 1e-5, "rdp")
    monkeypatch.setattr(accounting, "search", None)
    assert accounting.noise_multiplier(make_event, 1.0, 1e-5, "rdp") == first
    with pytest.raises(TypeError):
        accounting.noise_multiplier(make_event, 1.5, 1e-5, "rdp")


@pytest.mark.parametrize("releases, z", [(1, 1.0), (10, 2.0), (100, 5.0)])
def test_everybody_in_each_round_is_one_gaussian(releases, z):
    """Without sampling t releases are a Gaussian mechanism of mu = sqrt(t) / z (Balle, Wang 2018, Theorem 8)."""
    mu, delta = math.sqrt(releases) / z, 1e-5

    def excess(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - delta

    found = accounting.epsilon(Gaussian().event(z, sampling(1.0, releases), releases), delta)
    assert found == pytest.approx(brentq(excess, 1e-6, 100), rel=2e-3)


def test_laplace_noise_adds_up():
    """At delta 0, t releases of scale b have epsilon t / b; sampling with q has t log(1 + q (e^(1/b) - 1))."""
    assert Laplace().pure_epsilon(4.0, sampling(1.0, 10), 10) == pytest.approx(2.5)
    assert Laplace().pure_epsilon(4.0, sampling(0.1, 10), 10) == pytest.approx(
        10 * math.log(1 + 0.1 * (math.e**0.25 - 1))
    )


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_tiny_noise_does_not_fill_the_memory(mechanism):
    """Two releases with noise z lose 1 / z^2 (Gaussian: twice the mean loss 1 / (2 z^2)) or 2 / z (Laplace) or more."""
    dp = accounting.dp_accounting()
    once = dp.GaussianDpEvent(1e-4) if mechanism == "gaussian" else dp.LaplaceDpEvent(1e-6)
    found = accounting.epsilon(dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.5, once), 2), 1e-5)
    least = 1e8 if mechanism == "gaussian" else 2e6
    assert 0.5 * least < found < 1.2 * least
