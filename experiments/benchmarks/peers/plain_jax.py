"""Plain JAX, as one would write it by hand: a compiled function trains a chunk of clients, either all at once (`vmap`) or one after
another (`scan`), and returns their weighted sum. The chunk is the quickest of a short search.

Samples are resident, a step gathers its batch; a chunk takes as many steps as its longest client, clients sorted by size; samples
and steps that a client has not got have weight zero.
"""

from __future__ import annotations

import os
import time

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

    def client(model, rows, w, steps, x, y):
        """(change of the model): rows, w (S, B), the first `steps` of which are trained on."""

        def step(i, weights):
            at = lax.dynamic_index_in_dim(rows, i, keepdims=False)
            wi = lax.dynamic_index_in_dim(w, i, keepdims=False)
            gradient = jax.grad(weighted)(weights, x[at], y[at], wi)
            return jax.tree.map(lambda p, g: p - work.lr * g, weights, gradient)

        trained = lax.fori_loop(0, steps, step, model)
        return jax.tree.map(jnp.subtract, trained, model)

    @jax.jit
    def together(model, total, rows, w, steps, n, x, y):
        change = jax.vmap(client, (None, 0, 0, None, None, None))(model, rows, w, steps.max(), x, y)
        return jax.tree.map(lambda t, c: t + jnp.tensordot(n, c, 1), total, change)

    @jax.jit
    def in_turn(model, total, rows, w, steps, n, x, y):
        def one(total, of):
            rows, w, steps, n = of
            return jax.tree.map(lambda t, c: t + n * c, total, client(model, rows, w, steps, x, y)), None

        return lax.scan(one, total, (rows, w, steps, n))[0]

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
        def __init__(self, run):
            super().__init__(work)
            self.run, self.tried = run, {}
            self.reset()
            for self.chunk in (c for c in CHUNKS if c < 2 * max(map(len, work.cohorts))):
                part = [work.cohorts[0][: max(4 * self.chunk, 16)]]
                self.train(part, True)
                times, begun = 0, time.perf_counter()
                while not times or time.perf_counter() - begun < TRIAL:
                    self.train(part, True)
                    times += 1
                seconds = (time.perf_counter() - begun) / times
                self.tried[self.chunk] = int(sizes[part[0]].sum()) / sizes.mean() / seconds
                if self.tried[self.chunk] * SLOWER < max(self.tried.values()):
                    break
            self.chunk = max(self.tried, key=self.tried.get)
            self.reset()

        @property
        def facts(self):
            speeds = {chunk: round(speed, 1) for chunk, speed in self.tried.items()}
            return {"versions": {"jax": jax.__version__}, "chunk": self.chunk, "clients per second by chunk": speeds}

        def reset(self) -> None:
            self.model = params(work)

        def train(self, cohorts, shuffle) -> None:
            for cohort in cohorts:
                order = cohort[np.argsort(-sizes[cohort], kind="stable")]
                total = jax.tree.map(jnp.zeros_like, self.model)
                for a in range(0, len(order), self.chunk):
                    given = batches(order[a : a + self.chunk], self.chunk, shuffle)
                    total = self.run(self.model, total, *given, x, y)
                self.model = jax.tree.map(lambda m, t: m + t / sizes[cohort].sum(), self.model, total)
            jax.block_until_ready(self.model)

        def weights(self):
            return arrays(self.model)

    return {"jax vmap": Plain(together), "jax scan": Plain(in_turn)}


if __name__ == "__main__":
    serve(start)
