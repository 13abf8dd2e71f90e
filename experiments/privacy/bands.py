"""Expected error of the model by the separation of a client's participations: `python -m experiments.privacy.bands`.

The error is the root of the mean variance of the noise in the sum of all rounds so far, over the rounds, in clip
bounds. Rows: epsilon; columns: separation b, with the rate b * cohort / clients and b bands. No data are used.
"""

from __future__ import annotations

import argparse

from fl.method.min_separation import MinSeparation
from fl.privacy import accounting, toeplitz
from fl.privacy.factorised import Banded
from fl.privacy.mechanism import Sampling
from fl.privacy.sampling import rate_of


def expected_error(separation: int, epsilon: float, clients: int, cohort: float, rounds: int, delta: float) -> float:
    """Return the expected error, in clip bounds, with as many bands as the separation."""
    sampler = MinSeparation(separation=separation, rate=min(1.0, separation * cohort / clients))
    sampling = Sampling(sampler, rate_of(sampler), clients, rounds)
    mechanism = Banded()
    noise = accounting.noise_multiplier(lambda z: mechanism.event(z, sampling, rounds), epsilon, delta)
    coefficients = toeplitz.optimised(min(separation, rounds), rounds)
    return noise * toeplitz.mean_error(coefficients, rounds, participations=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--cohort", type=float, default=100, help="expected number of clients in a cohort")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--separations", type=int, nargs="+", default=[1, 2, 3, 4, 5, 7, 10])
    chosen = parser.parse_args()
    print("epsilon", *chosen.separations, sep="\t")
    for epsilon in chosen.epsilons:
        about = (epsilon, chosen.clients, chosen.cohort, chosen.rounds, chosen.delta)
        print(f"{epsilon:g}", *(f"{expected_error(b, *about):.2f}" for b in chosen.separations), sep="\t", flush=True)


if __name__ == "__main__":
    main()
