"""Costs of runs: hand-written run directories with known figures, and small real runs."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from matplotlib.image import imread
from typer.testing import CliRunner

import fl
from fl.cli import options
from fl.cli.app import app
from fl.communication.ledger import Ledger
from fl.report.compare import find_target, table
from fl.report.costs import COSTS
from fl.report.ledger import by_client, by_direction, by_group, by_round, tabulate
from fl.report.participation import Participation, by_staleness, by_times, by_variant, read_participation
from fl.report.plots.bars import plot_simulated_time
from fl.report.plots.curves import plot_curves
from fl.report.plots.participation import plot_participation
from fl.report.plots.style import Look
from fl.report.variants import OVERLAPPING, Variant, read_variants
from fl.storage.growing import Mark

TOYS = Path(__file__).with_name("toys.py")


def write(directory, metrics):
    directory.mkdir(parents=True)
    rows = [{"round": r, **row} for r, row in enumerate(metrics)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def rounds(accuracies, **each):
    """Return rows with 1 MB up, 2 MB down, 0.1 MB multicast, 1800 simulated seconds and three clients.

    `each` adds columns.
    """
    sent = {"uplink_bytes": 1e6, "downlink_bytes": 2e6, "downlink_multicast_bytes": 1e5, "cohort_size": 3}
    return [{"val/accuracy": a, **sent, "simulated_seconds": 1800.0, **each} for a in accuracies]


def shown(image) -> int:
    return len(np.unique((imread(image)[..., :3] * 255).astype(int).reshape(-1, 3), axis=0))


# -- targets ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def runs(tmp_path):
    """Write runs that reach .9 in the 2nd and 4th round, with energy, which synchronous servers report."""
    joules = {"simulated_joules": 10.0, "clients_in": 3}
    write(tmp_path / "ours" / "seed-0", rounds([0.1, 0.9, 0.2, 0.3], **joules))
    write(tmp_path / "ours" / "seed-1", rounds([0.1, None, 0.8, 0.95], **joules))
    return tmp_path / "ours"


def test_what_a_target_cost(runs):
    chosen = read_variants([runs])
    (row,) = table(chosen, ["val/accuracy"], [find_target("val/accuracy=0.9", chosen)])
    to = {name.removesuffix(" to val/accuracy>=0.9"): cell[:2] for name, cell in row.items() if ">=" in name}
    # {2, 4} rounds have mean 3 and deviation sqrt(2); each round takes half an hour, 30 joules, and so on
    each = {"rounds": 1, "MB up": 1, "MB down": 2, "simulated hours": 0.5, "joules": 10, "client-rounds": 3}
    assert to == {name: pytest.approx((3 * one, one * np.sqrt(2))) for name, one in each.items()}
    assert (row["simulated hours"], row["joules"], row["MB down"]) == pytest.approx((2.0, 40.0, 8.0))
    (row,) = table(chosen, ["val/accuracy"], [find_target("val/accuracy=0.9", chosen)], multicast=True)
    assert row["MB down (multicast) to val/accuracy>=0.9"][0] == pytest.approx(0.3) and "MB down" not in row


def test_a_target_that_is_not_reached_costs_more_than_was_spent(runs):
    (row,) = table(read_variants([runs]), ["val/accuracy"], [find_target("accuracy=0.99", read_variants([runs]))])
    cells = [str(cell) for name, cell in row.items() if ">=" in name]
    assert cells == ["> 4", "> 4", "> 8", "> 2", "> 40", "> 12"]


def test_what_was_not_counted_is_left_open(runs, tmp_path):
    plain = [{k: v for k, v in row.items() if "simulated" not in k} for row in rounds([0.95])]
    write(tmp_path / "plain", plain)
    chosen = read_variants([tmp_path / "plain", runs])
    first, second = table(chosen, ["val/accuracy"], [find_target("accuracy=0.9", chosen)])
    assert first["simulated hours to val/accuracy>=0.9"] is first["joules"] is None and list(first) == list(second)
    assert "simulated hours" not in table(chosen[:1], ["val/accuracy"])[0]
    with pytest.raises(ValueError, match="cost: 'hours' was not counted in plain; it needs virtual time"):
        chosen[0].curves("val/accuracy", "hours")


def test_energy_that_is_not_known_of_all_rounds_is_not_known():
    rows = [{"round": r, **row} for r, row in enumerate(rounds([0.1, 0.2], clients_in=3, simulated_joules=1.0))]
    assert Variant("a", [rows]).has_cost("joules")
    rows[1].pop("simulated_joules")
    assert not Variant("a", [rows]).has_cost("joules") and Variant("a", [rows]).has_cost("hours")


def test_a_metric_without_its_prefix():
    def asked(text, *names):
        return find_target(text, [Variant("v", [[{"round": 0, **dict.fromkeys(of, 0.5)}]]) for of in names]).metric

    every = ("val/accuracy", "eval/accuracy", "task0/accuracy", "clients/accuracy_mean", "staleness")
    assert asked("accuracy=0.9", every) == "val/accuracy"
    assert asked("accuracy_mean=0.9", every) == "clients/accuracy_mean"
    assert asked("eval/accuracy=0.9", every) == "eval/accuracy" and asked("staleness=1", every) == "staleness"
    assert (
        asked("accuracy=0.9", every, ("eval/accuracy", "eval/loss")) == "eval/accuracy"
    )  # only this metric is in all runs
    with pytest.raises(ValueError, match=r"'accuracy' may mean any of \['eval/accuracy', 'task0/accuracy'\]"):
        asked("accuracy=0.9", every[1:])
    with pytest.raises(ValueError, match=r"'f1' is part of none of \['clients/accuracy_mean', 'eval/accuracy', "):
        asked("f1=0.9", every)


# -- time -------------------------------------------------------------------------------------------------------------
def test_where_time_went(tmp_path):
    legs = {
        f"simulated_{leg}_seconds": seconds for leg, seconds in zip(("download", "compute", "upload"), (180, 720, 360))
    }
    first = write(tmp_path / "a" / "s0", rounds([0.1, 0.2], **legs, simulated_waiting_seconds=540))
    write(tmp_path / "a" / "s1", rounds([0.1], **legs, simulated_waiting_seconds=540))
    (both,) = read_variants([first.parent])
    # the mean of two rounds and one round: 1.5 times 180, 720, 360, 540 of 3600 seconds
    expected = {"download": 0.075, "compute": 0.3, "upload": 0.15, "waiting": 0.225, OVERLAPPING: 0.0}
    assert both.simulated_hours() == pytest.approx(expected)
    (overlapping,) = read_variants([write(tmp_path / "async", rounds([0.1, 0.2]))])
    assert overlapping.simulated_hours() == dict.fromkeys(("download", "compute", "upload", "waiting"), 0.0) | {
        OVERLAPPING: 1.0
    }
    plot_simulated_time([both, overlapping], tmp_path / "time.png", Look(title="title"))
    assert shown(tmp_path / "time.png") > 20


def test_the_axis_is_logarithmic_if_asked(runs, tmp_path):
    chosen, files = read_variants([runs]), [tmp_path / f"{log}.png" for log in (True, False, None)]
    for file, log in zip(files, (True, False, None)):
        plot_curves(chosen, "val/accuracy", "hours", file, log=log)
    logarithmic, linear, either = (file.read_bytes() for file in files)
    assert logarithmic != linear == either  # costs are close, so the default axis is linear


# -- the ledger -------------------------------------------------------------------------------------------------------
def book(directory, parquet=True):
    """Write a ledger of two rounds.

    Round 0: clients 3 and 5 receive 100 bytes encoded as 50, and send 40 encoded as 10 and 20.
    Round 1: client 3 receives the same, and sends 40 encoded as 30, and a mask.
    """
    (directory / "streams").mkdir(parents=True)
    ledger = Ledger(directory / "streams" / "ledger.arrow")
    ledger.record(0, 0, "down", "model", np.array([3, 5]), 100, 50, 60)
    ledger.multicast(0, 50)
    ledger.record(0, 0, "up", "model", np.array([3, 5]), 40, np.array([10, 20]), np.array([30, 40]))
    metrics = [{"round": 0, **ledger.totals(0)}]
    ledger.commit()
    ledger.record(1, 0, "down", "model", np.array([3]), 100, 50, 60)
    ledger.multicast(1, 50)
    ledger.record(1, 0, "up", "model", np.array([3]), 40, 30, 50)
    ledger.record(1, 1, "up", "mask", np.array([3]), 8, 1, 21)
    metrics.append({"round": 1, **ledger.totals(1)})
    ledger.commit()
    ledger.close()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if parquet:
        ledger.to_parquet(directory / "ledger.parquet")
    return directory


@pytest.fixture(params=[True, False], ids=["finished", "growing"])
def booked(request, tmp_path):
    return book(tmp_path / "booked", request.param)


def figures(rows, *names):
    """Return columns in bytes."""
    return [tuple(None if row[name] is None else round(1e6 * row[name]) for name in names) for row in rows]


SIZES = ("payload MB", "encoded MB", "wire MB")


def test_bytes_by_group_and_direction(booked):
    rows = by_group(booked)
    assert [(row["direction"], row["group"], row["messages"]) for row in rows] == [
        ("down", "model", 3),
        ("up", "mask", 1),
        ("up", "model", 3),
    ]
    assert figures(rows, *SIZES) == [(300, 150, 180), (8, 1, 21), (120, 60, 120)]
    assert [row["ratio"] for row in rows] == pytest.approx([2, 8, 2])
    assert [row["encoded kB each"] for row in rows] == pytest.approx([0.05, 0.001, 0.02])
    rows = by_direction(booked)
    assert [row["direction"] for row in rows] == ["down", "up", "down (multicast)"]
    assert figures(rows, *SIZES) == [(300, 150, 180), (128, 61, 141), (None, 100, None)]


def test_bytes_by_round_add_up(booked):
    rows = by_round(booked)
    assert [row["round"] for row in rows] == [0, 1]
    assert figures(rows, "up payload MB", "up encoded MB", "up wire MB") == [(80, 30, 70), (48, 31, 71)]
    assert figures(rows, "down encoded MB", "multicast MB") == [(100, 50), (50, 50)]
    assert figures(rows, "up so far", "down so far") == [(30, 100), (61, 150)]


def test_bytes_by_client(booked):
    # client 3: 10 + 31 up, 100 down; client 5: 20 up, 50 down
    rows = by_client(booked)
    assert [row["name"] for row in rows] == ["min", "median", "mean", "max", "client 3", "client 5"]
    assert [1e6 * row["up encoded MB"] for row in rows] == pytest.approx([20, 30.5, 30.5, 41, 41, 20])
    assert [1e6 * row["down encoded MB"] for row in rows] == pytest.approx([50, 75, 75, 100, 100, 50])


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path):
    directory = book(tmp_path / "run")
    stream = directory / "streams" / "ledger.arrow"
    ledger = Ledger(stream, Mark(stream.stat().st_size, xxhash.xxh3_64(stream.read_bytes()).hexdigest()))
    ledger.record(2, 0, "up", "model", np.array([3]), 40, 40, 60)
    ledger.commit()
    ledger.close()
    os.utime(stream, (stream.stat().st_atime, (directory / "ledger.parquet").stat().st_mtime + 1))
    assert figures(by_direction(directory)[1:2], "encoded MB") == [(101,)]


def test_several_runs_are_told_apart(tmp_path):
    book(tmp_path / "a" / "seed-0"), book(tmp_path / "a" / "seed-1")
    rows = tabulate([tmp_path / "a"], "direction")
    assert [(Path(row["run"]).name, row["direction"]) for row in rows[2:4]] == [
        ("seed-0", "down (multicast)"),
        ("seed-1", "down"),
    ]
    assert "run" not in tabulate([tmp_path / "a" / "seed-0"], "round")[0]


def test_a_run_without_a_ledger_is_said(runs, tmp_path):
    with pytest.raises(ValueError, match="seed-0 has no ledger"):
        tabulate([runs], "group")
    directory = write(tmp_path / "empty", rounds([0.1]))
    (directory / "streams").mkdir()
    Ledger(directory / "streams" / "ledger.arrow").close()
    for by in ("group", "direction", "round", "client"):
        with pytest.raises(ValueError, match="empty: nothing was sent"):
            tabulate([directory], by)


# -- participation ----------------------------------------------------------------------------------------------------
def took_part(directory, pairs, population, staleness=None, metrics=({},)):
    write(directory, metrics)
    number, client = (list(column) for column in zip(*pairs))
    columns = {"round": [*number, 0], "split": ["train"] * len(pairs) + ["val"], "client": [*client, 3]}
    columns |= {"staleness": [*map(float, staleness), None]} if staleness else {}
    pq.write_table(pa.table(columns), directory / "clients.parquet")
    (directory / "environment.json").write_text(json.dumps({"clients": population}))
    return directory


def test_evenness_by_hand(tmp_path):
    # client 0 three times (in round 1 in two exchanges), client 1 once, of four
    run = took_part(tmp_path / "run", [(0, 0), (1, 0), (1, 0), (2, 0), (2, 1)], 4)
    assert Participation.read(run).times.tolist() == [3, 1, 0, 0]
    found = read_participation(read_variants([run]))
    (row,) = by_variant(found)
    assert [row[name] for name in ("clients", "took part", "min", "median", "mean", "max")] == [4, 2, 0, 0.5, 1, 3]
    assert row["Jain"] == (16 / (4 * 10), None)
    # pairs: |3 - 1| + 2 |3 - 0| + 2 |1 - 0| = 10; Gini = 2 * 10 / (2 n^2 mean), the denominator is 32
    assert row["Gini"] == (20 / 32, None)
    assert by_times(found) == [{"times": k, "run": n} for k, n in ((0, 2.0), (1, 1.0), (3, 1.0))]
    with pytest.raises(ValueError, match="none of the runs has an asynchronous server"):
        by_staleness(found)


def test_seeds_are_averaged(tmp_path):
    took_part(tmp_path / "a" / "s0", [(0, 0), (0, 1)], 2)  # Jain 1
    took_part(tmp_path / "a" / "s1", [(0, 0), (1, 0)], 2)  # Jain 1/2
    found = read_participation(read_variants([tmp_path / "a"]))
    (row,) = by_variant(found)
    assert row["Jain"] == pytest.approx((0.75, np.sqrt(0.125))) and row["took part"] == 1.5
    assert by_times(found) == [{"times": 0, "a": 0.5}, {"times": 1, "a": 1.0}, {"times": 2, "a": 0.5}]


@pytest.mark.slow
def test_staleness_counts_every_arrival(tmp_path):
    # client 1 arrives twice in one server step
    late = [{"discarded": 2, "clients_dropped": 1}, {"discarded": 0, "clients_dropped": 0}]
    pairs = [(0, 1), (0, 1), (1, 2)]
    run = took_part(tmp_path / "async", pairs, 3, staleness=[0, 2, 2], metrics=late)
    of = Participation.read(run)
    assert of.times.tolist() == [0, 2, 1] and of.outcomes == {"in": 3, "dropped": 1, "discarded": 2}
    found = read_participation(read_variants([run, took_part(tmp_path / "sync", pairs, 3)]))
    assert by_staleness(found) == [{"staleness": 0, "async": 1.0}, {"staleness": 2, "async": 2.0}]
    first, second = by_variant(found)
    assert (first["mean staleness"], first["max staleness"]) == pytest.approx((4 / 3, 2))
    assert second["mean staleness"] is second["in"] is None
    plot_participation(found, tmp_path / "who.png", "title")
    plot_participation(found[1:], tmp_path / "one.png")
    assert min(shown(tmp_path / "who.png"), shown(tmp_path / "one.png")) > 20
    assert (
        imread(tmp_path / "who.png").shape[1] > 2 * imread(tmp_path / "one.png").shape[1]
    )  # three panels and one panel


def test_fates_add_up_over_rounds(tmp_path):
    fates = {"clients_in": 3, "clients_surplus": 1, "clients_late": 0, "clients_dropped": 2, "clients_away": 0}
    run = took_part(tmp_path / "run", [(0, 0)], 2, metrics=[fates, fates])
    (row,) = by_variant(read_participation(read_variants([run])))
    assert [row[name] for name in ("in", "surplus", "late", "dropped", "away")] == [6, 2, 0, 4, 0]


def test_without_training_metrics_the_ledger_shows_who_took_part(tmp_path):
    run = book(tmp_path / "run")
    pq.write_table(pa.table({"round": [0], "split": ["val"], "client": [9]}), run / "clients.parquet")
    assert Participation.read(run).times.tolist() == [0, 0, 0, 2, 0, 1]  # clients up to the largest known id


# -- real runs --------------------------------------------------------------------------------------------------------
TINY = {
    "rounds": 4,
    "data": "digits",
    "partition": {"name": "iid", "clients": 8},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
MESSAGE = 4 * (64 * 10 + 10)
SLOW = {"name": "lognormal", "ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5, "sigma": 1.0}


def test_a_synchronous_run(tmp_path):
    system = {"devices": SLOW | {"compute_watts": 3, "radio_watts": 1}, "dropout": 0.3}
    result = fl.run(TINY | {"system": system, "rounds": 6}, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["clients"] == 8
    rows = {(row["direction"], row["group"]): row for row in by_group(tmp_path / "run")}
    arrived = sum(row["clients_in"] for row in result.metrics)
    assert 0 < arrived < 24 and rows["up", "model"]["messages"] == arrived and rows["down", "model"]["messages"] == 24
    assert figures([rows["up", "model"]], "payload MB", "encoded MB") == [(arrived * MESSAGE,) * 2]
    (row,) = by_variant(read_participation(read_variants([tmp_path / "run"])))
    assert row["mean"] * 8 == row["in"] == arrived and row["in"] + row["dropped"] == 24
    (variant,) = read_variants([tmp_path / "run"])
    assert sum(variant.simulated_hours().values()) == pytest.approx(variant.total_cost("hours"))
    assert variant.total_cost("joules") == pytest.approx(sum(row["simulated_joules"] for row in result.metrics))


def test_an_asynchronous_run(tmp_path):
    """With identical devices all four clients arrive together, so rounds 1 to 3 send nothing down."""
    alike = {"name": "identical", "ms_per_sample": 10, "up_mbps": 1, "down_mbps": 5}
    settings = {"system": {"devices": alike}, "server": {"name": "buffered", "concurrency": 4, "buffer": 1}}
    equal = {"partition": {"name": "iid", "clients": 8}, "client": {"lr": 0.1, "steps": 2}}
    result = fl.run(TINY | settings | equal, out=tmp_path / "run")
    sent = [(row["downlink_bytes"], row["downlink_multicast_bytes"]) for row in result.metrics]
    assert sent == [(4 * MESSAGE, MESSAGE), (0, 0), (0, 0), (0, 0)]
    found = read_participation(read_variants([tmp_path / "run"]))
    assert by_staleness(found) == [{"staleness": k, "run": 1.0} for k in range(4)]
    assert by_times(found) == [{"times": k, "run": 4.0} for k in (0, 1)]


def test_private_tensors_are_multicast_to_no_other_client(tmp_path):
    """Two numbers are multicast to all clients, and five more in rounds 0 and 2.

    Each of six clients also gets two private numbers and a third of the 21 parameters.
    """
    config = {
        "rounds": 4,
        "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 6},
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"size": 6},
        "strategy": f"{TOYS}:Mixed",
        "client": {"name": f"{TOYS}:Answers"},
        "execution": {"executor": "serial"},
    }
    result = fl.run(config, out=tmp_path / "run")
    own = 6 * (8 + 28)
    assert [row["downlink_multicast_bytes"] for row in result.metrics] == [8 + 20 + own, 8 + own] * 2
    rows = {(row["direction"], row["group"]): row for row in by_group(tmp_path / "run")}
    assert figures([rows["up", "part"]], "payload MB", "encoded MB") == [(24 * 28, 24 * 31)]  # values, and a bitmap


# -- the command ------------------------------------------------------------------------------------------------------
def test_the_commands_costs_are_those_of_the_report():
    assert options.COSTS == tuple(COSTS)


def test_commands(runs, tmp_path):
    invoke = lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])  # noqa: E731
    done = invoke("compare", runs, "--target", "accuracy=.9", "--multicast", "--format", "csv", "--cost", "hours")
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert float(row["simulated hours to val/accuracy>=0.9 mean"]) == 1.5 and float(row["MB down (multicast)"]) == 0.4
    done = invoke(
        "plot", runs, "--out", tmp_path / "a.pdf", "--cost", "work", "--log", "--width", "column", "--band", "sd"
    )
    assert done.exit_code == 0 and (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    done = invoke("plot", runs, "--kind", "time", "--out", tmp_path / "b.png")
    assert done.exit_code == 0 and (tmp_path / "b.png").is_file()
    book(tmp_path / "booked")
    done = invoke("ledger", tmp_path / "booked")
    assert (
        "| direction | group | messages |" in done.stdout and "| down | model | 3 | 0.0003 | 0.00015 |" in done.stdout
    )
    done = invoke("ledger", tmp_path / "booked", "--by", "round", "--json")
    assert [row["round"] for row in json.loads(done.stdout)] == [0, 1]
    done = invoke("ledger", tmp_path / "booked", "--by", "direction", "--format", "latex")
    assert r"down (multicast) &  &  & 0.0001" in done.stdout
    took_part(tmp_path / "who", [(0, 0), (1, 0), (1, 1)], 2)
    done = invoke("participation", tmp_path / "who", "--plot", tmp_path / "c.png")
    assert "| who | 1 | 2 | 2 | 1 | 1.5 | 1.5 | 2 | 0.900 |" in done.stdout and (tmp_path / "c.png").is_file()
    done = invoke("participation", tmp_path / "who", "--by", "times", "--format", "csv")
    assert done.stdout.splitlines() == ["times,who", "1,1.0", "2,1.0"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["compare", "{0}", "--target", "f1=0.9"],
            "target: 'f1' is part of none of ['val/accuracy']; give the full name of one",
        ),
        (["compare", "{0}", "--cost", "euros"], "--cost: 'euros' is not one of"),
        (["ledger", "{0}"], "has no ledger"),
        (["ledger", "{0}", "--by", "hour"], "--by: 'hour' is not one of ['group', 'direction', 'round', 'client']"),
        (["ledger", "{0}/nothing"], "is no run directory"),
        (["participation", "{0}"], "has no clients.parquet"),
        (["plot", "{0}", "--out", "{0}/figure"], "has no suffix of a format, such as .pdf, .svg or .png"),
        (["plot", "{0}", "--out", "{0}/figure.xyz"], "has no suffix of a format, such as .pdf, .svg or .png"),
        (["compare", "{0}", "--robust", "--budget", "up=1MB"], "--robust: has a table of its own"),
        (["report", "{0}", "--out", "{0}/page.pdf"], "the page is HTML; --pdf DIR writes its figures"),
        (["report", "{0}", "--out", "{0}/a.html", "--png", __file__], "--png: "),
        (["report", "{0}", "--out", "{0}/a.html", "--png", "{0}/p", "--cost", "wall"], "'wall' was not counted"),
        (["participation", "{0}", "--by", "age"], "--by: 'age' is not one of ['variant', 'times', 'staleness']"),
    ],
)
def test_mistakes_are_named(runs, arguments, said):
    done = CliRunner().invoke(app, [a.format(runs) for a in arguments])
    assert done.exit_code == 2 and said in done.stderr
