"""`fl doctor`: what it finds on this machine, and what it says of what is missing."""

import importlib.metadata
import json

import psutil
import pytest

from fl.tools import doctor
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
