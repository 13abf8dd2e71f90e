"""SplitNN and its bounds: the joint network's gradients, exact bytes, virtual time, killed workers and drivers."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch
from numpy.testing import assert_allclose
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.method.aligned import batch_rows
from fl.simulation.simulation import Simulation
from fl.storage.segments import Segments
from fl.tasks.auroc import auroc

ROWS, BATCH, CUT, TEST = 70, 16, 3, 21
COLUMNS = [[0, 1, 2, 3], list(range(4, 20)), list(range(20, 30))]


def cancer() -> tuple[np.ndarray, np.ndarray]:
    x, y = sklearn.datasets.load_breast_cancer(return_X_y=True)
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)[:ROWS], y[:ROWS]


def settings(**more) -> dict:
    return {
        "rounds": 2,
        "data": cancer(),
        "partition": {"name": "vertical", "columns": COLUMNS},
        "splits": {"val": 0.0, "test": 0.3},
        "model": "softmax",
        "cohort": {"fraction": 1.0},
        "strategy": {"name": "splitnn", "cut": CUT, "batch": BATCH, "hidden": [5], "top": [6], "lr": 0.3},
        "client": {"name": "splitnn", "hidden": [5]},
        "execution": {"executor": "serial"},
    } | more


def with_sgd(**strategy) -> dict:
    config = settings()
    config["strategy"] |= {"optimiser": "sgd", **strategy}
    config["client"] |= {"optimiser": "sgd"}
    return config


class Joint(nn.Module):
    """The whole network in plain torch: three bottoms side by side, and the top on their outputs."""

    def __init__(self, first: dict[str, torch.Tensor], bottoms: list[dict[str, torch.Tensor]]):
        super().__init__()
        widths = [len(own) for own in COLUMNS]
        own = {name.removeprefix("bottom."): t for name, t in first.items() if name.startswith("bottom.")}
        top = {name.removeprefix("top."): t for name, t in first.items() if name.startswith("top.")}
        self.bottoms = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 5), nn.ReLU(), nn.Linear(5, CUT)) for width in widths
        )
        self.top = nn.Sequential(nn.Linear(3 * CUT, 6), nn.ReLU(), nn.Linear(6, 2))
        for module, weights in zip([*self.bottoms, self.top], [own, *bottoms, top]):
            module.load_state_dict({f"{2 * int(n[0])}{n[1:]}": t.clone() for n, t in weights.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [bottom(x[:, own]) for bottom, own in zip(self.bottoms, COLUMNS)]
        return self.top(torch.cat(parts, 1))

    def weights(self) -> list[torch.Tensor]:
        """Parameters in the order: bottoms 0, 1, 2, top."""
        return [p.detach() for module in [*self.bottoms, self.top] for p in module.parameters()]


def split_weights(model, kept: list) -> list[torch.Tensor]:
    parts = [[t for n, t in model.items() if n.startswith("bottom.")], *(list(own["model"].values()) for own in kept)]
    parts.append([t for n, t in model.items() if n.startswith("top.")])
    return [tensor for part in parts for tensor in part]


def run_and_states(config: dict, out: Path):
    with Simulation(resolve(read(config)), out) as simulation:
        first = simulation.state.model.clone()
        result, states = simulation.run(), Segments(simulation.directory / "clients")
        kept = [states.read(where) for where in simulation.states.locations(np.arange(2))]
        training = simulation.run_setup.periods[0].partition.view_rows(0, "train")
    return first, result, kept, training


def first_bottoms() -> list[dict[str, torch.Tensor]]:
    """Draw the passive parties' first weights as torch.nn.Linear does, from the seed, the party and `bottom`."""
    found = []
    for client, width in ((0, 16), (1, 10)):
        generator = fl.random.torch_generator(0, client, "bottom")
        weights = {}
        for i, (inputs, outputs) in enumerate(((width, 5), (5, CUT))):
            for name, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                weights[f"{i}.{name}"] = (2 * torch.rand(shape, generator=generator) - 1) / inputs**0.5
        found.append(weights)
    return found


