"""Our methods as Flower apps: records keep all bits, and a deployment gives the simulator's model."""

import json
import runpy
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("flwr", minversion="1.22")

from flwr.app import ArrayRecord, Error, Message, RecordDict  # noqa: E402
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402

import fl  # noqa: E402
from fl import registry  # noqa: E402
from fl.check.bench import CLIENTS, FEDERATION, Bench  # noqa: E402
from fl.communication.chain import Chain  # noqa: E402
from fl.communication.codecs.cast import FP16  # noqa: E402
from fl.communication.codecs.identity import Identity  # noqa: E402
from fl.communication.codecs.quantise import Quantise  # noqa: E402
from fl.communication.codecs.random_k import RandomK  # noqa: E402
from fl.communication.codecs.threshold import Threshold  # noqa: E402
from fl.communication.codecs.top_k import TopK  # noqa: E402
from fl.communication.codecs.zstd import Zstd  # noqa: E402
from fl.communication.transmit import transmit  # noqa: E402
from fl.config.config import resolve  # noqa: E402
from fl.config.reading import read  # noqa: E402
from fl.errors import ClientError, ConfigError  # noqa: E402
from fl.flower import simulate  # noqa: E402
from fl.flower.client_worker import ContextStore  # noqa: E402
from fl.flower.configuration import config_text  # noqa: E402
from fl.flower.deploy import client_app, run_server, server_app  # noqa: E402
from fl.flower.export import export  # noqa: E402
from fl.flower.group_records import read_group, write_group  # noqa: E402
from fl.flower.hello import HELLO, partition_id  # noqa: E402
from fl.flower.static_records import StaticSender  # noqa: E402
from fl.tensors.params import Params  # noqa: E402
from fl.tensors.serialise import flatten  # noqa: E402
from fl.tensors.sparse import Sparse, Table  # noqa: E402

torch.manual_seed(0)
MODEL = Params.of({"w": torch.randn(7, 5), "b": torch.randn(5), "n": torch.arange(3)})
PLAIN = Params.of({"w": torch.randn(7, 5), "b": torch.randn(5)})
GROUPS = {
    "params": PLAIN,
    "params of two dtypes": MODEL,
    "half": Params.of({"w": torch.randn(4, 3).bfloat16(), "s": torch.tensor(0.5).bfloat16()}),
    "tensor": torch.randn(3, 4, dtype=torch.float64),
    "scalar": torch.tensor(1.5),
    "empty": torch.zeros(0, 3),
    "integers": torch.arange(6).reshape(2, 3),
    "sparse": Sparse(torch.tensor([1, 4, 700]), torch.randn(3), 1000),
    "dense sparse": Sparse(torch.tensor([0, 1, 3]), torch.randn(3), 5),
    "table": Table(torch.tensor([2, 5]), torch.randn(2, 3), torch.tensor([4, 1])),
    "nested": {"a": [torch.randn(2), (PLAIN, None)], "b": 3, "c": "text", "d": 0.1, 4: True},
    "none": None,
}
CODECS = {
    "identity": Identity(),
    "fp16": FP16(),
    "top_k|fp16": Chain((TopK(ratio=0.5), FP16())),
    "random_k|quantise": Chain((RandomK(ratio=0.5), Quantise())),
    "threshold|zstd": Chain((Threshold(value=0.5), Zstd())),
}


def same(a, b):
    (form, mine), (other, theirs) = flatten(a), flatten(b)
    return form == other and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(mine, theirs))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_arrives_as_the_simulator_has_it(group, codec):
    expected, sizes = transmit(CODECS[codec], GROUPS[group], None, 17)
    record, form, sent = write_group(CODECS[codec], GROUPS[group], 17)
    inflated = ArrayRecord({name: array for name, array in record.items()})
    arrived, counted = read_group(CODECS[codec], inflated, form, 17)
    assert same(arrived, expected)
    assert sent == counted == sizes


def test_params_as_they_are_are_what_any_flower_app_sends():
    record, form, _ = write_group(Identity(), PLAIN)
    assert form == "" and list(record) == ["w", "b"]
    assert (record["w"].numpy() == PLAIN["w"].numpy()).all() and record["b"].shape == (5,)


def test_encoded_parts_travel_packed():
    record, _, sizes = write_group(FP16(), PLAIN)
    (array,) = record.values()
    assert array.numpy().nbytes == sizes.encoded_bytes == 2 * (7 * 5 + 5)


def test_what_comes_from_outside_imports_nothing():
    form = json.dumps({"tree": {"class": "antigravity:Flight", "fields": []}, "tensors": []})
    with pytest.raises(ValueError, match="antigravity:Flight, of a module that nothing here has imported"):
        read_group(Identity(), ArrayRecord(), form)


