"""FedJAX's federated averaging on client data sets in memory.

It uses the faster of its back ends: `jit`, or `pmap` with one host device per worker. FedJAX fills a client's last
batch up with other samples of the client.
"""

from __future__ import annotations

import importlib.metadata
import os
import time

from protocol import Contestant, Workload, serve


def start(work: Workload) -> dict[str, Contestant]:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={work.workers}"
    import jax

    jax.tree_map = jax.tree.map  # FedJAX uses the old name
    import fedjax
    from fedjax.algorithms import fed_avg
    from jax_layers import arrays, losses, params, samples

    x, y = samples(work)
    rows = [slice(a, b) for a, b in zip(work.offsets[:-1].tolist(), work.offsets[1:].tolist())]

    def loss(weights, batch, rng):
        return losses(work, weights, batch["x"], batch["y"]).mean()

    def algorithm(shuffle: bool):
        hyper = fedjax.ShuffleRepeatBatchHParams(
            batch_size=work.batch, num_epochs=work.epochs, skip_shuffle=not shuffle, seed=None
        )
        local, server = fedjax.optimizers.sgd(work.lr), fedjax.optimizers.sgd(1.0)
        return fed_avg.federated_averaging(jax.jit(jax.grad(loss)), local, server, hyper)

    class FedJax(Contestant):
        def __init__(self):
            super().__init__(work)
            self.seconds, self.failed, by_backend = {}, {}, {}
            self.keys = jax.random.split(jax.random.PRNGKey(0), max(map(len, work.cohorts)))
            for backend in ("jit", "pmap"):
                with fedjax.for_each_client_backend(backend):
                    by_backend[backend] = {shuffle: algorithm(shuffle) for shuffle in (True, False)}
                self.algorithms = by_backend[backend]
                self.reset()
                try:
                    self.train(work.cohorts[:1], True)
                    start_seconds = time.perf_counter()
                    self.train(work.cohorts[:1], True)
                except (AttributeError, TypeError) as error:  # FedJAX does not support the installed JAX
                    self.failed[backend] = str(error)
                else:
                    self.seconds[backend] = round(time.perf_counter() - start_seconds, 3)
            self.backend = min(self.seconds, key=self.seconds.get)
            self.algorithms = by_backend[self.backend]
            self.reset()

        @property
        def facts(self):
            versions = {name: importlib.metadata.version(name) for name in ("fedjax", "jax")}
            chosen = {"back end": self.backend, "seconds per round": self.seconds, "failed": self.failed}
            return {"versions": versions, **chosen}

        def reset(self) -> None:
            self.state = self.algorithms[True].init(params(work))

        def train(self, cohorts, shuffle) -> None:
            for cohort in cohorts:
                clients = [
                    (c, fedjax.ClientDataset({"x": x[rows[c]], "y": y[rows[c]]}), key)
                    for c, key in zip(cohort.tolist(), self.keys)
                ]
                self.state, _ = self.algorithms[shuffle].apply(self.state, clients)
            jax.block_until_ready(self.state.params)

        def weights(self):
            return arrays(self.state.params)

    return {"fedjax": FedJax()}


if __name__ == "__main__":
    serve(start)
