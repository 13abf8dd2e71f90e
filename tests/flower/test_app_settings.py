"""Flower apps as their users meet them: GPUs, errors of the app, timeouts, stdout, configuration of nodes."""

import json
import re
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("flwr", minversion="1.22")

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402

from fl.errors import ConfigError  # noqa: E402
from fl.flower import federation, simulate  # noqa: E402
from fl.flower.federation import Federation, gpu_shares, read_federation  # noqa: E402
from fl.flower.node_config import parse_pairs  # noqa: E402
from fl.report.variants import read_variants  # noqa: E402
from tests.process import fl as command  # noqa: E402
from tests.test_bad_configs import GOOD  # noqa: E402

# -- an app that prints everywhere ------------------------------------------------------------------------------------
PROJECT = """
[project]
name = "noisy"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "noisy_server:app"
clientapp = "noisy_client:app"

[tool.flwr.app.config]
fails = 0

[tool.flwr.federations]
default = "cpu"

[tool.flwr.federations.cpu]
options.num-supernodes = 3
options.backend.client-resources.num-cpus = 2

[tool.flwr.federations.gpu]
options.num-supernodes = 3
options.backend.client-resources.num-cpus = 1
options.backend.client-resources.num-gpus = 0.5
options.backend.init-args.num-gpus = 1
"""
SERVER = """
import logging, os, sys
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
import numpy as np

print("printed by the module")
logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
app = ServerApp()

@app.main()
def main(grid, context):
    print("printed by the server")
    os.write(1, b"written by the server\\n")
    os.system("echo printed by a process")
    logging.info("logged to stdout")
    rule = FedAvg(fraction_train=1.0, fraction_evaluate=1.0)
    rule.start(grid, ArrayRecord([np.zeros(2)]), num_rounds=2)
    assert context.run_config["fails"] < 9, "the server's own"
"""
CLIENT = """
import os
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

def refuse(node):
    raise OverflowError("too much")  # line 9

@app.train()
def train(msg, context):
    print("printed by a client", flush=True)
    os.write(1, b"written by a client\\n")
    if context.node_config["partition-id"] < context.run_config["fails"]:
        refuse(context.node_id)
    content = RecordDict({"arrays": msg.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=msg)

@app.evaluate()
def evaluate(msg, context):
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    numbers = {"gpus": -1 if not visible.isdigit() else int(visible), "speed": context.node_config.get("speed", 0.0)}
    return Message(RecordDict({"metrics": MetricRecord(numbers | {"num-examples": 1})}), reply_to=msg)
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    for name, text in (("pyproject.toml", PROJECT), ("noisy_server.py", SERVER), ("noisy_client.py", CLIENT)):
        (folder / name).write_text(text)
    return folder


PRINTED = ["printed by the module", "printed by the server", "written by the server", "printed by a process"]


@pytest.mark.ray
def test_workers_of_a_federation_share_its_gpu_and_stdout_is_json(app, tmp_path):
    """Ray believes in the declared GPU, so it shows both workers GPU 0. One of three clients fails in each round."""
    (tmp_path / "nodes.txt").write_text("# speeds\nspeed=1.0\n\nspeed=2.0 partition-id=1\nspeed=4.0\n")
    options = ["--federation", "gpu", "--workers", "2", "--node-configs", "nodes.txt", "--out", "run", "--json"]
    done = command("flower", "run", app, "fails=1", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [told[key] for key in ("rounds", "messages", "errors", "late")] == [2, 12, 2, 0]
    assert told["failed_rounds"] == {} and told["final"]["errors/train"] == 1
    assert all(line in done.stderr for line in PRINTED) and "num-cpus" not in done.stderr
    rows = pq.read_table(tmp_path / "run" / "clients.parquet").to_pylist()
    found = {row["client"]: (row["gpus"], row["speed"]) for row in rows if row["split"] == "evaluate"}
    assert found == {1: (0, 1.0), 2: (0, 2.0), 3: (0, 4.0)}
    place = told["first_error"].splitlines()
    assert place[0] == "node 1, 'train', round 0" and "line 9: raise OverflowError" in place[1]
    assert str(app / "noisy_client.py") in place[1] and place[2] == "OverflowError: too much"


def test_rounds_without_a_good_reply_are_a_failure(app, tmp_path):
    done = command("flower", "run", app, "fails=3", "--out", "run", "--json", folder=tmp_path)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["errors"] == 6 and told["failed_rounds"] == {"train": [0, 1]}
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error == "error: 2 of 2 rounds had no good reply to 'train': all were errors or late"
    assert "printed by a client" in done.stderr and "written by a client" in done.stderr
    assert "client-resources.num-cpus = 2 has no effect" in done.stderr.replace("\n", " ").replace("  ", " ")
    assert done.stderr.count("Traceback") == 1  # equal errors are logged in short
    (variant,) = read_variants([tmp_path / "run"])
    assert [row["errors/train"] for row in variant.runs[0]] == [3, 3]
    text = command("flower", "run", app, "fails=1", "--node-config", "speed=2.0", "--out", "text", folder=tmp_path)
    assert text.returncode == 0 and re.search(r"^errors +2\n(.*\n)*evaluate/speed +2.0000$", text.stdout, re.M)


def test_an_error_of_the_app_names_its_file_and_line(app, tmp_path):
    done = command("flower", "run", app, "fails=9", "--out", "run", folder=tmp_path)
    assert done.returncode == 1 and "AssertionError: the server's own\nin main of" in done.stderr
    line = SERVER[: SERVER.index("    assert")].count("\n") + 1
    assert f"error: {app}/noisy_server.py, line {line}: assert context.run_config" in done.stderr
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "pyproject.toml").write_text(PROJECT)
    (broken / "noisy_server.py").write_text("\nimport no_such_package\n")
    done = command("flower", "run", broken, "--json", folder=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == error["exit_code"] == 1 and not (tmp_path / "runs").exists()
    assert error["message"] in done.stderr
    assert "error: ./broken/noisy_server.py, line 2: import no_such_package" in done.stderr
    (broken / "noisy_server.py").write_text("def (\n")
    done = command("flower", "run", broken, folder=tmp_path)
    assert done.returncode == 1 and "error: ./broken/noisy_server.py, line 1: def (\nSyntaxError" in done.stderr
    (broken / "noisy_server.py").unlink()
    done = command("flower", "run", broken, folder=tmp_path)
    assert done.returncode == 2 and "has no module 'noisy_server'" in done.stderr


RULE = """
import os
from strategies.fedavg import FedAvg

