"""Example-level privacy: what an engine must know of a client algorithm that adds noise to its own gradients."""

from __future__ import annotations

from typing import Self

from fl.method.client import ClientAlgorithm


class ExampleLevel(ClientAlgorithm):
    """Base of client algorithms whose updates are private for each training example of the client.

    A local step draws each example independently with one probability, clips the gradient of each, and adds noise to
    their sum. `privacy: {unit: example}` sets clip bound and noise, and accounts for the steps.
    """

    def step_sampling(self) -> tuple[float, int]:
        """Return (probability with which a step draws an example, number of steps in an exchange)."""
        raise NotImplementedError

    def with_noise(self, bound: float, noise_multiplier: float) -> Self:
        """Return the algorithm with a clip bound of gradients, and noise relative to it."""
        raise NotImplementedError
