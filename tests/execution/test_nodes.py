"""Two Ray nodes with folders of their own, guarded by an audit hook: equal bits, and no file of another node."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.benchmarks.nodes.cluster import GUARD
from experiments.benchmarks.nodes.methods import METHODS

ROOT = Path(__file__).parent.parent.parent
WORKERS_STAY = False


@pytest.mark.ray
def test_nodes_without_a_shared_file_system_give_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.nodes", str(tmp_path), "equal", "--nodes", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "equal.json").read_text())
    assert found.pop("violations") == [] and found.pop("guarded") == 1
    assert {name: (one["digest"], one["nodes"]) for name, one in found.items()} == {
        name: (found[name]["serial"], 2) for name in METHODS
    }
    up = {name for name, one in found.items() if one["traffic"].get("states_up", 0) > 0}
    assert up == set(METHODS) - {"FedAvg"}  # the others keep states, carry values or collect updates


def test_the_guard_refuses_files_of_other_nodes(tmp_path):
    guard, own = tmp_path / "guard", tmp_path / "node-1"
    for folder in (guard, own, tmp_path / "runs"):
        folder.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    (own / "mine").touch()
    (tmp_path / "runs" / "record").touch()
    code = f"open({str(own / 'mine')!r}); open({str(tmp_path / 'runs' / 'record')!r})"
    environment = os.environ | {"PYTHONPATH": str(guard), "FL_ROOT": str(tmp_path), "FL_OWN": str(own)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "a file of another node" in done.stderr and "mine" not in done.stderr.splitlines()[-1]
    assert (own / "violations").read_text().splitlines() == [str(tmp_path / "runs" / "record")]


def test_the_cluster_file_of_the_docs_follows_rays_schema():
    pytest.importorskip("jsonschema")
    from ray.autoscaler._private.util import prepare_config, validate_config

    run, cluster = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    validate_config(prepare_config(yaml.safe_load(cluster)))
    assert set(yaml.safe_load(run)["execution"]) == {"address", "workers"}
