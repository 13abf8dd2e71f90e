"""Figures for papers, budgets and robustness, of hand-written run directories."""

import json
import logging

import numpy as np
import pytest
import yaml

from fl.report.budget import Budget
from fl.report.compare import table
from fl.report.plots.curves import draw_curves
from fl.report.plots.style import Line, Look
from fl.report.robust import robustness
from fl.report.variants import read_variants


def write(directory, accuracies, up=1.0, config=None, **more):
    """Write a run: `up` MB up in each round, and further columns."""
    directory.mkdir(parents=True)
    rows = [
        {"round": r, "val/accuracy": a, "uplink_bytes": up * 1e6, "downlink_bytes": 0, "cohort_size": 10} | more
        for r, a in enumerate(accuracies)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "config.yaml").write_text(yaml.safe_dump(config or {}))
    return directory


def note(figure):
    return figure._supxlabel.get_text() if figure._supxlabel else ""


def test_twelve_curves_differ_without_colour():
    looks = [Line.number(i) for i in range(12)]
    assert len({(str(line.linestyle), line.marker) for line in looks}) == 12
    assert len({line.marker for line in looks}) == 12


def test_a_curve_that_hides_behind_another_is_named(tmp_path):
    same, other = [0.1, 0.5, 0.9], [0.1, 0.6, 0.7]
    for name, values in {"FedIT": same, "LoRA": same, "other": other}.items():
        write(tmp_path / name, values)
    figure = draw_curves(read_variants(sorted(tmp_path.iterdir())), "val/accuracy", "round")
    assert note(figure) == "LoRA lies on FedIT"
    first, second, _ = figure.axes[0].lines
    assert first.get_marker() != second.get_marker() and first.get_linestyle() != second.get_linestyle()


def test_the_figure_says_what_its_band_is(tmp_path):
    for seed, values in enumerate([[0.1, 0.5], [0.3, 0.6], [0.2, 0.7]]):
        write(tmp_path / "a" / f"s{seed}", values)
    variants = read_variants([tmp_path / "a"])
    figure = draw_curves(variants, "val/accuracy", "up")
    assert note(figure) == "line: mean of 3 runs; band: smallest to largest"
    assert figure.axes[0].get_ylabel() == "validation accuracy"
    (band,) = figure.axes[0].collections
    assert np.allclose(band.get_paths()[0].get_extents().y0, 0.1)
    figure = draw_curves(variants, "val/accuracy", "up", band="sd")
    assert note(figure) == "line: mean of 3 runs; band: ± standard deviation"
    (band,) = figure.axes[0].collections  # 0.1, 0.3, 0.2: mean .2, deviation .1;  0.5, 0.6, 0.7: .6, .1
    extents = band.get_paths()[0].get_extents()
    assert (extents.y0, extents.y1) == pytest.approx((0.1, 0.7))
    assert note(draw_curves(variants, "val/accuracy", "up", band="none")) == "line: mean of 3 runs"
    for seed, value in enumerate([0.5, 0.6, 0.7]):
        write(tmp_path / "b" / f"s{seed}", [value])
    once = read_variants([tmp_path / "b"])
    figure = draw_curves(once, "val/accuracy", "up", band="sd")
    assert note(figure) == "point: mean of 3 runs; bar: ± standard deviation"
    (bar,) = figure.axes[0].containers[0].lines[2]  # mean .6, deviation .1
    assert bar.get_segments()[0][:, 1] == pytest.approx([0.5, 0.7])
    assert note(draw_curves([*variants, *once], "val/accuracy", "up")) == (
        "line or point: mean of 3 runs; band or bar: smallest to largest"
    )


def test_a_variant_has_its_own_name_and_not_that_of_its_folder(tmp_path):
    write(tmp_path / "top-k 1 %25" / "s0", [0.1, 0.5])
    for given in (tmp_path / "top-k 1 %25", tmp_path / "top-k 1 %", tmp_path):
        assert [variant.name for variant in read_variants([given])] == ["top-k 1 %"]


def test_a_baseline_is_a_horizontal_line(tmp_path):
    run = write(tmp_path / "run", [0.1, 0.5, 0.6])
    write(run / "baselines" / "central", [0.8, 0.9])
    figure = draw_curves(read_variants([run]), "val/accuracy", "round", Look(labels={"run": "FedAvg"}))
    method, baseline = figure.axes[0].lines
    assert method.get_label() == "FedAvg" and baseline.get_label() == "central (baseline)"
    assert list(baseline.get_ydata()) == [0.9, 0.9] and list(baseline.get_xdata()) == [0, 1]  # from edge to edge


def test_a_figure_for_a_column(tmp_path):
    variants = read_variants([write(tmp_path / "run", [0.1, 0.5])])
    figure = draw_curves(variants, "val/accuracy", "round", Look(width=3.4, height=2.0))
    assert figure.get_size_inches().tolist() == [3.4, 2.0]
    with pytest.raises(ValueError, match="width: -1 is not positive"):
        Look(width=-1)


