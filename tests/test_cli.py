"""The command as users run it: processes, exit codes, stdout, stderr, and signals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fl.reference.docstring import split_args
from fl.tracking.round_lines import first_metric, format_seconds, megabytes
from tests.process import fl

FL = [sys.executable, "-m", "fl"]
CONFIG = {
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3, "min_size": 5},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
MESSAGE = 4 * (64 * 10 + 10)  # bytes of a softmax for digits: 64 pixels, 10 classes, float32

SLOW = """
import sys, time
from dataclasses import dataclass
from fl.data.sets.digits import Digits
from strategies.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Stuck(FedAvg):
    def step(self, state, mean, ctx):
        if ctx.round == 1:
            print("stuck", file=sys.stderr, flush=True)
            time.sleep(600)
        return super().step(state, mean, ctx)

@dataclass(frozen=True, kw_only=True)
class StuckData(Digits):
    def load(self):
        print("stuck", file=sys.stderr, flush=True)
        time.sleep(600)
"""

FAULTY = """
from dataclasses import dataclass
from clients.sgd import LocalSGD

@dataclass(frozen=True, kw_only=True)
class Faulty(LocalSGD):
    def finish(self, end):
        raise OverflowError("too much")
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.fixture(scope="module")
def finished(config) -> tuple[Path, dict]:
    """Perform a run of three rounds; return its directory and summary."""
    out = config.parent / "finished"
    command = [*FL, "run", str(config), "--json", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)  # the installed entry point
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def interrupted(arguments: list, *signals: tuple[str, int]) -> subprocess.CompletedProcess:
    """Run fl in its own process group; send each signal to the group when a line of stderr contains its text."""
    command = [*FL, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    seen = ""
    for text, number in signals:
        for line in process.stderr:
            seen += line
            if text in line:
                os.killpg(process.pid, number)
                break
    out, err = process.communicate(timeout=1800)
    return subprocess.CompletedProcess(command, process.returncode, out, seen + err)


# -- results ----------------------------------------------------------------------------------------------------------
def test_help_needs_no_heavy_import():
    code = (
        "import sys, fl.cli.app; print(sorted({'torch', 'ray', 'pydantic', 'numpy', 'rich.live'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert subprocess.run([*FL, "--help"], capture_output=True).returncode == 0


def test_help_shows_defaults_in_words():
    shown = " ".join(fl("run", "--help", COLUMNS="200").stdout.split())
    assert "Run directory (default: a new directory under runs/)." in shown
    assert (
        "A YAML configuration file, or quickstart" in shown
    )  # typer < 0.21 loses the help of arguments with click 8.5


@pytest.mark.slow
def test_with_json_stdout_has_nothing_else(finished):
    out, summary = finished
    assert summary["directory"] == str(out) and summary["reason"] == "all rounds done"
    assert summary["final"]["round"] == 2
    assert summary["total_uplink_bytes"] == summary["total_downlink_bytes"] == 3 * 4 * MESSAGE
    assert fl("digest", out).stdout == summary["digest"] + "\n"


@pytest.mark.slow
def test_a_line_per_evaluated_round_on_stderr_and_the_summary_on_stdout(config, tmp_path):
    done = fl("run", config, "rounds=5", "evaluation.every=2", "--out", tmp_path / "out")
    lines = [line.split() for line in done.stderr.splitlines() if "/5 " in line]
    assert [line[0] for line in lines] == ["2/5", "4/5", "5/5"]
    assert [line[3] for line in lines] == ["0.0208", "0.0416", "0.052"]  # MB up so far: 0.0104 per round
    assert [line[-1] for line in lines][-1] == "0.0s"
    assert f"fl resume {tmp_path / 'out'} rounds=+10" in done.stdout and "val/accuracy" in done.stdout
    assert "/5 " not in done.stdout


@pytest.mark.slow
def test_on_a_terminal_the_table_is_live(config, tmp_path):
    ours, theirs = os.openpty()
    process = subprocess.Popen([*FL, "run", config, "--out", tmp_path / "out"], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the process has closed the other end
        pass
    os.close(ours)
    out, _ = process.communicate()
    assert process.returncode == 0 and b"digest" in out
    assert b"val/accuracy" in shown and b"3/3" in shown


@pytest.mark.slow
def test_several_seeds(config, tmp_path):
    done = fl("run", config, "seed=0..1", "rounds=1", "--json", "--out", tmp_path)
    runs = json.loads(done.stdout)["runs"]
    assert [run["directory"] for run in runs] == [str(tmp_path / "seed-0"), str(tmp_path / "seed-1")]
    assert runs[0]["digest"] != runs[1]["digest"]


@pytest.mark.slow
def test_without_out_the_directory_is_named_by_strategy_and_seed(config, tmp_path):
    done = fl("run", config, "rounds=1", "seed=7", folder=tmp_path)
    assert done.returncode == 0
    assert [p.name.split("-", 2)[2] for p in (tmp_path / "runs").iterdir()] == ["fedavg-seed7"]


@pytest.mark.slow
def test_smoke_is_small_and_says_so(config, tmp_path):
    done = fl("run", config, "rounds=1000", "cohort.size=20", "--smoke", "--json", "--out", tmp_path / "a")
    final = json.loads(done.stdout)["final"]
    assert (final["round"], final["cohort_size"]) == (1, 4)
    assert "smoke: 2 rounds of at most 4 clients" in done.stderr


@pytest.mark.slow
def test_dropped_keys_are_reported_on_stderr(config, tmp_path):
    done = fl("run", config, "cohort.name=poisson", "cohort.rate=0.2", "rounds=1", "--json", "--out", tmp_path / "a")
    assert "dropped ['size']" in done.stderr and json.loads(done.stdout)


# -- resuming, and the same bits --------------------------------------------------------------------------------------
@pytest.mark.slow
def test_resume_equals_one_run(config, finished, tmp_path):
    directory, summary = finished
    fl("run", config, "rounds=2", "--out", tmp_path / "two")
    old = fl("digest", tmp_path / "two").stdout
    shutil.copy(tmp_path / "two" / "model.safetensors", tmp_path)
    done = fl("resume", tmp_path / "two", "rounds=+1")
    assert summary["digest"] in done.stdout
    assert (
        next(line for line in done.stderr.splitlines() if "3/3" in line).split()[3] == "0.0312"
    )  # MB of all three rounds
    # an old model file does not hide later committed rounds; without a model file the checkpoint is used
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "two")
    (tmp_path / "two" / "SHA256SUMS").unlink()  # as a resumed run that was killed leaves it
    assert fl("digest", tmp_path / "two").stdout == summary["digest"] + "\n" != old
    (tmp_path / "two" / "model.safetensors").unlink()
    assert fl("digest", tmp_path / "two").stdout == summary["digest"] + "\n"


@pytest.mark.parametrize(
    "change, message",
    [
        ("rounds=lots", "error: rounds: 'lots' is neither a number of rounds nor +number"),
        ("rounds=2", "error: rounds: 2 is less than the 3 rounds done"),
        ("client.lr=1", "error: client.lr: cannot change when a run is resumed"),
    ],
)
@pytest.mark.slow
def test_what_resume_refuses(finished, change, message):
    done = fl("resume", finished[0], change)
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_round(config, tmp_path, number):
    done = interrupted(["run", config, "rounds=3000", "--json", "--out", tmp_path / "a"], ("2/3000", number))
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["reason"]) == (130, "interrupted")
    assert "stopping after this round" in done.stderr
    rounds = summary["final"]["round"] + 1
    fl("run", config, f"rounds={rounds}", "--out", tmp_path / "b")
    assert fl("digest", tmp_path / "b").stdout == summary["digest"] + "\n"


@pytest.mark.slow
def test_a_second_ctrl_c_aborts(config, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ["run", config, f"strategy={tmp_path}/slow.py:Stuck", "--out", tmp_path / "a"]
    done = interrupted(arguments, ("stuck", signal.SIGINT), ("stopping after this round", signal.SIGINT))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith(f"aborted; resume with: fl resume {tmp_path / 'a'}\n")


@pytest.mark.slow
def test_before_the_first_round_ctrl_c_stops_at_once(config, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ["run", config, f"data={tmp_path}/slow.py:StuckData", "--out", tmp_path / "a"]
    done = interrupted(arguments, ("stuck", signal.SIGINT))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.endswith("stopped before the first round\n")


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_on_the_whole_group_leaves_ray_alone(config, tmp_path):
    """A terminal sends Ctrl-C to all processes of the group, also to Ray's; the round must still finish."""
    arguments = ["run", config, "rounds=3000", "execution.executor=ray", "execution.workers=2", "--out", tmp_path / "a"]
    done = interrupted(arguments, ("2/3000", signal.SIGINT))
    assert done.returncode == 130 and "died" not in done.stderr
    assert f"fl resume {tmp_path / 'a'}\n" in done.stdout
    rounds = len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) + 5
    assert fl("resume", tmp_path / "a", f"rounds={rounds}").returncode == 0
    fl("run", config, f"rounds={rounds}", "--out", tmp_path / "b")
    assert fl("digest", tmp_path / "a").stdout == fl("digest", tmp_path / "b").stdout != ""


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_clients_error_names_line_and_client_and_exit_1(config, tmp_path):
    (tmp_path / "mine.py").write_text(FAULTY)
    arguments = ["run", config, f"client={tmp_path}/mine.py:Faulty", "execution.plan=loop"]
    done = fl(*arguments, "--out", tmp_path / "a")
    where, what, call, place, _ = done.stderr.splitlines()[-5:]
    assert (done.returncode, done.stdout) == (1, "")
    assert where.startswith("error: ") and where.endswith('mine.py, line 8: raise OverflowError("too much")')
    assert what == "OverflowError: too much" and "mine.py:Faulty, called with end: " in call
    assert place.startswith("client ") and "round 0, stage " in place
    assert "Traceback" not in done.stderr
    assert "Traceback" in fl(*arguments, "--traceback", "--out", tmp_path / "b").stderr
    assert "Traceback" in fl(*arguments, "--out", tmp_path / "c", FL_TRACEBACK="1").stderr


@pytest.mark.slow
def test_unknown_commands_and_kinds_are_usage_errors():
    for done in (fl("rum"), fl("list", "strategies"), fl("show", "strategy", "fedavgg"), fl("digest", "nowhere")):
        assert (done.returncode, done.stdout) == (2, "") and done.stderr


# -- fl list and fl show ----------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_list_and_show():
    listed = fl("list").stdout
    assert {"strategy", "client", "codec", "cohort"} <= set(listed.splitlines())
    assert "  top_k" in listed and "  uniform" in listed
    shown = fl("show", "strategy", "scaffold").stdout
    assert "arXiv:1910.06378" in shown and "client algorithm: scaffold" in shown
    assert re.search(r"^lr +number = 1\.0$", shown, re.M)
    shown = fl("show", "cohort", "weighted").stdout
    assert "Efraimidis" in shown and "size  whole number, required" in shown


TOY = '''"""A toy rule.    model <- model + lr * mean

Nobody 2026, arXiv:0000.00000.
"""

from dataclasses import dataclass

from fl import Strategy


@dataclass(frozen=True, kw_only=True)
class Base(Strategy):
    """A base.

    Args:
        lr: server learning rate;
            1 takes the whole mean.
    """

    lr: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Toy(Base):
    """Steps with a floor.

    Args:
        floor (float): smallest step, 0 or more: see below.
        names: names of tensors.

    Neutral: floor=0.
    """

    floor: float
    names: tuple[str, ...] = ()
'''


def test_show_prints_what_each_hyper_parameter_does(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    shown = fl("show", "strategy", f"{tmp_path}/toy.py:Toy").stdout
    assert shown == (
        "A toy rule.    model <- model + lr * mean\n\nNobody 2026, arXiv:0000.00000.\n\n"
        "Steps with a floor.\n\nNeutral: floor=0.\n\n"
        "lr     number = 1.0\n        server learning rate; 1 takes the whole mean.\n"
        "floor  number, required\n        smallest step, 0 or more: see below.\n"
        "names  list of text = []\n        names of tensors.\n\n"
        "client algorithm: sgd\n"
    )


def test_show_prints_the_keys_of_sections_and_of_a_configuration():
    whole = fl("show").stdout
    assert re.search(r"^rounds +whole number, 1 or more = 10$", whole, re.M)
    for section in ("evaluation", "execution", "splits", "stop", "checkpoint", "system", "data", "model"):
        assert re.search(rf"^{section}\.\w+ +\S.* = ", fl("show", section).stdout, re.M), section
    patience = r"^stop\.patience +whole number, 1 or more; or null = null\n +number of evaluations"
    assert re.search(patience, fl("show", "stop").stdout, re.M)
    assert "scaffold" in fl("show", "strategy").stdout
    unknown = fl("show", "evalution")
    assert unknown.returncode == 2 and "'evaluation'" in unknown.stderr


def test_a_docstring_is_split_into_text_and_arguments():
    class Toy:
        """Text before.

        Args:
            one: first line
                of two.

            two (int): 0: off.

        Text after.
        """

    text, args = split_args(Toy.__doc__)
    assert text == "Text before.\n\nText after."
    assert args == {"one": "first line of two.", "two": "0: off."}
    assert split_args("No section.") == ("No section.", {}) and split_args("") == ("", {})


def test_check_tells_law_by_law():
    done = fl("check", "codec:identity")
    assert done.returncode == 0 and all(line.startswith("pass  ") for line in done.stdout.splitlines())


# -- small functions --------------------------------------------------------------------------------------------------
def test_numbers_for_people():
    assert [format_seconds(s) for s in (0.04, 9.9, 9.97, 185, 3720)] == ["0.0s", "9.9s", "10s", "3m05s", "1h02m"]
    assert [megabytes(n) for n in (31_200, 12_345_678, 1_234_567_890)] == ["0.0312", "12.35", "1235"]


def test_the_metric_shown_is_an_accuracy_or_else_the_first():
    assert first_metric({"train/accuracy": 1, "eval/loss": 1, "eval/accuracy": 1, "val/accuracy": 1}) == "val/accuracy"
    assert first_metric({"train/loss": 1, "eval/mae": 1, "eval/loss": 1}) == "eval/mae"
    assert first_metric({"train/loss": 1}) is None
