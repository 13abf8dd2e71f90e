"""experiments.flower.examples: apps of a folder run, and the table says what came of each."""

import csv

import pytest

pytest.importorskip("flwr", minversion="1.22")

from experiments.flower import hub  # noqa: E402
from experiments.flower.examples import main  # noqa: E402
from experiments.flower.faults import Fault, first_fault  # noqa: E402
from experiments.flower.runs import apps_in  # noqa: E402

PROJECT = """
[project]
name = "{name}"
dependencies = ["flwr>=1.22.0", "numpy>=1.26"]
[tool.flwr.app]
publisher = "someone"
[tool.flwr.app.components]
serverapp = "{module}.both:server"
clientapp = "{module}.both:client"
[tool.flwr.app.config]
rounds = 2
[tool.flwr.federations]
default = "local"
[tool.flwr.federations.local]
options.num-supernodes = 3
"""
APP = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client, server = ClientApp(), ServerApp()


@client.train()
def train(msg, context):
    metrics = MetricRecord({{"num-examples": 1, "node": float(context.node_config["partition-id"])}})
    return Message(RecordDict({{"arrays": {arrays}, "metrics": metrics}}), reply_to=msg)


@server.main()
def main(grid, context):
    FedAvg(fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(2)]), num_rounds=context.run_config["rounds"])
"""
LINE = APP.splitlines().index(next(line for line in APP.splitlines() if "{arrays}" in line)) + 1


@pytest.fixture
def folder(tmp_path):
    """Return a folder of two apps: `good` works, `bad` raises in each client at LINE."""
    for name, arrays in {"good": 'msg.content["arrays"]', "bad": 'msg.content["nosuch"]'}.items():
        module = tmp_path / "apps" / name / f"{name}_app"
        module.mkdir(parents=True)
        (module / "__init__.py").touch()
        (module / "both.py").write_text(APP.format(arrays=arrays))
        (module.parent / "pyproject.toml").write_text(PROJECT.format(name=name, module=module.name))
    other = tmp_path / "apps" / "other"
    other.mkdir()
    (other / "pyproject.toml").write_text('[project]\nname = "no-flower-app"\n')
    (tmp_path / "apps" / "readme.md").touch()
    return tmp_path / "apps"


def test_apps_are_subfolders_with_flower_tables(folder):
    assert [app.name for app in apps_in(folder)] == ["bad", "good"]
    assert [app.name for app in apps_in(folder / "good")] == ["good"]


def test_a_broken_app_is_a_row_and_the_others_run(folder, tmp_path):
    with pytest.raises(SystemExit) as end:
        main([str(folder), "--no-flower", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "table.csv")])
    assert end.value.code == 1
    with (tmp_path / "table.csv").open() as file:
        bad, good = csv.DictReader(file)
    assert good["app"] == "good" and good["outcome"] == "ran 2 rounds, 6 replies"
    assert good["metrics, first -> last round"] == "train/node 1 -> 1"  # the mean of partition ids 0, 1, 2
    assert bad["app"] == "bad" and "KeyError" in bad["outcome"] and f"bad_app/both.py:{LINE}" in bad["outcome"]


def test_an_app_that_hangs_is_stopped(folder, tmp_path, capsys):
    file = folder / "good" / "good_app" / "both.py"
    file.write_text(file.read_text() + "\nimport time\ntime.sleep(600)\n")
    with pytest.raises(SystemExit) as end:
        main([str(folder), "--only", "good", "--no-flower", "--limit", "2", "--work", str(tmp_path / "work")])
    assert end.value.code == 1 and "stopped after 2 s" in capsys.readouterr().out


def test_unknown_names_and_empty_folders_are_refused(folder, tmp_path, capsys):
    for arguments in ([str(folder), "--only", "goood"], [str(folder / "other")]):
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--work", str(tmp_path / "work")])
        assert end.value.code == 2
    assert "['bad', 'good']" in capsys.readouterr().err


def test_a_stand_in_is_read_like_the_data_set_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    hub.write("hitorilabs/iris", tmp_path)
    iris = datasets.load_dataset("hitorilabs/iris", cache_dir=str(tmp_path / "cache"))["train"]
    assert iris.num_rows == 150 and iris.features["species"].names == ["0", "1", "2"]
    assert iris[0] == {  # the first row of Fisher's table
        "sepal_length": 5.1,
        "sepal_width": 3.5,
        "petal_length": 1.4,
        "petal_width": 0.2,
        "species": 0,
    }


def test_names_of_the_hub_in_an_app(folder):
    file = folder / "good" / "good_app" / "both.py"
    file.write_text(file.read_text() + '\nFederatedDataset(dataset="jxie/higgs")\nload_dataset("mnist", "a b/c")\n')
    assert hub.names_in(folder / "good") == ["jxie/higgs", "mnist"]


OUTPUT = """
INFO :      Starting
ERROR    node 1, train: Traceback (most recent call last):
           File "/lib/flwr/clientapp.py", line 5, in call
             return f()
           File "{app}/pkg/task.py", line 7, in load_data
             FederatedDataset(
           File "/lib/datasets/load.py", line 90, in load_dataset
             raise ConnectionError
         ConnectionError: Couldn't reach 'jxie/higgs' on the Hub (OfflineModeIsEnabled)

ERROR    node 2, train: Traceback (most recent call last):
           File "{app}/pkg/task.py", line 9, in load_data
         ValueError: later
"""


def test_the_first_error_and_its_line_in_the_app(tmp_path):
    fault = first_fault(OUTPUT.format(app=tmp_path), tmp_path)
    assert fault.place == "pkg/task.py:7" and fault.error.startswith("ConnectionError: Couldn't reach")
    assert fault.missing_data([]) == ["jxie/higgs"] and fault.missing_package() is None


def test_an_error_in_a_process_of_ray(tmp_path):
    output = f"""ERROR:     ray::ClientAppActor.run() (pid=18434, ip=127.0.0.1)
                  ^^^^^
  File "{tmp_path}/pkg/task.py", line 24, in load_data
    X = dataset["image"].reshape(-1)
AttributeError: 'Column' object has no attribute 'reshape'

The above exception was the direct cause of the following exception:
"""
    fault = first_fault(output, tmp_path)
    assert str(fault) == "AttributeError: 'Column' object has no attribute 'reshape' (pkg/task.py:24)"


def test_what_is_missing():
    assert Fault("ModuleNotFoundError: No module named 'xgboost'", "a.py:1").missing_package() == "xgboost"
    connection = "OSError: We couldn't connect to 'https://huggingface.co' to load the files"
    assert Fault(connection, "a.py:1").missing_data(["owner/model"]) == ["owner/model"]  # the error does not name it
    script = "FileNotFoundError: Couldn't find a module script. Module 'f1' doesn't exist on the Hugging Face Hub"
    assert Fault(script, "a.py:1").missing_data(["owner/model"]) == ["f1"]
    assert Fault("ImportError: cannot import name 'X' from 'flwr.common'", "a.py:1").missing_data(["a/b"]) is None
