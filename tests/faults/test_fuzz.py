"""The short form of the fuzzing, and the inputs that it has found: each is refused with one clear line."""

import numpy as np
import pytest

from experiments.faults import fuzz
from experiments.faults.fuzz import configurations, parts, readers, runs
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.sets.file import File
from fl.errors import ConfigError
from fl.system.availability_trace import AvailabilityTrace
from fl.system.device_trace import read_devices

GROUPS = (*configurations.LAWS, *parts.LAWS, *readers.LAWS, *runs.LAWS)
EXAMPLES = 3  # inputs per share; the shares of all laws are about 100


@pytest.mark.slow
@pytest.mark.parametrize("name, share, inputs, law", GROUPS, ids=[name for name, *_ in GROUPS])
def test_laws_on_random_inputs(name, share, inputs, law, tmp_path):
    outcome = fuzz.hold(name, inputs(tmp_path), law(tmp_path), EXAMPLES * share, seed=1)
    assert outcome.equal and outcome.faults >= EXAMPLES * share, outcome


# -- found ------------------------------------------------------------------------------------------------------------
GOOD = {"data": "digits", "partition": {"name": "iid", "clients": 10}, "model": "softmax", "strategy": "fedavg"}


@pytest.mark.parametrize(
    "config",
    [
        {**GOOD, "lr": 1, "partition": {"name": 3}},
        {**GOOD, "lr": 1, "model": {"name": {}}},
        {**GOOD, "extends": []},
        {**GOOD, "extends": 1.5},
    ],
)
def test_configurations_that_were_found(config):
    with pytest.raises(ConfigError):
        resolve(read(config))


@pytest.mark.parametrize("content", [b"\x80", b"[" * 100_000, b'{"0": {"active": [0], "inactive": [1' + b"0" * 400])
def test_traces_that_were_found(content, tmp_path):
    file = tmp_path / "trace.json"
    file.write_bytes(content)
    for read_trace in (lambda: AvailabilityTrace(path=str(file)).draw(0, 1), lambda: read_devices(str(file))):
        with pytest.raises(ValueError, match="path: .*trace.json"):
            read_trace()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", b"\x80client,client\n0,0"),
        ("a.parquet", b"PAR1\x15\x04\x15\x00\x06\x00\x00\x00PAR1"),
    ],
)
def test_tables_that_were_found(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="path: "):
        File(path=str(tmp_path / name)).load()
    with pytest.raises(ValueError, match="path: "):
        read_devices(str(tmp_path / name))


@pytest.mark.parametrize("cut", [slice(1, None), slice(None, -30), slice(30, None)])
def test_arrays_that_were_found(cut, tmp_path):
    """Without its first byte, places in the file's index lie before its beginning."""
    np.savez(tmp_path / "whole.npz", x=np.zeros(3), y=np.zeros(3))
    (tmp_path / "a.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[cut])
    with pytest.raises(ValueError, match="path: .*a.npz is damaged or no .npz file"):
        File(path=str(tmp_path / "a.npz")).load()