def test_training_is_that_of_the_joint_network(tmp_path):
    """Two epochs of SGD with a rate of 0.3: 8 gradients of each party, each equal to the joint network's."""
    first, result, kept, training = run_and_states(with_sgd(), tmp_path / "run")
    joint, (x, y) = Joint(dict(first), first_bottoms()), map(torch.from_numpy, cancer())
    x, y, optimiser = x[training], y[training], torch.optim.SGD(joint.parameters(), lr=0.3)
    for round_ in range(2):
        for step in range(4):
            rows = torch.from_numpy(batch_rows(len(y), 0, round_, step, BATCH).copy())
            optimiser.zero_grad()
            nn.functional.cross_entropy(joint(x[rows]), y[rows]).backward()
            optimiser.step()
            if round_ == step == 0:
                gradients = [p.grad.clone() for p in joint.parameters()]
    for found, expected in zip(split_weights(result.model, kept), joint.weights(), strict=True):
        assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert max(float(g.abs().max()) for g in gradients) > 0.01


def test_adam_with_decoupled_decay_is_that_of_torch(tmp_path):
    config = settings()
    config["strategy"] |= {"lr": 0.01, "optimiser": {"name": "adam", "weight_decay": 0.1}}
    config["client"] |= {"optimiser": {"name": "adam", "weight_decay": 0.1}}
    first, result, kept, training = run_and_states(config, tmp_path / "run")
    joint, (x, y) = Joint(dict(first), first_bottoms()), map(torch.from_numpy, cancer())
    x, y, optimiser = x[training], y[training], torch.optim.AdamW(joint.parameters(), lr=0.01, weight_decay=0.1)
    for round_, step in np.ndindex(2, 4):
        rows = torch.from_numpy(batch_rows(len(y), 0, round_, step, BATCH).copy())
        optimiser.zero_grad()
        nn.functional.cross_entropy(joint(x[rows]), y[rows]).backward()
        optimiser.step()
    for found, expected in zip(split_weights(result.model, kept), joint.weights(), strict=True):
        assert_allclose(found, expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        held = torch.from_numpy(np.setdiff1d(np.arange(ROWS), training))
        x, y = map(torch.from_numpy, cancer())
        outputs = joint(x[held])
    row = result.metrics[-1]
    assert row["eval/loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, y[held])), abs=1e-4)
    assert row["eval/accuracy"] == pytest.approx(float((outputs.argmax(1) == y[held]).float().mean()))


@pytest.mark.parametrize("cut", [3, 7])
def test_bytes_of_training_and_inference_are_those_of_the_closed_form(cut, tmp_path):
    """2 (P - 1) n h b bytes a round, and (P - 1) n_test h b of an evaluation, which the ledger leaves out."""
    config = settings()
    config["strategy"] |= {"cut": cut}
    result = fl.run(config, out=tmp_path / "run")
    for row in result.metrics:
        assert row["uplink_bytes"] == row["downlink_bytes"] == 2 * (ROWS - TEST) * cut * 4
        assert row["eval/inference_bytes"] == 2 * TEST * cut * 4
    assert {(r["direction"], r["group"]) for r in result.ledger.to_pylist()} == {("up", "cut"), ("down", "gradient")}


def test_codecs_and_local_steps_are_the_compressed_form(tmp_path):
    """A quarter of the cut values as 8-bit numbers: fewer bytes both ways. Local steps cost no bytes."""
    plain = fl.run(settings(), out=tmp_path / "plain")
    half = {"name": "quantise", "bits": 8}
    config = settings(codec={"up": half, "down": half})
    config["strategy"] |= {"local_steps": 3}
    squeezed = fl.run(config, out=tmp_path / "squeezed")
    for a, b in zip(plain.metrics, squeezed.metrics):
        assert b["uplink_bytes"] < 0.6 * a["uplink_bytes"] and b["downlink_bytes"] < 0.6 * a["downlink_bytes"]
    assert squeezed.metrics[-1]["train/loss"] < squeezed.metrics[0]["train/loss"]


def test_more_local_steps_are_steps_along_the_same_gradient(tmp_path):
    """One batch a round, SGD, Q = 2. For a linear bottom the gradient does not move, so both steps are equal."""
    config = with_sgd(batch=ROWS, local_steps=1, lr=0.1) | {"rounds": 1}
    config["client"] |= {"hidden": []}
    config["strategy"] |= {"hidden": [], "top": []}
    moved = []
    for steps in (1, 2):
        config["strategy"]["local_steps"] = steps
        _, _, kept, _ = run_and_states(config, tmp_path / str(steps))
        generator = fl.random.torch_generator(0, 0, "bottom")
        first = (2 * torch.rand((CUT, 16), generator=generator) - 1) / 4
        moved.append(kept[0]["model"]["0.weight"] - first)
    assert_allclose(moved[1], 2 * moved[0], rtol=1e-5, atol=1e-7)


def test_virtual_time_counts_the_rows_of_each_batch(tmp_path):
    """1 ms per row: 49 rows x 2 local steps a round; the forward exchanges compute no gradient."""
    devices = {"name": "identical", "ms_per_sample": 1.0, "latency_ms": 0}
    config = settings(system={"devices": devices})
    config["strategy"] |= {"local_steps": 2}
    for row in fl.run(config, out=tmp_path / "run").metrics:
        assert row["simulated_seconds"] == pytest.approx(2 * 49 * 1e-3)


# -- bounds -----------------------------------------------------------------------------------------------------------
def bound(columns: str) -> dict:
    config = settings(client="raw_columns")
    config["strategy"] |= {"name": "active_party", "columns": columns}
    return config


@pytest.mark.parametrize("columns", ["own", "all"])
def test_the_bounds_are_central_training(columns, tmp_path):
    config = bound(columns)
    config["strategy"] |= {"optimiser": "sgd"}
    with Simulation(resolve(read(config)), tmp_path / "run") as simulation:
        result = simulation.run()
        training = simulation.run_setup.periods[0].partition.view_rows(0, "train")
    own = COLUMNS[0] if columns == "own" else sum(COLUMNS, [])
    net = nn.Sequential(nn.Linear(len(own), 5), nn.ReLU(), nn.Linear(5, CUT), nn.Linear(CUT, 6), nn.ReLU())
    net.append(nn.Linear(6, 2))
    generators = {part: fl.random.torch_generator(0, "server", 0, part) for part in ("bottom", "top")}
    with torch.no_grad():
        for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
            for p in (layer.weight, layer.bias):
                draw = torch.rand(p.shape, generator=generators["bottom" if i < 2 else "top"])
                p.copy_((2 * draw - 1) / layer.in_features**0.5)
    (x, y), optimiser = map(torch.from_numpy, cancer()), torch.optim.SGD(net.parameters(), lr=0.3)
    x, y = x[training][:, own], y[training]
    for round_, step in np.ndindex(2, 4):
        rows = torch.from_numpy(batch_rows(len(y), 0, round_, step, BATCH).copy())
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimiser.step()
    for found, expected in zip(result.model.values(), net.parameters(), strict=True):
        assert_allclose(found, expected.detach(), rtol=0, atol=1e-6)
    sent = sum(row["encoded_bytes"] for row in result.ledger.to_pylist())
    assert sent == (0 if columns == "own" else (ROWS - TEST) * 26 * 4)  # the passive parties' 26 columns, once


# -- interruptions ----------------------------------------------------------------------------------------------------
KILLED = '''
import os, signal
from pathlib import Path
from clients.splitnn import SplitNNParty
from strategies.splitnn import SplitNN

MARK = Path({mark!r})

def die():
    if not MARK.exists():
        MARK.touch()
        os.kill(os.getpid(), signal.SIGKILL)

class Party(SplitNNParty):
    """Kills its process in the middle of round 1."""
    def work(self, name, ctx, carry):
        if name == "backward" and ctx.round == 1 and ctx.client == 1 and ctx.config["step"] == 2:
            die()
        return super().work(name, ctx, carry)

class Server(SplitNN):
    """Kills its process in the middle of round 1."""
    def learn(self, state, batch, passive, ctx):
        if ctx.round == 1 and state.steps == 6:
            die()
        return super().learn(state, batch, passive, ctx)
'''


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    return fl.run(settings(rounds=3), out=tmp_path_factory.mktemp("straight") / "run")


def same(a, b) -> bool:
    last = ("train/loss", "eval/loss", "uplink_bytes")
    return a.digest == b.digest and all(a.metrics[-1][name] == b.metrics[-1][name] for name in last)


@pytest.mark.ray
def test_a_worker_killed_in_mid_epoch_changes_nothing(straight, tmp_path):
    """A Ray worker with a party's carry dies by SIGKILL in round 1; another one takes its place."""
    file, mark = tmp_path / "killed.py", tmp_path / "killed"
    file.write_text(KILLED.format(mark=str(mark)))
    config = settings(rounds=3, execution={"executor": "ray", "workers": 2})
    config["client"] |= {"name": f"{file}:Party"}
    result = fl.run(config, out=tmp_path / "run")
    assert mark.exists() and same(result, straight)


def test_a_driver_killed_in_mid_epoch_resumes_to_the_same_bits(straight, tmp_path):
    file, mark, data = tmp_path / "killed.py", tmp_path / "killed", tmp_path / "data.npz"
    file.write_text(KILLED.format(mark=str(mark)))
    np.savez(data, **dict(zip("xy", cancer())))
    config = settings(rounds=3, data=str(data))
    config["strategy"] |= {"name": f"{file}:Server"}
    code = f"import fl; fl.run({config!r}, out={str(tmp_path / 'run')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert same(fl.resume(tmp_path / "run"), straight)


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "strategy, key, words",
    [
        ({"optimiser": {"name": "torch", "cls": "RMSprop"}}, "strategy.optimiser", "use sgd or adam"),
        ({"local_steps": 0}, "strategy.local_steps", "not at least 1"),
        ({"cut": 0}, "strategy.cut", "not positive"),
        ({"lr": {"start": 0.1, "by": "step"}}, "strategy.lr", "use by: round"),
    ],
)
def test_mistakes_stop_before_round_0(strategy, key, words, tmp_path):
    config = settings()
    config["strategy"] |= strategy
    with pytest.raises(fl.ConfigError, match=words) as caught:
        fl.run(config, out=tmp_path / "run")
    assert caught.value.path == key


def test_dropout_is_refused_before_round_0(tmp_path):
    system = {"devices": {"identical": {"ms_per_sample": 1}}, "dropout": 0.1}
    with pytest.raises(fl.ConfigError, match=r"system.dropout: is 0.1; in a vertical federation .*Set 0"):
        fl.run(settings(system=system), out=tmp_path / "run")


def test_too_many_batches_are_refused_with_the_way_out(tmp_path):
    rows = 16_001
    config = settings(data=(np.zeros((rows, 30), np.float32), np.arange(rows) % 2), splits={"val": 0.0})
    config["strategy"] |= {"batch": 1}
    with pytest.raises(fl.ConfigError, match="16001 batches of 16001 rows.*use batch: 2 or more"):
        fl.run(config, out=tmp_path / "run")


def test_a_missing_party_is_named(tmp_path):
    """A device that never arrives in time; the active party cannot go on without its cut layer."""
    file = tmp_path / "failing.py"
    file.write_text(
        "from clients.splitnn import SplitNNParty\n\n"
        "class Fails(SplitNNParty):\n    def work(self, name, ctx, carry):\n"
        "        if ctx.client == 1:\n            raise RuntimeError('no power')\n"
        "        return super().work(name, ctx, carry)\n"
    )
    config = settings(execution={"executor": "serial", "on_client_error": "drop"})
    config["client"] |= {"name": f"{file}:Fails"}
    with pytest.raises(ValueError, match=r"the passive parties \[1\] have not answered"):
        fl.run(config, out=tmp_path / "run")


def test_area_under_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 9, 60) / 8, generator.random(60) < 0.3
    found = auroc(torch.from_numpy(scores), torch.from_numpy(positive))
    assert found == pytest.approx(roc_auc_score(positive, scores))
    assert np.isnan(auroc(torch.ones(3), torch.ones(3, dtype=torch.bool)))
