"""Synthetic(alpha, beta): a different softmax model and shifted inputs for each client.

    u_k ~ N(0, alpha)   W_k, b_k ~ N(u_k, 1)                        alpha: difference between the clients' models
    B_k ~ N(0, beta)    v_k ~ N(B_k, 1)   x ~ N(v_k, Sigma)         beta: difference between their inputs
    y = argmax(W_k x + b_k)               Sigma = diag(j^-1.2)      60 features, 10 classes

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020 (FedProx), arXiv:1812.06127, section 5.1 and appendix C.1; LEAF has a
similar generator. As in the authors' code, alpha and beta are standard deviations. A client has 50 +
floor(LogNormal(4, 2)) samples; the last tenth is for testing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import not_negative, positive, within
from fl.data.dataset import Dataset, Loader
from fl.registry import register
from fl.tensors import random

FEATURES, CLASSES = 60, 10


@register("data", "synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic(Loader):
    """Synthetic(alpha, beta) of FedProx and LEAF: 60 features, 10 classes, its own model and inputs for each client.

    Args:
        clients: Number of clients; positive.
        alpha: Standard deviation of the mean of a client's model; at least 0.
        beta: Standard deviation of the mean of a client's inputs; at least 0.
        test: Fraction of each client's samples, the last ones, for the server's test set; in [0, 1).
        seed: Seed of all draws.
    """

    clients: int = 30
    alpha: float = 1.0
    beta: float = 1.0
    test: float = 0.1
    seed: int = 0

    def load(self) -> Dataset:
        positive(clients=self.clients)
        not_negative(alpha=self.alpha, beta=self.beta)
        within("[0, 1)", test=self.test)
        draw = random.numpy_generator(self.seed, "synthetic")
        sizes = 50 + draw.lognormal(4.0, 2.0, self.clients).astype(np.int64)
        model_mean = self.alpha * draw.standard_normal((self.clients, 1))
        input_mean = self.beta * draw.standard_normal((self.clients, 1))
        v = input_mean + draw.standard_normal((self.clients, FEATURES))
        b = model_mean + draw.standard_normal((self.clients, CLASSES))
        owner, ends = np.repeat(np.arange(self.clients), sizes), np.cumsum(sizes)
        x = draw.standard_normal((len(owner), FEATURES)) * np.arange(1, FEATURES + 1) ** -0.6 + v[owner]
        y = np.empty(len(owner), np.int64)
        for c in range(self.clients):  # one client at a time, to save memory
            w = model_mean[c] + draw.standard_normal((FEATURES, CLASSES))
            mine = slice(ends[c] - sizes[c], ends[c])
            y[mine] = (x[mine] @ w + b[c]).argmax(1)
        held_out = ends[owner] - np.arange(len(owner)) <= (self.test * sizes).astype(np.int64)[owner]
        train, test = ({"x": x[part], "y": y[part]} for part in (~held_out, held_out))
        return Dataset(train, test if self.test else None, owner[~held_out])
