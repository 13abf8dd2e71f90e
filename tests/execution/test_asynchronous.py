"""Asynchronous servers: without late clients they equal synchronous ones; executors and commits change no bits."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fl
from fl.errors import ConfigError

TOYS = Path(__file__).parent.parent / "toys.py"
CLIENTS = 12
METHODS = {"fedavg": {"strategy": "fedavg"}, "scaffold": {"strategy": "scaffold"}}
HEAVY = {"devices": {"pareto": {"ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5, "alpha": 1.1}}, "dropout": 0.1}
ALIKE = {"devices": {"identical": {"ms_per_sample": 0, "latency_ms": 1000}}}
BUFFERED = {"name": "buffered", "concurrency": 6, "buffer": 3}
TIMES = ("wall_seconds", "busy_seconds", "retried")


def config(method="fedavg", **more):
    return {
        "rounds": 12,
        "data": "digits",
        "partition": {"name": "dirichlet", "clients": CLIENTS, "alpha": 0.5, "min_size": 8},
        "splits": {"val": 0.1, "test": 0.1},
        "model": {"name": "mlp", "hidden": [16], "dropout": 0.2},
        "client": {"epochs": 1, "batch": 8, "lr": 0.1},
        "evaluation": {"every": 4},
        "execution": {"executor": "serial", "chunk": 2},
        "system": HEAVY,
        "server": BUFFERED,
        **METHODS[method],
        **more,
    }


def facts(result):
    """Return all results of a run that must not depend on the executor or on time."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in result.metrics]
    clients = pq.read_table(result.directory / "clients.parquet").to_pylist()
    return result.digest, json.dumps(rows), result.ledger.to_pylist(), json.dumps(clients)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_without_late_clients_it_is_synchronous(method, tmp_path):
    """With identical devices and all clients in flight, each step sums updates of all clients from the newest model."""
    whole = {"name": "buffered", "concurrency": CLIENTS, "buffer": CLIENTS}
    one = fl.run(config(method, system=ALIKE, server=whole), out=tmp_path / "buffered")
    two = fl.run(config(method, system=ALIKE, server="sync", cohort={"size": CLIENTS}), out=tmp_path / "sync")
    assert one.digest == two.digest and one.ledger == two.ledger
    assert [row["simulated_seconds"] for row in one.metrics] == pytest.approx([2.0] * 12)  # 1 s down, 1 s up
    assert [row["staleness"] for row in one.metrics] == [0.0] * 12


@pytest.mark.ray
@pytest.mark.parametrize(
    "server", [BUFFERED, {"name": "async", "concurrency": 5}, {"name": "tiered", "tiers": 3, "clients": 2}]
)
@pytest.mark.parametrize("method", METHODS)
def test_same_bits_on_ray_and_however_it_is_committed(method, server, tmp_path):
    raw = config(method, server=server)
    serial = fl.run(raw, out=tmp_path / "serial")
    often = fl.run(raw, out=tmp_path / "often", **{"checkpoint.every": 1})
    ray = fl.run(raw, out=tmp_path / "ray", **{"execution.executor": "ray", "execution.workers": 2})
    assert facts(often) == facts(serial) == facts(ray)
    assert max(row["max_staleness"] for row in serial.metrics) > 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 5])
def test_resumed_is_uninterrupted(method, at, tmp_path):
    raw = config(method, **{"checkpoint": {"every": 2}})
    whole = fl.run(raw, out=tmp_path / "whole")
    calls = iter(range(100))
    stopped = fl.run(raw, out=tmp_path / "run", interrupt=lambda: next(calls) == at)
    assert stopped.reason == "interrupted" and len(stopped.metrics) == at + 1
    assert facts(fl.resume(tmp_path / "run")) == facts(whole)


def test_bytes_are_those_of_who_set_out_and_of_who_came(tmp_path):
    result = fl.run(config(), out=tmp_path)
    ledger = result.ledger.to_pydict()
    rows = list(zip(ledger["round"], ledger["direction"], ledger["client"], ledger["encoded_bytes"]))
    model = result.model.nbytes
    assert {nbytes for *_, nbytes in rows} == {model}
    for row in result.metrics:
        ups = [client for round_, direction, client, _ in rows if (round_, direction) == (row["round"], "up")]
        downs = [client for round_, direction, client, _ in rows if (round_, direction) == (row["round"], "down")]
        assert len(ups) == 3 and row["uplink_bytes"] == 3 * model and row["downlink_bytes"] == len(downs) * model
    sent, came = (sum(direction == way for _, direction, *_ in rows) for way in ("down", "up"))
    dropped = sum(row["clients_dropped"] for row in result.metrics)
    assert 0 <= sent - came - dropped <= 6 and dropped > 0  # other clients are in flight, and some of them will fail


def test_staleness_by_hand(tmp_path):
    """Two clients have round trips of 1 s and 3 s. The server steps at 1 s, 2 s and twice at 3 s.

    At 3 s the slow client's update comes first, because it started earlier. Both clients then start from the newest
    model, and the sequence repeats.
    """
    trace = tmp_path / "devices.csv"
    trace.write_text("client,ms_per_sample,latency_ms\n0,0,500\n1,0,1500\n")
    raw = config(
        rounds=8,
        partition={"name": "iid", "clients": 2},
        system={"devices": {"name": "trace", "path": str(trace)}},
        server={"name": "async", "concurrency": 2},
    )
    result = fl.run(raw, out=tmp_path / "run")
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    came = [(row["client"], row["staleness"]) for row in table if row["split"] == "train"]
    times = np.cumsum([row["simulated_seconds"] for row in result.metrics])
    assert times == pytest.approx([1, 2, 3, 3, 4, 5, 6, 6])
    assert came == [(0, 0), (0, 0), (1, 2), (0, 1)] * 2


def test_what_an_asynchronous_server_cannot_do_is_said(tmp_path):
    with pytest.raises(ConfigError, match="system: missing; `server` needs system.devices"):
        fl.run({k: v for k, v in config().items() if k != "system"}, out=tmp_path / "a")
    with pytest.raises(ConfigError, match="concurrency: 13 is more than the population of 12"):
        fl.run(config(server={"name": "async", "concurrency": 13}), out=tmp_path / "b")
    with pytest.raises(ValueError, match="one exchange per round"):
        fl.run(config(strategy=f"{TOYS}:ThreeExchanges", system=HEAVY | {"up_bytes": 100}), out=tmp_path / "c")
    with pytest.raises(ConfigError, match="system.up_bytes: missing: the size of 'sum' is not known"):
        fl.run(config(strategy=f"{TOYS}:ThreeExchanges"), out=tmp_path / "d")
