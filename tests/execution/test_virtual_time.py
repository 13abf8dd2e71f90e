"""Virtual time on the engine: the clients in the sum are known before training, and seconds follow from real bytes."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import fl
from fl.errors import ConfigError
from fl.system.synchronous import OUTCOMES

PLAIN = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "splits": {"val": 0.0},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"name": "fixed", "clients": [0, 1, 2, 3]},
    "strategy": {"name": "fedavg", "weights": "uniform"},
    "client": {"steps": 5, "batch": 10, "lr": 0.1},
    "evaluation": {"clients": 0},
    "execution": {"executor": "serial", "plan": "loop"},
}


def devices(folder, **columns):
    """Write a trace of four devices."""
    file = folder / "devices.csv"
    names = list(columns)
    rows = zip(*columns.values())
    file.write_text(
        "\n".join([",".join(["client", *names]), *(",".join(map(str, (i, *r))) for i, r in enumerate(rows))])
    )
    return {"devices": {"name": "trace", "path": str(file)}}


def run(folder, name="run", **changes):
    return fl.run(PLAIN | changes, out=folder / name)


def test_seconds_are_those_of_the_bytes_in_the_ledger(tmp_path):
    """The ledger has the size of the zstd-compressed update; the slowest uplink, 8 kbit/s, sends it."""
    system = devices(tmp_path, ms_per_sample=[0, 10, 0, 0], up_mbps=[1, 1, 0.008, 1], down_mbps=[0.08] * 4)
    result = run(tmp_path, system=system, codec={"up": ["zstd"]})
    rows = [row for row in result.ledger.to_pylist() if row["round"] == 0]
    (slow,) = [row["encoded_bytes"] for row in rows if row["direction"] == "up" and row["client"] == 2]
    (down,) = {row["encoded_bytes"] for row in rows if row["direction"] == "down"}
    first = result.metrics[0]
    assert down == result.model.nbytes
    assert first["simulated_download_seconds"] == pytest.approx(down / 10_000)
    assert first["simulated_upload_seconds"] == pytest.approx(slow / 1_000)
    assert first["simulated_seconds"] == pytest.approx(down / 10_000 + slow / 1_000)
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    computes = {
        row["client"]: row["compute_seconds"] for row in table if row["split"] == "system" and row["round"] == 0
    }
    assert computes == pytest.approx({0: 0, 1: 0.01 * 5 * 10, 2: 0, 3: 0})


def test_the_first_arrivals_are_the_sum(tmp_path):
    """Clients 3 and 1 of four arrive first: the model equals that of a cohort of these two."""
    system = devices(tmp_path, ms_per_sample=[40, 20, 30, 10])
    result = run(tmp_path, system=system, server={"name": "sync", "needed": 2})
    two = run(tmp_path, "two", cohort={"name": "fixed", "clients": [1, 3]})
    assert result.digest == two.digest
    assert [row["simulated_seconds"] for row in result.metrics] == pytest.approx([0.02 * 50] * 2)
    assert [(row["clients_in"], row["clients_surplus"]) for row in result.metrics] == [(2, 2)] * 2
    ups = {row["client"] for row in result.ledger.to_pylist() if row["direction"] == "up"}
    downs = {row["client"] for row in result.ledger.to_pylist() if row["direction"] == "down"}
    assert ups == {1, 3} and downs == {0, 1, 2, 3}


def test_part_of_the_work_before_the_deadline(tmp_path):
    """5 steps of 10 samples at 10 ms per sample: 3.4 steps fit into .34 s. The mean is of 3 steps and of 5 steps."""
    system = devices(tmp_path, ms_per_sample=[10, 1, 1000, 1000])
    late = {"name": "sync", "deadline_seconds": 0.34}
    parts = run(tmp_path, rounds=1, system=system, server=late | {"partial": True})
    none = run(tmp_path, "none", rounds=1, system=system, server=late)
    alone = {
        (client, steps): run(
            tmp_path,
            f"{client}-{steps}",
            rounds=1,
            cohort={"name": "fixed", "clients": [client]},
            client={**PLAIN["client"], "steps": steps},
        ).model.compact()
        for client, steps in ((0, 3), (1, 5))
    }
    expected = (alone[0, 3] + alone[1, 5]) / 2
    assert (parts.model.compact() - expected).abs().max() < 1e-6
    assert (none.model.compact() - alone[1, 5]).abs().max() < 1e-6
    (row,) = parts.metrics
    assert (row["clients_in"], row["clients_late"], row["simulated_seconds"]) == (
        2,
        2,
        pytest.approx(0.3),
    )  # the others do not take part


def test_who_drops_out_costs_bytes_and_time_and_is_not_in_the_sum(tmp_path):
    system = devices(tmp_path, latency_ms=[1000] * 4, ms_per_sample=[0] * 4) | {"dropout": 0.5}
    result = run(tmp_path, system=system, rounds=20)
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    dropped = {
        (r["round"], r["client"]) for r in table if r["split"] == "system" and OUTCOMES[int(r["fate"])] == "dropped"
    }
    rows = result.ledger.to_pylist()
    ups = {(row["round"], row["client"]) for row in rows if row["direction"] == "up"}
    downs = {(row["round"], row["client"]) for row in rows if row["direction"] == "down"}
    assert len(downs) == 80 and downs - ups == dropped and 20 < len(dropped) < 60
    assert max(row["simulated_seconds"] for row in result.metrics) == pytest.approx(2.0)


def test_cohorts_consist_of_present_clients_and_wait_for_them(tmp_path):
    """Clients 0 and 1 are present in the first ten of twenty seconds, 2 and 3 in the last ten; never three at once."""
    file = tmp_path / "there.json"
    active = {"active": [0], "inactive": [10], "finish_time": 20}
    away = {"active": [10], "inactive": [20], "finish_time": 20}
    file.write_text(json.dumps({"0": active, "1": active, "2": away, "3": away}))
    system = devices(tmp_path, latency_ms=[3000] * 4, ms_per_sample=[0] * 4) | {
        "availability": {"trace": {"path": str(file)}}
    }
    result = run(tmp_path, system=system, cohort={"size": 2}, rounds=4)
    table = pq.read_table(result.directory / "clients.parquet").to_pylist()
    cohorts = [{r["client"] for r in table if r["split"] == "system" and r["round"] == k} for k in range(4)]
    assert cohorts == [{0, 1}, {0, 1}, {2, 3}, {2, 3}]
    starts = np.cumsum([0, *(row["simulated_seconds"] for row in result.metrics)])
    assert starts == pytest.approx(
        [0, 6, 10, 16, 20]
    )  # a client that starts at 6 s leaves at 10 s, before it has finished
    assert [row["clients_away"] for row in result.metrics] == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="fewer than 3 clients are ever present at once"):
        run(tmp_path, "never", system=system, cohort={"size": 3})


def test_who_has_too_little_memory_never_takes_part(tmp_path):
    system = devices(tmp_path, ms_per_sample=[1] * 4, memory_mb=[100, 300, 200, 50]) | {"memory_mb": 150}
    result = run(tmp_path, system=system, cohort={"size": 1}, rounds=8)
    assert {row["client"] for row in result.ledger.to_pylist()} == {1, 2}
    late = run(tmp_path, "async", system=system, server={"name": "async", "concurrency": 2}, rounds=8)
    assert {row["client"] for row in late.ledger.to_pylist()} == {1, 2}
    with pytest.raises(ConfigError, match="concurrency: 3 is more than the population of 2"):
        run(tmp_path, "many", system=system, server={"name": "async", "concurrency": 3})
    with pytest.raises(ConfigError, match="memory_mb: 500 is more than any device has; the largest has 300"):
        run(tmp_path, "none", system=system | {"memory_mb": 500})


def test_a_run_ends_with_its_virtual_time(tmp_path):
    system = devices(tmp_path, latency_ms=[1500] * 4, ms_per_sample=[0] * 4)
    result = run(tmp_path, system=system, rounds=10, stop={"simulated_seconds": 7})
    assert len(result.metrics) == 3 and result.reason == "9 simulated seconds"
    with pytest.raises(ConfigError, match="stop.simulated_seconds: no virtual time passes"):
        run(tmp_path, "none", stop={"simulated_seconds": 7})


@pytest.mark.ray
def test_same_bits_on_ray_and_resumed(tmp_path):
    system = {
        "devices": {"lognormal": {"ms_per_sample": 10, "up_mbps": 0.1, "sigma": 1.0}},
        "dropout": 0.2,
        "jitter": 0.3,
    }
    server = {"name": "sync", "deadline_seconds": 1.0, "partial": True}
    settings = {"system": system, "server": server, "rounds": 6, "cohort": {"size": 3}}
    whole = run(tmp_path, "whole", **settings)
    ray = fl.run(PLAIN | settings, out=tmp_path / "ray", **{"execution.executor": "ray", "execution.workers": 2})
    calls = iter(range(10))
    fl.run(PLAIN | settings, out=tmp_path / "cut", interrupt=lambda: next(calls) == 2)
    resumed = fl.resume(tmp_path / "cut")
    timeless = [
        [{k: v for k, v in row.items() if k not in ("wall_seconds", "busy_seconds")} for row in result.metrics]
        for result in (whole, ray, resumed)
    ]
    assert timeless[0] == timeless[1] == timeless[2]
    assert whole.digest == ray.digest == resumed.digest and whole.ledger == ray.ledger == resumed.ledger


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"system": {"devices": {"identical": {"ms_per_sample": 1, "up_mbps": -3}}}}, r"system\.devices.*up_mbps: -3"),
        (
            {"system": {"devices": {"identical": {}}}},
            r"system.*'samples' needs ms_per_sample of all devices, and client",
        ),
        ({"system": {"devices": "phones"}}, r"system\.devices.*phones"),
        ({"server": {"name": "sync", "needed": 3}}, "system: missing"),
        ({"server": {"name": "sometimes"}}, r"server.*sometimes.*buffered"),
        (
            {"server": {"mode": "sync", "name": "async"}},
            "server.mode: 'sync' is the name of a part; write server: {name: sync",
        ),
        ({"server": {"mode": "async", "concurrency": 3}}, "server.mode: 'async' is the name of a part"),
        (
            {
                "system": {"devices": {"identical": {"ms_per_sample": 1}}},
                "server": {"name": "sync", "deadline_seconds": 3},
                "codec": {"up": ["zstd"]},
            },
            "system.up_bytes: missing",
        ),
    ],
)
def test_bad_input_is_refused(changes, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, **changes)
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()
