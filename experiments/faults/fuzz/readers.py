"""Files of users: LEAF, traces of availability and devices, tables and arrays; nonsense in them is a `ValueError`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from fl.data.dataset import Dataset
from fl.data.reading import read_data_set
from fl.data.sets.file import File
from fl.data.sets.leaf import Leaf
from fl.system.availability_trace import AvailabilityTrace
from fl.system.device_trace import read_devices

STRANGE = (10**400, -(10**30), 1e308, 2**63, float("nan"), float("inf"))
NUMBERS = st.one_of(st.integers(-2, 9), st.floats(-2, 9), st.sampled_from(STRANGE))
SCALARS = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=4))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
PICTURE = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def _spoilt(good: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file: a good one, one with a strange value somewhere, or one with changed bytes."""

    @st.composite
    def content(draw: st.DrawFn) -> bytes:
        value = draw(good)
        how = draw(st.sampled_from(("value", "value", "bytes", "good")))
        if how == "value":
            value = _replaced(draw, value)
        text = json.dumps(value).encode()
        return _with_changed_bytes(draw, text) if how == "bytes" else text

    return content()


def _replaced(draw: st.DrawFn, node: Any) -> Any:
    """A copy of a value with a strange part somewhere."""
    if isinstance(node, dict) and node and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(node)))
        if draw(st.integers(0, 5)) == 0:
            return {name: value for name, value in node.items() if name != key}
        return {**node, key: _replaced(draw, node[key])}
    if isinstance(node, list) and node and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(node) - 1))
        return [*node[:place], _replaced(draw, node[place]), *node[place + 1 :]]
    return draw(JSON)


