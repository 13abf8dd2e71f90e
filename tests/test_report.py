"""Tables and plots of hand-written run directories."""

import csv
import json
import statistics
from dataclasses import replace

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.image import imread
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from fl.cli.app import app
from fl.report import clients
from fl.report.client_metrics import client_metric_name
from fl.report.compare import default_metric, table
from fl.report.costs import cumulative_cost
from fl.report.plots.curves import plot_client_metric, plot_curves
from fl.report.plots.heatmap import plot_accuracy_matrices
from fl.report.render import as_csv, latex, markdown, plain
from fl.report.stream import accuracy_matrix
from fl.report.variants import Target, Variant, read_variants


def write(directory, accuracies, up, **more):
    directory.mkdir(parents=True)
    rows = [
        {"round": r, "eval/accuracy": a, "uplink_bytes": up, "downlink_bytes": 2 * up, **more}
        for r, a in enumerate(accuracies)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture
def runs(tmp_path):
    return [
        write(tmp_path / "slow-s0", [0.1, None, 0.4], 1_000_000),
        write(tmp_path / "slow-s1", [0.1, None, 0.6], 1_000_000),
        write(tmp_path / "quick" / "seed0", [0.5, 0.9], 250_000),
    ]


def test_baselines_stand_beside_their_run(tmp_path):
    ours = write(tmp_path / "ours" / "seed-0", [0.5], 10)
    write(ours / "baselines" / "local", [0.4], 10)
    write(ours / "baselines" / "finetune", [], 10)  # a run without a finished round
    assert [variant.name for variant in read_variants([tmp_path / "ours"])] == ["ours", "local"]
    other = write(tmp_path / "other-s0", [0.6], 10)
    write(other / "baselines" / "local", [0.3], 10)
    names = [variant.name for variant in read_variants([tmp_path / "ours", other])]
    assert names == ["ours", "other", "ours: local", "other: local"]


def test_equal_numbers_measured_once_are_drawn(tmp_path):
    value = 0.8132702392002724  # three times this number, divided by three, is another number
    assert np.mean([value] * 3) != value
    plot_curves(
        [Variant("same", [[{"round": 0, "acc": value, "uplink_bytes": 0, "downlink_bytes": 0}]] * 3)],
        "acc",
        "round",
        tmp_path / "a.png",
    )
    assert imread(tmp_path / "a.png").shape[2] == 4


def test_a_run_without_a_round_is_reported(tmp_path):
    with pytest.raises(ValueError, match="ours has no finished round yet; .* fl resume"):
        read_variants([write(tmp_path / "ours", [], 10)])


def test_seeds_of_a_variant_come_together(runs, tmp_path):
    chosen = read_variants([runs[0], runs[1], tmp_path / "quick"])
    assert [(v.name, len(v.runs)) for v in chosen] == [("slow", 2), ("quick", 1)]
    assert default_metric(chosen) == "eval/accuracy"
    assert table(chosen, ["eval/accuracy@2"])[0]["eval/accuracy@2"] == (0.1, 0.0)
    slow, quick = table(chosen, ["eval/accuracy"])
    assert slow["eval/accuracy"] == pytest.approx((0.5, np.sqrt(0.02)))  # mean and deviation of .4 and .6
    assert (slow["rounds"], slow["MB up"], slow["MB down"]) == (3, pytest.approx(3.0), pytest.approx(6.0))
    assert quick["eval/accuracy"] == (0.9, None) and quick["MB up"] == pytest.approx(0.5)
    text = markdown([slow, quick])
    assert "| slow | 2 | 3 | 0.500 ± 0.141 | 3 | 6 |" in text and "| quick | 1 | 2 | **0.900** | 0.5 | 1 |" in text


def test_variants_of_one_name_in_different_folders_are_told_apart(tmp_path):
    given = [write(tmp_path / name, [0.5], 10) for name in ("a/0", "x/b/0", "y/b/0", "a/1-s0", "a/1-s1", "x/b/1-s0")]
    found = [(variant.name, len(variant.runs)) for variant in read_variants(given)]
    assert found == [("a/0", 1), ("x/b/0", 1), ("y/b/0", 1), ("a/1", 2), ("b/1", 1)]
    folders = read_variants([tmp_path / "x" / "b", tmp_path / "y" / "b"])
    assert [variant.name for variant in folders] == ["x/b", "y/b"]


def test_a_curve_has_the_points_that_were_measured(runs):
    (slow,) = read_variants(runs[:2])
    (x, y), _ = slow.curves("eval/accuracy", "up")
    assert x.tolist() == [1.0, 3.0] and y.tolist() == [0.1, 0.4]
    assert slow.curves("eval/accuracy", "round")[1][0].tolist() == [1, 3]
    assert cumulative_cost(slow.runs[0], "down").tolist() == [2.0, 4.0, 6.0]


# -- targets ----------------------------------------------------------------------------------------------------------
def to(text, *runs):
    """Return rounds, MB up and MB down to a target, for runs (metric, values, MB up, MB of the set-up)."""
    rows = []
    for metric, values, up, setup in runs:
        first = [{"round": -1, "uplink_bytes": setup * 1e6, "downlink_bytes": 0}] if setup else []
        rest = [
            {"round": r, metric: v, "uplink_bytes": up * 1e6, "downlink_bytes": 2e6 * up} for r, v in enumerate(values)
        ]
        rows.append(first + rest)
    target = Target.parse(text)
    return [Variant("v", rows).cost_to_reach(target, cost) for cost in ("round", "up", "down")]


def test_rounds_and_bytes_to_a_target_are_means_over_the_seeds():
    # reached in rounds 2 and 4, each with 1 MB up and 2 MB down: the mean is 3 rounds, the deviation sqrt(2)
    runs = [("val/accuracy", [0.1, 0.9, 0.2, 0.3], 1, 0), ("val/accuracy", [0.1, None, 0.8, 0.95], 1, 0)]
    rounds, up, down = to("val/accuracy=.9", *runs)
    assert rounds == pytest.approx((3.0, np.sqrt(2), 2, 2, None))
    assert up[:2] == pytest.approx((3.0, np.sqrt(2))) and down[:2] == pytest.approx((6.0, 2 * np.sqrt(2)))
    assert str(rounds) == "3 ± 1.41"


def test_runs_that_do_not_reach_a_target_are_never_averaged_in():
    runs = [("val/accuracy", [0.1, 0.4, 0.6], 1, 0), ("val/accuracy", [0.1, 0.4], 1, 0), ("val/accuracy", [0.5], 1, 0)]
    rounds, up, _ = to("val/accuracy=0.5", *runs)
    assert rounds == (2.0, np.sqrt(2), 2, 3, 2.0) and str(rounds) == "2 ± 1.41 (2/3 reached)" and up.beyond == 2.0
    rounds, up, down = to("val/accuracy=0.6", *runs[:2])
    assert str(rounds) == "3 (1/2 reached)" and str(up) == "3 (1/2 reached)"
    rounds, up, down = to("val/accuracy=0.7", *runs[:2])
    assert rounds == (None, None, 0, 2, 2.0) and [str(x) for x in (rounds, up, down)] == ["> 2", "> 2", "> 4"]


def test_the_set_up_before_round_0_counts_in_bytes_and_not_in_rounds():
    rounds, up, down = to("val/accuracy=0.5", ("val/accuracy", [0.1, 0.5], 1, 2.5))
    assert (rounds.mean, up.mean, down.mean) == (2.0, 4.5, 4.0)


@pytest.mark.parametrize("metric", ["eval/loss", "val/mse", "clients/loss_worst10", "clients/accuracy_std"])
def test_a_target_of_what_is_minimised_is_reached_from_above(metric):
    rounds, _, _ = to(f"{metric}=1", (metric, [2.0, 1.0, 0.5], 1, 0))
    assert rounds.mean == 2.0 and str(Target.parse(f"{metric}=1")) == f"{metric}<=1"


def test_a_metric_at_last_n_is_the_mean_of_the_last_n_evaluations():
    values = [[0.1, None, 0.4, 0.8], [0.9, 0.3, None, 0.5]]
    variant = Variant("v", [[{"round": r, "eval/accuracy": v} for r, v in enumerate(run)] for run in values])
    assert variant.values("eval/accuracy@last2") == pytest.approx([0.6, 0.4])
    assert variant.values("eval/accuracy@last3") == pytest.approx([1.3 / 3, 1.7 / 3])
    with pytest.raises(ValueError, match="'eval/accuracy@last4' needs 4 evaluations; a run has 3"):
        variant.values("eval/accuracy@last4")
    with pytest.raises(ValueError, match="'eval/loss@last2' is not in all runs"):
        variant.values("eval/loss@last2")


def test_a_variant_without_a_metric_that_others_have_gets_an_empty_cell(tmp_path):
    """A pre-training run beside runs with other metrics; a metric that no variant has is an error."""
    one = write(tmp_path / "one", [0.5, 0.7], 10, **{"frame/accuracy": 0.25})
    two = write(tmp_path / "two", [0.4], 10)
    for directory in (one, two):
        (directory / "config.yaml").write_text("seed: 0")
    chosen = read_variants([one, two])
    first, second = table(chosen, ["eval/accuracy", "frame/accuracy@2"], versus="two")
    assert first["frame/accuracy@2"] == (0.25, None) and second["frame/accuracy@2"] is None
    assert first["frame/accuracy@2 - two"] is None and first["eval/accuracy - two"].mean == pytest.approx(0.3)
    assert "| two | 1 | 1 | 0.400 |  |  |" in markdown(table(chosen, ["eval/accuracy", "frame/accuracy"], versus="two"))
    plot_curves(chosen, "frame/accuracy", "round", tmp_path / "a.png")
    with pytest.raises(ValueError, match="'frame/loss' is not in all runs of one"):
        table(chosen, ["frame/loss"])


# -- selection --------------------------------------------------------------------------------------------------------
def best_of(directory, evaluation, **columns):
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "evaluation": evaluation}))
    columns = {name.replace("_", "/"): values for name, values in columns.items()}
    rows = [
        {"round": r, "uplink_bytes": 0, "downlink_bytes": 0, **dict(zip(columns, values))}
        for r, values in enumerate(zip(*columns.values()))
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_variants([directory])[0].values("eval/accuracy@best").item()


def test_at_best_is_the_first_round_best_by_what_the_run_selects_by(tmp_path):
    test = [0.2, None, 0.3, 0.8, 0.99]
    accuracy, loss, train = [0.1, None, 0.9, 0.9, 0.5], [3.0, None, 2.0, 1.0, 2.0], [5.0, 0.1, 2.0, 2.0, 1.0]
    columns = {"eval_accuracy": test, "val_accuracy": accuracy, "val_loss": loss, "train_loss": train}
    assert best_of(tmp_path / "a", {"select": None}, **columns) == 0.3  # by val/accuracy; of equal values the first
    assert best_of(tmp_path / "b", {"select": "val/loss"}, **columns) == 0.8
    assert (
        best_of(tmp_path / "c", {}, eval_accuracy=test, train_loss=train) == 0.99
    )  # without a val split; never by test metrics
    assert best_of(tmp_path / "d", {}, eval_accuracy=test[::-1], train_loss=train[::-1]) == 0.99


# -- differences ------------------------------------------------------------------------------------------------------
def seeded(folder, values):
    """Write a variant with one round per run; values: seed -> accuracy."""
    for seed, value in values.items():
        write(folder / f"run{9 - seed}", [value], 1)
        (folder / f"run{9 - seed}" / "config.yaml").write_text(f"seed: {seed}\n")
    return read_variants([folder])[0]


def test_differences_are_paired_by_seed(tmp_path):
    ours, theirs = (
        seeded(tmp_path / "new", {0: 0.6, 1: 0.4, 2: 0.9}),
        seeded(tmp_path / "old", {2: 0.6, 1: 0.2, 0: 0.5, 7: 0}),
    )
    new, old = table([ours, theirs], ["eval/accuracy"], versus="old")
    # differences .1, .2, .3: mean .2, deviation .1; t_{.975, 2} = 4.302653, over sqrt(3)
    half = 4.302653 * 0.1 / np.sqrt(3)
    p = ttest_rel([0.6, 0.4, 0.9], [0.5, 0.2, 0.6]).pvalue
    assert new["eval/accuracy - old"] == pytest.approx((0.2, 0.2 - half, 0.2 + half, 3, p), abs=1e-6)
    assert str(new["eval/accuracy - old"]) == "+0.200 [-0.048, 0.448], n=3, p=0.074"
    assert old["eval/accuracy - old"] is None


def test_a_pair_needs_a_seed_of_its_own(tmp_path):
    one, other = seeded(tmp_path / "one", {0: 0.5}), seeded(tmp_path / "other", {1: 0.5})
    with pytest.raises(ValueError, match="have no seed in common"):
        table([one, other], ["eval/accuracy"], versus="one")
    with pytest.raises(ValueError, match="'none' is not one of"):
        table([one, other], ["eval/accuracy"], versus="none")
    unknown = read_variants([write(tmp_path / "unknown", [0.5], 1)])[0]
    with pytest.raises(ValueError, match="seeds \\[None\\]; pairs need"):
        table([unknown, other], ["eval/accuracy"], versus="other")


def test_p_values_are_corrected_for_the_number_of_differences(tmp_path):
    values = {"old": [0.5, 0.2, 0.6], "a": [0.6, 0.4, 0.9], "b": [0.51, 0.22, 0.6], "c": [0.5, 0.2, 0.7]}
    variants = [seeded(tmp_path / name, dict(enumerate(each))) for name, each in values.items()]
    rows = table(variants, ["eval/accuracy"], versus="old")[1:]
    alone = [ttest_rel(values[name], values["old"]).pvalue for name in "abc"]
    corrected = multipletests(alone)
    assert [row["eval/accuracy - old"].p for row in rows] == pytest.approx(corrected)
    assert corrected[0] == pytest.approx(3 * alone[0])  # the smallest of three


def multipletests(values):
    """Holm's step-down by its definition: reject p_(j) while p_(j) <= level / (n - j); the smallest such level."""
    levels, n = {}, len(values)
    ordered = sorted(values)
    for i, value in enumerate(ordered):
        levels[value] = min(1.0, max((n - j) * ordered[j] for j in range(i + 1)))
    return [levels[value] for value in values]


def test_the_best_of_a_metric_is_bold_and_baselines_do_not_compete(tmp_path):
    values = {"a": [0.5, 0.7], "b": [0.6, 0.8], "central": [0.9, 0.9]}
    variants = [seeded(tmp_path / name, dict(enumerate(each))) for name, each in values.items()]
    variants[2] = replace(variants[2], baseline=True)
    rows = table(variants, ["eval/accuracy"])
    assert [line.split(" | ")[3] for line in markdown(rows).splitlines()[2:]] == [
        "0.600 ± 0.141",
        "**0.700 ± 0.141**",
        "0.900 ± 0.000",
    ]
    assert r"\textbf{0.700 $\pm$ 0.141}" in latex(rows) and "**" not in as_csv(rows)


# -- formats ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def rows(runs, tmp_path):
    return table(read_variants([*runs[:2], tmp_path / "quick"]), ["eval/accuracy"], [Target.parse("eval/accuracy=0.5")])


def test_markdown_cells(rows):
    slow, quick = markdown(rows).splitlines()[2:]
    assert slow == "| slow | 2 | 3 | 0.500 ± 0.141 | 3 (1/2 reached) | 3 (1/2 reached) | 6 (1/2 reached) | 3 | 6 |"
    assert quick == "| quick | 1 | 2 | **0.900** | 1 | 0.25 | 0.5 | 0.5 | 1 |"


def test_latex_is_a_booktabs_table_with_its_signs_escaped(rows):
    text = latex([{**rows[0], "name": r"a_b & 10%\{x}"}]).splitlines()
    assert text[:2] == [r"\begin{tabular}{lrrrrrrrr}", r"\toprule"] and text[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert text[2].startswith(r"name & runs & rounds & eval/accuracy & rounds to eval/accuracy$\geq$0.5 & MB up to")
    assert text[4].startswith(r"a\_b \& 10\%\textbackslash{}\{x\} & 2 & 3 & 0.500 $\pm$ 0.141 & 3 (1/2 reached) &")
    assert all(line.endswith(r" \\") and line.count(" & ") == 8 for line in (text[2], text[4]))


def test_csv_has_mean_and_deviation_in_columns_of_their_own(rows):
    slow, quick = csv.DictReader(as_csv(rows).splitlines())
    assert float(slow["eval/accuracy mean"]) == pytest.approx(0.5)
    assert float(slow["eval/accuracy sd"]) == pytest.approx(np.sqrt(0.02)) and quick["eval/accuracy sd"] == ""
    to = "rounds to eval/accuracy>=0.5"
    assert [slow[f"{to} {part}"] for part in ("mean", "sd", "reached", "beyond")] == ["3.0", "", "1", "3.0"]
    assert quick["runs"] == "1" and quick["name"] == "quick" and float(quick["MB up"]) == 0.5


def test_json_names_the_parts_of_a_target(rows):
    slow = json.loads(json.dumps(plain(rows)))[0]
    found = {"mean": 3.0, "sd": None, "reached": 1, "runs": 2, "beyond": 3.0}
    assert slow["rounds to eval/accuracy>=0.5"] == found and slow["eval/accuracy"][0] == pytest.approx(0.5)


# -- clients ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def measured(tmp_path):
    """Write the client table of a run with two evaluations."""
    directory = write(tmp_path / "measured", [0.5, 0.6], 1)
    columns = {
        "round": pa.array([0, 0, 1, 1, 1], pa.int32()),
        "split": ["test", "test", "test", "test", "val"],
        "client": [4, 2, 4, 2, 2],
        "num_examples": [10, 30, 10, 30, 5],
        "accuracy": [0.1, 0.2, 0.7, 0.3, 0.9],
        "mse": pa.nulls(5, pa.float64()),
    }
    pq.write_table(pa.table(columns), directory / "clients.parquet")
    return directory


def test_clients_are_those_of_the_last_evaluation(measured):
    found = {name: column.tolist() for name, column in clients(measured).items()}
    assert found == {"client": [2, 4], "num_examples": [30, 10], "accuracy": [0.3, 0.7]}
    assert clients(measured, "val")["accuracy"].tolist() == [0.9]
    assert read_variants([measured])[0].client_values("accuracy")[0].tolist() == [0.3, 0.7]
    with pytest.raises(ValueError, match="'f1' of clients is not in .*measured, which has"):
        read_variants([measured])[0].client_values("f1")


def test_which_metric_of_clients_a_name_tells_of():
    assert client_metric_name(["eval/accuracy"]) == "accuracy"
    assert client_metric_name(["eval/accuracy", "clients/loss_worst10@best", "clients/mse_mean"]) == "loss"


def test_clients_that_lose_are_drawn(measured, runs, tmp_path):
    plot_client_metric(read_variants([measured]), "accuracy", tmp_path / "clients.png")
    assert colours(tmp_path / "clients.png") > 20
    with pytest.raises(ValueError, match="has no clients.parquet"):
        plot_client_metric(read_variants(runs), "accuracy", tmp_path / "none.png")


# -- streams ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def stream(tmp_path):
    directory = tmp_path / "stream"
    directory.mkdir()
    (directory / "config.yaml").write_text("stream: {name: permuted, tasks: 3, rounds: 1}\n")
    rows = [{"round": 0, "task0/accuracy": 0.9, "stream/acc": 0.9}]
    rows += [{"round": 1, "task0/accuracy": 0.5, "task1/accuracy": 0.8, "stream/acc": 0.65}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_the_matrix_of_a_stream(stream, runs):
    np.testing.assert_array_equal(accuracy_matrix(stream), [[0.9, np.nan, np.nan], [0.5, 0.8, np.nan]])
    (runs[0] / "config.yaml").write_text("stream: null\n")
    with pytest.raises(ValueError, match="is not a run of a task stream"):
        accuracy_matrix(runs[0])


def colours(file) -> int:
    image = imread(file)
    return len(np.unique((image[..., :3] * 255).astype(int).reshape(-1, 3), axis=0))


@pytest.mark.slow
def test_plots_show_something(runs, stream, tmp_path):
    plot_curves(read_variants(runs), "eval/accuracy", "up", tmp_path / "deep" / "curves.png")
    plot_accuracy_matrices([("a", accuracy_matrix(stream)), ("b", accuracy_matrix(stream))], tmp_path / "matrix.png")
    assert colours(tmp_path / "deep" / "curves.png") > 20 and colours(tmp_path / "matrix.png") > 20


def test_commands(runs, stream, tmp_path):
    cli = CliRunner()
    done = cli.invoke(app, ["compare", *map(str, runs), "--plot", str(tmp_path / "c.png"), "--cost", "round"])
    assert done.exit_code == 0 and "| slow | 2 | 3 | 0.500 ± 0.141" in done.stdout and (tmp_path / "c.png").is_file()
    done = cli.invoke(app, ["compare", str(runs[0]), "--json"])
    assert json.loads(done.stdout)[0]["eval/accuracy"] == [0.4, None]
    done = cli.invoke(app, ["compare", str(runs[0]), "--metric", "eval/accuracy@2", "--plot", str(tmp_path / "d.png")])
    assert done.exit_code == 0 and "| slow | 1 | 3 | 0.100 |" in done.stdout and (tmp_path / "d.png").is_file()
    done = cli.invoke(app, ["compare", *map(str, runs), "--target", "eval/accuracy=.95", "--format", "csv"])
    assert done.stdout.splitlines()[1].split(",")[5:9] == ["", "", "0", "3.0"]
    done = cli.invoke(app, ["matrix", str(stream), "--plot", str(tmp_path / "m.png")])
    assert done.exit_code == 0 and "acc 0.650  fgt 0.400  bwt -0.400" in done.stdout and (tmp_path / "m.png").is_file()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["compare", "{0}", "--metric", "eval/f1"], "metric: 'eval/f1' is not in all runs of slow"),
        (["compare", "{0}", "--cost", "money"], "--cost: 'money' is not one of"),
        (["compare", "{0}", "--format", "html"], "--format: 'html' is not one of ['md', 'latex', 'csv']"),
        (
            ["compare", "{0}", "--metric", "eval/accuracy@end"],
            "is neither eval/accuracy, eval/accuracy@best, eval/accuracy@ROUNDS nor",
        ),
        (["compare", "{0}", "--target", "eval/accuracy"], "target: 'eval/accuracy' is not METRIC=VALUE"),
        (["compare", "{0}", "--target", "eval/f1=0.5"], "target: 'eval/f1' is in no run of slow"),
        (["compare", "{0}", "--versus", "fast"], "versus: 'fast' is not one of ['slow']"),
        (["plot", "{0}", "--kind", "clients", "--out", "clients.png"], "has no clients.parquet"),
        (["plot", "{0}", "--kind", "pie", "--out", "a.png"], "--kind: 'pie' is not one of"),
        (["plot", "{0}", "--width", "wide", "--out", "a.png"], "width: 'wide' is neither a number of inches nor one"),
        (["plot", "{0}", "--label", "fast=F", "--out", "a.png"], "label: 'fast=F' begins with none of ['slow=']"),
        (["compare", "{0}", "--budget", "up=3parsec"], "budget: 'up=3parsec' is not COST=VALUE with one of the units"),
        (["compare", "{0}", "--budget", "money=3"], "budget: 'money=3' is not COST=VALUE of one of the costs"),
        (["compare", "{0}", "--budget", "hours=3"], "cost: 'hours' was not counted in slow"),
        (["compare", "{0}/nothing"], "is no run directory"),
        (["matrix", "{0}"], "No such file"),
    ],
)
def test_mistakes_are_named(runs, arguments, said):
    done = CliRunner().invoke(app, [a.format(runs[0]) for a in arguments])
    assert done.exit_code == 2 and said in done.stderr


