"""Mechanisms with correlated noise: their account, their noise, and runs with the same bits everywhere."""

import numpy as np
import pytest
import torch

from fl.check.bench import Bench
from fl.errors import ConfigError
from fl.method.min_separation import MinSeparation
from fl.method.sampler import Cyclic, Fixed, Poisson
from fl.privacy import toeplitz, tree
from fl.privacy.accounting import epsilon
from fl.privacy.factorised import Banded, TreeAggregation
from fl.privacy.gaussian import Gaussian
from fl.privacy.mechanism import Release, Sampling
from fl.privacy.sampling import expected_size, rate_of
from fl.privacy.streams import Streams
from fl.simulation.simulation import Simulation
from fl.tensors.params import Params
from tests.interfaces.laws import check_on_ray, check_order_and_resume

LIKE = {"model": Params.of({"w": torch.zeros(5, 7), "b": torch.zeros(3)}), "c": torch.zeros(4)}


def sampling(sampler, releases, population=1000):
    return Sampling(sampler, rate_of(sampler), population, releases)


def gaussian_epsilon(multiplier, delta):
    """Balle, Wang 2018, Theorem 8."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = 1 / multiplier

    def excess(e):
        return norm.cdf(mu / 2 - e / mu) - np.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta

    return brentq(excess, 0, 100)


# -- the account ------------------------------------------------------------------------------------------------------
def test_one_band_is_the_gaussian_mechanism():
    who = sampling(Poisson(rate=0.01), 50)
    assert Banded().event(1.1, who, 50) == Gaussian().event(1.1, who, 50)
    for release in range(3):
        at = Release(release, 0.7, who, Streams(3))
        ours, theirs = Banded().noise(None, LIKE, at)[0], Gaussian().noise(None, LIKE, at)[0]
        assert torch.equal(ours["model"].buffers[0], theirs["model"].buffers[0]) and torch.equal(ours["c"], theirs["c"])
        assert Banded().std(at) == pytest.approx(Gaussian().std(at))


def test_bands_within_the_separation_are_amplified():
    """Rate 0.1 in each of 8 subsets, 40 rounds: 5 releases with Poisson sampling at rate 0.1."""
    import dp_accounting as dp
    from dp_accounting import pld

    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, 5e-4)
    accountant.compose(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(0.8)), 5)
    who = sampling(MinSeparation(separation=8, rate=0.1), 40)
    events = {repr(Banded(bands=bands).event(0.8, who, 40)) for bands in (None, 3, 8)}
    assert len(events) == 1
    assert epsilon(Banded().event(0.8, who, 40), 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=0.005)


@pytest.mark.parametrize("sampler", [MinSeparation(separation=8), Cyclic(size=125)])
def test_without_sampling_the_account_is_that_of_one_gaussian_release(sampler):
    """5 participations that do not overlap: sensitivity sqrt(5)."""
    who = sampling(sampler, 40)
    assert epsilon(Banded(bands=8).event(4.0, who, 40), 1e-5) == pytest.approx(
        gaussian_epsilon(4.0 / np.sqrt(5), 1e-5), rel=0.005
    )


def test_more_bands_than_the_separation_are_not_amplified():
    who = sampling(MinSeparation(separation=8, rate=0.1), 40)
    mechanism = Banded(bands=40, coefficients="square_root")
    c = toeplitz.square_root(40)
    size = toeplitz.sensitivity(c, 40, 8) / np.linalg.norm(c)  # itself tested by brute force
    assert epsilon(mechanism.event(4.0, who, 40), 1e-5) == pytest.approx(gaussian_epsilon(4.0 / size, 1e-5), rel=0.005)


def test_trees_are_not_amplified():
    """16 rounds, 4 apart: 4 participations; nodes of 1, 2, 4, 8, 16 rounds have 1, 1, 1, 2, 4 of them."""
    who = sampling(MinSeparation(separation=4, rate=0.1), 16)
    size = np.sqrt(4 + 4 + 4 + 2 * 2**2 + 4**2)
    assert epsilon(TreeAggregation().event(8.0, who, 16), 1e-5) == pytest.approx(
        gaussian_epsilon(8.0 / size, 1e-5), rel=0.005
    )


def test_epsilon_of_the_first_rounds_grows_with_each_participation():
    who = sampling(MinSeparation(separation=4, rate=0.5), 16)
    spent = [epsilon(Banded().event(1.0, who, t), 1e-5) for t in range(1, 17)]
    assert all(a <= b for a, b in zip(spent, spent[1:])) and len(set(spent)) == 4


def test_expected_cohorts():
    assert expected_size(MinSeparation(separation=8, rate=0.4), 1000) == pytest.approx(50)
    assert expected_size(Poisson(rate=0.4), 1000) == 400 and expected_size(Cyclic(size=7), 1000) == 7


@pytest.mark.parametrize(
    ("mechanism", "sampler", "message"),
    [
        (Banded(bands=3), Poisson(rate=0.1), "use {name: min_separation"),
        (TreeAggregation(), Poisson(rate=0.1), "use {name: min_separation"),
        (TreeAggregation(), Fixed(clients=(1, 2)), "'fixed' does not bound how often a client takes part"),
        (Banded(bands=50), MinSeparation(separation=4), "bands: 50 is more than the 40 rounds"),
    ],
)
def test_samplers_that_do_not_fit_are_refused(mechanism, sampler, message):
    with pytest.raises(ValueError, match=message):
        mechanism.check(sampling(sampler, 40))


# -- the noise --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mechanism", "variances"),
    [
        (Banded(bands=4), toeplitz.variances(toeplitz.optimised(4, 12), 12)),
        (TreeAggregation(restart=8), tree.variances(12, 8)),
    ],
)
def test_noise_has_the_stated_deviations(mechanism, variances):
    """Prefix sums over 40,000 coordinates: the deviation of a deviation is 1 / sqrt(80,000) = 0.35 %."""
    who, like = sampling(MinSeparation(separation=4), 12), {"x": torch.zeros(40_000)}
    unit = np.linalg.norm(toeplitz.optimised(4, 12)) if isinstance(mechanism, Banded) else 1.0
    prefix = torch.zeros(40_000)
    for release in range(12):
        at = Release(release, 2.0, who, Streams(5))
        noise = mechanism.noise(None, like, at)[0]["x"]
        assert float(noise.std()) == pytest.approx(mechanism.std(at), rel=0.02)
        prefix += noise
        assert float(prefix.std()) == pytest.approx(2.0 * unit * np.sqrt(variances[release]), rel=0.02)


# -- runs -------------------------------------------------------------------------------------------------------------
def private(mechanism, **settings):
    section = {
        "sampling": {"name": "min_separation", "separation": 2},
        "clipping": {"bound": 0.5},
        "mechanism": mechanism,
        "noise_multiplier": 1.0,
        "delta": 1e-5,
        "audit": {"canaries": 20},
        **settings,
    }
    return {"privacy": section, "cohort": None, "rounds": 5, "model.hidden": [12]}


@pytest.fixture
def federation(tmp_path):
    return Bench({"name": "fedavg"}, {"name": "sgd", "epochs": 1, "batch": 8, "lr": 0.1}, tmp_path)


@pytest.mark.parametrize("mechanism", [{"name": "banded"}, {"name": "tree", "restart": 4}], ids=["banded", "tree"])
def test_any_division_of_work_and_a_resume_give_the_same_bits(mechanism, federation):
    check_order_and_resume(federation, private(mechanism))


@pytest.mark.ray
def test_ray_gives_the_same_bits(federation, tmp_path):
    import fl

    config = federation.config(**private({"name": "banded"})).to_dict()
    check_on_ray(config, fl.run(config, out=tmp_path / "serial"), tmp_path)


def test_one_band_gives_the_bits_of_the_gaussian_mechanism(federation):
    poisson = {"sampling": {"rate": 0.5}}
    plain = federation.run(**private({"name": "gaussian"}, **poisson))
    federation.run(**private({"name": "banded"}, **poisson)).require_same(plain, "one band")


def test_more_rounds_are_refused(federation):
    with federation.simulation(**private({"name": "banded"})) as first:
        first.run(interrupt=lambda: True)
    longer = federation.config(**private({"name": "banded"}) | {"rounds": 7})
    with pytest.raises(ConfigError, match="rounds: the noise of the first rounds was made for 5 rounds, not for 7"):
        Simulation(longer, first.directory, resumed=True).close()
