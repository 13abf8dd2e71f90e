"""Partitions, codecs and the ledger: their laws on random inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fl.communication.chain import Chain, first_invalid
from fl.communication.codec import Codec, decode, encode
from fl.communication.ledger import Ledger, read
from fl.data.dataset import Dataset
from fl.data.partitioner import split_checked
from fl.registry import lookup, names

# -- partitions -------------------------------------------------------------------------------------------------------
CLIENTS, CLASSES = st.integers(1, 12), st.integers(1, 4)
PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"clients": CLIENTS},
    "dirichlet": {"clients": CLIENTS, "alpha": st.sampled_from((1e-4, 0.1, 1e4)), "min_size": st.integers(0, 3)},
    "shards": {"clients": CLIENTS, "num_shards_per_partition": CLASSES},
    "pathological": {"clients": CLIENTS, "num_classes_per_partition": CLASSES},
    "quantity": {"clients": CLIENTS, "skew": st.sampled_from((0.01, 1.0, 30.0)), "min_size": st.integers(0, 3)},
    "extended_dirichlet": {"clients": CLIENTS, "classes": CLASSES, "alpha": st.sampled_from((0.1, 10.0))},
    "natural": {},
}


@st.composite
def _partitions(draw: st.DrawFn) -> tuple[str, dict[str, Any], list[int], list[int]]:
    name = draw(st.sampled_from(sorted(PARTITIONS)))
    options = {key: draw(values) for key, values in PARTITIONS[name].items()}
    if name != "natural":
        options["seed"] = draw(st.integers(0, 3))
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=60))
    owners = draw(st.lists(st.integers(-5, 5), min_size=len(labels), max_size=len(labels)))
    return name, options, labels, owners


def _law_of_partitions(drawn: tuple[str, dict[str, Any], list[int], list[int]]) -> None:
    """Parts are disjoint and cover the rows, and a seed decides; impossible wishes are a `ValueError`."""
    name, options, labels, owners = drawn
    data = Dataset({"x": np.zeros((len(labels), 1)), "y": np.array(labels)}, clients=np.array(owners))
    try:
        part = lookup("partition", name)(**options)
        one, two = split_checked(part, data), split_checked(part, data)
    except ValueError as error:
        assert str(error)
        return
    assert np.array_equal(one.indices, two.indices) and np.array_equal(one.offsets, two.offsets)
    assert len(np.unique(one.indices)) == len(one.indices), "a row belongs to two clients"
    if not part.leaves_rows:
        assert sorted(one.indices.tolist()) == list(range(len(labels))), "rows are left out"


# -- codecs -----------------------------------------------------------------------------------------------------------
OPTIONS: dict[str, Any] = {
    "ratio": st.sampled_from((0.01, 0.3, 1.0)),
    "value": st.sampled_from((1e-6, 0.5, 100.0)),
    "bits": st.sampled_from((1, 2, 4, 8)),
    "rank": st.integers(1, 4),
}
FLOATS = st.floats(-(2.0**90), 2.0**90, width=32) | st.sampled_from((0.0, -0.0, 1e-40, 3.0, -1.0))
VECTORS = st.lists(FLOATS, max_size=40) | st.builds(lambda value, n: [value] * n, FLOATS, st.integers(0, 70))


def _codec(draw: st.DrawFn) -> Codec:
    cls = lookup("codec", draw(st.sampled_from(names("codec"))))
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    more = [f.name for f in dataclasses.fields(cls) if f.name in OPTIONS and f.name not in required]
    given = required + (more if draw(st.booleans()) else [])
    try:
        return cls(**{name: draw(OPTIONS[name]) for name in given})
    except ValueError:
        return cls(**{name: 0.3 for name in required})


@st.composite
def _messages(draw: st.DrawFn) -> tuple[Codec, list[float], int]:
    codecs = [_codec(draw) for _ in range(draw(st.integers(1, 3)))]
    while first_invalid(codecs):
        codecs.pop()
    codec = codecs[0] if len(codecs) == 1 else Chain(tuple(codecs))
    return codec, draw(VECTORS), draw(st.integers(0, 2**64 - 1))


def _law_of_codecs(drawn: tuple[Codec, list[float], int]) -> None:
    """decode(encode(x)) has the shape of x and lies in the bound; the size counted is the length of the bytes."""
    codec, numbers, key = drawn
    values = torch.tensor(numbers, dtype=torch.float32)
    try:
        encoded = encode(codec, values.clone(), key)
        arrived = decode(codec, encoded, len(values), key)
    except ValueError as error:
        assert "finite" in str(error) or "end a chain" in str(error) or "large" in str(error), error
        return
    assert arrived.shape == values.shape and arrived.dtype == torch.float32
    assert len(bytes(encoded)) == encoded.nbytes
    assert codec.exact_size(len(values)) in (None, encoded.nbytes)
    assert bytes(encode(codec, values.clone(), key)) == bytes(encoded)
    if codec.exact:
        assert torch.equal(arrived.view(torch.int32), values.view(torch.int32))
    bound = codec.bound(values)
    if bound is not None:
        norm = float(values.double().norm())
        away = float((arrived.double() - values.double()).norm())
        assert away <= bound * (1 + 1e-4) + 1e-6 * norm + 1e-37, f"error {away:.6g}, bound {bound:.6g}"


# -- the ledger -------------------------------------------------------------------------------------------------------
ROWS = st.tuples(
    st.integers(0, 3),
    st.integers(0, 2),
    st.sampled_from(("up", "down")),
    st.text(min_size=1, max_size=4),
    st.lists(st.integers(0, 2**40), max_size=4),
    st.integers(0, 2**50),
)
STEPS = st.lists(ROWS | st.sampled_from(("commit", "forget", "crash")), max_size=12)


def _law_of_ledger(out: Path) -> Any:
    def law(steps: list[Any]) -> None:
        """What was committed is read, in this order and nothing else, also after a crash in the middle of a write."""
        path = out / "ledger.arrow"
        path.unlink(missing_ok=True)
        ledger, committed, pending = Ledger(path), list[Any](), list[Any]()
        mark = ledger.commit()
        for step in steps:
            if step == "commit":
                mark = ledger.commit()
                committed, pending = committed + pending, []
            elif step == "forget":
                ledger.forget()
                pending = []
            elif step == "crash":
                ledger.commit()  # written, but no commit of the run counts on it
                ledger.close()
                with open(path, "r+b") as file:
                    file.truncate(mark.length + (path.stat().st_size - mark.length) // 2)
                ledger, pending = Ledger(path, mark), []
                ledger.cut()
            else:
                round_, exchange, direction, group, clients, size = step
                ledger.record(round_, exchange, direction, group, np.array(clients, np.int64), size, size + 1, size + 2)
                pending += [(round_, exchange, client, direction, group, size) for client in clients]
        ledger.commit()
        ledger.close()
        keys = ("round", "exchange", "client", "direction", "group", "payload_bytes")
        assert [tuple(row[key] for key in keys) for row in read(path).to_pylist()] == committed + pending

    return law


LAWS: list[tuple[str, int, Any, Any]] = [
    ("partitions", 8, lambda out: _partitions(), lambda out: _law_of_partitions),
    ("codecs", 14, lambda out: _messages(), lambda out: _law_of_codecs),
    ("ledger", 6, lambda out: STEPS, _law_of_ledger),
]
