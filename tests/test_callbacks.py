"""Callbacks, rounds one by one, run.log, and what a result shows."""

import logging
import subprocess
import sys

import pytest
import torch

import fl
from fl import Callback, ConfigError
from fl.tracking.progress import Progress
from fl.tracking.screens import Lines
from tests.test_bad_configs import GOOD

CONFIG = {**GOOD, "rounds": 4}


class Notes(Callback):
    """Notes the order of the calls."""

    def __init__(self):
        self.calls = []

    def start(self, run):
        self.run = run
        self.calls.append("start")

    def ready(self, run):
        self.calls.append("ready")

    def measure(self, run, row):
        self.calls.append(f"measure {row['round']}")
        torch.rand(1)
        torch.set_default_dtype(torch.float64)
        return {"norm": fl.norm(run.model), "twice": 2 * row["round"]}

    def computed(self, row):
        self.calls.append(f"computed {row['round']}")

    def round(self, row):
        self.calls.append(f"round {row['round']}")

    def end(self, result):
        self.calls.append(f"end: {result.reason}")

    def failure(self, error):
        self.calls.append(f"failure: {error}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("plain") / "run")


class Helpers(fl.Callback):
    """Its methods have names that are only a little like those that are called."""

    def state(self):
        return None

    bound = measured = state


def test_helpers_may_have_names_of_their_own(tmp_path):
    assert len(fl.run({**CONFIG, "rounds": 1}, out=tmp_path / "run", callbacks=[Helpers()]).metrics) == 1


def test_the_order_of_the_calls_and_metrics_of_ones_own(plain, tmp_path):
    notes = Notes()
    result = fl.run({**CONFIG, "checkpoint": {"every": 2, "best": False}}, out=tmp_path / "run", callbacks=[notes])
    pairs = [
        [f"{what} {r}" for r in (a, a + 1) for what in ("measure", "computed")] + [f"round {a}", f"round {a + 1}"]
        for a in (0, 2)
    ]
    # a round is computed, and committed with the next one
    assert notes.calls == ["start", "ready", *pairs[0], *pairs[1], "end: all rounds done"]
    assert [row["twice"] for row in result.metrics] == [0, 2, 4, 6]
    length = sum(float(tensor.double().square().sum()) for _, tensor in result.model.items()) ** 0.5
    assert result.metrics[-1]["norm"] == pytest.approx(length, rel=1e-6)
    assert result.digest == plain.digest  # draws and settings of the callback did not reach the run
    assert torch.get_default_dtype() == torch.float32


def test_an_error_in_a_round_reaches_the_callback(tmp_path):
    class Stops(Notes):
        def round(self, row):
            super().round(row)
            if row["round"] == 1:
                raise RuntimeError("enough")

    notes = Stops()
    with pytest.raises(RuntimeError, match="enough"):
        fl.run(CONFIG, out=tmp_path / "run", callbacks=[notes])
    assert notes.calls[-1] == "failure: enough"
    assert "failed: RuntimeError: enough" in (tmp_path / "run" / "run.log").read_text()
    assert len(fl.resume(tmp_path / "run").metrics) == 4  # committed rounds are safe


class Misspelt(Notes):
    def on_round(self, row):
        pass


class Plural(Notes):
    def rounds(self, row):
        pass


WRONG = {
    "on_round": (Misspelt(), "Misspelt.on_round: nothing calls this method; did you mean 'round'"),
    "rounds": (Plural(), "Plural.rounds: nothing calls this method; did you mean 'round'"),
    "class": (Notes, "callbacks: .* is no instance of fl.Callback; write Notes\\(\\)"),
    "function": (print, "callbacks: .* is no instance of fl.Callback$"),
}


@pytest.mark.parametrize("case", WRONG)
def test_something_else_than_a_callback_is_refused_before_round_0(case, tmp_path):
    callback, message = WRONG[case]
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "run", callbacks=[callback])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"train/loss": 1.0}, "measure returned the metric 'train/loss', which the round has already"),
        ({"a": "b"}, "measure returned 'a': 'b', expected one number"),
        (3, "measure returned int, expected a mapping"),
        ({3: 1.0}, "measure returned a metric named 3, expected a text"),
        ({"a": 10**400}, "expected one number"),
        ({"simulated_seconds": 5.0}, "measure returned the metric 'simulated_seconds', a name of fl's own costs"),
        ({"wall_seconds": 5.0}, "measure returned the metric 'wall_seconds', a name of fl's own costs"),
    ],
)
def test_wrong_metrics_are_named(measured, message, tmp_path):
    class Wrong(Callback):
        def measure(self, run, row):
            return measured

    with pytest.raises((TypeError, ValueError), match=message):
        fl.run(CONFIG, out=tmp_path / "run", callbacks=[Wrong()])


def test_a_callback_does_not_change_the_row(plain, tmp_path):
    class Changes(Callback):
        def measure(self, run, row):
            row["more"] = 1
            return {}

        def computed(self, row):
            row.clear()

    result = fl.run(CONFIG, out=tmp_path / "run", callbacks=[Changes()])
    assert [set(row) for row in result.metrics] == [set(row) for row in plain.metrics]


