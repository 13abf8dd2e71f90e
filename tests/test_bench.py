"""`fl bench` measures, checks and reports its contestants. These tests check no speeds."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.tools import bench
from fl.tools.bench import comparison, kernels, processes, programs, report
from fl.tools.bench.workload import OVERRIDES, TREE, Workload, find, layers

PEERS = TREE / processes.PEERS

MICRO = """
data: {name: noise, shape: [6], classes: 3, clients: 12, samples: 8}
partition: natural
splits: {val: 0.0, test: 0.0}
model: softmax
cohort: {size: 6}
strategy: fedavg
client: {epochs: 1, batch: 4, lr: 0.1}
execution: {executor: ray, workers: 2, plan: compiled}
"""


@pytest.fixture
def micro(tmp_path) -> Path:
    (tmp_path / "micro.yaml").write_text(MICRO)
    return tmp_path / "micro.yaml"


@pytest.fixture
def peers(monkeypatch):
    """Import modules from the folder of the contestants."""
    monkeypatch.syspath_prepend(PEERS)
    yield importlib.import_module
    for name in ("protocol", "torch_layers", "bare"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "key, value",
    [("last_batch", "drop"), ("steps", 3), ("epochs", 0.5), ("clip", 1.0), ("optimiser", "adam"), ("trains", ["1.*"])],
)
def test_training_that_contestants_do_not_know_is_refused(micro, key, value):
    training = {"epochs": 1, "batch": 4, "lr": 0.1, key: value} | ({"epochs": None} if key == "steps" else {})
    micro.write_text(MICRO.replace("{epochs: 1, batch: 4, lr: 0.1}", json.dumps(training)))
    with pytest.raises(ConfigError, match=f"client.{key}: .* is unknown to the contestants; leave it out"):
        Workload.load(micro, None, "cpu")


@pytest.mark.slow
def test_a_micro_workload_is_measured(micro, capsys, monkeypatch):
    out, picture = micro.with_suffix(".json"), micro.with_suffix(".png")
    monkeypatch.setattr(comparison, "TURNS", 2)
    monkeypatch.setattr(report, "TREE_BAR", 0.0)  # speeds are not tested
    assert bench.main([str(micro)], 0.1, only=["ours"], trees=[TREE], out=out, picture=picture) == 0
    assert "micro" in capsys.readouterr().out and picture.stat().st_size > 1000
    (result,) = json.loads(out.read_text())
    assert (result["workload"], result["parameters"], result["samples"]) == ("micro", 6 * 3 + 3, 8.0)
    assert result["flops"] == 2 * 2 * 6 * 3  # scores and weight gradients; inputs need no gradient
    entries = result["contestants"]
    plans = {
        "ours compiled x1",
        "ours compiled x2",
        "ours compiled, 2 threads",
    }  # the workload's configuration has this plan
    assert {"peak", "bare x1", "bare x2"} | plans <= set(entries) and result["missing"] == {}
    assert {f"{TREE.name}: {plan}" for plan in plans} == {bar["against"] for bar in result["bars"]}
    assert entries["bare x2"]["distance"] == 0  # the same weights and the same order of samples
    for name, entry in entries.items():
        assert len(entry["turns"]) == comparison.TURNS and min(t for t in entry["turns"] if t is not None) > 0, name
    assert result["best"] in plans and entries[result["best"]]["ratio"] == 1
    assert result["machine"]["cores"] >= 1 and result["machine"]["packages"]["torch"]


CHEAT = """
from bare import *

class Cheat(Bare):
    def __init__(self, work):
        super().__init__(work)
        self.descent.lr *= 0.5

if __name__ == "__main__":
    serve(lambda work: {"honest": Bare(work), "cheat": Cheat(work)})
