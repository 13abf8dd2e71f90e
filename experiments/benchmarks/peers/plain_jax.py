"""Hand-written JAX: trains a chunk of clients at once (`vmap`) or one after another (`scan`) and adds their updates.

A short search chooses the fastest mode and the fastest chunk size. The modes are:

    rolled      one compiled function per chunk, which loops over steps (and clients)
    stepwise    one compiled function per step; XLA's convolutions are many times slower inside a loop on a CPU

Samples are in memory; each step gathers its batch. Clients are sorted by size, and a chunk takes the steps of its
largest client. Missing samples and steps of smaller clients have weight zero.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from protocol import Contestant, Workload, serve

CHUNKS = (1, 4, 16, 64, 256, 1024)
TRIAL = 0.5  # seconds per setting of the search
SLOWER = 1.5  # a mode's search ends when a chunk is this many times slower than the best setting


def start(work: Workload) -> dict[str, Contestant]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1 - work.share % len(cores)]})  # holds for XLA's own threads, too
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
        """Return the change of the model after `steps` steps; rows, w are (S, B): a line per step."""
        trained = lax.fori_loop(0, steps, lambda i, weights: step(weights, rows[i], w[i], x, y), model)
        return jax.tree.map(jnp.subtract, trained, model)

    @jax.jit
    def vmap_rolled(model, total, rows, w, steps, n, x, y):
        change = jax.vmap(client, (None, 0, 0, None, None, None))(model, rows, w, steps.max(), x, y)
        return jax.tree.map(lambda t, c: t + jnp.tensordot(n, c, 1), total, change)

    @jax.jit
    def scan_rolled(model, total, rows, w, steps, n, x, y):
        def one(total, inputs):
            rows, w, steps, n = inputs
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
        """Return rows (C, S, B), their weights in a batch's mean (C, S, B), steps (C,), samples (C,).

        A chunk with fewer than `width` clients is filled up with empty clients.
        """
        n = np.zeros(width, np.int64)
        n[: len(chunk)] = sizes[chunk]
        first = np.zeros(width, np.int64)
        first[: len(chunk)] = starts[chunk]
        cells = np.arange(longest * batch)
        exists = cells < n[:, None]
        order = np.broadcast_to(cells, exists.shape)
        if shuffle:
            order = np.argsort(np.where(exists, draw.random(exists.shape, np.float32), 2.0), axis=1)
        rows = np.where(exists, first[:, None] + order, 0).astype(np.int32).reshape(width, longest, batch)
        count = exists.reshape(width, longest, batch).sum(2, keepdims=True)
        w = (exists.reshape(rows.shape) / np.maximum(count, 1)).astype(np.float32)
        return rows, w, -(-n // batch).astype(np.int32), n.astype(np.float32)

    class Plain(Contestant):
        def __init__(self, modes: dict[str, Callable]):
            super().__init__(work)
            self.modes, self.speeds = modes, {}
            self.reset()
            for self.mode in modes:
                for self.chunk in (c for c in CHUNKS if c < 2 * max(map(len, work.cohorts))):
                    self.speeds[f"{self.mode} {self.chunk}"] = speed = self.speed()
                    if speed * SLOWER < max(self.speeds.values()):
                        break
            self.mode, chunk = max(self.speeds, key=self.speeds.get).split()
            self.chunk = int(chunk)

        def speed(self) -> float:
            """Measure clients per second with the current mode and chunk."""
            part = [work.cohorts[0][: max(2 * self.chunk, 4)]]
            self.train(part, True)
            times, start_seconds = 0, time.perf_counter()
            while not times or time.perf_counter() - start_seconds < TRIAL:
                self.train(part, True)
                times += 1
            self.reset()
            return round(int(sizes[part[0]].sum()) / sizes.mean() * times / (time.perf_counter() - start_seconds), 1)

        @property
        def facts(self):
            chosen = {"mode": self.mode, "chunk": self.chunk, "clients per second": self.speeds}
            return {"versions": {"jax": jax.__version__}, **chosen}

        def reset(self) -> None:
            self.model = params(work)

        def train(self, cohorts, shuffle) -> None:
            for cohort in cohorts:
                order = cohort[np.argsort(-sizes[cohort], kind="stable")]
                total = jax.tree.map(jnp.zeros_like, self.model)
                for a in range(0, len(order), self.chunk):
                    chunk = batches(order[a : a + self.chunk], self.chunk, shuffle)
                    total = self.modes[self.mode](self.model, total, *chunk, x, y)
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