class Mine(FedAvg):
    def step(self, state, reduced, ctx):
        print("printed")
        os.write(1, b"written")
        return super().step(state, reduced, ctx)
"""


def test_other_commands_keep_stdout_for_json_too(tmp_path):
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "config.yaml").write_text(json.dumps({**GOOD, "strategy": "./rule.py:Mine"}))
    (tmp_path / "sweep.yaml").write_text("config: config.yaml\nvariants: {Mine: {}}\n")
    done = command("run", "config.yaml", "--out", "run", "--json", folder=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["directory"] == "run", done.stderr
    assert "printed\n" in done.stderr and "written" in done.stderr
    done = command("resume", "run", "rounds=+1", "--json", folder=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["directory"] == "run", done.stderr
    done = command("sweep", "sweep.yaml", "--out", "all", "--json", folder=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)[0]["name"] == "Mine", done.stderr


# -- options of a federation ------------------------------------------------------------------------------------------
def test_options_of_a_federation(caplog):
    resources = {"client-resources": {"num-cpus": 4, "num-gpus": 0.25, "tpus": 1}, "init-args": {"num-gpus": 2}}
    table = {"default": "a", "a": {"options": {"num-supernodes": 7, "backend": {"name": "ray", **resources}}}, "b": {}}
    assert read_federation(table) == Federation(7, 0.25, 2)
    assert caplog.text.count("has no effect") == 2
    assert "client-resources.num-cpus = 4" in caplog.text and "client-resources.tpus = 1" in caplog.text
    assert read_federation(table, "b") == read_federation({}) == Federation(10, None, None)
    changed = read_federation(table, changes="num-supernodes=3 client-resources-num-gpus=1 init-args-num-gpus=4")
    assert changed == Federation(3, 1, 4)
    with pytest.raises(ConfigError, match=r"--federation: 'c' is not one of \['a', 'b'\]"):
        read_federation(table, "c")
    with pytest.raises(ConfigError, match="num-supernodes: 0 is not an int of at least 1"):
        read_federation({}, changes="num-supernodes=0")
    with pytest.raises(ConfigError, match="client-resources.num-gpus: '1' is not a number of at least 0"):
        read_federation({}, changes="client-resources-num-gpus='1'")


def test_every_option_of_flower_is_known():
    config = pytest.importorskip("flwr.proto.federation_config_pb2").SimulationConfig.DESCRIPTOR
    theirs = {federation._canonical(field.name.replace("_", "-")) for field in config.fields}
    assert theirs <= {"num-supernodes", "client-resources.num-gpus", "init-args.num-gpus", *federation._WITHOUT_EFFECT}


def test_shares_of_gpus(monkeypatch, caplog):
    """A GPU has room for two shares of 0.4, because no share lies on two GPUs."""
    shares = gpu_shares(4, 0.4, 2)
    assert shares.per_worker == 0.4 and gpu_shares(2, 0, 2) is None and gpu_shares(None, 0.4, 2) is None
    with pytest.raises(ConfigError, match="5 workers with 0.4 GPUs each do not fit on 2 GPUs, which have room for 4"):
        gpu_shares(5, 0.4, 2)
    with pytest.raises(ConfigError, match="1.5 is neither a fraction of a GPU nor a whole number"):
        gpu_shares(1, 1.5, 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="each client needs 0.5 GPUs .* but torch .* sees none"):
        gpu_shares(1, 0.5, None)
    assert gpu_shares(2, None, None) is None and not caplog.text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_shares(4, None, None) is None
    assert "clients see none of the 2 GPUs" in caplog.text and "num-gpus=0.5 gives each of 4" in caplog.text
    assert gpu_shares(None, 0.0, None) is None and "although client-resources.num-gpus is 0" in caplog.text


@pytest.mark.ray
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_clients_on_a_gpu_have_equal_bits_for_one_process_and_two(tmp_path):
    """The server draws on its GPU before and after the clients, who draw on theirs."""
    client, found = ClientApp(), []

    @client.query()
    def query(msg, context):
        assert torch.cuda.is_available()
        drawn = torch.rand(3, device="cuda") @ torch.rand(3, 2, device="cuda")
        return Message(RecordDict({"m": MetricRecord({"drawn": drawn.tolist()})}), reply_to=msg)

    def body(grid, context):
        server = [torch.rand(2, device="cuda").tolist()]
        replies = [r.content["m"]["drawn"] for r in grid.send_and_receive(to([1, 2, 3, 4])) if r.has_content()]
        found.append((server, replies, torch.rand(2, device="cuda").tolist()))

    for name, executor, workers in (("a", "serial", None), ("b", "ray", 2)):
        simulate(of_main(body), client, 4, out=tmp_path / name, executor=executor, workers=workers, gpus_per_client=0.5)
    assert found[0] == found[1] and len(found[0][1]) == 4


# -- configuration of nodes -------------------------------------------------------------------------------------------
def of_main(body):
    app = ServerApp()
    app.main()(lambda grid, context: body(grid, context))
    return app


def to(nodes, **options):
    return [Message(RecordDict(), node, "query", **options) for node in nodes]


def configs_of(out, num_nodes, **settings):
    """Return what each node finds in its node_config."""
    client, found = ClientApp(), []

    @client.query()
    def query(msg, context):
        found.append(dict(context.node_config))
        return Message(RecordDict(), reply_to=msg)

    server = of_main(lambda grid, context: grid.send_and_receive(to(grid.get_node_ids())))
    simulate(server, client, num_nodes, out=out, **settings)
    return found


def test_nodes_find_their_configuration(tmp_path):
    place = {"partition-id": 0, "num-partitions": 2}
    assert configs_of(tmp_path / "a", 2) == [place, place | {"partition-id": 1}]
    found = configs_of(tmp_path / "b", 2, node_config={"fast": True, "num-partitions": 50})
    assert found == [{"partition-id": n, "num-partitions": 50, "fast": True} for n in (0, 1)]
    each = [{"partition-id": 1, "path": "/a"}, {"partition-id": 0}]
    assert configs_of(tmp_path / "c", 2, node_config=each) == [place | each[0], place | each[1]]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"partition-id": 0}, "partition-id would be the same for all nodes"),
        ({"num-partitions": 1}, r"partition-id=1 is not one of 0\.\.0"),
        ([{}, {}, {}], "has 3 entries for 2 nodes"),
        ([{}, {"partition-id": 0}], "nodes 1 and 2 have the same partition-id=0"),
        ([{}, {"partition-id": "1"}], "partition-id='1', num-partitions=2: not ints"),
        ([{}, {"rates": [1]}], r"node_config of node 2: 'rates': \[1\] is not a bool"),
    ],
)
def test_mistakes_in_node_configurations(config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        configs_of(tmp_path / "run", 2, node_config=config)
    assert not (tmp_path / "run").exists()


def test_pairs_are_read_as_flower_reads_them(tmp_path):
    """The examples of `flower-supernode --help` and of Flower's own tests."""
    flower = pytest.importorskip("flwr.common.config").parse_config_args
    for text in ('key1="value1" partition-id=0 num-partitions=100', "a.b=1.5 c='x y' d=true e=-2", ""):
        assert parse_pairs(text, "--node-config") == flower([text])
    (tmp_path / "n.toml").write_text("rate = 0.5\n[data]\npath = 'x'\n")
    assert parse_pairs(str(tmp_path / "n.toml"), "") == {"rate": 0.5, "data.path": "x"}
    for wrong in ("rate", "rate=0.5, b=1", "name=fast"):
        with pytest.raises(ConfigError, match="--node-config: write key=value pairs, with quotes around text"):
            parse_pairs(wrong, "--node-config")


