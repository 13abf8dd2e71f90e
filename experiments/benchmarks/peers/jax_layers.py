"""A workload's model in JAX. Images are (N, H, W, C), kernels (H, W, in, out): XLA's fastest layout on a CPU."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"]
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from protocol import UNKNOWN, Workload  # noqa: E402

_AXES = ("NHWC", "HWIO", "NHWC")


def params(work: Workload) -> dict[str, jax.Array]:
    """Return the initial weights in JAX's layout, by torch's names."""
    if work.layers is None:
        raise NotImplementedError(UNKNOWN)
    return {name: jnp.asarray(_from_torch(weight)) for name, weight in work.first.items()}


def arrays(params) -> dict[str, np.ndarray]:
    """Return weights in torch's layout."""
    kernel = {4: lambda w: w.transpose(3, 2, 0, 1), 2: np.transpose}
    return {name: kernel.get(weight.ndim, np.asarray)(np.asarray(weight)) for name, weight in params.items()}


def _from_torch(weight: np.ndarray) -> np.ndarray:
    return {4: lambda w: w.transpose(2, 3, 1, 0), 2: np.transpose}.get(weight.ndim, np.asarray)(weight)


def samples(work: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Return x with channels last, and labels as int32."""
    x = np.ascontiguousarray(work.x.transpose(0, 2, 3, 1)) if work.x.ndim == 4 else np.asarray(work.x)
    return x, work.y.astype(np.int32)


def scores(work: Workload, params, x: jax.Array) -> jax.Array:
    for i, (name, *numbers) in enumerate(work.layers):
        if name == "linear":
            x = x @ params[f"{i}.weight"] + params[f"{i}.bias"]
        elif name == "conv":
            x = jax.lax.conv_general_dilated(x, params[f"{i}.weight"], (1, 1), "VALID", dimension_numbers=_AXES)
            x = x + params[f"{i}.bias"]
        elif name == "relu":
            x = jax.nn.relu(x)
        elif name == "pool":
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *numbers * 2, 1), (1, *numbers * 2, 1), "VALID")
        else:  # flatten in torch's order (channels first)
            x = (x.transpose(0, 3, 1, 2) if x.ndim == 4 else x).reshape(len(x), -1)
    return x


def losses(work: Workload, params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross-entropy of each sample, (N,)."""
    logits = jax.nn.log_softmax(scores(work, params, x))
    return -jnp.take_along_axis(logits, y[:, None], 1)[:, 0]
