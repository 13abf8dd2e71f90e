"""The formula for wire bytes, compared with the requests that Flower's SuperNode serialises for a reply."""

import uuid

import pytest
import torch
from torch import nn

from fl.communication.wire import wire_bytes

pytest.importorskip("flwr", minversion="1.41")

from flwr.app import Array, ArrayRecord, Message, RecordDict  # noqa: E402
from flwr.app.message.message import remove_content_from_message  # noqa: E402
from flwr.app.metadata import Metadata  # noqa: E402
from flwr.common.serde import message_to_proto  # noqa: E402
from flwr.proto.fleet_pb2 import PushMessagesRequest  # noqa: E402
from flwr.proto.message_pb2 import PushObjectRequest  # noqa: E402
from flwr.proto.node_pb2 import Node  # noqa: E402
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree  # noqa: E402

NODE, RUN, TASK = 2**63 + 12345, 2**62 + 678, 2**61 + 90  # ids are 64 random bits


def really(**groups):
    """Return the bytes of all requests that send a message with these groups."""
    records = {g: ArrayRecord({n: Array(t.numpy()) for n, t in tensors.items()}) for g, tensors in groups.items()}
    metadata = Metadata(RUN, "", NODE, 1, "f" * 64, "17", 1.7e9, 3600.0, "train", src_task_id=TASK, dst_task_id=TASK)
    message = Message(RecordDict(records), metadata=metadata)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects, node = get_all_nested_objects(message), Node(node_id=NODE)
    bare = message_to_proto(remove_content_from_message(message))
    requests = [
        PushMessagesRequest(
            node=node,
            messages_list=[bare],
            message_object_trees=[get_object_tree(message)],
            clientapp_runtime_list=[1.5],
        )
    ] + [
        PushObjectRequest(node=node, run_id=RUN, object_id=i, object_content=o.deflate(), session_id=str(uuid.uuid4()))
        for i, o in objects.items()
    ]
    return sum(request.ByteSize() for request in requests)


def mlp(*widths):
    return nn.Sequential(*(nn.Linear(a, b) for a, b in zip(widths, widths[1:])))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 32, 5), nn.Conv2d(32, 64, 5), nn.Linear(1024, 128), nn.Linear(128, 10))


MODELS = {
    "softmax": lambda: nn.Sequential(nn.Linear(60, 10)),
    "mlp": lambda: mlp(784, 200, 200, 62),
    "cnn": cnn,
    "deep": lambda: mlp(*[8] * 40),  # mostly overhead
    "wide": lambda: nn.Linear(2000, 1000),  # Flower splits this array into two chunks
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_formula_is_within_two_per_cent(name, dtype):
    torch.manual_seed(0)
    tensors = {n: p.detach().to(dtype) for n, p in MODELS[name]().named_parameters()}
    raw = sum(t.numel() * t.itemsize for t in tensors.values())
    assert wire_bytes(raw, len(tensors)) == pytest.approx(really(model=tensors), rel=0.02)


def test_further_groups_share_the_message():
    torch.manual_seed(0)
    model = {n: p.detach() for n, p in mlp(60, 10).named_parameters()}
    means = {"keys": torch.arange(10), "means": torch.randn(10, 16), "counts": torch.arange(5, 15)}
    expected = wire_bytes(4 * 610, 2) + wire_bytes(80 + 640 + 80, 3, message=False)
    assert expected == pytest.approx(really(model=model, prototypes=means), rel=0.02)