@pytest.mark.parametrize("callbacks", [Notes(), "csv", 3])
def test_callbacks_are_a_list(callbacks, tmp_path):
    with pytest.raises(ConfigError, match=r"is no list of callbacks; write callbacks=\[\.\.\.\]"):
        fl.rounds(CONFIG, out=tmp_path / "run", callbacks=callbacks)


def test_a_loop_that_a_variable_still_holds_ends_when_its_run_is_resumed(plain, tmp_path):
    rounds = fl.rounds(CONFIG, out=tmp_path / "run")
    next(rounds)
    with pytest.raises(ConfigError, match="is in use by a loop over fl.rounds"):
        fl.run(CONFIG, out=tmp_path / "run")
    assert fl.resume(tmp_path / "run").digest == plain.digest
    assert list(rounds) == [] and rounds.result.reason == "interrupted"


def test_a_loop_that_is_open_when_python_ends_is_interrupted(tmp_path):
    code = f"import fl; rounds = fl.rounds({CONFIG!r}, out={str(tmp_path / 'run')!r}); next(rounds)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "run.log").read_text().endswith("ended: interrupted\n")


def test_a_loop_over_rounds(plain, tmp_path):
    rows = list(rounds := fl.rounds(CONFIG, out=tmp_path / "whole"))
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert rounds.result.digest == plain.digest and rounds.result.reason == "all rounds done"
    for row in (rounds := fl.rounds(CONFIG, out=tmp_path / "left")):
        if row["round"] == 1:
            break
    assert rounds.result.reason == "interrupted" and len(rounds.result.metrics) == 2
    assert fl.resume(tmp_path / "left").digest == plain.digest
    for row in (rounds := fl.rounds(CONFIG, out=tmp_path / "stopped")):
        if row["round"] == 1:
            rounds.stop("good enough")
    assert rounds.result.reason == "good enough" and len(rounds.result.metrics) == 2
    assert len(fl.resume(tmp_path / "stopped").metrics) == 2  # it has finished
    assert fl.resume(tmp_path / "stopped", rounds="+2").metrics[-1]["round"] == 5  # more rounds are asked for


def test_rounds_that_have_not_begun(tmp_path):
    rounds = fl.rounds(CONFIG, out=tmp_path / "run")
    for use in (lambda: rounds.model, rounds.stop, lambda: rounds.result):
        with pytest.raises(RuntimeError, match="has not begun"):
            use()
    assert not (tmp_path / "run").exists()


def test_the_log_of_a_run(tmp_path):
    class Warns(Callback):
        def round(self, row):
            logging.getLogger("fl.somewhere").warning("round %s was odd", row["round"])

    fl.run({**CONFIG, "rounds": 1}, out=tmp_path / "run", callbacks=[Warns()])
    fl.resume(tmp_path / "run", rounds="+1")
    lines = [line.partition("  ")[2] for line in (tmp_path / "run" / "run.log").read_text().splitlines()]
    assert lines[0].startswith("fedavg with client sgd") and lines[0].endswith("ends a serial run")
    assert lines[1].startswith("round 1/1  val/accuracy ") and "MB up" in lines[1]
    assert lines[2:4] == ["warning: round 0 was odd", "ended: all rounds done"]
    assert lines[4].startswith("resumed at round 1: ") and lines[5].startswith("round 2/2  ")
    assert lines[6:] == ["ended: all rounds done"]


def test_what_a_result_shows(plain):
    accuracy = plain.metrics[-1]["val/accuracy"]
    assert repr(plain).startswith("<Result: 4 rounds") and f"val/accuracy {accuracy:.4f}" in repr(plain)
    assert "\n" not in repr(plain) and f"<td>{accuracy:.4f}</td>" in plain._repr_html_()
    frame, ledger = plain.frame(), plain.ledger_frame()
    assert frame["val/accuracy"].tolist() == [row["val/accuracy"] for row in plain.metrics]
    assert ledger.query("direction == 'up'")["encoded_bytes"].sum() == sum(row["uplink_bytes"] for row in plain.metrics)


def test_a_figure_leaves_matplotlibs_backend_alone(plain):
    import matplotlib

    before = matplotlib.rcParams._get_backend_or_none()
    figure = plain.plot("val/accuracy", "up")
    assert matplotlib.rcParams._get_backend_or_none() == before
    (line,) = figure.axes[0].lines
    ups = [row["uplink_bytes"] / 1e6 for row in plain.metrics]
    assert line.get_xdata().tolist() == pytest.approx([sum(ups[: i + 1]) for i in range(4)])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_progress_is_shown_where_somebody_looks(tmp_path, capsys):
    fl.run({**CONFIG, "rounds": 1}, out=tmp_path / "quiet")
    assert capsys.readouterr().err == ""  # stderr is a file here
    fl.run({**CONFIG, "rounds": 1}, out=tmp_path / "shown", progress=True)
    assert "1/1" in capsys.readouterr().err
    assert isinstance(Progress().screen, Lines)
