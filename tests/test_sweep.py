"""Sweeps: what is searched, what is chosen, which trials stop early, and runs that are reused after an interruption."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from fl.config.space import Range, values_of
from fl.errors import ConfigError
from fl.report.sweeps import read_sweep
from fl.report.variants import read_variants
from fl.storage.run import read_metrics
from fl.tools.sweep import workers
from fl.tools.sweep.progress import Progress
from fl.tools.sweep.reading import load
from fl.tools.sweep.search import Search
from tests import process
from tests.process import CONTEXT
from tests.test_bad_configs import fl

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
SWEEP = {
    "config": "config.yaml",
    "seeds": [3, 4],
    "seeded": ["partition.seed"],
    "tune": {"client.lr": [0.0, 0.2]},
    "metrics": ["eval/accuracy"],
    "variants": {"FedAvg": {}, "Two": {"cohort.size": 3, "tune": {"client.lr": [0.1]}}},
}


@pytest.fixture(autouse=True)
def quick_processes(monkeypatch):
    """Fork the processes of `jobs` from a server with the heavy imports."""
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: CONTEXT)


@pytest.fixture
def write(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def write(**changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**SWEEP, **changes}))
        return path

    return write


def last(run: Path, metric: str = "val/accuracy") -> float:
    """The last value of a metric in metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1][metric]


def rounds_of(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines())


# -- variants, tuning and seeds ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_each_variant_is_tuned_and_run_on_every_seed(write, tmp_path, jobs):
    told = []
    first, second = load(write()).run(tmp_path / "out", jobs=jobs, say=told.append)
    assert len(told) == 2 + 1 + 2  # one candidate needs no trial; the chosen candidate's first seed is reused
    chosen = json.loads((tmp_path / "out" / "chosen.json").read_text())
    assert chosen == {"FedAvg": {"client.lr": 0.2}, "Two": {"client.lr": 0.1}}  # lr=0 learns nothing
    assert [rows[-1]["cohort_size"] for rows in first.runs + second.runs] == [2, 2, 3, 3]
    for name, size, lr in (("FedAvg", 2, 0.2), ("Two", 3, 0.1)):
        for seed in (3, 4):
            folder = tmp_path / "out" / (name if name == "Two" else "FedAvg,lr=0.2") / f"s{seed}"
            resolved = yaml.safe_load((folder / "config.yaml").read_text())
            assert (resolved["seed"], resolved["partition"]["seed"]) == (seed, seed)
            assert (resolved["cohort"]["size"], resolved["client"]["lr"]) == (size, lr)

    told.clear()
    again = load(write()).run(tmp_path / "out", jobs=jobs, say=told.append)
    assert told == [] and again[0].runs == first.runs


def test_a_list_of_strategies_is_a_list_of_variants(write, tmp_path):
    sweep = load(write(variants=["fedavg", "fedavgm", {"Slow": {"client.lr": 0.01}}, {"strategy": "median"}], tune={}))
    assert dict(sweep.variants) == {
        "fedavg": {"strategy": "fedavg"},
        "fedavgm": {"strategy": "fedavgm"},
        "Slow": {"client.lr": 0.01},
        "median": {"strategy": "median"},
    }
    assert dict(load(write(variants={"Mine": "fedavgm"})).variants) == {"Mine": {"strategy": "fedavgm"}}


@pytest.mark.slow
def test_a_variant_may_begin_with_what_another_ended_with(write, tmp_path):
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"extends": "config.yaml", "rounds": 1, "client": {"lr": 0.0}}))
    begins = {"config": "other.yaml", "model.init": "{out}/FedAvg/s{seed}"}
    path = write(tune={}, variants={"Later": begins, "FedAvg": {}})
    found = {variant.name: variant.runs for variant in load(path).run(tmp_path / "out", jobs=2)}
    for of_later, of_fedavg in zip(found["Later"], found["FedAvg"], strict=True):
        assert len(of_later) == 1 and of_later[-1]["eval/accuracy"] == of_fedavg[-1]["eval/accuracy"] > 0.15


