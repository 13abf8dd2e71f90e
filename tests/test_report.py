"""Tables and plots from run directories that are written by hand."""

import json

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

from fl.cli import app
from fl.report.compare import default_metric, markdown, matrix, megabytes, table, variants
from fl.report.plots import curves, heatmap


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


def test_seeds_of_a_variant_come_together(runs, tmp_path):
    chosen = variants([runs[0], runs[1], tmp_path / "quick"])
    assert [(v.name, len(v.runs)) for v in chosen] == [("slow", 2), ("quick", 1)]
    assert default_metric(chosen) == "eval/accuracy"
    assert table(chosen, ["eval/accuracy@2"])[0]["eval/accuracy@2"] == (0.1, 0.0)
    slow, quick = table(chosen, ["eval/accuracy"])
    assert slow["eval/accuracy"] == pytest.approx((0.5, np.sqrt(0.02)))  # of .4 and .6
    assert (slow["rounds"], slow["MB up"], slow["MB down"]) == (3, pytest.approx(3.0), pytest.approx(6.0))
    assert quick["eval/accuracy"] == (0.9, None) and quick["MB up"] == pytest.approx(0.5)
    text = markdown([slow, quick])
    assert "| slow | 2 | 3 | 0.500 ± 0.141 | 3 | 6 |" in text and "| quick | 1 | 2 | 0.900 | 0.5 | 1 |" in text


def test_a_curve_has_the_points_that_were_measured(runs):
    (slow,) = variants(runs[:2])
    (x, y), _ = slow.curves("eval/accuracy", "up")
    assert x.tolist() == [1.0, 3.0] and y.tolist() == [0.1, 0.4]
    assert slow.curves("eval/accuracy", "round")[1][0].tolist() == [1, 3]
    assert megabytes(slow.runs[0], "down").tolist() == [2.0, 4.0, 6.0]


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
    np.testing.assert_array_equal(matrix(stream), [[0.9, np.nan, np.nan], [0.5, 0.8, np.nan]])
    (runs[0] / "config.yaml").write_text("stream: null\n")
    with pytest.raises(ValueError, match="is not a run of a task stream"):
        matrix(runs[0])


def colours(file) -> int:
    image = imread(file)
    return len(np.unique((image[..., :3] * 255).astype(int).reshape(-1, 3), axis=0))


def test_plots_show_something(runs, stream, tmp_path):
    curves(variants(runs), "eval/accuracy", "up", tmp_path / "deep" / "curves.png")
    heatmap([("a", matrix(stream)), ("b", matrix(stream))], tmp_path / "matrix.png")
    assert colours(tmp_path / "deep" / "curves.png") > 20 and colours(tmp_path / "matrix.png") > 20


def test_commands(runs, stream, tmp_path):
    cli = CliRunner()
    done = cli.invoke(app, ["compare", *map(str, runs), "--plot", str(tmp_path / "c.png"), "--cost", "round"])
    assert done.exit_code == 0 and "| slow | 2 | 3 | 0.500 ± 0.141" in done.stdout and (tmp_path / "c.png").is_file()
    done = cli.invoke(app, ["compare", str(runs[0]), "--json"])
    assert json.loads(done.stdout)[0]["eval/accuracy"] == [0.4, None]
    done = cli.invoke(app, ["matrix", str(stream), "--plot", str(tmp_path / "m.png")])
    assert done.exit_code == 0 and "acc 0.650  fgt 0.400  bwt -0.400" in done.stdout and (tmp_path / "m.png").is_file()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["compare", "{0}", "--metric", "eval/f1"], "metric: 'eval/f1' is not in all runs of slow"),
        (["compare", "{0}", "--cost", "money"], "--cost: 'money' is not one of"),
        (["compare", "{0}/nothing"], "is no run directory"),
        (["matrix", "{0}"], "No such file"),
    ],
)
def test_mistakes_are_named(runs, arguments, said):
    done = CliRunner().invoke(app, [a.format(runs[0]) for a in arguments])
    assert done.exit_code == 2 and said in done.stderr
