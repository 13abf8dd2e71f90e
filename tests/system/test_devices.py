"""Devices: draws have their stated distributions and do not depend on other clients; bad traces are refused.

An error about a trace names the row and the reason.
"""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.testing import assert_allclose, assert_array_equal

from fl.config.building import Builder
from fl.config.dumping import to_plain
from fl.errors import ConfigError
from fl.kinds import KINDS
from fl.registry import names
from fl.system.device_trace import DeviceTrace
from fl.system.devices import COLUMNS, Classes, DeviceClass, Identical, Lognormal, Pareto
from fl.system.flops import flops_per_sample
from fl.system.metrics import histogram, jain, participations
from fl.system.section import System

FIGURES = {"ms_per_sample": 20, "up_mbps": 8, "down_mbps": 40}
PHONES = Classes(
    classes={
        "phone": DeviceClass(share=0.75, ms_per_sample=20, up_mbps=2, sigma=0.3),
        "laptop": DeviceClass(share=0.25, ms_per_sample=5, up_mbps=20),
    }
)
DRAWN = [Lognormal(**FIGURES, sigma={"ms_per_sample": 1.0, "up_mbps": 0.5}), Pareto(**FIGURES), PHONES]


def columns(devices):
    return {column: getattr(devices, column) for column, _, _ in COLUMNS.values()} | {"kind": devices.kind}


def kolmogorov(sample, law) -> float:
    """Return the largest distance between the sample's distribution and the law, times sqrt(n).

    It exceeds 1.95 with probability 1/1,000.
    """
    return scipy.stats.kstest(sample, law.cdf).statistic * np.sqrt(len(sample))


def test_all_are_registered():
    assert names("devices") == ["classes", "identical", "lognormal", "pareto", "trace"]
    assert names("availability") == ["always", "bernoulli", "diurnal", "trace"]
    assert names("server") == ["buffered", "sync", "tiered"]


def test_units():
    d = Identical(
        ms_per_sample=20, gflops=3, up_mbps=8, down_mbps=40, latency_ms=50, memory_mb=4, compute_watts=2
    ).draw(0, 2)
    assert_allclose(d.seconds_per_sample, 0.02)
    assert_array_equal(d.flops_per_second, 3e9)
    assert_array_equal(d.up_bytes_per_second, 1e6)
    assert_array_equal(d.down_bytes_per_second, 5e6)
    assert_allclose(d.latency_seconds, 0.05)
    assert_array_equal(d.memory_bytes, 4e6)
    assert_array_equal(d.compute_watts, 2.0)
    assert np.isnan(d.radio_watts).all()


def test_what_is_left_out_costs_nothing_or_is_unknown():
    d = Identical().draw(0, 2)
    assert np.isinf(d.up_bytes_per_second).all() and np.isinf(d.memory_bytes).all() and (d.latency_seconds == 0).all()
    assert np.isnan(d.seconds_per_sample).all() and np.isnan(d.flops_per_second).all()


@pytest.mark.parametrize("part", DRAWN, ids=lambda p: type(p).__name__)
def test_a_clients_device_is_the_same_in_every_population(part):
    few, many = columns(part.draw(3, 50)), columns(part.draw(3, 5000))
    for name, values in few.items():
        assert_array_equal(values, many[name][:50])
    assert not np.array_equal(few["seconds_per_sample"], part.draw(4, 50).seconds_per_sample)


def test_lognormal_has_its_law():
    d = DRAWN[0].draw(0, 20_000)
    assert kolmogorov(d.seconds_per_sample, scipy.stats.lognorm(1.0, scale=0.02)) < 1.95
    assert kolmogorov(d.up_bytes_per_second, scipy.stats.lognorm(0.5, scale=1e6)) < 1.95
    assert_array_equal(d.down_bytes_per_second, 5e6)
    assert abs(scipy.stats.spearmanr(d.seconds_per_sample, d.up_bytes_per_second).statistic) < 4 / np.sqrt(20_000)


def test_pareto_tails_are_of_slow_devices():
    d = Pareto(**FIGURES, alpha={"ms_per_sample": 1.5, "up_mbps": 3.0}).draw(0, 20_000)
    assert kolmogorov(d.seconds_per_sample, scipy.stats.pareto(1.5, scale=0.02)) < 1.95
    assert kolmogorov(1 / d.up_bytes_per_second, scipy.stats.pareto(3.0, scale=1e-6)) < 1.95
    for q in (0.5, 0.9, 0.99):
        expected = scipy.stats.pareto(1.5, scale=0.02).ppf(q)
        assert np.quantile(d.seconds_per_sample, q) == pytest.approx(expected, rel=0.1)


