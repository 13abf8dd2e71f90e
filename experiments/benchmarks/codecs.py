"""Measure the speed of codecs on one core.

    python -m experiments.benchmarks.codecs [--numbers 10000000] [--clients 1000] [--repeats 5] [--only sign top_k]

The table shows MB/s of float32 for one update of --numbers parameters; our codec and a naive version take turns. It
also shows microseconds per client for --clients small updates of 610 parameters, encoded together and one by one.
Figures are medians of --repeats turns. A naive version is one to a few lines of torch; its result could be sent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fl.communication.chain import Chain
from fl.communication.codec import Codec, decode, encode
from fl.execution.workers.process import configure_process
from fl.registry import lookup
from fl.tensors.random import hash64

SMALL = 610  # parameters of softmax regression from 60 features to 10 classes
SHARE = 0.01


def codec(name: str, **arguments: object) -> Codec:
    return lookup("codec", name)(**arguments)


def naive_quantise(x: Tensor, bits: int = 8) -> list[np.ndarray]:
    scale = x.abs().max()
    levels = (x / scale * (2 ** (bits - 1) - 1) + torch.rand_like(x)).floor()
    return [scale.numpy(), levels.to(torch.int8).numpy()]


def naive_four_bits(x: Tensor) -> list[np.ndarray]:
    scale, levels = naive_quantise(x, 4)
    levels = (levels + 8).astype(np.uint8)
    return [scale, levels[::2] | levels[1::2] << 4]


def naive_sign(x: Tensor) -> list[np.ndarray]:
    return [x.abs().mean().numpy(), np.packbits((x > 0).numpy())]


def naive_top_k(x: Tensor) -> list[np.ndarray]:
    positions = x.abs().topk(int(SHARE * x.numel())).indices
    return [positions.to(torch.int32).numpy(), x[positions].numpy()]


def naive_random_k(x: Tensor) -> list[np.ndarray]:
    positions = torch.randperm(x.numel())[: int(SHARE * x.numel())]
    return [positions.to(torch.int32).numpy(), x[positions].numpy()]


def naive_threshold(x: Tensor) -> list[np.ndarray]:
    positions = (x.abs() >= 2.576).nonzero()[:, 0]
    return [positions.to(torch.int32).numpy(), x[positions].numpy()]


def naive_ternary(x: Tensor) -> list[np.ndarray]:
    return [x.abs().mean().numpy(), (x.sign() + 1).to(torch.uint8).numpy()]


def naive_block_float(x: Tensor) -> list[np.ndarray]:
    blocks = x.reshape(-1, 32)
    exponents = (blocks.abs().amax(-1, keepdim=True) / 127).log2().ceil()
    return [exponents.to(torch.int8).numpy(), (blocks / exponents.exp2()).round().to(torch.int8).numpy()]


def naive_hadamard(x: Tensor) -> list[np.ndarray]:
    m = 1 << (x.numel() - 1).bit_length()
    r = torch.zeros(m)
    r[: x.numel()] = x
    r *= torch.randint(0, 2, (m,)) * 2 - 1
    half = 1
    while half < m:
        pair = r.view(-1, 2, half)
        r = torch.stack([pair[:, 0] + pair[:, 1], pair[:, 0] - pair[:, 1]], 1).view(-1)
        half *= 2
    return [(r / m**0.5).numpy()]


def naive_drive(x: Tensor) -> list[np.ndarray]:
    r = torch.from_numpy(naive_hadamard(x)[0])
    return [(r.square().sum() / r.abs().sum()).numpy(), np.packbits((r > 0).numpy())]


def naive_zstd(x: Tensor) -> list[np.ndarray]:
    return [np.frombuffer(pa.Codec("zstd", 1).compress(x.numpy().tobytes()), np.uint8)]


def workloads() -> dict[str, tuple[Codec, Callable[[Tensor], list[np.ndarray]] | None]]:
    top = codec("top_k", ratio=SHARE)
    return {
        "fp16": (codec("fp16"), lambda x: [x.half().numpy()]),
        "sign": (codec("sign"), naive_sign),
        "ternary": (codec("ternary"), naive_ternary),
        "quantise, 8 bits": (codec("quantise"), naive_quantise),
        "quantise, 8 bits, nearest": (codec("quantise", mode="nearest"), None),
        "quantise, 4 bits": (codec("quantise", bits=4), naive_four_bits),
        "block_float": (codec("block_float"), naive_block_float),
        "top_k, 1 %": (top, naive_top_k),
        "top_k, 1 %, golomb": (codec("top_k", ratio=SHARE, positions="golomb"), None),
        "random_k, 1 %": (codec("random_k", ratio=SHARE), naive_random_k),
        "threshold, 1 %": (codec("threshold", value=2.576), naive_threshold),
        "hadamard": (codec("hadamard"), naive_hadamard),
        "eden, 1 bit": (codec("eden"), naive_drive),
        "count_sketch, 1 %": (codec("count_sketch", ratio=SHARE), None),
        "low_rank, 4": (codec("low_rank"), None),
        "zstd, level 1": (codec("zstd", level=1), naive_zstd),
        "top_k, 1 % / quantise": (Chain((top, codec("quantise"))), None),
    }


def turns(repeats: int, *runs: Callable[[], object] | None) -> list[float | None]:
    """Return the median seconds of each function, or None where there is no function. They take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for run, seconds in zip(runs, times):
            if run is not None:
                start = time.perf_counter()
                run()
                if turn:  # turn 0 warms up
                    seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) if seconds else None for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--numbers", type=int, default=10_000_000, help="number of parameters of the large update")
    parser.add_argument("--clients", type=int, default=1000, help="number of small updates")
    parser.add_argument("--repeats", type=int, default=5, help="number of turns")
    parser.add_argument("--only", nargs="*", default=(), help="first letters of the codecs to measure")
    arguments = parser.parse_args()
    configure_process()
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    x, rows = torch.randn(arguments.numbers, generator=draw), torch.randn(arguments.clients, SMALL, generator=draw)
    keys = hash64("benchmark", np.arange(arguments.clients))  # one random key per client
    small = f"us per client, {arguments.clients:,} together | alone"
    print(f"| {arguments.numbers:,} numbers | bytes | encode MB/s | naive | decode MB/s | {small} |")
    print("|---|---|---|---|---|---|---|")
    for name, (part, naive) in workloads().items():
        if arguments.only and not any(name.startswith(wanted) for wanted in arguments.only):
            continue
        sent = encode(part, x, 3)
        ours, plain, back = turns(
            arguments.repeats,
            lambda part=part: encode(part, x, 3),
            naive and (lambda naive=naive: naive(x)),
            lambda part=part, sent=sent: decode(part, sent, len(x), 3),
        )
        together, alone = turns(
            arguments.repeats,
            lambda part=part: encode(part, rows, keys),
            lambda part=part: [encode(part, row, key) for row, key in zip(rows[:100], keys)],
        )
        speeds = ["" if s is None else f"{4e-6 * arguments.numbers / s:,.0f}" for s in (ours, plain, back)]
        small = f"{together / arguments.clients * 1e6:.1f} | {alone / min(100, arguments.clients) * 1e6:.0f}"
        print(f"| {name} | {sent.nbytes:,} | {' | '.join(speeds)} | {small} |", flush=True)


if __name__ == "__main__":
    main()