def test_a_candidate_that_diverges_is_not_chosen(write, tmp_path):
    told = []
    load(write(tune={"client.lr": [1e38, 0.1]}, variants={"FedAvg": {}})).run(tmp_path / "out", say=told.append)
    assert "failed" in told[0] and "not finite" in told[0]
    assert json.loads((tmp_path / "out" / "chosen.json").read_text()) == {"FedAvg": {"client.lr": 0.1}}
    with pytest.raises(ConfigError, match="tune: the training of FedAvg failed with every setting"):
        load(write(tune={"client.lr": [1e38, 1e37]}, variants={"FedAvg": {}})).run(tmp_path / "none")


def test_a_variants_own_code_lies_beside_the_sweep(write, tmp_path, monkeypatch):
    (tmp_path / "rule.py").write_text(
        "from dataclasses import dataclass\nfrom fl import Strategy\n\n\n@dataclass(frozen=True, kw_only=True)\n"
        "class Still(Strategy):\n    def step(self, state, mean, ctx):\n        return state, {}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    path = write(seeds=1, variants={"Still": {"strategy": "./rule.py:Still", "tune": {}}})
    monkeypatch.chdir(tmp_path / "elsewhere")
    (still,) = load(path).run(tmp_path / "out")
    assert [row["eval/loss"] for row in still.runs[0]] == [still.runs[0][0]["eval/loss"]] * 2


# -- the command ------------------------------------------------------------------------------------------------------
def test_a_learning_rate_sweep_in_one_command(write, tmp_path, capsys):
    """The chosen setting is the best of metrics.jsonl; its folder is a variant; the table and the plot tell."""
    write()
    out, plot = tmp_path / "out", tmp_path / "plot.png"
    command = ["sweep", str(tmp_path / "config.yaml"), "client.lr=0.01,0.03,0.2", "seed=0..1", "--out", str(out)]
    code, shown, told = fl(capsys, *command, "--plot", str(plot))
    assert code == 0 and plot.read_bytes().startswith(b"\x89PNG")
    scores = {lr: last(out / f"fedavg,lr={lr}" / "s0") for lr in (0.01, 0.03, 0.2)}
    best = max(scores, key=scores.get)
    assert best == 0.2 and "| fedavg | lr=0.2 | client.lr upper | 2 | 2 |" in shown
    assert "fedavg: client.lr=0.2 is the largest value that was tried; try values above it" in told
    assert "[1 of 4] fedavg,lr=0.01/s0: all rounds done, val/accuracy" in told and " left\n" in told
    assert told.splitlines()[3].startswith("[4 of 4] fedavg,lr=0.2/s1: all rounds done")

    for folder in (out, out / "fedavg"):
        (variant,) = read_variants([folder])
        assert variant.name == "fedavg"
        assert list(variant.directories) == [out / "fedavg,lr=0.2" / f"s{seed}" for seed in (0, 1)]
    (tuned,) = read_sweep(out)
    assert [(t.setting["client.lr"], t.values[0], t.chosen) for t in tuned.trials] == [
        (lr, score, lr == 0.2) for lr, score in scores.items()
    ]
    assert list(tuned.trials[2].values) == [last(out / "fedavg,lr=0.2" / f"s{seed}") for seed in (0, 1)]

    code, shown, told = fl(capsys, *command, "--json", "--quiet")
    (row,) = json.loads(shown)
    assert code == 0 and (row["name"], row["chosen"], row["runs"]) == ("fedavg", "lr=0.2", 2) and "[" not in told
    code, _, told = fl(capsys, *command, "rounds=3")
    assert code == 2 and "rounds: 3, and the run in" in told and "--out" in told
    assert fl(capsys, "plot", str(out), "--kind", "sweep", "--out", str(tmp_path / "again.svg"))[0] == 0
    assert "client.lr" in (tmp_path / "again.svg").read_text()


def test_the_command_compares_and_plots_variants(write, tmp_path, capsys):
    path, plot = write(tune={}), tmp_path / "curves.png"
    options = ["sweep", str(path), "--out", str(tmp_path / "out"), "--versus", "FedAvg", "--plot", str(plot), "--json"]
    _, shown, _ = fl(capsys, *options, "--cost", "round")
    fedavg, two = json.loads(shown)
    assert fedavg["eval/accuracy - FedAvg"] is None and two["eval/accuracy - FedAvg"] is not None
    assert fedavg["runs"] == 2 and fedavg["rounds"] == 2 and plot.read_bytes().startswith(b"\x89PNG")
    code, _, _ = fl(capsys, "sweep", str(path), "--out", str(tmp_path / "none"), "--versus", "Avg")
    assert code == 2 and not (tmp_path / "none").exists()


def test_two_keys_make_a_heat_map_and_strategies_are_variants(write, tmp_path, capsys):
    write()
    out, plot = tmp_path / "out", tmp_path / "map.svg"
    values = ["strategy=fedavg,fedavgm", "client.lr=0.1,0.3", "cohort.size=1,2", "rounds=1"]
    code, shown, _ = fl(capsys, "sweep", str(tmp_path / "config.yaml"), *values, "--out", str(out), "--plot", str(plot))
    assert code == 0 and "| fedavg | lr=" in shown and "| fedavgm | lr=" in shown
    text = plot.read_text()
    for name in ("fedavg", "fedavgm"):
        matrix = {(lr, n): last(out / f"{name},lr={lr},size={n}" / "s0") for lr in (0.1, 0.3) for n in (1, 2)}
        for value in matrix.values():
            assert f"{value:.3f}".removeprefix("0") in text


# -- searches ---------------------------------------------------------------------------------------------------------
def test_random_values_lie_in_their_range_and_have_its_distribution():
    space = {"a": Range("log", 1e-4, 1.0), "b": Range("int", 1, 4), "c": ("x", "y")}
    drawn = Search("random", 2000, seed=7).settings(space)
    assert drawn == Search("random", 2000, seed=7).settings(space) != Search("random", 2000, seed=8).settings(space)
    assert drawn[:10] == Search("random", 10, seed=7).settings(space)  # more samples add to the others
    a = [each["a"] for each in drawn]
    assert min(a) >= 1e-4 and max(a) <= 1.0
    # log-uniform over four decades: a quarter of the draws in each, +- 5 standard deviations of sqrt(npq) = 19
    for decade in (1e-4, 1e-3, 1e-2, 1e-1):
        assert abs(sum(decade <= value < 10 * decade for value in a) - 500) < 97
    for value in (1, 2, 3, 4):
        assert abs(sum(each["b"] == value for each in drawn) - 500) < 97


def test_lists_are_sampled_without_repetition():
    space = {"a": (1, 2, 3), "b": ("x", "y")}
    drawn = Search("random", 50).settings(space)
    assert len(drawn) == 6 and {(s["a"], s["b"]) for s in drawn} == {(a, b) for a in (1, 2, 3) for b in "xy"}
    assert Search().settings(space)[:3] == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_asha_stops_what_is_behind(write, tmp_path, jobs):
    """9 rounds: decisions after rounds 1 and 3. A trial goes on from the 2/3 quantile of those before it there."""
    path = write(seeds=1, tune={"client.lr": [0.2, 0.0, 0.3, 0.001]}, search="asha", variants={"FedAvg": {"rounds": 9}})
    out, told = tmp_path / "out", []
    load(path).run(out, jobs=jobs, say=told.append)
    runs = {lr: out / f"FedAvg,lr={lr}" / "s0" for lr in (0.2, 0.0, 0.3, 0.001)}
    stopped = [lr for lr, run in runs.items() if (run / "stopped.txt").exists()]
    if jobs == 1:
        before: dict[int, list[float]] = {1: [], 3: []}
        for run in runs.values():  # replay the rule by hand, on what the runs wrote
            rows, expected = read_metrics(run), 9
            for done in (1, 3):
                value, earlier = rows[done - 1]["val/accuracy"], sorted(before[done])
                place = (len(earlier) - 1) * 2 / 3
                low = earlier[int(place)] if earlier else -1.0
                high = earlier[min(int(place) + 1, len(earlier) - 1)] if earlier else -1.0
                before[done].append(value)
                if value < low + (place - int(place)) * (high - low) - 1e-12:
                    expected = done
                    break
            assert rounds_of(run) == expected and (run / "stopped.txt").exists() == (expected < 9)
        assert stopped == [0.0, 0.001]
        assert any("FedAvg,lr=0.0/s0: stopped by the search after round 0" in line for line in told)
    assert json.loads((out / "chosen.json").read_text())["FedAvg"]["client.lr"] not in stopped
    told.clear()
    load(path).run(out, jobs=jobs, say=told.append)
    assert told == []  # stopped trials stay stopped
    if stopped:
        from fl import resume

        assert resume(runs[stopped[0]]).reason == "all rounds done" and rounds_of(runs[stopped[0]]) == 9
        assert not [t for t in read_sweep(out)[0].trials if t.stopped and t.setting["client.lr"] == stopped[0]]


def test_optuna_goes_on_as_if_it_had_not_been_interrupted(write, tmp_path):
    pytest.importorskip("optuna")
    space = {"client.lr": "log(1e-3, 1)", "cohort.size": [1, 2]}
    for name, numbers in (("whole", [4]), ("parts", [2, 4])):
        for samples in numbers:
            path = write(seeds=1, tune=space, search="optuna", samples=samples, variants={"FedAvg": {"rounds": 1}})
            load(path).run(tmp_path / name, say=lambda line: None)
    whole, parts = (json.loads((tmp_path / name / "trials.json").read_text()) for name in ("whole", "parts"))
    assert whole == parts and len(whole["FedAvg"]["trials"]) == 4
    assert all(1e-3 <= t["client.lr"] <= 1 and t["cohort.size"] in (1, 2) for t in whole["FedAvg"]["trials"])


@pytest.mark.ray
def test_trials_on_ray_share_it_and_are_stopped_there(write, tmp_path):
    path = write(
        seeds=1,
        tune={"client.lr": [0.2, 0.0]},
        search="asha",
        variants={"FedAvg": {"rounds": 3, "execution": {"executor": "ray", "workers": 1}}},
    )
    load(path).run(tmp_path / "out", say=lambda line: None)
    assert [rounds_of(tmp_path / "out" / f"FedAvg,lr={lr}" / "s0") for lr in (0.2, 0.0)] == [3, 1]


# -- interruptions ----------------------------------------------------------------------------------------------------
COMMAND = "import sys; sys.argv = ['fl', *{arguments!r}]; from fl.cli.app import main; main()"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_sweep_goes_on_by_the_same_command(write, tmp_path, capsys, number):
    write()
    values = [str(tmp_path / "config.yaml"), "client.lr=0.1,0.2", "rounds=150", "evaluation.every=50", "--quiet"]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    told = tmp_path / "told"
    running = process.start(COMMAND.format(arguments=["sweep", *values, "--out", str(cut)]), told)
    second = cut / "fedavg,lr=0.2" / "s0" / "metrics.jsonl"
    limit = time.monotonic() + 60
    while not (second.is_file() and second.stat().st_size) and time.monotonic() < limit:
        time.sleep(0.005)
    os.kill(running.pid, number)
    running.join()
    if number == signal.SIGINT:
        assert running.exitcode == 130 and "stopped; the same command goes on" in told.read_text()
    assert not (cut / "chosen.json").exists() and rounds_of(second.parent) < 150, "the signal came too late"
    for out in (cut, whole):
        assert fl(capsys, "sweep", *values, "--out", str(out))[0] == 0
    for lr in (0.1, 0.2):
        one, two = (fl(capsys, "digest", str(out / f"fedavg,lr={lr}" / "s0"))[1] for out in (cut, whole))
        assert one == two and len(one) > 60
    assert (cut / "chosen.json").read_text() == (whole / "chosen.json").read_text()


def test_time_left_is_estimated_from_executed_runs():
    told, now = [], iter([0.0, 10.0, 14.0, 18.0])
    progress = Progress(told.append, total=5, clock=lambda: next(now))
    progress.reused()
    progress.begin()
    for name in "abc":
        progress.finished(name)
    assert told == [
        "[1 of 5] finished before",
        "[2 of 5] a; about 30 s left",  # 3 runs like the first
        "[3 of 5] b; about 8 s left",  # the first one also loaded packages; the second took 4 s
        "[4 of 5] c; about 4 s left",
    ]


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"seed": 3}, r"seed: not a key of a sweep, which has .* Did you mean 'seeds'\?"),
        ({"config": 3}, "config: 3 is not a valid string"),
        ({"config": None}, "config: has no value"),
        ({"config": "confg.yaml"}, r"config: .*confg.yaml does not exist.* Did you mean 'config.yaml'\?"),
        ({"variants": {}}, r"variants: {} names none; write a list of strategies"),
        ({"variants": []}, r"variants: \[\] names none"),
        ({"variants": 3}, "variants: 3 is neither a list of strategies nor a mapping"),
        ({"variants": ["fedavgg"]}, r"variants\[0\]: .*fedavgg.*Did you mean 'fedavg"),
        ({"variants": [3]}, r"variants\[0\]: 3 is neither a strategy nor"),
        ({"variants": ["fedavg", "fedavg"]}, "variants: 'fedavg' is listed twice"),
        ({"variants": {"A": 3}}, "variants.A: 3 is not a mapping of overrides"),
        ({"variants": {"A": [3]}}, r"variants.A: \[3\] is not a mapping of overrides"),
        ({"variants": {"A": {"tune": [1]}}}, r"variants.A.tune: \[1\] is not a mapping of keys to values"),
        ({"variants": {"A": {"by": 1}}}, "variants.A.by: 1 is not a text"),
        ({"variants": {"A": {"config": "no.yaml"}}}, "variants.A.config: .*no.yaml does not exist"),
        ({"variants": {"A": {"client.epoch": 3}}}, "client.epoch: not a key of 'sgd'"),
        ({"variants": {"1/4": {}}}, "'1/4' cannot name a folder: it has a slash"),
        ({"variants": {"a,b": {}}}, "'a,b' cannot hold commas"),
        ({"variants": {4: {}}}, "variants: 4 is not a text"),
        ({"seeds": []}, r"seeds: \[\] is neither a number of seeds"),
        ({"seeds": "0..2"}, r"seeds: '0..2' is not a valid integer or a list.* such as \[0, 1, 2\]"),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] names one twice"),
        ({"seeded": 3}, r"seeded\[0\]: 3 is not a valid string.* such as \[partition.seed\]"),
        ({"seeded": ["partition.sed"]}, r"partition.sed: not a key"),
        ({"tune": ["client.lr"]}, "tune: .* is not a mapping of keys to values, as in {client.lr:"),
        ({"tune": {"client.lr": 0.1}}, r"tune.client.lr: 0.1 is one value; write a list, such as"),
        ({"tune": {"client.lr": []}}, "tune.client.lr: an empty list"),
        ({"tune": {"client.lr": [0.1, 0.1]}}, "tune.client.lr: 0.1 is listed twice"),
        ({"tune": {"client.lr": "0.1"}}, "tune.client.lr: '0.1' is one value"),
        ({"tune": {"client.lr": "lin(0, 1)"}}, r"tune.client.lr: .*'lin' is not one of \['log', 'uniform', 'int'\]"),
        ({"tune": {"client.lr": "log(1)"}}, r"tune.client.lr: 'log\(1\)' needs two numbers"),
        ({"tune": {"client.lr": "log(0, 1)"}}, r"tune.client.lr: log\(0, 1\): the logarithm needs positive numbers"),
        ({"tune": {"client.lr": "uniform(1, 0)"}}, "tune.client.lr: .*the first number must be below the second"),
        ({"tune": {"cohort.size": "int(1, 2.5)"}}, "tune.cohort.size: .*both ends are whole numbers"),
        ({"tune": {"seed": [1, 2]}}, r"tune.seed: a seed is not tuned; write seeds: \[0, 1, 2\]"),
        ({"tune": {"client.lr": "log(1e-3, 1)"}}, "samples: missing; the range of client.lr needs a number"),
        ({"tune": {"client.lr": "uniform(-1, 1)"}, "samples": 3}, "client.lr: -1"),
        ({"tune": {"client.lr": "log(1e-3, 1)"}, "search": "grid"}, "search: 'grid' tries lists of values, and"),
        ({"tune": {"client.lr": [0.1, 0.2]}, "search": "grid", "samples": 3}, "samples: 3 with search 'grid'"),
        ({"search": "bayes"}, "search: 'bayes' is not 'grid', 'random', 'asha' or 'optuna'"),
        ({"samples": 0}, "samples: 0 is not 1 or more"),
        ({"samples": "3"}, "samples: '3' is not a valid integer"),
        ({"by": "val/acuracy"}, r"by: 'val/acuracy' is not a metric of this run.* Did you mean 'val/accuracy'"),
        ({"by": "eval/f1"}, r"by: 'eval/f1' is not a metric of this run, which has \[.*'eval/accuracy'"),
        ({"by": 3}, "by: 3 is not a valid string.* such as val/accuracy"),
        ({"metrics": 3}, r"metrics\[0\]: 3 is not a valid string.* such as \[eval/accuracy\]"),
    ],
)
def test_mistakes_are_found_before_the_first_run(write, tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load(write(**changes)).run(tmp_path / "out", say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_metric_that_is_not_measured_is_named_after_the_first_run(write, tmp_path):
    """Metrics outside the evaluation depend on the strategy and the client: nothing knows their names before."""
    with pytest.raises(ConfigError, match=r"by: 'train/f1' was not measured by .*, which has \[.*'val/accuracy'"):
        load(write(by="train/f1")).run(tmp_path / "out", say=lambda line: None)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["FedAvg,lr=0.0"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "has no variants, so a sweep needs a key with several values, as in client.lr=0.03,0.1,0.3"),
        (["client.lr=0.1,"], "client.lr: '0.1,' has an empty value between its commas"),
        (["client.lr="], "client.lr: no value; write client.lr=VALUE, or client.lr=A,B to try several"),
        (["client.lr=0.1,0.2", "--plot", "lr.xyz"], "--plot: lr.xyz has no suffix of a format, such as .pdf"),
        (["client.lr=0.1,0.2", "client.lr=0.3,0.4"], "client.lr: given twice"),
        (["client.lr=log(1e-3)"], "client.lr: 'log(1e-3)' needs two numbers"),
        (["client.lr=0.1,0.2", "--search", "bayes"], "--search: 'bayes' is not one of"),
        (["client.lr=0.1,0.2", "seed=0..1", "--seeds", "2"], "--seeds: 2 beside seed=0..1"),
        (["client.lr=0.1,abc"], "client.lr: 'abc' is not"),
        (["client.lrr=0.1,0.2"], "client.lrr: not a key of 'sgd'"),
        (["strategy=fedavg,scafold"], "scafold"),
        (["0.1,0.2"], "0.1,0.2: not key=value"),
        (["client.lr=0.1,0.2", "--only", "fedavgg"], "only: 'fedavgg' is not one of ['fedavg']. Did you mean"),
    ],
)
def test_mistakes_in_arguments_end_the_command_before_the_first_run(write, tmp_path, capsys, arguments, said):
    write()
    code, _, told = fl(capsys, "sweep", str(tmp_path / "config.yaml"), *arguments, "--out", str(tmp_path / "out"))
    assert code == 2 and said in " ".join(told.split()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("argument", ["strategy=fedprox", "strategy=fedprox,fedavgm", "strategy.name=fedprox"])
def test_a_variant_keeps_its_strategy(tmp_path, capsys, argument):
    (tmp_path / "config.yaml").write_text("{data: digits, model: softmax, strategy: fedavg}")
    (tmp_path / "v.yaml").write_text("{config: config.yaml, variants: {A: scaffold}, tune: {client.lr: [0.1, 0.2]}}")
    code, _, told = fl(capsys, "sweep", str(tmp_path / "v.yaml"), argument, "--out", str(tmp_path / "out"))
    assert code == 2 and "variant 'A' has a strategy of its own" in " ".join(told.split())
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="search: 'optuna' needs the package optuna; pip install optuna, or use"):
        Search("optuna", 3).check({"a": values_of("log(1e-3, 1)", "a")})


def test_a_variant_that_is_not_there(write, tmp_path):
    with pytest.raises(ConfigError, match="'Three' is not one of"):
        load(write()).run(tmp_path / "out", only=["Three"])