"""


@pytest.mark.slow
def test_a_contestant_with_another_model_takes_no_turn(micro, monkeypatch, tmp_path):
    """Half the learning rate moves the model about half as far."""
    for file in PEERS.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    (tmp_path / "cheat.py").write_text(CHEAT)
    monkeypatch.setattr(processes, "PEERS", tmp_path)
    monkeypatch.setattr(comparison, "TURNS", 1)
    monkeypatch.setattr(comparison, "PROGRAMS", [programs.Program(n, n, None) for n in ("bare", "cheat")])
    result = comparison.Comparison(Workload.load(micro, None, "cpu"), [], (), 0.01, lambda _: None).run()
    for name, distance in (("honest", 0.0), ("cheat", 0.5)):
        entry = result["contestants"][name]
        assert entry["distance"] == pytest.approx(distance, abs=0.02)
        assert ("clients_per_second" in entry) == (distance == 0)
        assert ("differs from the bare loop's" in entry.get("failed", "")) == (distance > 0)


def test_a_contestant_that_cannot_run_is_named_with_the_reason(micro, monkeypatch, tmp_path):
    (tmp_path / "protocol.py").write_text((PEERS / "protocol.py").read_text())
    (tmp_path / "lacks.py").write_text(
        "from protocol import serve\ndef start(work): import no_such_module\nserve(start)"
    )
    (tmp_path / "dies.py").write_text("raise SystemExit('no memory left')")
    entries = [programs.Program("lacks", "lacks", None), programs.Program("dies", "dies", None)]
    entries += [programs.Program("absent", "absent", "no_such_package")]
    monkeypatch.setattr(processes, "PEERS", tmp_path)
    monkeypatch.setattr(comparison, "PROGRAMS", entries)
    result = comparison.Comparison(Workload.load(micro, None, "cpu"), [], (), 0.01, lambda _: None).run()
    assert result["contestants"] == {}
    assert "no_such_module" in result["missing"]["lacks x1"]
    assert result["missing"]["dies x1"] == "no memory left"
    assert result["missing"]["absent"] == "no_such_package is in no side environment"


def test_the_bare_loop_is_federated_averaging(peers):
    """With full batches shuffles do not matter: w - lr * sum_c n_c grad_c / sum_c n_c, with all gradients at w."""
    module = nn.Linear(5, 3)
    x, y = torch.randn(10, 5), torch.randint(0, 3, (10,))
    F.cross_entropy(
        module(x), y
    ).backward()  # the mean over all ten samples is the mean of the clients' means, weighted by samples
    expected = [(p - 0.5 * p.grad).detach() for p in module.parameters()]
    loop = peers("torch_layers").Descent(module, lr=0.5, batch=6, epochs=1)
    loop.round([(x[:4], y[:4]), (x[4:], y[4:])], shuffle=True)
    for mine, wanted in zip(module.parameters(), expected):
        torch.testing.assert_close(mine.detach(), wanted)


def test_contestants_get_the_samples_cohorts_and_model_of_ours(micro, peers, tmp_path):
    of = Workload.load(micro, None, "cpu")
    of.write(tmp_path)
    work = peers("protocol").Workload.read(tmp_path, 0, 1, 0)
    config, partition = of.run_setup.config, of.run_setup.periods[0].partition
    for client in range(12):
        rows, own = partition.view_rows(client, "train"), slice(*work.offsets[client : client + 2])
        np.testing.assert_array_equal(work.x[own], of.run_setup.dataset.train["x"][rows])
        np.testing.assert_array_equal(work.y[own], of.run_setup.dataset.train["y"][rows])
    for round_ in (0, 1, 200):
        np.testing.assert_array_equal(
            work.cohorts[round_], config.cohort.sample(None, round_, config.seed, of.sizes)[1]
        )
    assert (work.lr, work.batch, work.epochs, work.workers, work.device) == (0.1, 4, 1, 2, "cpu")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cnn_small", 271_786), ("femnist_mlp", 209_662), ("softmax", 610), ("softmax_10k", 610)],
)
def test_the_workloads_are_what_they_say(name, parameters, peers):
    config = resolve(read(find(name), OVERRIDES))
    module = config.model.build(tuple(config.data.part.shape), config.data.part.classes)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert config.execution.workers == 2 and name in report.BARS
    known = peers("torch_layers").LAYERS
    again = nn.Sequential(*(known[kind](*numbers) for kind, *numbers in layers(module)))
    again.load_state_dict(module.state_dict())
    x = torch.randn(2, *config.data.part.shape)
    torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)


def test_a_model_that_is_no_stack_of_known_layers_is_not_taken_for_one():
    assert layers(nn.Sequential(nn.Linear(2, 2), nn.Tanh())) is None
    assert layers(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))) is None
    assert layers(nn.LSTM(2, 2)) is None


def test_ratios_and_bars():
    """The turns' ratios are 40/10, 60/20, 60/30, so the median is 3. Turns that a contestant sits out do not count."""

    def entry(*turns):
        done = [t for t in turns if t is not None]
        return {"clients_per_second": float(np.median(done)), "turns": list(turns)}

    entries = {"ours stacked x2": entry(40.0, 60.0, 60.0), "ours loop x1": entry(4.0, 5.0, 6.0)}
    entries |= {"bare x2": entry(10.0, 20.0, 30.0), "pfl x2": entry(None, 50.0, None), "peak": entry(3e3, 3e3, 3e3)}
    result = {
        "workload": "femnist_mlp",
        "device": "cpu",
        "workers": 2,
        "flops": 10.0,
        "samples": 5.0,
        "contestants": entries,
    }
    found = report.summary(result)
    assert found["best"] == "ours stacked x2" and found["peak_flops_per_second"] == 15e3
    assert entries["bare x2"]["ratio"] == 3 and entries["pfl x2"]["ratio"] == 60 / 50
    assert entries["ours stacked x2"]["share_of_peak"] == 60 * 5 * 10 / 15e3  # clients x samples x FLOP
    assert {(b["against"], b["reached"]) for b in found["bars"]} == {("bare x2", True), ("pfl x2", False)}