def test_a_client_keeps_the_committed_state_beside_the_new_one():
    """A refused update keeps the earlier state. A lost state is an error, not a new start."""
    state = RecordDict()
    first = ContextStore("state", state, 1)
    assert first.read((-1, 0, 0)) is None and first.append({"a": torch.tensor([1.0])}) == (0, 1, 0)
    refused = ContextStore("state", state, 2)
    assert refused.read((0, 1, 0))["a"] == 1.0
    refused.append({"a": torch.tensor([2.0])})
    third = ContextStore("state", state, 3)
    assert third.read((0, 1, 0))["a"] == 1.0  # the server has not committed the second state
    third.append({"a": torch.tensor([3.0])})
    assert sorted(state) == ["fl.state/1", "fl.state/1.form", "fl.state/3", "fl.state/3.form"]
    with pytest.raises(LookupError, match="the client's state is not in its Context"):
        ContextStore("state", RecordDict(), 4).read((0, 3, 0))


UNRELIABLE = """
from dataclasses import dataclass
from clients.scaffold import Scaffold

@dataclass(frozen=True, kw_only=True)
class Unreliable(Scaffold):
    def work(self, name, ctx, carry):
        if (ctx.client, ctx.round) == (1, 1):
            raise RuntimeError("out of battery")
        return super().work(name, ctx, carry)
"""
CONFIG = {
    "rounds": 3,
    "data": {"name": "digits", "test": 0.2},
    "partition": {"name": "iid", "clients": 3},
    "splits": {"val": 0, "test": 0.1},
    "model": {"name": "mlp", "hidden": [8]},
    "cohort": {"fraction": 1.0},
    "strategy": "scaffold",
    "codec": {
        "up": ["error_feedback", {"topk": {"ratio": 0.5}}, "quantise", "zstd"],
        "down": ["error_feedback", "bf16"],
    },
    "evaluation": {"every": 3},
    "execution": {"executor": "serial", "plan": "loop", "on_client_error": "drop"},
}


# -- the law: a deployment gives the simulator's results --------------------------------------------------------------
QUICK = {
    "fedavg",
    "ditto",
    "fedsa_lora",
    "scaffold",
}  # no state, a private model, halves of adapters, control variates


# strategies that no deployment can run, and the reason it gives before round 0
REFUSED = {
    **dict.fromkeys(
        ["active_party", "fedonce", "gal", "splitnn"], "partition: it distributes columns, and each Flower"
    ),
    "fedselect": "strategy: FedSelect: the payload depends on the client's state, which a deployed server does not",
    "pefll": "strategy: clients train a module other than the run's, and no message can carry a module",
}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in registry.names("strategy")],
)
@pytest.mark.filterwarnings("ignore")
def test_a_deployment_gives_the_simulators_bits(name, tmp_path, capsys):
    """Each strategy runs in the small federation of the laws, with its clients on nodes of our own grid."""
    config = Bench.of("strategy", name, {}, tmp_path / "here").config(**{"execution.plan": "loop"})
    if name not in REFUSED:
        same_run(config, tmp_path)
        return
    with pytest.raises(ConfigError, match=REFUSED[name]):
        simulate(server_app(config, out=tmp_path / "there"), client_app(config), CLIENTS, out=tmp_path / "grid")


TOYS = Path(__file__).parents[1] / "toys.py"


@pytest.mark.parametrize("name", ["ThreeExchanges", "Mixed", "Pages", "ClassMeans", "Staged"])
def test_all_features_of_strategies_work_in_a_deployment(name, tmp_path, capsys):
    """Several exchanges with carries, rows, static groups, patches, settings per client, keyed tables, and stages."""
    small = {"data": FEDERATION["data"] | {"classes": 3}, "model": "softmax"}  # 21 parameters, as Mixed expects
    rule = {"strategy": f"{TOYS}:{name}", "execution": {"executor": "serial", "plan": "loop"}}
    same_run(resolve(read(FEDERATION | small | rule)), tmp_path)


@pytest.mark.parametrize("kind", ["kept", "averaged"])
def test_memory_of_optimisers_gives_the_simulators_bits(kind, tmp_path, capsys):
    client = {"lr": 0.01, "batch": 8, "optimiser": "adam", "optimiser_state": kind, "rates": {"*bias": 2.0}}
    changes = {"rounds": 3, "strategy": "fedavg", "client": client, "execution": {"executor": "serial", "plan": "loop"}}
    same_run(resolve(read({**FEDERATION, **changes})), tmp_path)


