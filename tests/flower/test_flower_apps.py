"""Flower apps on our engine: Flower's guarantees and our additional ones."""

import random
import re
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("flwr", minversion="1.22")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod  # noqa: E402
from flwr.common.constant import ErrorCode  # noqa: E402
from flwr.serverapp import ServerApp, strategy  # noqa: E402

import fl  # noqa: E402
import fl.flower  # noqa: E402
from fl.errors import ConfigError  # noqa: E402
from fl.flower import records, simulate  # noqa: E402
from fl.flower.app import load  # noqa: E402
from fl.report.compare import table  # noqa: E402
from fl.report.variants import read_variants  # noqa: E402
from fl.storage.run import read_metrics  # noqa: E402
from fl.storage.segments import Segments  # noqa: E402
from tests.process import fl as command_line  # noqa: E402
from tests.process import python, start  # noqa: E402

ROOT = Path(fl.__file__).parent.parent
QUICKSTART = Path(__file__).with_name("quickstart")
APP = load(QUICKSTART)
NODES = 6
ALL = {"fraction_train": 1.0, "fraction_evaluate": 0.5}


def dp(of, **settings):
    return lambda: of(strategy.FedAvg(**ALL), num_sampled_clients=NODES, **settings)


FIXED = {"noise_multiplier": 0.05, "clipping_norm": 2.0}
ADAPTIVE = {"noise_multiplier": 0.01, "initial_clipping_norm": 1.0, "clipped_count_stddev": 0.3}
STRATEGIES = {
    "fedavg": lambda: strategy.FedAvg(fraction_train=0.5),
    "fedavgm": lambda: strategy.FedAvgM(**ALL, server_momentum=0.3),
    "fedprox": lambda: strategy.FedProx(**ALL, proximal_mu=0.1),
    "fedadam": lambda: strategy.FedAdam(**ALL, eta=0.3),
    "fedadagrad": lambda: strategy.FedAdagrad(**ALL, eta=0.5),
    "fedyogi": lambda: strategy.FedYogi(**ALL, eta=0.3),
    "fedmedian": lambda: strategy.FedMedian(**ALL),
    "fedtrimmedavg": lambda: strategy.FedTrimmedAvg(**ALL, beta=0.2),
    "qfedavg": lambda: strategy.QFedAvg(client_learning_rate=0.1, q=0.1, **ALL),
    "krum": lambda: strategy.Krum(**ALL, num_malicious_nodes=1),
    "multikrum": lambda: strategy.MultiKrum(**ALL, num_malicious_nodes=1, num_nodes_to_select=3),
    "bulyan": lambda: strategy.Bulyan(**ALL, num_malicious_nodes=0),
    "dp_server_fixed": dp(strategy.DifferentialPrivacyServerSideFixedClipping, **FIXED),
    "dp_client_fixed": dp(strategy.DifferentialPrivacyClientSideFixedClipping, **FIXED),
    "dp_server_adaptive": dp(strategy.DifferentialPrivacyServerSideAdaptiveClipping, **ADAPTIVE),
    "dp_client_adaptive": dp(strategy.DifferentialPrivacyClientSideAdaptiveClipping, **ADAPTIVE),
}
MODS = {"dp_client_fixed": [fixedclipping_mod], "dp_client_adaptive": [adaptiveclipping_mod]}


def of_strategy(name, rounds=4):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        first = ArrayRecord([np.zeros(4)])
        context.state["arrays"] = STRATEGIES[name]().start(grid=grid, initial_arrays=first, num_rounds=rounds).arrays

    return app


def of_main(body):
    app = ServerApp()
    app.main()(lambda grid, context: body(grid, context))
    return app


def run(server, client, out, nodes=NODES, **settings):
    return simulate(server, client, nodes, out=out, run_config=APP.config, **settings)


def weights(result):
    return result.context.state["arrays"].to_numpy_ndarrays()[0]


