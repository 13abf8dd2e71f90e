"""The configuration's digest: one for `fl run`, its directory and a deployment; another if a value differs."""

import pytest

import fl
from fl.flower.configuration import config_text, text_digest
from tests.watching import AtStart

CONFIG = {
    "rounds": 1,
    "data": "digits",
    "partition": {"name": "iid", "clients": 4},
    "model": "softmax",
    "cohort": {"size": 2},
    "strategy": "fedavg",
    "execution": {"executor": "serial"},
}


def digest(**changes):
    return text_digest(config_text(fl.config.reading.read(CONFIG, changes)))


def test_one_digest_in_the_run_in_its_directory_and_in_a_deployment(tmp_path):
    lines = []
    callbacks = [AtStart(lambda run: lines.append(run.headline))]
    ran = fl.run(CONFIG, out=tmp_path / "a", callbacks=callbacks, **{"execution.plan": "flat"})
    again = fl.run(tmp_path / "a" / "config.yaml", out=tmp_path / "b", **{"execution.plan": "loop"})
    assert len(ran.configuration) == 64 and f"configuration {ran.configuration[:12]}, in " in lines[0]
    assert ran.configuration == again.configuration == ran.summary["configuration"] == digest()


@pytest.mark.parametrize(
    "key, value", [("seed", 1), ("rounds", 2), ("client.lr", 0.2), ("execution.precision", "bf16"), ("cohort.size", 3)]
)
def test_another_value_is_another_digest(key, value):
    assert digest(**{key: value}) != digest()


def test_what_does_not_change_results_does_not_change_the_digest(tmp_path):
    files = [tmp_path / "x" / "mine.py", tmp_path / "y" / "mine.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text("from clients.sgd import LocalSGD as Mine\n")
    one, two = (digest(client=f"{file}:Mine") for file in files)
    assert one == two != digest()
    assert digest(**{"checkpoint.every": 2, "execution.executor": "serial"}) == digest(**{"execution.executor": "auto"})