@pytest.mark.parametrize("codec", ["identity", "zstd", {"quantise": {"bits": 8}}], ids=["identity", "zstd", "quantise"])
def test_patches_of_a_static_group_give_the_simulators_bits(codec, tmp_path, capsys, monkeypatch):
    """Clients take part again after some rounds, and apply the increments that they lack to the stored sum.

    With "quantise" the sum of round 3 is a key version, and a client of round 4 receives it and the patch since then.
    The arrays in the messages have the bytes of the ledger.
    """
    parts, patches, whole, both = StaticSender.parts, [], [], []

    def counted(self, versions):
        found = parts(self, versions)
        patches.extend(record for group in found.patches.values() for record, _, _ in group.values())
        whole.extend(record for record, _, _ in found.whole.values())
        both.extend(found.whole.keys() & found.patches.keys())
        return found

    monkeypatch.setattr(StaticSender, "parts", counted)
    settings = {
        "rounds": 5,
        "data": FEDERATION["data"] | {"shape": [40], "classes": 30},
        "model": {"name": "softmax", "adapter": {"name": "lora", "rank": 2}},
        "strategy": "fedex_lora",
        "execution": {"executor": "serial", "plan": "loop"},
        "splits": {"val": 0},
        "codec": {"down": codec},
    }
    same_run(resolve(read({**FEDERATION, **settings, "cohort": {"name": "uniform", "size": 3}})), tmp_path)
    ledger = pq.read_table(tmp_path / "there" / "ledger.parquet").to_pylist()
    nbytes = sum(array.numpy().nbytes for record in [*patches, *whole] for array in record.values())
    assert nbytes == sum(row["encoded_bytes"] for row in ledger if row["group"] == "base") and len(patches) > 3
    assert bool(both) == isinstance(codec, dict)


def same_run(config, folder):
    expected = fl.run(config, out=folder / "expected")
    there = folder / "there"
    simulate(server_app(config, out=there), client_app(config), CLIENTS, out=folder / "grid")
    tensors = load_file(there / "model.safetensors")
    assert tensors.keys() == dict(expected.model).keys()
    assert all(torch.equal(tensors[name], expected.model[name]) for name in tensors)
    assert pq.read_table(there / "ledger.parquet").equals(expected.ledger)
    same_metrics([json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()], expected.metrics)


def same_metrics(theirs, ours):
    for a, b in zip(theirs, ours, strict=True):
        assert a.keys() == b.keys()
        assert a.get("stage") == b.get("stage")
        for name in b.keys() - {"errors", "stage"}:
            if "seconds" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-6), name


def test_clients_of_another_module_are_refused(tmp_path, capsys):
    changes = {"strategy": f"{TOYS}:Narrow", "execution": {"executor": "serial", "plan": "loop"}}
    with pytest.raises(
        ValueError, match="clients train a module other than the run's, and no message can carry a module"
    ):
        config = FEDERATION | changes
        simulate(server_app(config, out=tmp_path / "there"), client_app(config), CLIENTS, out=tmp_path / "grid")


def test_another_configuration_is_refused(tmp_path, capsys):
    ours, theirs = (CONFIG | {"client": {"lr": lr}} for lr in (0.1, 0.2))
    with pytest.raises(
        ConfigError, match=r"client 0 runs another configuration.*digest \w{12}, the server's is \w{12}"
    ):
        simulate(server_app(ours, out=tmp_path / "there"), client_app(theirs), 3, out=tmp_path / "grid")


def test_a_client_without_a_node_is_named(tmp_path, capsys):
    with pytest.raises(
        TimeoutError, match=r"no SuperNode for 1 clients, the first \[2\]; start them with --node-config"
    ):
        simulate(server_app(CONFIG, out=tmp_path / "there", wait=0.1), client_app(CONFIG), 2, out=tmp_path / "grid")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_project_gives_the_simulators_bits(tmp_path, monkeypatch, no_ray):
    """A run on Flower's own simulation has the simulator's model, ledger and metrics.

    Clients and server have states, codecs draw random numbers and keep residuals, and one client fails.
    """
    run_simulation = pytest.importorskip("flwr.simulation").run_simulation
    (tmp_path / "mine.py").write_text(UNRELIABLE)
    config = CONFIG | {"client": {"name": f"{tmp_path}/mine.py:Unreliable", "lr": 0.1}}
    expected = fl.run(config, out=tmp_path / "here")
    assert [row["dropped"] for row in expected.metrics] == [0, 1, 0]

    folder = export(config, tmp_path / "app").directory
    project = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert project["config"]["rounds"] == 3 and project["config"]["client"]["lr"] == 0.1
    (tmp_path / "mine.py").unlink()  # the project has its own copy
    apps = []
    for reference in (project["components"]["serverapp"], project["components"]["clientapp"]):
        module, _, name = reference.partition(":")
        apps.append(runpy.run_path(str(folder / f"{module}.py"))[name])
    monkeypatch.chdir(tmp_path)
    backend = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 1, "include_dashboard": False}}
    run_simulation(*apps, 3, backend_config=backend)

    (there,) = (tmp_path / "runs").iterdir()
    tensors = load_file(there / "model.safetensors")
    assert Params.of({name: tensors[name] for name in expected.model}).layout is expected.model.layout
    assert all(torch.equal(tensors[name], expected.model[name]) for name in expected.model)
    assert (there / "ledger.parquet").read_bytes() == (tmp_path / "here" / "ledger.parquet").read_bytes()
    rows = [json.loads(line) for line in (there / "metrics.jsonl").read_text().splitlines()]
    same_metrics(rows, expected.metrics)
    assert "client 1, stage 'train'" in rows[1]["errors"][0] and "out of battery" in rows[1]["errors"][0]