def _with_changed_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the bytes with some overwritten, or with the end cut off."""
    place = draw(st.integers(0, len(content)))
    if draw(st.booleans()):
        return content[:place]
    return content[:place] + draw(st.binary(max_size=5)) + content[place + draw(st.integers(0, 5)) :]


# -- LEAF -------------------------------------------------------------------------------------------------------------
@st.composite
def _leaf(draw: st.DrawFn) -> dict[str, Any]:
    users = draw(st.lists(st.sampled_from(("ann", "bob", "eve")), min_size=1, max_size=3, unique=True))
    kind = draw(st.sampled_from((PICTURE, st.text("abc", min_size=3, max_size=3))))
    data = {}
    for user in users:
        x = draw(st.lists(kind, min_size=1, max_size=3))
        data[user] = {"x": x, "y": draw(st.lists(st.integers(0, 3), min_size=len(x), max_size=len(x)))}
    return {"users": users, "num_samples": [len(each["y"]) for each in data.values()], "user_data": data}


def _law_of_leaf(out: Path) -> Callable[[Any], None]:
    def law(drawn: tuple[bytes, bytes | None, str]) -> None:
        train, test, kind = drawn
        folder = out / "leaf"
        shutil.rmtree(folder, ignore_errors=True)
        for part, content in (("train", train), ("test", test)):
            if content is not None:
                (folder / part).mkdir(parents=True)
                (folder / part / "all.json").write_bytes(content)
        _check(lambda: Leaf(path=str(folder), kind=kind).load())  # type: ignore[arg-type]

    return law


def _check(load: Callable[[], Dataset]) -> None:
    """A data set is loaded, or a `ValueError` says why not."""
    try:
        data = load()
    except ValueError as error:
        assert str(error)
        return
    assert len(data) == len(data.train["y"])


# -- traces -----------------------------------------------------------------------------------------------------------
ENTRIES = st.dictionaries(
    st.integers(0, 12).map(str),
    st.sampled_from(
        (
            {"active": [0, 10], "inactive": [4, 20], "finish_time": 20},
            {"active": [3.5], "inactive": [9], "finish_time": 12.5},
        )
    ),
    min_size=1,
    max_size=3,
)
CAPACITIES = st.dictionaries(
    st.integers(0, 12).map(str), st.just({"computation": 20.0, "communication": 5e3}), min_size=1, max_size=3
)
RECORDS = st.lists(
    st.fixed_dictionaries({"client": st.integers(0, 9), "ms_per_sample": NUMBERS, "up_mbps": st.floats(1, 2)}),
    min_size=1,
    max_size=3,
)


def _law_of_availability(out: Path) -> Callable[[Any], None]:
    def law(content: bytes) -> None:
        file = out / "trace.json"
        file.write_bytes(content)
        try:
            presence = AvailabilityTrace(path=str(file), repeat=True).draw(0, 3)
        except ValueError as error:
            assert "path: " in str(error)
            return
        clients = np.arange(3)
        for time in (0.0, 7.25, 1e6):
            assert presence.at(clients, time).shape == (3,) and (presence.until(clients, time) > time).all()

    return law


def _law_of_devices(out: Path) -> Callable[[Any], None]:
    def law(drawn: tuple[str, bytes]) -> None:
        file = out / f"devices.{drawn[0]}"
        file.write_bytes(drawn[1])
        try:
            figures = read_devices(str(file))
        except ValueError as error:
            assert "path: " in str(error)
            return
        assert all(np.isfinite(values).all() and (values >= 0).all() for values in figures.values())

    return law


CELLS = st.one_of(
    st.integers(-1, 9).map(str), st.sampled_from(("", "NA", "x", "1e400", "0.5", "inf", '"', "é", "\x00"))
)


@st.composite
def _csv(draw: st.DrawFn, names: tuple[str, ...]) -> bytes:
    columns = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    rows = draw(st.lists(st.lists(CELLS, min_size=len(columns), max_size=len(columns)), max_size=4))
    text = "\n".join([",".join(columns), *map(",".join, rows)]).encode()
    return _with_changed_bytes(draw, text) if draw(st.integers(0, 3)) == 0 else text


# -- tables and arrays ------------------------------------------------------------------------------------------------
@st.composite
def _parquet(draw: st.DrawFn) -> bytes:
    rows = draw(st.integers(0, 4))
    kinds = st.sampled_from(
        (st.integers(0, 3), st.floats(), st.text(max_size=3), st.lists(st.floats(0, 1), max_size=2))
    )
    columns = {}
    for name in draw(st.lists(st.sampled_from(("y", "a", "b", "owner")), unique=True, max_size=4)):
        values = draw(kinds)
        values = values | st.none() if draw(st.integers(0, 3)) == 0 else values
        columns[name] = draw(st.lists(values, min_size=rows, max_size=rows))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    content = sink.getvalue().to_pybytes()
    return _with_changed_bytes(draw, content) if draw(st.booleans()) else content


@st.composite
def _npz(draw: st.DrawFn) -> bytes:
    import io

    rows = draw(st.integers(0, 4))
    arrays = {}
    for name in draw(st.lists(st.sampled_from(("x", "y", "clients", "x_train", "y_train", "x_test")), unique=True)):
        kind = draw(st.sampled_from(("float32", "float64", "int64", "uint8", "U2", "bool")))
        shape = (draw(st.sampled_from((rows, rows, 1))), *draw(st.sampled_from(((), (2,), (1, 2, 2)))))
        arrays[name] = np.zeros(shape, kind)
    file = io.BytesIO()
    np.savez(file, **arrays)
    return _with_changed_bytes(draw, file.getvalue()) if draw(st.booleans()) else file.getvalue()


def _law_of_files(out: Path) -> Callable[[Any], None]:
    def law(drawn: tuple[str, bytes, str | None]) -> None:
        suffix, content, owner = drawn
        file = out / f"data.{suffix}"
        file.write_bytes(content)
        _check(lambda: File(path=str(file), clients=owner if suffix != "npz" else None, scale=2.0).load())

    return law


ROWS = st.lists(st.tuples(st.lists(NUMBERS, max_size=3) | SCALARS, SCALARS) | st.tuples(SCALARS) | SCALARS, max_size=4)


def _law_of_rows(rows: list[Any]) -> None:
    """A map-style data set with strange rows."""
    try:
        read_data_set(rows, "train")
    except ValueError as error:
        assert str(error)


LEAF_KINDS = st.sampled_from(("image", "text", "table"))
OWNERS = st.sampled_from((None, "owner", "a"))
LAWS: list[tuple[str, int, Any, Any]] = [
    (
        "files of LEAF",
        8,
        lambda out: st.tuples(
            _spoilt(_leaf()), st.none() | _spoilt(_leaf()), st.sampled_from(("image", "text", "table"))
        ),
        _law_of_leaf,
    ),
    ("traces of availability", 6, lambda out: _spoilt(ENTRIES), _law_of_availability),
    (
        "traces of devices",
        6,
        lambda out: st.one_of(
            st.tuples(st.just("json"), _spoilt(CAPACITIES | RECORDS)),
            st.tuples(st.just("csv"), _csv(("client", "ms_per_sample", "up_mbps", "strange"))),
            st.tuples(st.just("parquet"), _parquet()),
        ),
        _law_of_devices,
    ),
    (
        "tables and arrays",
        8,
        lambda out: st.one_of(
            st.tuples(st.just("csv"), _csv(("y", "a", "b", "owner")), OWNERS),
            st.tuples(st.just("parquet"), _parquet(), OWNERS),
            st.tuples(st.just("npz"), _npz(), OWNERS),
        ),
        _law_of_files,
    ),
    ("rows of data sets", 6, lambda out: ROWS, lambda out: _law_of_rows),
]
