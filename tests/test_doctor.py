"""`fl doctor`: what it finds on this machine, and what it says of what is missing."""

import importlib.metadata
import json

import psutil
import pytest

from fl.tools import doctor
from tests.process import python
from tests.test_bad_configs import fl as run_fl


def test_it_tells_versions_and_memory_of_this_machine(capsys):
    code, out, _ = run_fl(capsys, "doctor", "--json")
    found = {line["name"]: line for line in json.loads(out)}
    assert code == 0 and found["torch"]["found"] == importlib.metadata.version("torch")
    assert found["memory"]["found"].startswith(f"{psutil.virtual_memory().total / 2**30:.1f} GiB")
    assert not [name for name, line in found.items() if line["state"] == "missing"]


def test_what_is_missing_comes_with_a_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-tracker": ("tracking: [it]", "it>=1")})
    monkeypatch.setenv("FL_DATA", str(tmp_path))
    code, out, _ = run_fl(capsys, "doctor")
    assert code == 1
    assert "MISSING: not installed" in out and "pip install -e . in a clone" in out
    assert "note: not installed; tracking: [it] needs it" in out and "pip install 'it>=1'" in out
    assert f"{tmp_path}: no data set" in out and "set FL_DATA" in out


def test_the_version(capsys):
    code, out, _ = run_fl(capsys, "--version")
    assert (code, out) == (0, "fl 0.1.0\n")


@pytest.mark.parametrize("free, state", [(1 << 40, "ok"), (1 << 30, "note")])
def test_room_on_the_disk(free, state, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    assert doctor._room("run directories", tmp_path).state == state


def test_an_untested_system(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    line = doctor._system()
    assert line.state == "note" and "Darwin" in line.found and "tested on Linux only" in line.advice


@pytest.mark.parametrize("use", ["import fl; fl.Strategy", "from fl.cli.app import main; main()"])
def test_windows_is_refused_in_one_line(use):
    done = python(f"import sys, typer; sys.platform = 'win32'; {use}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("use WSL2 or a Linux container: docs/install.md")
    assert "main" not in use or len(done.stderr.splitlines()) == 1