def test_no_spread_is_identical():
    plain, still = Identical(**FIGURES).draw(0, 100), Lognormal(**FIGURES, sigma=0).draw(0, 100)
    for name, values in columns(plain).items():
        assert_array_equal(values, columns(still)[name])


def test_classes_have_their_shares_and_figures():
    d = PHONES.draw(0, 20_000)
    laptops = d.kind == d.kinds.index("laptop")
    assert laptops.mean() == pytest.approx(0.25, abs=4.5 * np.sqrt(0.25 * 0.75 / 20_000))
    assert_array_equal(d.up_bytes_per_second[laptops], 20e6 / 8)
    assert kolmogorov(d.seconds_per_sample[~laptops], scipy.stats.lognorm(0.3, scale=0.02)) < 1.95


def test_classes_from_a_configuration_and_back():
    written = {
        "name": "classes",
        "classes": {"phone": {"share": 0.75, "ms_per_sample": 20}, "pc": {"share": 0.25, "gflops": 50}},
    }
    kind = KINDS["devices"]
    part = Builder().part(kind, written, "system.devices")
    assert part.classes["pc"] == DeviceClass(share=0.25, gflops=50)
    assert Builder().part(kind, to_plain(part, "system.devices", {}), "system.devices") == part
    written["classes"]["pc"]["upmbps"] = 3
    with pytest.raises(ConfigError, match="system.devices.classes.pc.upmbps: not a key .* Did you mean 'up_mbps'"):
        Builder().part(kind, written, "system.devices")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Identical(up_mbps=-1.0), "up_mbps: -1.0 is not a positive number"),
        (lambda: Identical(down_mbps=float("inf")), "down_mbps: inf is not a positive number"),
        (lambda: Identical(latency_ms=-1), "latency_ms: -1 is not a number from 0"),
        (lambda: Lognormal(ms_per_sample=1, sigma=-0.1), "sigma: -0.1 for ms_per_sample is not a number from 0"),
        (
            lambda: Lognormal(ms_per_sample=1, sigma={"up_mbps": 1}),
            r"sigma: \['up_mbps'\] have no figure; the figures that are set are",
        ),
        (lambda: Pareto(ms_per_sample=1, alpha=0), "alpha: 0 for ms_per_sample is not positive"),
        (lambda: DeviceClass(share=0), r"share: 0 is not in \(0, 1\]"),
        (
            lambda: Classes(classes={"a": DeviceClass(share=0.5)}),
            r"classes: the shares of \['a'\] sum to 0.5 instead of 1",
        ),
        (lambda: DeviceTrace(path="x.csv", training_factor=0), r"training_factor: 0 is not in \(0, inf\)"),
        (lambda: System(devices=Identical(), dropout=1.0), r"dropout: 1.0 is not in \[0, 1\)"),
        (lambda: System(devices=Identical(), jitter=-1), r"jitter: -1 is not in \[0, inf\)"),
        (
            lambda: System(devices=Identical(gflops=1)).draw(0, 3),
            "compute: 'samples' needs ms_per_sample of all .* client 0",
        ),
        (
            lambda: System(devices=Identical(ms_per_sample=1), compute="flops").draw(0, 3),
            "compute: 'flops' needs gflops",
        ),
    ],
)
def test_bad_figures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- traces -----------------------------------------------------------------------------------------------------------
def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


CSV = "client,ms_per_sample,up_mbps\n7,30,8\n2,10,16\n5,20,80\n"


