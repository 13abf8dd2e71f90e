"""Hello messages: each node answers with its partition-id and with the data that the app adds."""

from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", minversion="1.22")

from flwr.app import Message, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import ServerApp  # noqa: E402

from fl.flower import answer_hello, nodes_by_partition, simulate  # noqa: E402
from fl.flower.hello import ask_hello  # noqa: E402


def on_grid(body, client, out, nodes=4):
    server, found = ServerApp(), []
    server.main()(lambda grid, context: found.append(body(grid)))
    simulate(server, client, nodes, out=out, run_config={"lr": 0.5})
    return found[0]


class Others:
    """A grid with ids as Flower draws them; some nodes report the same partition-id, or do not answer."""

    def __init__(self, told):
        self.told = told

    def get_node_ids(self):
        return list(self.told)

    def send_and_receive(self, messages, *, timeout=None):
        nodes = [message.metadata.dst_node_id for message in messages]
        assert {message.metadata.message_type for message in messages} == {"query.hello"}
        return [self.reply(node) for node in reversed(nodes) if self.told[node] is not None]

    def reply(self, node):
        content = {"hello": {"partition-id": self.told[node]}}
        return SimpleNamespace(metadata=SimpleNamespace(src_node_id=node), content=content, has_error=lambda: False)


def test_nodes_tell_their_partition(tmp_path):
    assert on_grid(nodes_by_partition, answer_hello(ClientApp()), tmp_path / "run") == {0: 1, 1: 2, 2: 3, 3: 4}


def test_nodes_tell_what_else_the_app_says(tmp_path):
    app = answer_hello(ClientApp(), version="2", rate=lambda context: context.run_config["lr"])
    found = on_grid(lambda grid: [(node, dict(told)) for node, told in ask_hello(grid, [3])], app, tmp_path / "run")
    assert found == [(3, {"version": "2", "rate": 0.5, "partition-id": 2})]


def test_the_apps_other_functions_stay(tmp_path):
    app = ClientApp()
    app.query()(lambda message, context: Message(RecordDict(), reply_to=message))
    answer_hello(app)

    def body(grid):
        (reply,) = grid.send_and_receive([Message(RecordDict(), 2, "query")])
        return reply.has_error(), nodes_by_partition(grid)[3]

    assert on_grid(body, app, tmp_path / "run") == (False, 4)


def test_ids_of_any_grid_in_the_order_of_the_partitions(monkeypatch):
    monkeypatch.setattr("fl.flower.hello.Message", message)
    assert list(nodes_by_partition(Others({907: 2, 13: 0, 55: 1})).items()) == [(0, 13), (1, 55), (2, 907)]
    assert nodes_by_partition(Others({})) == {}


def message(content, dst_node_id, message_type):
    return SimpleNamespace(metadata=SimpleNamespace(dst_node_id=dst_node_id, message_type=message_type))


def test_what_is_wrong_is_said(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="node 1 does not answer: .*hello"):
        on_grid(nodes_by_partition, ClientApp(), tmp_path / "run")
    monkeypatch.setattr("fl.flower.hello.Message", message)
    with pytest.raises(ValueError, match="nodes 9 and 5 are both partition 1; give each its own"):
        nodes_by_partition(Others({5: 1, 7: 0, 9: 1}))
    with pytest.raises(TimeoutError, match=r"2 of 3 nodes did not answer in 3 s, the first \[6, 8\]"):
        nodes_by_partition(Others({8: None, 6: None, 7: 0}), timeout=3)