def test_a_label_names_a_variant_whose_name_has_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # the figure's texts stay texts
    for rate in ("0.1", "0.1=decay"):
        write(tmp_path / f"lr={rate}" / "s0", [0.5, 0.9], 250_000)
    folders = [str(tmp_path / f"lr={rate}") for rate in ("0.1", "0.1=decay")]
    labels = ["--label", "lr=0.1=small", "--label", "lr=0.1=decay=falling"]  # the longest name that fits
    done = CliRunner().invoke(app, ["plot", *folders, *labels, "--out", str(tmp_path / "a.svg")])
    drawn = (tmp_path / "a.svg").read_text()
    assert done.exit_code == 0 and ">small<" in drawn and ">falling<" in drawn and "lr=0.1" not in drawn


TINY = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "splits": {"val": 0.1, "test": 0.2},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}


@pytest.mark.slow
def test_five_seeds_are_one_row_with_their_mean_and_deviation(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    out, cli = tmp_path / "OUT", CliRunner()
    done = cli.invoke(app, ["run", str(tmp_path / "tiny.yaml"), "seed=0..4", "--json", "--out", str(out)])
    finals = [run["final"] for run in json.loads(done.stdout)["runs"]]
    metrics = ["eval/accuracy", "clients/accuracy_gini"]
    arguments = ["compare", str(out), *(part for metric in metrics for part in ("--metric", metric))]
    (row,) = json.loads(cli.invoke(app, [*arguments, "--json"]).stdout)
    assert (row["name"], row["runs"], row["rounds"]) == ("OUT", 5, 2)
    shown = cli.invoke(app, ["plot", str(out), "--kind", "clients", "--out", str(tmp_path / "c.png")])
    assert shown.stdout == f"{tmp_path / 'c.png'}\n" and (tmp_path / "c.png").is_file()
    for metric in metrics:
        values = [final[metric] for final in finals]
        assert len(set(values)) > 1
        assert row[metric] == pytest.approx([statistics.mean(values), statistics.stdev(values)])
    shown = f"{row['eval/accuracy'][0]:.3f} ± {row['eval/accuracy'][1]:.3f}"
    assert f"| OUT | 5 | 2 | {shown} |" in cli.invoke(app, arguments).stdout

    found = clients(out / "seed-3")  # one row per client; pooled they give the run's metrics
    assert found["client"].tolist() == [0, 1, 2, 3] and (found["num_examples"] > 50).all()
    pooled = (found["accuracy"] * found["num_examples"]).sum() / found["num_examples"].sum()
    assert pooled == pytest.approx(finals[3]["clients/accuracy_weighted"])