# -- lost SuperNodes --------------------------------------------------------------------------------------------------
def server_on(changed_grid, config, out):
    """A ServerApp whose grid is `changed_grid(grid)`."""
    app, text = ServerApp(), config_text(config)

    @app.main()
    def main(grid, context):
        run_server(changed_grid(grid), text, out)

    return app


def lossy_server(config, out, lost):
    """A ServerApp on whose grid nodes are lost; `lost`: (client, group of the messages)."""
    return server_on(lambda grid: LossyGrid(grid, lost), config, out)


class LossyGrid:
    """A grid that answers some messages as a SuperLink does whose node has gone: the error comes from the SuperLink."""

    def __init__(self, grid, lost):
        self.grid, self.lost = grid, lost

    def get_node_ids(self):
        return self.grid.get_node_ids()

    def send_and_receive(self, messages, timeout=None):
        gone = [m for m in messages if (m.metadata.dst_node_id - 1, m.metadata.group_id) in self.lost]
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        for message in gone:
            (reply,) = (r for r in replies if r.metadata.reply_to_message_id == message.metadata.message_id)
            error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable"), reply_to=message)
            vars(error.metadata)["_src_node_id"] = SUPERLINK_NODE_ID
            replies[replies.index(reply)] = error
        return replies


class TwinGrid(LossyGrid):
    """A grid whose nodes all say that they are client 0."""

    def send_and_receive(self, messages, timeout=None):
        replies = list(self.grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            reply.content[HELLO]["partition-id"] = 0
        return replies


PLAIN_RUN = CONFIG | {"strategy": "fedavg", "codec": {}, "splits": {"val": 0.1}, "evaluation": {"every": 1}}


def test_a_lost_supernode_is_named(tmp_path, capsys):
    config = PLAIN_RUN | {"execution": {"executor": "serial"}}
    line = "client 1, round 1, stage 'train': ConnectionError: Error: Node Unavailable; execution.on_client_error=drop"
    with pytest.raises(ClientError, match=line):
        app = lossy_server(config, tmp_path / "there", {(1, "1")})
        simulate(app, client_app(config), 3, out=tmp_path / "grid")


def test_the_run_goes_on_without_a_lost_supernode(tmp_path, capsys):
    """Client 1 is left out of round 1 and its evaluation. In round 2 it answers again: the node is asked for again."""
    app = lossy_server(PLAIN_RUN, tmp_path / "there", {(1, "1")})
    simulate(app, client_app(PLAIN_RUN), 3, out=tmp_path / "grid")
    rows = [json.loads(line) for line in (tmp_path / "there" / "metrics.jsonl").read_text().splitlines()]
    assert [row["dropped"] for row in rows] == [0, 1, 0] and rows[1]["cohort_size"] == 3
    assert rows[1]["errors"] == [
        "client 1, stage 'train': ConnectionError: Error: Node Unavailable",
        "client 1, stage 'received': Error: Node Unavailable",
    ]
    assert "left out: client 1, stage 'train'" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "there" / "clients.parquet").to_pylist()
    answered = {row["client"]: row for row in table if (row["round"], row["split"]) == (1, "val")}
    assert answered.keys() == {0, 2}
    total = sum(row["num_examples"] * row["loss"] for row in answered.values())
    pooled = total / sum(row["num_examples"] for row in answered.values())
    assert rows[1]["val/loss"] == pytest.approx(pooled, rel=1e-6)


def test_two_supernodes_of_one_client_are_refused(tmp_path, capsys):
    app = server_on(lambda grid: TwinGrid(grid, ()), CONFIG, tmp_path / "there")
    with pytest.raises(ConfigError, match=r"two SuperNodes have partition-id=0 \(1, 2\); give each its own"):
        simulate(app, client_app(CONFIG), 3, out=tmp_path / "grid")


def test_a_node_without_partition_id_is_told_how_to_get_one():
    with pytest.raises(ValueError, match="start its SuperNode with --node-config partition-id=NUMBER"):
        partition_id({"num-partitions": 3})
