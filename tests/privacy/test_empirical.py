"""The lower bound of epsilon: against closed forms, and against mechanisms with a known epsilon."""

import numpy as np
import pytest

from fl.privacy.empirical import best_guesses, lower_bound, p_value


@pytest.mark.parametrize("made", [10, 100, 1000])
def test_all_right_without_delta_has_a_closed_form(made):
    """(e^x / (1 + e^x))^r = 0.05."""
    q = 0.05 ** (1 / made)
    assert lower_bound(made, made, made, 0.0) == pytest.approx(np.log(q / (1 - q)), abs=1e-3)


def test_delta_by_hand():
    """r = 2 guesses, both right, epsilon 0: beta = 1/4; alpha = max(P(W=1), P(W=0 or 1) / 2) = max(1/2, 3/8)."""
    assert p_value(5, made=2, right=2, epsilon=0.0, delta=0.01) == pytest.approx(0.25 + 2 * 5 * 0.01 * 0.5)


def test_chance_refutes_nothing():
    assert lower_bound(1000, 1000, 500, 1e-5) == 0.0
    assert lower_bound(1000, 0, 0, 1e-5) == 0.0
    with pytest.raises(ValueError, match="right: 5 of made: 4"):
        lower_bound(10, 4, 5, 0.0)


def test_the_bound_holds_for_randomised_response():
    """Randomised response of epsilon 1: a score is right with probability e / (1 + e). At most 5 % of bounds exceed."""
    random, epsilon = np.random.default_rng(0), 1.0
    bounds = []
    for _ in range(50):
        included = random.random(400) < 0.5
        truthful = random.random(400) < np.e / (1 + np.e)
        scores = np.where(included == truthful, 1.0, -1.0) + 1e-6 * random.random(400)
        bounds.append(best_guesses(scores, included, 0.0).epsilon)
    assert np.mean(np.array(bounds) > epsilon) <= 0.05
    assert np.mean(bounds) > 0.5  # and they are not far below


def test_the_bound_holds_for_the_gaussian_mechanism():
    """The true epsilon is that of the analytic Gaussian mechanism."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    sigma, delta = 0.6, 1e-5

    def profile(epsilon):  # Balle, Wang 2018, Theorem 8
        return norm.cdf(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)

    true = brentq(lambda e: profile(e) - delta, 0, 20)
    random = np.random.default_rng(1)
    bounds = []
    for _ in range(12):
        included = random.random(1000) < 0.5
        bounds.append(best_guesses(included + sigma * random.standard_normal(1000), included, delta).epsilon)
    assert 0 < np.mean(bounds) and np.mean(np.array(bounds) > true) <= 0.05
    perfect = best_guesses(included.astype(float), included, delta)
    assert perfect.epsilon > 3 and perfect.right == perfect.made