def loss(w):
    from lines.task import load as rows
    from lines.task import loss as of

    return np.mean([of(w, *rows(p)) for p in range(NODES)])


def without_time(rows):
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]


def client_of(name):
    from lines.client_app import make

    return make(*MODS.get(name, []))


# -- Flower's strategies ----------------------------------------------------------------------------------------------
def test_the_list_of_strategies_is_complete():
    ours = {type(make()).__name__ for make in STRATEGIES.values()}
    theirs = {n for n in strategy.__all__ if n not in ("FedXgbBagging", "FedXgbCyclic", "Result", "Strategy")}
    assert ours == theirs


@pytest.mark.parametrize("name", STRATEGIES)
def test_loss_falls_and_twice_is_equal(name, tmp_path):
    one, two = (run(of_strategy(name), client_of(name), tmp_path / str(i), seed=3) for i in range(2))
    assert loss(weights(one)) < 0.7 * loss(np.zeros(4))
    assert weights(one).tobytes() == weights(two).tobytes()
    assert without_time(one.metrics) == without_time(two.metrics) and len(one.metrics) == 4
    assert one.ledger == two.ledger


def test_another_seed_is_another_run(tmp_path):
    one, two = (run(APP.server, APP.client, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert weights(one).tobytes() != weights(two).tobytes()


@pytest.mark.ray
@pytest.mark.parametrize("name", ["fedavg", "dp_client_adaptive"])
def test_ray_is_serial(name, tmp_path):
    one = run(of_strategy(name), client_of(name), tmp_path / "serial")
    two = run(of_strategy(name), client_of(name), tmp_path / "ray", executor="ray", workers=2)
    assert weights(one).tobytes() == weights(two).tobytes()
    assert without_time(one.metrics) == without_time(two.metrics)
    assert one.ledger == two.ledger


def dies_once(folder):
    app = ClientApp()

    @app.query()
    def query(msg, context):
        import os

        if msg.metadata.dst_node_id == 4 and not os.path.exists(f"{folder}/died"):
            open(f"{folder}/died", "w").close()
            os._exit(1)
        return Message(
            RecordDict({"m": MetricRecord({"node": msg.metadata.dst_node_id, "x": random.random()})}), reply_to=msg
        )

    return app


@pytest.mark.ray
def test_a_dead_worker_changes_nothing(tmp_path):
    found = []

    def body(grid, context):
        replies = grid.send_and_receive([Message(RecordDict(), n, "query") for n in grid.get_node_ids()])
        found.append([dict(reply.content["m"]) for reply in replies])

    client = dies_once(tmp_path)
    run(of_main(body), client, tmp_path / "ray", executor="ray", workers=2)
    assert (tmp_path / "died").exists()
    run(of_main(body), client, tmp_path / "serial")
    assert [m["node"] for m in found[0]] == list(range(1, NODES + 1)) and found[0] == found[1]


# -- environment of a client ------------------------------------------------------------------------------------------
def asking(answer):
    """Return a ClientApp that answers queries with the numbers of answer(msg, context)."""
    app = ClientApp()
    app.query()(lambda msg, context: Message(RecordDict({"m": MetricRecord(answer(msg, context))}), reply_to=msg))
    return app


def query(client, tmp_path, sends, nodes=NODES, content=None, **settings):
    """Send messages to the nodes in each element of `sends`, and return the replies."""
    found = []

    def body(grid, context):
        for send in sends:
            shared = content if content is not None else RecordDict()
            replies = grid.send_and_receive([Message(shared, node, "query") for node in send])
            found.append([dict(reply.content["m"]) for reply in replies])

    run(of_main(body), client, tmp_path / "run", nodes, **settings)
    return found


def test_replies_are_in_the_order_of_the_messages(tmp_path):
    client = asking(lambda msg, context: {"node": msg.metadata.dst_node_id, **context.node_config})
    ((first, second, third),) = query(client, tmp_path, [[5, 2, 6]])
    assert first == {"node": 5, "partition-id": 4, "num-partitions": 6}
    assert [second["node"], third["node"]] == [2, 6]


def test_context_persists_and_is_each_nodes_own(tmp_path):
    def answer(msg, context):
        seen = context.state.setdefault("seen", MetricRecord({"by": []}))
        seen["by"] = [*seen["by"], context.node_id]
        return {"by": seen["by"]}

    found = query(asking(answer), tmp_path, [[1, 2], [2], [3, 2, 1], [1, 1]])
    assert found == [
        [{"by": [1]}, {"by": [2]}],
        [{"by": [2, 2]}],
        [{"by": [3]}, {"by": [2, 2, 2]}, {"by": [1, 1]}],
        [{"by": [1, 1, 1]}, {"by": [1, 1, 1, 1]}],
    ]


def test_messages_that_share_a_record_do_not_see_each_other(tmp_path):
    def answer(msg, context):
        msg.content["c"]["list"].append(1)
        msg.content["c"]["n"] = msg.content["c"]["n"] + 1
        msg.content["a"]["w"].numpy()[:] = 7
        w = msg.content["a"].pop("w").numpy()
        return {"n": msg.content["c"]["n"], "length": len(msg.content["c"]["list"]), "w": float(w.sum())}

    content = RecordDict({"c": ConfigRecord({"n": 0, "list": [5]}), "a": ArrayRecord({"w": Array(np.ones(3))})})
    ((*answers,),) = query(asking(answer), tmp_path, [[1, 2, 3]], content=content)
    assert answers == [{"n": 1, "length": 2, "w": 3.0}] * 3
    assert content["c"] == {"n": 0, "list": [5]} and list(content["a"]) == ["w"]


@pytest.mark.parametrize("executor", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_reply_is_what_it_was_when_sent(tmp_path, executor):
    app, found = ClientApp(), []

    @app.query()
    def query(msg, context):
        kept = vars(query).setdefault("kept", MetricRecord({"n": 0}))
        kept["n"] += 1
        return Message(RecordDict({"m": kept}), reply_to=msg)

    def body(grid, context):
        for _ in range(2):
            found.extend(grid.send_and_receive([Message(RecordDict(), 1, "query")]))

    run(of_main(body), app, tmp_path / "run", executor=executor, workers=1)
    assert [reply.content["m"]["n"] for reply in found] == [1, 2]


def test_clients_draw_at_addresses(tmp_path):
    def answer(msg, context):
        return {"random": random.random(), "numpy": np.random.rand(), "torch": float(torch.rand(()))}

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    (first,), (again,), (both, other) = query(asking(answer), tmp_path / "a", [[1], [1], [2, 1]])
    assert state[0] == random.getstate() and state[1] == np.random.get_state()[1].tolist()
    assert torch.equal(state[2], torch.get_rng_state())
    assert all(len({one[key] for one in (first, again, both, other)}) == 4 for key in first)
    ((swapped, _),) = query(asking(answer), tmp_path / "b", [[1, 2]])
    assert swapped == first  # other clients of the round change nothing
    assert query(asking(answer), tmp_path / "c", [[1]], seed=1) != [[first]]


def test_the_server_draws_at_addresses(tmp_path):
    drawn = []

    def body(grid, context):
        drawn.append(random.random())
        grid.send_and_receive([Message(RecordDict(), 1, "query")])
        drawn.append(random.random())

    client = asking(lambda msg, context: {"x": random.random()})
    random.seed(5)
    expected, state = random.random(), random.seed(5)
    run(of_main(body), client, tmp_path / "a")
    assert random.random() == expected and state is None
    run(of_main(body), client, tmp_path / "b")
    quiet = of_main(lambda grid, context: drawn.extend([random.random(), random.random()]))
    run(quiet, client, tmp_path / "c")
    assert drawn[:2] == drawn[2:4] == drawn[4:]  # random draws of clients change nothing


def test_a_million_idle_nodes_are_free(tmp_path):
    def answer(msg, context):
        context.state["seen"] = MetricRecord({"x": 1})
        return {"partition": context.node_config["partition-id"]}

    found = query(asking(answer), tmp_path, [[1_000_000, 1]], nodes=1_000_000)
    assert found == [[{"partition": 999_999}, {"partition": 0}]]
    assert sum(f.stat().st_size for f in (tmp_path / "run/clients").iterdir()) < 10_000


# -- errors -----------------------------------------------------------------------------------------------------------
def failing():
    app = ClientApp()

    @app.query()
    def query(msg, context):
        times = context.state.setdefault("n", MetricRecord({"n": 0}))
        times["n"] += 1
        if msg.content["c"]["fail"] == context.node_id:
            raise OverflowError("too much")
        return Message(RecordDict({"m": MetricRecord({"n": times["n"]})}), reply_to=msg)

    return app


def test_a_clients_error_is_a_reply_and_leaves_its_context(tmp_path, caplog):
    replies = []

    def body(grid, context):
        for fail in (2, 0):
            content = RecordDict({"c": ConfigRecord({"fail": fail})})
            replies.append(grid.send_and_receive([Message(content, node, "query") for node in (1, 2)]))

    result = run(of_main(body), failing(), tmp_path / "run")
    (fine, broken), after = replies
    assert not fine.has_error() and not broken.has_content()
    assert broken.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION and "too much" in broken.error.reason
    assert [reply.content["m"]["n"] for reply in after] == [2, 1]
    assert [row["dropped"] for row in result.metrics] == [1, 0]
    assert "node 2, query" in caplog.text and "raise OverflowError" in caplog.text


def test_mistakes_say_what_there_is(tmp_path):
    client = asking(lambda msg, context: {})
    beyond = of_main(lambda grid, context: grid.send_and_receive([Message(RecordDict(), 7, "query")]))
    with pytest.raises(ValueError, match=r"message to node 7: not one of 1\.\.6"):
        run(beyond, client, tmp_path / "a")
    with pytest.raises(ConfigError, match="holds a run already"):
        run(beyond, client, tmp_path / "a")
    with pytest.raises(ConfigError, match="executor: 'rays' is not one of"):
        run(beyond, client, tmp_path / "b", executor="rays")
    with pytest.raises(
        ConfigError, match=r"rounds: not in \[tool.flwr.app.config\], which has \['label', 'learning-rate'"
    ):
        load(QUICKSTART, {"rounds": "3"})
    with pytest.raises(ConfigError, match="num-server-rounds: 'many' is not int"):
        load(QUICKSTART, {"num-server-rounds": "many"})
    with pytest.raises(ConfigError, match="there is no"):
        load(tmp_path)


# -- push and pull ----------------------------------------------------------------------------------------------------
def test_replies_are_pulled_once_and_name_their_message(tmp_path):
    seen = {}

    def body(grid, context):
        sent = [Message(RecordDict(), node, "query") for node in (3, 1)]
        ids = list(grid.push_messages(sent))
        assert ids == [message.metadata.message_id for message in sent]
        (second,) = grid.pull_messages(ids[1:])
        (first,) = grid.pull_messages(ids)
        assert list(grid.pull_messages(ids)) == [] and list(grid.send_and_receive([])) == []
        seen["replies"] = [(r.metadata.reply_to_message_id, r.content["m"]["node"]) for r in (first, second)]
        seen["ids"] = ids

    run(of_main(body), asking(lambda msg, context: {"node": context.node_id}), tmp_path / "run")
    assert seen["replies"] == list(zip(seen["ids"], (3, 1)))


def test_apps_with_a_client_fn_run(tmp_path):
    """Client p sends the model plus p + 1: the mean of four grows by 2.5 per round, a sum of 3 numbers by 7.5."""
    from flwr.client import NumPyClient
    from flwr.server import ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg

    class Adds(NumPyClient):
        def __init__(self, by):
            self.by = by

        def get_parameters(self, config):
            return [np.zeros(3)]

        def fit(self, parameters, config):
            return [parameters[0] + self.by], 10, {}

        def evaluate(self, parameters, config):
            return float(parameters[0].sum()), 10, {}

    client = ClientApp(client_fn=lambda context: Adds(context.node_config["partition-id"] + 1).to_client())
    rounds = ServerConfig(num_rounds=2)
    server = ServerApp(server_fn=lambda context: ServerAppComponents(strategy=FedAvg(), config=rounds))
    result = run(server, client, tmp_path / "run", nodes=4)
    assert [row.get("evaluate/loss") for row in result.metrics] == [
        None,
        7.5,
        15.0,
    ]  # the first round asks a client for the initial model
    assert [row.get("messages/train") for row in result.metrics] == [None, 4, 4]


# -- ledger and stored data -------------------------------------------------------------------------------------------
def test_the_ledger_holds_what_was_sent(tmp_path):
    """Four doubles are an .npy file of 128 + 32 bytes; Flower itself serialises a record of numbers."""
    result = run(APP.server, APP.client, tmp_path / "run")
    rows = [row for row in result.ledger.to_pylist() if row["round"] == 1]
    arrays = [row for row in rows if row["group"] == "arrays"]
    trained, evaluated = ([r for r in arrays if r["exchange"] == e] for e in (0, 1))
    assert {(r["payload_bytes"], r["encoded_bytes"]) for r in arrays} == {(32, 160)}
    assert [r["direction"] for r in trained] == ["down"] * 3 + ["up"] * 3
    assert [r["direction"] for r in evaluated] == ["down"] * 6
    metrics = MetricRecord({"train_loss": 0.5, "times": 2, "num-examples": 20})
    assert {r["encoded_bytes"] for r in rows if r["group"] == "metrics" and r["exchange"] == 0} == {
        len(metrics.deflate())
    }
    for direction in ("up", "down"):
        assert result.metrics[1][f"{direction}link_bytes"] == sum(
            r["encoded_bytes"] for r in rows if r["direction"] == direction
        )


def test_rows_are_rounds_and_means_are_weighted(tmp_path):
    result = run(APP.server, APP.client, tmp_path / "run")
    assert [row["round"] for row in result.metrics] == [0, 1, 2]
    assert [(row["messages/train"], row["messages/evaluate"]) for row in result.metrics] == [(3, 6)] * 3
    from lines.task import load as rows
    from lines.task import loss as of

    parts = [rows(p) for p in range(NODES)]
    w = weights(result)
    expected = sum(len(x) * of(w, x, y) for x, y in parts) / sum(len(x) for x, _ in parts)
    assert result.metrics[-1]["evaluate/loss"] == pytest.approx(expected, rel=1e-12)


def test_compare_reads_runs_of_apps(tmp_path):
    for seed in (0, 1):
        run(APP.server, APP.client, tmp_path / f"app-s{seed}", seed=seed)
    chosen = read_variants([tmp_path])
    assert [variant.seeds for variant in chosen] == [[0, 1]]
    (row,) = table(chosen, ["evaluate/loss"])
    assert row["runs"] == 2 and row["rounds"] == 3 and row["MB up"] > 0


def test_records_survive_the_disk(tmp_path):
    content = RecordDict(
        {
            "a": ArrayRecord(
                {"w": Array(np.arange(6.0).reshape(2, 3)), "b": Array(np.array(True)), "e": Array(np.zeros((0, 2)))}
            ),
            "c": ConfigRecord({"s": "x", "b": b"\x00\x01", "t": True, "l": [b"", b"\xff"], "f": [1.5, -2.0]}),
            "m": MetricRecord({"i": 2**40, "f": float("inf"), "l": [1, 2]}),
        }
    )
    segments = Segments(tmp_path)
    segments.write_to(0)
    location = segments.append(records.content_to_tree(content))
    back = records.tree_to_content(segments.read(location))
    segments.close()
    assert back == content and list(back) == ["a", "c", "m"]
    assert type(back["c"]["t"]) is bool and type(back["m"]["i"]) is int
    assert records.copy_content(content) == content


# -- resuming ---------------------------------------------------------------------------------------------------------
class Killed(Exception):
    pass


def counting(counted):
    """Return a ClientApp that trains, and counts and reports its calls; its random draws enter the model."""
    app = ClientApp()

    @app.train()
    def train(msg, context):
        counted.append(context.node_id)
        times = context.state.setdefault("n", MetricRecord({"n": 0}))
        times["n"] += 1
        w = msg.content["arrays"].to_numpy_ndarrays()[0] + random.random() * times["n"]
        numbers = MetricRecord({"num-examples": context.node_id, "n": times["n"]})
        return Message(RecordDict({"arrays": ArrayRecord([w]), "metrics": numbers}), reply_to=msg)

    return app


def killed_in(round_):
    """Run four rounds with half of the nodes; the server may fail in one of them."""
    app = ServerApp()

    @app.main()
    def main(grid, context):
        def look(server_round, arrays):
            if server_round == round_:
                raise Killed

        rule = strategy.FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
        first = ArrayRecord([np.zeros(4)])
        context.state["arrays"] = rule.start(grid=grid, initial_arrays=first, num_rounds=4, evaluate_fn=look).arrays

    return app


@pytest.mark.parametrize("round_", [1, 3])
def test_a_run_with_a_journal_goes_on(tmp_path, round_):
    whole = run(killed_in(None), counting([]), tmp_path / "whole", journal=True)
    asked, again = [], []
    with pytest.raises(Killed):
        run(killed_in(round_), counting(asked), tmp_path / "run", journal=True)
    assert len(asked) == 3 * round_
    gone_on = run(killed_in(None), counting(again), tmp_path / "run", resume=True)
    assert len(again) == 3 * (4 - (round_ - 1))  # the uncommitted round runs again
    assert weights(gone_on).tobytes() == weights(whole).tobytes()
    assert without_time(gone_on.metrics) == without_time(whole.metrics) and gone_on.ledger == whole.ledger
    assert per_node(gone_on) == per_node(whole)
    third = run(
        killed_in(None), counting(asked := []), tmp_path / "run", resume=True
    )  # finished rounds do not run again
    assert not asked and weights(third).tobytes() == weights(whole).tobytes()


def per_node(result):
    return pq.read_table(result.directory / "clients.parquet").to_pylist()


def test_each_nodes_numbers_are_kept(tmp_path):
    result = run(killed_in(None), counting(asked := []), tmp_path / "run")
    rows = per_node(result)
    assert [row["client"] for row in rows] == asked and {row["split"] for row in rows} == {"train"}
    assert all(row["num_examples"] == row["client"] for row in rows)
    seen = [asked[:i].count(node) + 1 for i, node in enumerate(asked)]
    assert [row["n"] for row in rows] == seen


def test_only_the_same_run_goes_on(tmp_path):
    run(killed_in(None), counting([]), tmp_path / "without")
    with pytest.raises(ConfigError, match="has no journal"):
        run(killed_in(None), counting([]), tmp_path / "without", resume=True)
    with pytest.raises(ConfigError, match="holds no run"):
        run(killed_in(None), counting([]), tmp_path / "nothing", resume=True)
    run(killed_in(None), counting([]), tmp_path / "run", journal=True)
    with pytest.raises(ConfigError, match=r"seed: 1 is not 0, which the run in .* has"):
        run(killed_in(None), counting([]), tmp_path / "run", seed=1, resume=True)
    other = of_main(lambda grid, context: grid.send_and_receive([Message(RecordDict(), 1, "query")]))
    with pytest.raises(RuntimeError, match="batch 0 of messages differs from the run that is resumed"):
        run(other, counting([]), tmp_path / "run", resume=True)


def test_an_error_in_the_journal_is_an_error_again(tmp_path):
    replies = []

    def body(grid, context):
        content = RecordDict({"c": ConfigRecord({"fail": 2})})
        replies.append(grid.send_and_receive([Message(content, node, "query") for node in (1, 2)]))

    for resume in (False, True):
        run(of_main(body), failing(), tmp_path / "run", journal=True, resume=resume)
    (_, then), (fine, now) = replies
    assert fine.content["m"] == {"n": 1}
    assert (now.error.code, now.error.reason) == (then.error.code, then.error.reason)
    assert now.metadata.src_node_id == 2 and now.metadata.message_type == "query"


# -- the command ------------------------------------------------------------------------------------------------------
def command(*arguments):
    return command_line("flower", "run", QUICKSTART, *arguments, folder=ROOT)


@pytest.mark.slow
def test_an_apps_folder_runs_by_the_command(tmp_path):
    done = command("num-server-rounds=2", "learning-rate=0.05", "--nodes", "4", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rounds") and "evaluate/loss" in done.stdout
    (variant,) = read_variants([tmp_path / "run"])
    assert [row["messages/evaluate"] for row in variant.runs[0]] == [4, 4]
    assert variant.configs[0]["flower"] == {
        "name": "lines",
        "nodes": 4,
        "config": {"num-server-rounds": 2, "learning-rate": 0.05, "label": "plain"},
        "source": str(QUICKSTART),
        "journal": False,
        "node_config": {},
        "apply_timeouts": False,
    }
    losses = variant.runs[0]
    assert losses[1]["evaluate/loss"] < losses[0]["evaluate/loss"]
    assert "?" in done.stderr  # only the app knows the number of rounds
    quiet = [line for line in done.stderr.splitlines() if "[ROUND 1/2]" in line]
    assert len(quiet) == 1  # only Flower's own message, once
    wrong = command("rounds=2")
    assert wrong.returncode == 2 and "error: rounds: not in [tool.flwr.app.config]" in wrong.stderr


KILLED = """
import os, signal, sys
from fl.cli.app import main
from fl.storage.run import RunDirectory

commit = RunDirectory.commit

def commit_and_die(self, rows, *rest, **named):
    commit(self, rows, *rest, **named)
    if rows[-1]["round"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

RunDirectory.commit = commit_and_die
sys.argv = {words!r}
main()
"""


@pytest.mark.ray
def test_a_killed_apps_run_goes_on_by_the_command(tmp_path):
    arguments = ("num-server-rounds=40", "--nodes", "4", "--journal", "--out")
    assert command(*arguments, str(tmp_path / "whole")).returncode == 0
    killed = start(KILLED.format(words=["fl", "flower", "run", str(QUICKSTART), *arguments, str(tmp_path / "run")]))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert 3 <= (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") < 40
    words = ["resume", tmp_path / "run", "execution.executor=ray", "execution.workers=2"]
    done = command_line(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (read_metrics(tmp_path / name) for name in ("whole", "run"))
    assert without_time(one) == without_time(two) and len(two) == 40
    done = command_line(*words, "rounds=50")
    assert done.returncode == 2 and "rounds: cannot change in a resumed run" in done.stderr


@pytest.mark.slow
def test_the_guides_snippet_runs(tmp_path):
    """Ten of 10,000 nodes take part per round and add their numbers. The sums of bytes and numbers are known."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/flower.md").read_text(), re.S)
    done = python(block, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "runs").iterdir()
    metrics, ledger = directory / "metrics.jsonl", fl.flower.Result([], None, directory).ledger.to_pylist()
    assert len(metrics.read_text().splitlines()) == 2
    nodes = [{r["client"] for r in ledger if r["round"] == k and r["direction"] == "up"} for k in (0, 1)]
    assert [len(of) for of in nodes] == [10, 10]
    expected = sum(sum(n - 1 for n in of) / 10 for of in nodes)
    assert float(re.search(r"array\(\[ *([\d.]+)", done.stdout)[1]) == pytest.approx(expected, rel=1e-6)