# -- budgets ----------------------------------------------------------------------------------------------------------
def test_a_budget_by_hand(tmp_path):
    for seed, values in enumerate([[0.1, 0.4, 0.9], [0.2, None, 0.8]]):
        write(tmp_path / "a" / f"s{seed}", values, up=2.0, simulated_seconds=1800.0)
    write(tmp_path / "b", [0.5, 0.6], up=5.0, simulated_seconds=1800.0)
    budgets = [Budget.parse(text) for text in ("up=4MB", "up=5e3kB,hours=30min", "hours=1.5", "up=1")]
    a, b = table(read_variants([tmp_path / "a", tmp_path / "b"]), ["val/accuracy"], budgets=budgets)
    # 2 rounds, 4 MB: the seeds have .4 and .2;  1 round, half an hour: .1 and .2;  3 rounds: .9 and .8
    columns = [f"val/accuracy with {budget}" for budget in budgets]
    assert columns[1] == "val/accuracy with up <= 5 MB, hours <= 0.5"
    assert [a[name] and a[name][0] for name in columns] == pytest.approx([0.3, 0.15, 0.85, None])
    assert [b[name] and b[name][0] for name in columns] == [None, 0.5, 0.6, None]


@pytest.mark.parametrize(
    "metric, cost, message",
    [
        ("val/acuracy", "up", "metric: 'val/acuracy' is in no run; .* Did you mean 'val/accuracy'"),
        ("val/accuracy", "euros", "cost: 'euros' is not one of"),
    ],
)
def test_a_figure_without_lines_is_refused(metric, cost, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_curves(read_variants([write(tmp_path / "a", [0.1, 0.4])]), metric, cost)


def test_a_cost_has_one_budget():
    assert str(Budget.parse("wall=1min")) == "wall <= 60 s"
    with pytest.raises(ValueError, match="budget: up is given twice in 'up=1MB,up=2MB'"):
        Budget.parse("up=1MB,up=2MB")


# -- robustness -------------------------------------------------------------------------------------------------------
def test_what_is_kept_under_losses_by_hand(tmp_path):
    method = {"strategy": {"name": "fedavg"}, "rounds": 2}
    write(tmp_path / "ideal", [0.1, 0.8], config=method, dropped=0)
    lost = {"clients_in": 7, "clients_dropped": 2, "clients_late": 1, "clients_away": 0, "dropped": 0}
    write(tmp_path / "lossy", [0.1, 0.6], config={**method, "system": {"dropout": 0.2}, "seed": 3}, **lost)
    write(tmp_path / "other", [0.1, 0.4], config={**method, "strategy": {"name": "median"}}, dropped=0)
    rows = robustness(read_variants([tmp_path / name for name in ("ideal", "lossy", "other")]), "val/accuracy")
    assert [row["name"] for row in rows] == ["ideal", "lossy", "other"]
    assert [row["updates lost %"] for row in rows] == pytest.approx([0, 30, 0])
    assert [row["kept %"] for row in rows] == pytest.approx([100, 75, 100])
    with pytest.raises(ValueError, match="no two of .* are one method with and without losses"):
        robustness(read_variants([tmp_path / "ideal", tmp_path / "other"]), "val/accuracy")
    with pytest.raises(ValueError, match="lossy loses updates in each run; add a run of the same configuration"):
        robustness(read_variants([tmp_path / "lossy"]), "val/accuracy")


# -- runs that have not finished --------------------------------------------------------------------------------------
def test_a_run_without_a_round_does_not_stop_a_comparison(tmp_path, caplog):
    write(tmp_path / "a" / "s0", [0.1, 0.5])
    write(tmp_path / "a" / "s1", [])
    write(tmp_path / "b" / "s0", [])
    with caplog.at_level(logging.WARNING):
        (a,) = read_variants([tmp_path / "a", tmp_path / "b"])
    assert len(a.runs) == 1
    assert "a/s1 has no finished round yet and is left out; fl resume" in caplog.text
    assert "b/s0 has no finished round yet and is left out" in caplog.text
    with pytest.raises(ValueError, match="has no finished round yet; wait, or resume it"):
        read_variants([tmp_path / "b"])


def test_a_run_that_is_given_twice_counts_once(tmp_path):
    run = write(tmp_path / "a" / "s0", [0.1, 0.4])
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (variant,) = read_variants([tmp_path / "a", run, tmp_path / "a", tmp_path / "link"])
    assert len(variant.runs) == 1


def test_runs_that_have_done_different_numbers_of_rounds_are_named(tmp_path, caplog):
    write(tmp_path / "a" / "s0", [0.1, 0.5])
    write(tmp_path / "a" / "s1", [0.1])
    with caplog.at_level(logging.WARNING):
        read_variants([tmp_path / "a"])
    assert "the runs of a have done different numbers of rounds (s0: 2, s1: 1)" in caplog.text


def test_the_folder_of_a_sweep_holds_variants(tmp_path):
    for name in ("FedAvg", "SCAFFOLD"):
        for seed in range(2):
            write(tmp_path / "out" / name / f"s{seed}", [0.1, 0.5])
    found = read_variants([tmp_path / "out"])
    assert [(variant.name, len(variant.runs)) for variant in found] == [("FedAvg", 2), ("SCAFFOLD", 2)]