def test_a_trace_in_three_formats(tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    csv = written(tmp_path, "d.csv", CSV)
    table = pyarrow.csv.read_csv(csv)
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    records = written(tmp_path, "d.json", json.dumps(table.to_pylist()))
    for path in (csv, str(tmp_path / "d.parquet"), records):
        d = DeviceTrace(path=path).draw(0, 3)
        assert_allclose(d.seconds_per_sample, [0.01, 0.02, 0.03])  # ids 2, 5, 7
        assert_array_equal(d.up_bytes_per_second, [2e6, 10e6, 1e6])
        assert np.isinf(d.down_bytes_per_second).all()


def test_rows_without_ids_are_in_order_and_repeat_if_asked(tmp_path):
    path = written(tmp_path, "d.csv", "ms_per_sample\n30\n10\n")
    assert_allclose(DeviceTrace(path=path).draw(0, 2).seconds_per_sample, [0.03, 0.01])
    assert_allclose(DeviceTrace(path=path, repeat=True).draw(0, 5).seconds_per_sample, [0.03, 0.01, 0.03, 0.01, 0.03])
    with pytest.raises(ValueError, match="has 2 entries for 5 clients; repeat: true"):
        DeviceTrace(path=path).draw(0, 5)


def test_fedscales_capacities(tmp_path):
    """Inference takes 162 ms per sample, training three times that; 5,648 kbit/s are 706,000 bytes per second."""
    entries = {"10": {"computation": 50.0, "communication": 8000}, "9": {"computation": 162.0, "communication": 5648.0}}
    d = DeviceTrace(path=written(tmp_path, "capacity.json", json.dumps(entries))).draw(0, 2)
    assert_allclose(d.seconds_per_sample, [0.486, 0.150])  # client 9 comes before client 10
    assert_allclose(d.up_bytes_per_second, [706_000, 1_000_000])
    assert_allclose(d.down_bytes_per_second, [706_000, 1_000_000])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "ms_per_sample,up_mbps\n1,2\n1,-3\n", "d.csv: row 2: up_mbps -3 is not a positive number"),
        ("d.csv", "ms_per_sample,up_mbps\n1,2\n1,\n", "d.csv: row 2: up_mbps is missing"),
        ("d.csv", "ms_per_sample,up_mbps\n1,2\n1,fast\n", "d.csv: row 2: up_mbps 'fast' is not a number"),
        ("d.csv", "ms_per_sample,up_mbps\n1,nan\n", "d.csv: row 1: up_mbps is missing"),
        ("d.csv", "client,up_mbps\n3,1\n4,1\n3,1\n", "d.csv: row 3: client 3 occurs twice"),
        ("d.csv", "client,up_mbps\n3.5,1\n", "d.csv: row 1: client 3.5 is not a whole number from 0"),
        (
            "d.csv",
            "ms_per_sample,uplink\n1,2\n",
            r"d.csv: columns \['uplink'\]; a trace of devices may have \['client', 'ms_per",
        ),
        ("d.csv", "client\n1\n", r"d.csv: columns \['client'\]; a trace"),
        ("d.csv", "up_mbps\n", "d.csv has no rows"),
        ("d.csv", "a,b\n1\n", "path: .*d.csv cannot be read: CSV parse error"),
        ("d.pkl", "", "d.pkl is not .csv, .parquet or .json"),
        ("d.json", "{", "d.json is not JSON"),
        ("d.json", "[1]", "d.json holds neither a list of records nor FedScale's"),
        ("d.json", '[{"up_mbps": 1}, {"ms_per_sample": 1}]', "d.json: row 2: up_mbps is missing"),
        ("d.json", "{}", "d.json: there are no clients in it"),
        ("d.json", '{"x": {"computation": 1, "communication": 1}}', "d.json: 'x' is not a client id"),
        ("d.json", '{"1": {"computation": 1}}', "d.json: client 1: communication None is not a positive number"),
        (
            "d.json",
            '{"1": {"computation": -1, "communication": 1}}',
            "d.json: client 1: computation -1 is not a positive number",
        ),
        ("d.json", '{"1": {}, "1": {}}', "d.json: '1' occurs twice"),
    ],
)
def test_a_trace_with_holes_is_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message) as error:
        DeviceTrace(path=written(tmp_path, name, text)).draw(0, 1)
    assert str(error.value).startswith("path: ")


def test_a_missing_trace_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match="path: nowhere.csv is neither in .* nor in the data folder"):
        DeviceTrace(path="nowhere.csv").draw(0, 1)


# -- measures ---------------------------------------------------------------------------------------------------------
def test_fairness_by_hand():
    assert_array_equal(participations([0, 2, 2, 0, 2], 4), [2, 0, 3, 0])
    assert_array_equal(histogram([2, 0, 3, 0]), [2, 0, 1, 1])
    assert jain([4, 4, 4]) == 1 and jain([5, 0, 0, 0]) == 0.25
    assert jain([1, 2, 3]) == pytest.approx(36 / (3 * 14))
    assert jain([0, 0]) == 1


def test_flops_of_two_layers():
    """10 -> 5 -> 3 takes 2 (50 + 15) forward, the same for weight gradients, and 2 x 15 for hidden gradients."""
    net = torch.nn.Sequential(torch.nn.Linear(10, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    assert flops_per_sample(net, torch.zeros(7, 10), torch.sum) == 130 + 130 + 30
    assert all(parameter.grad is None for parameter in net.parameters())