# -- timeouts ---------------------------------------------------------------------------------------------------------
def waiting(seconds, worked):
    """Return a ClientApp whose node 2 needs `seconds`."""
    client = ClientApp()

    @client.query()
    def query(msg, context):
        worked.append(context.node_id)
        time.sleep(seconds * (context.node_id == 2))
        return Message(RecordDict({"m": MetricRecord({"node": context.node_id})}), reply_to=msg)

    return client


def test_timeouts_are_applied_on_request_only(tmp_path, caplog, clock):
    """The clock advances by a millisecond at each reading, and node 2 sleeps for five seconds of it."""
    found, worked = [], []

    def body(grid, context):
        for timeout, ttl in ((4.0, None), (6.0, None), (None, 4.0)):
            replies = grid.send_and_receive(to([1, 2, 3], ttl=ttl), timeout=timeout)
            found.append([(r.metadata.src_node_id, r.has_error()) for r in replies])

    client = waiting(5.0, worked)
    result = simulate(of_main(body), client, 3, out=tmp_path / "a")
    assert found == [[(1, False), (2, False), (3, False)]] * 3
    (line,) = [line for line in caplog.messages if "timeout" in line]
    assert line.startswith("node 2 worked for 5.0 s on 'query', longer than the timeout of 4 s. Its reply counts")
    assert result.replies == {"messages": 9, "errors": 0, "late": 0}
    for resume in (False, True):
        found.clear(), worked.clear(), caplog.clear()
        result = simulate(
            of_main(body), client, 3, out=tmp_path / "b", apply_timeouts=True, journal=True, resume=resume
        )
        assert found == [
            [(1, False), (3, False)],
            [(1, False), (2, False), (3, False)],
            [(1, False), (2, True), (3, False)],
        ]
        assert len(worked) == (0 if resume else 9) and not caplog.messages
        assert result.replies == {"messages": 9, "errors": 1, "late": 1} and result.failed_rounds == {}
    rows = pq.read_table(tmp_path / "b" / "clients.parquet").to_pylist()
    assert [row["client"] for row in rows] == [1, 3, 1, 2, 3, 1, 3]


def test_arrays_of_late_clients_still_cost_bytes(tmp_path, clock):
    client = ClientApp()

    @client.query()
    def query(msg, context):
        time.sleep(5.0)
        return Message(RecordDict({"a": ArrayRecord([np.zeros(2)])}), reply_to=msg)

    body = of_main(lambda grid, context: grid.send_and_receive(to([1]), timeout=1.0))
    result = simulate(body, client, 1, out=tmp_path / "run", apply_timeouts=True)
    assert [row["payload_bytes"] for row in result.ledger.to_pylist() if row["direction"] == "up"] == [16]
    assert result.metrics[0]["dropped"] == result.metrics[0]["late/query"] == 1