def test_a_contestant_of_another_checkout_is_compared_with_the_same_one_of_ours():
    entries = {
        "ours loop x1": {"clients_per_second": 20.0, "turns": [10.0, 20.0, 30.0]},
        "ours compiled x1": {"clients_per_second": 50.0, "turns": [50.0, 50.0, 50.0]},
        "old: ours loop x1": {"clients_per_second": 25.0, "turns": [20.0, 25.0, 30.0]},
    }
    result = {"workload": "my", "device": "cpu", "workers": 2, "flops": 1.0, "samples": 1.0, "contestants": entries}
    found = report.summary(result)
    assert found["best"] == "ours compiled x1"
    assert found["bars"] == [{"against": "old: ours loop x1", "bar": 0.97, "ratio": 20 / 25, "reached": False}]


@pytest.mark.parametrize(("workload", "bar"), [("softmax", 0.5), ("femnist_mlp", 0.9), ("lora", None)])
def test_rounds_that_are_evaluated_and_committed_have_a_bar(workload, bar):
    """The medians are 80 and 48; the median of the ratios of the turns .1, .8, .6 counts."""
    entries = {
        "ours flat, 2 threads": {"clients_per_second": 80.0, "turns": [100.0, 50.0, 80.0], "facts": {}},
        "ours, evaluated and committed": {
            "clients_per_second": 40.0,
            "turns": [10.0, 40.0, 48.0],
            "facts": {"bare": "ours flat, 2 threads"},
        },
    }
    facts = {"device": "cpu", "workers": 2, "flops": 1.0, "samples": 1.0, "contestants": entries}
    expected = [{"against": "ours, evaluated and committed", "bar": bar, "ratio": 0.6, "reached": bar == 0.5}]
    assert report.summary({"workload": workload, **facts})["bars"] == (expected if bar else [])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"workloads": ["sofmax"]},
            r"'sofmax' is not one of \['aggregation', 'cnn_pfl', 'cnn_small',.* 'softmax', 'softmax_10k'\]",
        ),
        ({"workloads": ["aggregation", "lora"]}, "aggregation: takes no other workload and only --seconds"),
        ({"workloads": ["aggregation"], "device": "cuda"}, "aggregation: takes no other workload and only --seconds"),
        (
            {"workloads": ["softmax"], "only": ["flwr"]},
            r"--only: \['flwr'\]: .* begin with one of \['peak', 'bare', 'ours'",
        ),
        ({"workloads": ["softmax"], "sides": [Path("nowhere")]}, "--side: nowhere is no environment"),
        ({"workloads": ["softmax"], "trees": [Path("nowhere")]}, "--tree: nowhere is no checkout of fl"),
    ],
)
def test_mistakes_are_said_before_anything_starts(asked, said):
    with pytest.raises(ConfigError, match=said):
        bench.main(seconds=1.0, **asked)


def test_reductions_are_measured_beside_numpy(monkeypatch, tmp_path, capsys):
    """Each result is compared with NumPy's before it is measured; speeds are not tested."""
    calls, out = importlib.import_module("experiments.benchmarks.aggregation"), tmp_path / "aggregation.json"
    measure = calls.measure
    monkeypatch.setattr(calls, "measure", lambda *given: measure(*given, length=1000))
    assert bench.main(["aggregation"], 0.0, workers=1, out=out) in (0, 1)
    (result,) = json.loads(out.read_text())
    assert {(row["rule"], row["clients"]) for row in result["calls"] if row["contestant"] == "ours"} == {
        (rule, clients) for rule in ("mean", "median", "trimmed mean") for clients in (10, 100)
    }
    for row in result["calls"]:
        assert len(row["turns"]) == calls.TURNS and row["error"] < calls.TOLERANCE
        assert row["bytes"] == 4 * 1000 * row["clients"]
    shown = capsys.readouterr().out
    assert "median of 100 " in shown and "updates of 1,000 numbers" in shown


def test_a_wrong_reduction_is_not_measured(monkeypatch):
    calls = importlib.import_module("experiments.benchmarks.aggregation")
    monkeypatch.setattr(calls, "median", lambda rows, weights: rows.mean(0))
    with pytest.raises(AssertionError, match="median of 10: ours differ from NumPy in float64"):
        calls.measure(0.0, 1, lambda line: None, length=100)


def test_figures_of_reductions():
    """Ours take 2, 4 and 2 s, NumPy 4, 4 and 6 s: medians 2 and 4 s, ratios 2, 1 and 3."""
    common = {"rule": "mean", "clients": 10, "bytes": 8e9}
    ours = common | {"contestant": "ours", "turns": [2.0, 4.0, 2.0]}
    theirs = common | {"contestant": "numpy", "turns": [4.0, 4.0, 6.0]}
    mine, it = kernels.summary([ours, theirs])
    assert (mine["ms"], mine["gigabytes_per_second"], mine["ratio"], mine["reached"]) == (2000, 4, 1, None)
    assert (it["ms"], it["gigabytes_per_second"], it["ratio"], it["reached"]) == (4000, 2, 2, True)
    assert kernels.summary([ours, theirs | {"turns": [1.0, 1.0, 1.0]}])[1]["reached"] is False
