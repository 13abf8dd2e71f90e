"""A user's own files: helpers beside them, and errors that show file, line, source and call."""

import sys

import pytest
import yaml

import fl
from fl import registry
from tests.process import fl as command
from tests.test_bad_configs import GOOD

RULE = """
from dataclasses import dataclass
from fl import Strategy
from helper import half

@dataclass(frozen=True)
class Mine(Strategy):
    def step(self, state, reduced, ctx):
        from later import ONE
        return state + half(reduced) * ONE, {}
"""


def write(folder, factor):
    folder.mkdir()
    (folder / "rule.py").write_text(RULE)
    (folder / "helper.py").write_text("from constants import FACTOR\ndef half(x): return x * FACTOR")
    (folder / "constants.py").write_text(f"FACTOR = {factor}")
    (folder / "later.py").write_text("ONE = 1")
    return f"{folder}/rule.py:Mine"


def test_files_beside_are_importable_and_private_to_the_folder(tmp_path):
    references = [write(tmp_path / "a", 0.5), write(tmp_path / "b", 0.25), write(tmp_path / "c", 0.5)]
    a, b, c = (
        fl.run({**GOOD, "strategy": name}, out=tmp_path / f"run-{i}").digest for i, name in enumerate(references)
    )
    assert a == c != b
    assert not {"helper", "constants", "later"} & set(sys.modules)
    copied = {path.name for path in (tmp_path / "run-0" / "code").iterdir()}
    assert copied >= {"constants.py", "helper.py", "rule.py"}


def test_a_changed_helper_is_read_again(tmp_path):
    reference = write(tmp_path / "a", 0.5)
    before = registry.lookup("strategy", reference)
    assert registry.lookup("strategy", reference) is before
    (tmp_path / "a" / "constants.py").write_text("FACTOR = 2")
    changed = registry.lookup("strategy", reference)
    assert changed.step.__globals__["half"](1) == 2


def test_a_worker_without_the_files_makes_the_same_modules(tmp_path):
    reference = write(tmp_path / "a", 0.5)
    registry.lookup("strategy", reference)
    files = {name: file for name, file in registry.sources().items() if file[0].startswith(str(tmp_path))}
    main = next(name for name in files if "rule" in name)
    for name, (path, _) in files.items():
        del sys.modules[name]
        registry._sources.pop(name), registry._texts.pop(name)
        (tmp_path / "a" / path).unlink()
    registry.adopt({main: files[main], **files})  # the file before its helpers
    assert vars(sys.modules[main])["half"](2) == 1.0


CLIENT = """
from dataclasses import dataclass
from clients.sgd import LocalSGD
from helper import half

@dataclass(frozen=True, kw_only=True)
class Mine(LocalSGD):
    def finish(self, end):
        assert half(1) == 0.5
        return super().finish(end)
"""


@pytest.mark.ray
def test_ray_workers_import_helpers(tmp_path):
    write(tmp_path / "a", 0.5)
    (tmp_path / "a" / "client.py").write_text(CLIENT)
    config = {**GOOD, "client": {"name": f"{tmp_path}/a/client.py:Mine", "lr": 0.1}}
    ray = {**config, "execution": {"executor": "ray", "workers": 2}}
    assert fl.run(config, out=tmp_path / "1").digest == fl.run(ray, out=tmp_path / "2").digest


BROKEN = {
    "strategy": "def step(self, state, reduced, ctx):\n        return state + reduced['nosuch'], {}",
    "client": "def work(self, name, ctx, carry):\n        return ctx.received['nosuch']",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_error_shows_file_line_source_and_call(kind, tmp_path):
    base = {"strategy": "Strategy", "client": "ClientAlgorithm"}[kind]
    text = f"from fl import {base}\n\nclass Mine({base}):\n    {BROKEN[kind]}\n"
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**GOOD, kind: "./mine.py:Mine"}))
    done = command("run", "c.yaml", "--out", "run", folder=tmp_path)
    assert done.returncode == 1
    lines = done.stderr[done.stderr.index("error: ") :].splitlines()
    source = BROKEN[kind].splitlines()[1].strip()
    assert lines[0] == f"error: ./mine.py, line 5: {source}"
    assert lines[1] == "KeyError: 'nosuch'"
    hook = BROKEN[kind].partition("(")[0].removeprefix("def ")
    assert lines[2].startswith(f"in {hook} of ./mine.py:Mine, called with ")
    assert ("round 0, stage 'train'" in lines[3]) == (kind == "client")
    assert lines[-1] == "--traceback shows all calls"


def test_a_type_error_in_a_constructor_shows_the_line(tmp_path):
    (tmp_path / "d.py").write_text("def load(n: int = 3):\n    return int('three')\n")
    done = command("run", "c.yaml", "data=./d.py:load", folder=write_config(tmp_path))
    assert done.returncode == 2
    assert "error: ./d.py, line 2: return int('three')" in done.stderr and "data: invalid literal" in done.stderr


def write_config(folder):
    (folder / "c.yaml").write_text(yaml.safe_dump(GOOD))
    return folder
