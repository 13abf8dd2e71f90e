"""Plain JAX, as one would write it by hand: chunks of clients are trained all at once (`vmap`) or one after another (`scan`), and
their weighted sum is kept. The way and the chunk are the quickest of a short search:

    rolled      one compiled function for a chunk, with a loop over steps (and clients) in it
    stepwise    a compiled function for a step, called for each: XLA's convolutions are many times slower within a loop on a CPU

Samples are resident, a step gathers its batch; a chunk takes as many steps as its longest client, clients sorted by size; samples
and steps that a client has not got have weight zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from protocol import Contestant, Workload, serve

CHUNKS = (1, 4, 16, 64, 256, 1024)
TRIAL = 0.5  # seconds for each
SLOWER = 1.5  # than the best one so far: the search ends


def start(work: Workload) -> dict[str, Contestant]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1 - work.share % len(cores)]})  # XLA's own threads included
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax_layers import arrays, losses, params, samples

    x, y = map(jnp.asarray, samples(work))
    sizes, starts, batch = work.sizes, work.offsets[:-1], work.batch
    longest = -(-int(sizes.max()) // batch)
    draw = np.random.default_rng(work.share)

    def weighted(weights, x, y, w):
        return (losses(work, weights, x, y) * w).sum()

    def step(weights, rows, w, x, y):
        gradient = jax.grad(weighted)(weights, x[rows], y[rows], w)
        return jax.tree.map(lambda p, g: p - work.lr * g, weights, gradient)

    def client(model, rows, w, steps, x, y):
        """The change of the model: rows, w (S, B), the first `steps` of which are trained on."""
        trained = lax.fori_loop(0, steps, lambda i, weights: step(weights, rows[i], w[i], x, y), model)
        return jax.tree.map(jnp.subtract, trained, model)

    @jax.jit
    def vmap_rolled(model, total, rows, w, steps, n, x, y):
        change = jax.vmap(client, (None, 0, 0, None, None, None))(model, rows, w, steps.max(), x, y)
        return jax.tree.map(lambda t, c: t + jnp.tensordot(n, c, 1), total, change)

    @jax.jit
    def scan_rolled(model, total, rows, w, steps, n, x, y):
        def one(total, of):
            rows, w, steps, n = of
            return jax.tree.map(lambda t, c: t + n * c, total, client(model, rows, w, steps, x, y)), None

        return lax.scan(one, total, (rows, w, steps, n))[0]

    first_step = jax.jit(jax.vmap(step, (None, 0, 0, None, None)))
    next_step = jax.jit(jax.vmap(step, (0, 0, 0, None, None)), donate_argnums=0)
    one_step = jax.jit(step)

    @jax.jit
    def add_all(total, trained, model, n):
        return jax.tree.map(lambda t, p, m: t + jnp.tensordot(n, p - m, 1), total, trained, model)

    @jax.jit
    def add_one(total, trained, model, n):
        return jax.tree.map(lambda t, p, m: t + n * (p - m), total, trained, model)

    def vmap_stepwise(model, total, rows, w, steps, n, x, y):
        trained = first_step(model, rows[:, 0], w[:, 0], x, y)
        for i in range(1, steps.max()):
            trained = next_step(trained, rows[:, i], w[:, i], x, y)
        return add_all(total, trained, model, n)

    def scan_stepwise(model, total, rows, w, steps, n, x, y):
        for c in range(np.count_nonzero(n)):
            trained = model
            for i in range(steps[c]):
                trained = one_step(trained, rows[c, i], w[c, i], x, y)
            total = add_one(total, trained, model, n[c])
        return total

    def batches(chunk: np.ndarray, width: int, shuffle: bool):
        """rows (C, S, B), their weights in the mean of their batch, steps (C,), samples (C,) of clients, and of nobody to fill up."""
        n = np.zeros(width, np.int64)
        n[: len(chunk)] = sizes[chunk]
        first = np.zeros(width, np.int64)
        first[: len(chunk)] = starts[chunk]
        cells = np.arange(longest * batch)
        there = cells < n[:, None]
        order = np.broadcast_to(cells, there.shape)
        if shuffle:
            order = np.argsort(np.where(there, draw.random(there.shape, np.float32), 2.0), axis=1)
        rows = np.where(there, first[:, None] + order, 0).astype(np.int32).reshape(width, longest, batch)
        count = there.reshape(width, longest, batch).sum(2, keepdims=True)
        w = (there.reshape(rows.shape) / np.maximum(count, 1)).astype(np.float32)
        return rows, w, -(-n // batch).astype(np.int32), n.astype(np.float32)

    class Plain(Contestant):
        def __init__(self, ways: dict[str, Callable]):
            super().__init__(work)
            self.ways, self.tried = ways, {}
            self.reset()
            for self.way in ways:
                for self.chunk in (c for c in CHUNKS if c < 2 * max(map(len, work.cohorts))):
                    self.tried[f"{self.way} {self.chunk}"] = speed = self.speed()
                    if speed * SLOWER < max(self.tried.values()):
                        break
            self.way, chunk = max(self.tried, key=self.tried.get).split()
            self.chunk = int(chunk)

        def speed(self) -> float:
            """Clients per second."""
            part = [work.cohorts[0][: max(2 * self.chunk, 4)]]
            self.train(part, True)
            times, begun = 0, time.perf_counter()
            while not times or time.perf_counter() - begun < TRIAL:
                self.train(part, True)
                times += 1
            self.reset()
            return round(int(sizes[part[0]].sum()) / sizes.mean() * times / (time.perf_counter() - begun), 1)

        @property
        def facts(self):
            chosen = {"way": self.way, "chunk": self.chunk, "clients per second": self.tried}
            return {"versions": {"jax": jax.__version__}, **chosen}

        def reset(self) -> None:
            self.model = params(work)

        def train(self, cohorts, shuffle) -> None:
            for cohort in cohorts:
                order = cohort[np.argsort(-sizes[cohort], kind="stable")]
                total = jax.tree.map(jnp.zeros_like, self.model)
                for a in range(0, len(order), self.chunk):
                    given = batches(order[a : a + self.chunk], self.chunk, shuffle)
                    total = self.ways[self.way](self.model, total, *given, x, y)
                self.model = jax.tree.map(lambda m, t: m + t / sizes[cohort].sum(), self.model, total)
            jax.block_until_ready(self.model)

        def weights(self):
            return arrays(self.model)

    return {
        "jax vmap": Plain({"stepwise": vmap_stepwise, "rolled": vmap_rolled}),
        "jax scan": Plain({"stepwise": scan_stepwise, "rolled": scan_rolled}),
    }


if __name__ == "__main__":
    serve(start)
