"""Mistakes of the command line and of files: the message says what to write instead."""

import logging

import pytest
import yaml

import fl as package
from fl.check.check import check
from fl.check.target import find_part
from tests.test_bad_configs import GOOD, fl

# arguments after `fl run c.yaml` -> parts of the message
HINTS = {
    "gpu": (["execution.device=gpu"], ["execution.device: 'gpu' is not", "Did you mean 'cuda'?"]),
    "--seed": (["--seed", "3"], ["--seed: ", "write seed=3"]),
    "seeds": (["seed=0,1,2"], ["seed: '0,1,2'", "seed=0..2 makes three runs, and `fl sweep`"]),
    "cohort": (["cohort=4"], ["cohort: 4 is no sampler; write cohort: {size: 4}, or cohort.size=4"]),
    "codec": (["codec=top_k"], ["codec: 'top_k' is not a mapping", "Did you mean codec.up=top_k?"]),
    "out": (["--out", "c.yaml"], ["out: c.yaml is a file; name a new folder"]),
    "out=": (["out=runs/a"], ["out: not a key of a configuration, but an option of the command: --out=runs/a"]),
    "json=": (["json=true"], ["json: not a key of a configuration, but an option of the command: --json"]),
    "below": (["--out", "c.yaml/run"], ["out: c.yaml/run lies below", "which is a file"]),
}


@pytest.mark.parametrize("case", HINTS)
def test_the_message_says_what_to_write(case, tmp_path, capsys, monkeypatch):
    arguments, message = HINTS[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    code, out, err = fl(capsys, "run", "c.yaml", *arguments)
    assert (code, out) == (2, "")
    for part in message:
        assert part in " ".join(err.split())


def test_files_that_are_no_configuration(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(GOOD))
    assert "Did you mean quickstart.yaml?" in fl(capsys, "run", "quickstart.yml")[2]
    (tmp_path / "wide.yaml").write_bytes(yaml.safe_dump(GOOD).encode("utf-16"))
    assert "wide.yaml is not UTF-8 text; save it as UTF-8" in fl(capsys, "run", "wide.yaml")[2]
    code, _, err = fl(capsys, "run", ".")
    assert code == 2
    assert ". is a folder; name a YAML file, one of ['quickstart.yaml', 'wide.yaml']" in " ".join(err.split())
    (tmp_path / "marked.yaml").write_text(yaml.safe_dump(GOOD), encoding="utf-8-sig")
    assert fl(capsys, "run", "marked.yaml", "--out", "run")[0] == 0


def test_resume_says_that_a_schedule_is_stretched(tmp_path, caplog):
    lr = {"start": 0.1, "schedule": "cosine"}
    package.run({**GOOD, "client": {"lr": lr}}, out=tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        package.resume(tmp_path / "run", rounds="+1")
    assert "client.lr: the schedule now spans 2 rounds, before 1" in caplog.text
    caplog.clear()
    package.run(GOOD, out=tmp_path / "constant")
    package.resume(tmp_path / "constant", rounds="+1")
    assert "schedule" not in caplog.text


def test_a_module_class_is_checked_as_a_model(tmp_path):
    (tmp_path / "m.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, shape, outputs):\n"
        "        super().__init__(); self.l = nn.Linear(shape[0], outputs)\n"
        "    def forward(self, x): return self.l(x)\n"
    )
    target = f"{tmp_path}/m.py:Net"
    assert find_part(target, ["model", "shift"]) == ("model", target)
    findings = check(target)
    assert len(findings) == 4 and all(finding.ok for finding in findings), findings


def test_an_unknown_key_is_not_compared_with_its_own_section():
    from fl.config.config import Config
    from fl.config.suggestions import for_key

    config = {"strategy": "splitnn", "client": {"name": "splitnn"}}
    assert for_key("clip", "client", ["hidden", "optimiser"], Config, config) != " Did you mean client?"
