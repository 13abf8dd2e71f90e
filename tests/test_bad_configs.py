"""Mistakes in configurations, and what users read: each stops before round 0 and says where, what, and what is allowed."""

import pytest
import yaml

from fl.cli.app import app

GOOD = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.3, "min_size": 5},
    "model": "softmax",
    "cohort": {"size": 4},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
SGD = "['batch', 'clip', 'epochs', 'lr', 'optimiser', 'steps', 'trains']"

# overrides -> how the message starts, and what else it must hold
BAD = {
    "unknown key": (["client.epoch=3"], "client.epoch: not a key of 'sgd'", [SGD, "Did you mean 'epochs'?"]),
    "wrong type": (["rounds=many"], "rounds: 'many' is not a valid integer", []),
    "wrong choice": (["execution.plan=stackd"], "execution.plan: 'stackd' is not 'auto', 'loop', 'compiled', 'stacked', 'flat' or 'vmap'",
                     ["Did you mean 'stacked'?"]),
    "cohort beyond population": (["cohort.size=200"], "cohort.size: 200 ", ["20"]),
    "alpha": (["partition.alpha=0"], "partition.alpha: 0.0 is not positive", []),
    "empty clients": (["partition.alpha=0.01", "partition.min_size=0"], "partition: ",
                      [" of 20 clients have no data", "Set partition.min_size, fewer clients, or a larger alpha"]),
    "client of another method": (["strategy=scaffold", "client.name=sgd"], "client.name: with strategy 'scaffold', client 'sgd'",
                                 ["does not send ['control']", "the strategy's own client is 'scaffold'"]),
    "unknown strategy": (["strategy=fedavgg"], "strategy: 'fedavgg' is not one of ['apfl', 'ditto',",
                         ["path/to/file.py:Name", "Did you mean 'fedavg'?"]),
    "no rounds": (["rounds=0"], "rounds: 0 is not at least 1", []),
    "impossible plan": (["model=cnn_tiny", "execution.plan=stacked"], "execution.plan: 'stacked' is not possible: ",
                        ["Conv2d", "Use 'flat', 'loop', 'vmap' or 'auto'"]),
    "codec": (["codec.up={name: top_k, ratio: 0}"], "codec.up[0].ratio: 0.0 is not in (0, 1]", []),
    "data of another shape": (["model=cnn_tiny", "data=synthetic"], "model: cnn_tiny takes images", ["a sample is (60,)"]),
    "not key=value": (["cohort.size"], "cohort.size: not key=value", ["rounds=100"]),
    "not YAML": (["cohort.size=[1"], "cohort.size: '[1' is not a YAML value", ["expected ',' or ']'"]),
    "seeds backwards": (["seed=4..1"], "seed: 4..1 names none", ["seed=1..4"]),
}  # fmt: skip


def fl(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as end:
        app([str(a) for a in arguments])
    return end.value.code, *capsys.readouterr()


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_stops_before_round_0(case, tmp_path, capsys):
    overrides, start, fragments = BAD[case]
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(GOOD))
    code, out, err = fl(capsys, "run", tmp_path / "good.yaml", *overrides, "--out", tmp_path / "out")
    message = err.removeprefix("error: ")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err != message and message.startswith(start)
    assert [f for f in fragments if f not in message] == []
    assert not (tmp_path / "out").exists()


def test_a_missing_file_names_its_neighbour(tmp_path, capsys):
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(GOOD))
    expected = f"error: {tmp_path}/quickstrt.yaml does not exist. Did you mean {tmp_path}/quickstart.yaml?\n"
    assert fl(capsys, "run", tmp_path / "quickstrt.yaml") == (2, "", expected)
