"""The table of docs/communication.md is correct, and its example codec satisfies the laws."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import fl
from fl.check.check import check
from fl.communication.codec import encode
from fl.config.config import resolve
from fl.config.reading import read

TEXT = (Path(fl.__file__).parent.parent / "docs/communication.md").read_text()
BASE = {
    "data": "digits",
    "partition": {"name": "iid", "clients": 9},
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 4},
}
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.splitlines()
    if re.match(r"\| `", line)
]
TABLE = [
    (yaml.safe_load(row[0].strip("`")), row[2], row[3])
    for row in ROWS
    if len(row) == 4 and row[3] in ("yes", "no", "nearly")
]


def test_the_table_is_found():
    assert len(TABLE) >= 20


@pytest.mark.parametrize(("part", "size", "unbiased"), TABLE, ids=str)
def test_bytes_and_bias_of_the_table(part, size, unbiased):
    codec = resolve(read(BASE | {"codec": {"up": [part]}})).up
    number = int(re.sub(r"\D", "", size))
    if "drawn" in size:
        values = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
        assert codec.exact_size(10**6) is None and encode(codec, values, 1).nbytes == pytest.approx(number, rel=0.01)
    else:
        assert codec.exact_size(10**6) == number
    assert codec.unbiased == (unbiased == "yes")


@pytest.mark.parametrize("chain", [row for row in re.findall(r"`(\[.*?\])`", TEXT)])
def test_chains_can_be_built(chain):
    assert resolve(read(BASE | {"codec": {"up": yaml.safe_load(chain)}})).up is not None


def test_the_codec_of_the_docs_keeps_the_laws(tmp_path):
    (tmp_path / "my_codec.py").write_text(re.search(r"```python\n(.*?)```", TEXT, re.S)[1])
    assert [f for f in check(f"{tmp_path}/my_codec.py:Halved") if not f.ok] == []
