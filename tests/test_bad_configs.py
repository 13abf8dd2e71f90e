"""Mistakes in configurations stop a run before round 0. The message has the place, the mistake and allowed values."""

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
SGD = "['batch', 'clip', 'epochs', 'last_batch', 'lr', 'optimiser', 'optimiser_state', 'rates', 'steps', 'trains']"

# (overrides, start of the message, other parts of the message)
BAD = {
    "unknown key": (["client.epoch=3"], "client.epoch: not a key of 'sgd'", [SGD, "Did you mean 'epochs'?"]),
    "wrong type": (["rounds=many"], "rounds: 'many' is not a valid integer", []),
    "wrong choice": (
        ["execution.plan=stackd"],
        "execution.plan: 'stackd' is not 'auto', 'loop', 'fused', 'compiled', 'stacked', 'flat' or 'vmap'",
        ["Did you mean 'stacked'?"],
    ),
    "cohort beyond population": (["cohort.size=200"], "cohort.size: 200 ", ["20"]),
    "alpha": (["partition.alpha=0"], "partition.alpha: 0.0 is not in (0, inf)", []),
    "empty clients": (
        ["partition.alpha=0.01", "partition.min_size=0"],
        "partition: ",
        [" of 20 clients have no data", "Set partition.min_size, fewer clients, or a larger alpha"],
    ),
    "client of another method": (
        ["strategy=scaffold", "client.name=sgd"],
        "client.name: with strategy 'scaffold', client 'sgd'",
        ["does not send ['control']", "the strategy's own client is 'scaffold'"],
    ),
    "unknown strategy": (
        ["strategy=fedavgg"],
        "strategy: 'fedavgg' is not one of ['active_party', 'apfl',",
        ["path/to/file.py:Name", "Did you mean 'fedavg'?"],
    ),
    "no rounds": (["rounds=0"], "rounds: 0 is not at least 1", []),
    "impossible plan": (
        ["model=cnn_tiny", "execution.plan=stacked"],
        "execution.plan: 'stacked' is not possible: ",
        ["Conv2d", "Use 'flat', 'loop', 'vmap' or 'auto'"],
    ),
    "codec": (["codec.up={name: top_k, ratio: 0}"], "codec.up[0].ratio: 0.0 is not in (0, 1]", []),
    "data of another shape": (
        ["model=cnn_tiny", "data=synthetic"],
        "model: cnn_tiny takes images",
        ["a sample is (60,)"],
    ),
    "no patience": (["stop.patience=0"], "stop.patience: 0 is not at least 1", []),
    # a key of another section: suggestions are the same key first, then a similar one
    "a key of the client": (
        ["strategy=fedprox", "strategy.mu=0.1"],
        "strategy.mu: not a key of 'fedprox', which has ['lr', 'server_optimiser', 'weights']",
        ["Did you mean client.mu?"],
    ),
    "a key of client and strategy": (
        ["lr=0.1"],
        "lr: not a key of a configuration",
        ["Did you mean client.lr or strategy.lr?"],
    ),
    "a key of the client only": (["epochs=3"], "epochs: not a key of a configuration", ["Did you mean client.epochs?"]),
    "a key of the partition": (
        ["client.alpha=0.3"],
        "client.alpha: not a key of 'sgd'",
        [SGD, "Did you mean partition.alpha?"],
    ),
    "a key of the cohort": (["client.size=3"], "client.size: not a key of 'sgd'", ["Did you mean cohort.size?"]),
    "a key of a nested part": (
        ["client.momentum=0.9"],
        "client.momentum: not a key of 'sgd'",
        ["Did you mean client.optimiser.momentum?"],
    ),
    "a top-level key": (["client.rounds=3"], "client.rounds: not a key of 'sgd'", ["Did you mean rounds?"]),
    "an option of every data set": (
        ["data.normalize=true"],
        "data.normalize: not a key of 'digits'",
        ["Did you mean 'normalise'?"],
    ),
    "another framework's word": (
        ["batch_size=10"],
        "batch_size: not a key of a configuration",
        ["Did you mean client.batch?"],
    ),
    "the same in its section": (
        ["client.batch_size=10"],
        "client.batch_size: not a key of 'sgd'",
        ["Did you mean 'batch'?"],
    ),
    "a word that is not close": (
        ["learning_rate=0.1"],
        "learning_rate: not a key",
        ["Did you mean client.lr or strategy.lr?"],
    ),
    "rounds": (["num_rounds=3"], "num_rounds: not a key of a configuration", ["Did you mean 'rounds'?"]),
    "deadline": (["server.deadline=3"], "server.deadline: not a key of 'sync'", ["Did you mean 'deadline_seconds'?"]),
    "part by another word": (
        ["server={mode: async, concurrency: 3}"],
        "server.mode: 'async' is the name of a part",
        ["write server: {name: async, ...}"],
    ),
    "not close to any key": (
        ["zzz=1"],
        "zzz: not a key of a configuration, which has ['adversary', 'after_reduction',",
        ["'transforms'].\n"],
    ),
    "not key=value": (["cohort.size"], "cohort.size: not key=value", ["rounds=100"]),
    "not YAML": (["cohort.size=[1"], "cohort.size: '[1' is not a YAML value", ["expected ',' or ']'"]),
    "a text with braces": (
        ["data.template={input} {topic}"],
        "data.template: '{input} {topic}' is not a YAML value",
        ["a text with braces, brackets or colons needs quotes of its own: 'data.template=\"a: {b}\"'"],
    ),
    "a text in braces": (["data.template={input}"], "data.template: '{input}' is a mapping without values", ["quotes"]),
    "seeds backwards": (["seed=4..1"], "seed: 4..1 is an empty range", ["seed=1..4"]),
}


def fl(capsys, *arguments) -> tuple[int, str, str]:
    """Run the command; return exit code, stdout, stderr."""
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


def test_an_unknown_key_is_named_before_a_missing_one(tmp_path, capsys):
    config = {"stratgy" if key == "strategy" else key: value for key, value in GOOD.items()}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    code, out, err = fl(capsys, "run", tmp_path / "bad.yaml", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("error: stratgy: not a key of a configuration") and err.endswith("Did you mean 'strategy'?\n")
    del config["stratgy"]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    code, out, err = fl(capsys, "run", tmp_path / "bad.yaml", "--out", tmp_path / "out")
    assert (code, out) == (2, "") and err.startswith("error: strategy: missing")


def test_a_missing_file_names_its_neighbour(tmp_path, capsys):
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(GOOD))
    expected = f"error: {tmp_path}/quickstrt.yaml does not exist. Did you mean {tmp_path}/quickstart.yaml?\n"
    assert fl(capsys, "run", tmp_path / "quickstrt.yaml") == (2, "", expected)
