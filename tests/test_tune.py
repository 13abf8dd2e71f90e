"""`fl tune` writes a configuration that `fl run` accepts. A fake clock replaces the machine's speed."""

import json
import time
from dataclasses import dataclass

import pytest
import yaml
from typer.testing import CliRunner

import fl
from fl.cli.app import app
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.execution.section import Execution
from fl.method.local_training import LocalTraining
from fl.models.binding import bind
from fl.simulation.build import set_up_run
from fl.tools import tune
from fl.tools.tune.candidates import possible_plans, worker_counts
from fl.tools.tune.race import is_clearly_faster, quartiles

WORKERS_STAY = False
CONFIG = {
    "rounds": 3,
    "data": {"name": "noise", "shape": [6], "classes": 3, "clients": 12, "samples": 8},
    "partition": "natural",
    "splits": {"val": 0.0},
    "model": "softmax",
    "cohort": {"size": 8},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 4, "lr": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class Naps(LocalTraining):
    """In a batched plan a chunk sleeps once per step; in the loop each client does. `stacked` cannot train it."""

    def objective(self, net, batch, at, task):
        return super().objective(net, batch, at, task)

    def gradient(self, grad, params, at):
        time.sleep(0.01)
        return grad


@dataclass(frozen=True, kw_only=True)
class Fails(LocalTraining):
    """Fails in batched plans, but not in the loop, and not in the trial before round 0 (learning rate 0.01)."""

    def objective(self, net, batch, at, task):
        if type(net).__name__ == "function" and at.phase.lr == 0.1:
            raise OverflowError("too much")
        return super().objective(net, batch, at, task)


def written_by(tmp_path, config):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/base.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "configs/base.yaml"


def tuned(tmp_path, config, overrides, seconds):
    """Tune a configuration; return the result and the written file."""
    out = tmp_path / "tuned.yaml"
    return tune.tune(written_by(tmp_path, config), overrides, seconds, out, print), out


@pytest.mark.slow
def test_the_command_writes_what_extends_the_configuration_and_runs(tmp_path, clock):
    config, out = written_by(tmp_path, {**CONFIG, "execution": {"executor": "serial"}}), tmp_path / "tuned.yaml"
    done = CliRunner().invoke(app, ["tune", str(config), "--seconds", "2", "--out", str(out), "--json"])
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    written = yaml.safe_load(out.read_text())
    assert written["extends"] == "configs/base.yaml"
    assert written["execution"].keys() == {"executor", "plan", "chunk", "memory_format"}
    assert written["execution"]["executor"] == "serial" and result["kept"] == {"executor": "serial"}
    assert "cores" in out.read_text().splitlines()[1] and "clients/s" in out.read_text().splitlines()[2]
    run = fl.run(out, out=tmp_path / "run")
    resolved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["execution"]
    assert {key: resolved[key] for key in written["execution"]} == written["execution"]
    assert len(run.metrics) == 3 and {row["plan"] for row in result["tried"]} == {
        "loop",
        "compiled",
        "stacked",
        "flat",
        "vmap",
    }


@pytest.mark.slow
def test_the_faster_plan_wins(tmp_path, clock):
    """Each of 8 clients takes 2 steps of 10 ms in the loop, the default; a chunk takes 2 steps once."""
    config = {**CONFIG, "client": {**CONFIG["client"], "name": f"{__file__}:Naps"}}
    config["execution"] = {"executor": "serial", "plan": "auto", "memory_format": "contiguous"}
    result, out = tuned(tmp_path, config, {"client.optimiser": "adam"}, 6)
    assert result.rows[0]["plan"] == "loop" and result.execution["plan"] == "vmap" and "vmap by" in result.verdicts[0]
    assert result.impossible == dict.fromkeys(("fused", "compiled", "stacked", "flat"), "Naps has its own objective")
    assert result.kept == {"executor": "serial", "memory_format": "contiguous"}
    whole = yaml.safe_load(out.read_text())  # with overrides, the file holds the whole configuration
    assert "extends" not in whole and whole["client"]["optimiser"]["name"] == "adam" and whole["rounds"] == 3
    assert resolve(read(out)).to_dict()["evaluation"]["every"] == 1


def test_plans_that_fail_are_reported(tmp_path, clock):
    config = {**CONFIG, "execution": {"executor": "serial"}}
    config["client"] = {**CONFIG["client"], "name": f"{__file__}:Fails"}
    result, _ = tuned(tmp_path, config, {}, 1)
    said = [row["note"] for row in result.rows if row["plan"] == "vmap"]
    assert "OverflowError: too much" in said[0] and result.execution["plan"] == "loop"


@pytest.mark.slow
@pytest.mark.ray
def test_ones_own_plan_and_chunk_are_kept_and_executors_compared(tmp_path):
    import ray

    result, out = tuned(tmp_path, {**CONFIG, "execution": {"plan": "stacked", "chunk": 4}}, {}, 2)
    assert result.kept == {"plan": "stacked", "chunk": 4}
    execution = yaml.safe_load(out.read_text())["execution"]
    assert (execution["plan"], execution["chunk"]) == ("stacked", 4)
    assert {(row["plan"], row["chunk"]) for row in result.rows} == {("stacked", "4")}
    assert {"serial", "ray with 1 worker"} <= {row["executor"] for row in result.rows}
    assert not ray.is_initialized()


@pytest.mark.parametrize("changes", [{"execution": {"precision": "bf16"}}, {}])
def test_memory_formats_that_are_tried_can_run(changes):
    config = {"rounds": 1, "data": "digits", "partition": {"name": "iid", "clients": 4}, "cohort": {"size": 2}}
    config |= {"model": "cnn_tiny", "strategy": "fedavg"} | changes
    execution = {"executor": "serial", "plan": "loop", **config.get("execution", {})}
    setup = set_up_run(resolve(config | {"execution": execution}))
    plans, _ = possible_plans(setup, {"plan": "loop"}, 2)
    formats = {"contiguous", "channels_last"} if changes else {"contiguous", "channels_last", "compiled"}
    assert {plan.memory_format for plan in plans} == formats
    for plan in plans:
        asked = {"execution": execution | {"memory_format": plan.memory_format}}
        assert set_up_run(resolve(config | asked)).plan.memory_format == plan.memory_format


def test_worker_counts():
    """0 means serial."""
    assert worker_counts(Execution(), {}, 2) == [2, 0, 1]
    assert worker_counts(Execution(), {"executor": "ray"}, 4) == [4, 1, 2, 3]
    assert worker_counts(Execution(), {}, 32) == [32, 0, 1, 2, 4, 8, 16]
    assert worker_counts(Execution(workers=3), {"workers": 3}, 4) == [3, 0]
    assert worker_counts(Execution(executor="ray", workers=3), {"executor": "ray", "workers": 3}, 4) == [3]
    assert worker_counts(Execution(address="auto", workers=3), {}, 4) == [3]
    assert worker_counts(Execution(executor="serial"), {"executor": "serial"}, 4) == [0]


def test_a_clearly_faster_candidate():
    """Ratios 1.0, 1.1, 1.2 have quartiles 1.05, 1.1, 1.15. Two passes, 2 %, or half of the passes are not clear."""
    assert quartiles([(2.0, 2.0), (2.2, 2.0), (2.4, 2.0)]) == pytest.approx((1.05, 1.1, 1.15))
    assert is_clearly_faster([(1.05, 1.0), (1.1, 1.0), (1.2, 1.0)])
    assert not is_clearly_faster([(2.0, 1.0), (2.0, 1.0)])
    assert not is_clearly_faster([(1.02, 1.0)] * 5)
    assert not is_clearly_faster([(0.5, 1.0), (0.6, 1.0), (1.2, 1.0), (1.3, 1.0), (1.4, 1.0)])


@pytest.mark.parametrize(
    ("overrides", "seconds", "out", "said"),
    [
        ({}, 0.0, "a.yaml", "seconds: 0.0 is not positive"),
        ({}, 1.0, "there.yaml", "there.yaml exists already"),
        ({}, 1.0, "nowhere/a.yaml", "there is no folder"),
        (
            {"execution.plan": "stacked", "client": {"optimiser": {"name": "torch", "cls": "SGD"}}},
            1.0,
            "a.yaml",
            "'stacked' is not possible",
        ),
        ({"server": "async", "system": {"devices": "uniform"}}, 1.0, "a.yaml", "server"),
    ],
)
def test_mistakes_stop_before_anything_is_measured(tmp_path, overrides, seconds, out, said):
    (tmp_path / "there.yaml").write_text("mine")
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(ConfigError, match=said):
        tune.tune(config, overrides, seconds, tmp_path / out, print)
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_plans_can_be_chosen_again_after_rounds():
    """Rounds bind the module to tensors without gradients; the chunk of `flat` depends on what backward passes keep."""
    data = {**CONFIG["data"], "shape": [1, 8, 8]}
    execution = {"executor": "serial", "plan": "flat"}
    config = resolve({**CONFIG, "data": data, "model": "cnn_tiny", "execution": execution})
    setup = set_up_run(config)
    model, before = setup.models[0], setup.choose_plan(config, setup.trial)
    bind(model.module, model.initial.trained, model.initial)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert setup.choose_plan(config, setup.trial) == before
