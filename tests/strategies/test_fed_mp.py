"""Fed-MP: weights, streams and losses on paper, the data's classes, and the ledger's closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients import fed_mp as client_side
from clients.fed_mp import FedMP
from fl.data import text_features
from fl.data.dataset import Dataset, Loader
from fl.data.sets import embedded
from fl.data.sets.embedded import Embedded
from fl.errors import ConfigError
from fl.models.architectures.gate import Gate
from fl.tasks.supervised import Classification
from strategies import fed_mp

D, CLASSES, CLIENTS, EACH = 6, 5, 3, 4


class Ids(Loader):
    """Ids (N, 3), three texts of each of five classes."""

    def load(self) -> Dataset:
        y = np.arange(15) % 5
        return Dataset({"x": np.arange(45).reshape(15, 3), "y": np.array(list("abcde"))[y]})


@pytest.fixture
def encoder(monkeypatch):
    """A stand-in for the encoder: a feature vector of unit length for each row of ids; and for the tokenizer."""

    def features(ids: np.ndarray, name: str) -> np.ndarray:
        draws = np.stack([np.random.default_rng(int(row[0])).normal(size=D) for row in ids]).astype(np.float32)
        return draws / np.linalg.norm(draws, axis=1, keepdims=True)

    monkeypatch.setattr(embedded, "text_features", features)
    monkeypatch.setattr(embedded, "tokenize", lambda texts, name, length: np.array([[ord(t[0])] for t in texts]))


# -- weights ----------------------------------------------------------------------------------------------------------
def test_weights_on_paper():
    queries, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert fed_mp.similarity(queries, texts, "similarity") == pytest.approx(3.4 / 6)
    assert fed_mp.similarity(queries, texts, "released") == pytest.approx(3.4 / 2 / 2**0.5)
    assert fed_mp.similarity(queries, -texts, "similarity") == 0 and fed_mp.similarity(queries, texts, "uniform") == 1
    assert fed_mp.similarity(queries, texts[:0], "similarity") == 0  # a client without classes
    assert fed_mp.shares([0.2, 0.6]) == pytest.approx([0.25, 0.75]) and fed_mp.shares([0.0, 0.0]) == [0.5, 0.5]
    assert sum(fed_mp.shares([0.1, 0.7, 0.4])) == pytest.approx(1)


def test_equal_descriptions_give_the_plain_mean():
    texts = torch.randn(4, D)
    for weights in fed_mp.WEIGHTS:
        assert fed_mp.shares([fed_mp.similarity(texts, texts, weights)] * 4) == pytest.approx([0.25] * 4)


# -- the stream -------------------------------------------------------------------------------------------------------
def test_a_stream_by_hand():
    """Two classes on the axes. Each first batch of one sample is sure; then prototypes move."""
    texts = torch.eye(2)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    predicted, means = fed_mp.streamed(features, texts, scale=100.0, rho=0.5, batch=1)
    assert predicted.tolist() == [0, 1, 0]
    # the third sample's logits are 160 and 120 with the prototypes (2, 0) and (0, 2): it is sure, too
    torch.testing.assert_close(means, torch.tensor([[0.9, 0.3], [0.0, 1.0]]))


def test_prototypes_wait_until_every_class_was_predicted():
    texts, features = torch.eye(2), torch.tensor([[1.0, 0.0]] * 3)
    features = torch.cat([features, torch.tensor([[0.55, 0.6]])])  # the prototype (2, 0) would make it class 0
    predicted, _ = fed_mp.streamed(features, texts, scale=100.0, rho=0.5, batch=1)
    assert predicted.tolist() == [0, 0, 0, 1]


def test_rho_0_admits_nobody_and_the_order_within_a_batch_does_not_matter():
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(40, D, generator=draw), dim=1)
    texts = F.normalize(torch.randn(3, D, generator=draw), dim=1)
    predicted, means = fed_mp.streamed(features, texts, 20.0, 0.0, 8)
    assert torch.equal(predicted, (features @ texts.T).argmax(1)) and not means.any()
    predicted, means = fed_mp.streamed(features, texts, 20.0, 0.5, 8)
    order = torch.cat([a + torch.randperm(8, generator=draw) for a in range(0, 40, 8)])
    again, same = fed_mp.streamed(features[order], texts, 20.0, 0.5, 8)
    assert means.any() and torch.equal(again, predicted[order])
    torch.testing.assert_close(same, means)


def test_without_a_gate_the_encoder_is_reproduced():
    net = Gate().build((D,), CLASSES)
    x = F.normalize(torch.randn(9, D), dim=1)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(net(x), x)  # softmax(0) is 1 / D everywhere
    y = torch.arange(9) % CLASSES
    arrays = {"x": x, "text": F.normalize(torch.randn(CLASSES, D), dim=1)[y], "y": y}
    found = fed_mp.accuracies(net, fl.Params.of(dict(net.named_parameters())), arrays, (20.0, 0.1, 4))
    assert found["adapted/accuracy"] == found["encoder/accuracy"]
    assert sum(p.numel() for p in Gate().build((768,), 1).parameters()) == 1_181_184  # the paper's, for ViT-L/14


# -- the client -------------------------------------------------------------------------------------------------------
def test_the_loss_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 3.0]])
    e = torch.exp
    rows = -torch.log(e(logits[0, 0]) / e(logits[0]).sum()), -torch.log(e(logits[0, 0]) / e(logits[:, 0]).sum())
    assert client_side.pairs_loss(logits)[0].item() == pytest.approx(float(sum(rows)) / 2)
    same = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    masked = -torch.log(e(torch.tensor(2.0)) / (e(torch.tensor(2.0)) + 1))
    assert client_side.pairs_loss(logits, same)[0].item() == pytest.approx(float(masked))


@pytest.mark.parametrize("mask", [False, True])
def test_the_objective_compares_gated_features_with_adapted_descriptions(mask):
    client = FedMP(alpha=0.5, residual=1.0, mask=mask)
    net = client.extend(Gate().build((D,), CLASSES), (D,), CLASSES)
    y = torch.tensor([1, 3, 1])
    batch = {"x": torch.randn(3, D), "text": torch.randn(3, D), "y": y}

    class At:
        config = {"scale": 7.0}

    texts = F.normalize(batch["text"] + 0.5 * net.residual.rows[y], dim=1)
    logits = 7.0 * net(batch["x"]) @ texts.T
    expected = client_side.pairs_loss(logits, y[:, None] == y if mask else None)
    torch.testing.assert_close(client.objective(net, batch, At(), Classification()), expected)
    assert net.residual.rows.abs().max() <= 1


# -- data -------------------------------------------------------------------------------------------------------------
def test_classes_of_the_test_set_belong_to_nobody(encoder):
    data = Embedded(of=Ids(), held_out=2, clients=3, per_class=2).load()
    train, test = set(data.train["y"].tolist()), set(data.test["y"].tolist())
    assert len(train) == 3 and len(test) == 2 and not train & test
    assert np.bincount(data.train["y"]).max() == 2 and np.bincount(data.test["y"]).max() == 3
    for client in range(3):
        assert len(set(data.train["y"][data.clients == client].tolist())) == 1
    for part in (data.train, data.test):  # the description of a class is the same in all its rows
        for c in np.unique(part["y"]):
            assert len(np.unique(part["text"][part["y"] == c], axis=0)) == 1


@pytest.mark.parametrize(
    "arguments, message",
    [({"held_out": 3, "clients": 3}, "more than the 5 classes"), ({"texts": ("one",)}, "1 descriptions for 5 classes")],
)
def test_wrong_numbers_are_refused(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        Embedded(of=Ids(), **{"held_out": 2, "clients": 2, **arguments}).load()


def test_features_are_computed_once(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(text_features, "model_folder", lambda name: tmp_path)
    monkeypatch.setattr(text_features, "computed", lambda ids, name: calls.append(1) or ids.astype(np.float32))
    one, other = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    for ids in (one, one, other):
        assert np.array_equal(text_features.text_features(ids, "minilm"), ids)
    assert len(calls) == 2
    (tmp_path / "config.json").write_text("{}")  # another encoder
    text_features.text_features(one, "minilm")
    assert len(calls) == 3


# -- runs -------------------------------------------------------------------------------------------------------------
def run(tmp_path, **more):
    config = {
        "rounds": 2,
        "data": Embedded(of=Ids(), held_out=2, clients=CLIENTS),
        "partition": "natural",
        "model": "gate",
        "cohort": {"size": CLIENTS},
        "strategy": "fed_mp",
        "client": {"batch": 2, "lr": 0.1},
        "execution": {"executor": "serial"},
    }
    return fl.run({**config, **more}, out=tmp_path / "run")


def test_the_ledger_has_the_closed_form(encoder, tmp_path):
    result = run(tmp_path)
    gate, rows = 4 * 2 * (D * D + D), result.ledger.to_pylist()
    found = {(r["direction"], r["group"], r["payload_bytes"]) for r in rows}
    assert found == {("down", "model", gate), ("up", "model", gate), ("up", "texts", 4 * D)}  # one class each
    assert len(rows) == 2 * 3 * CLIENTS and set(result.model) == {f"{a}.{b}" for a in ("first", "second") for b in
                                                                   ("weight", "bias")}  # fmt: skip
    last = result.metrics[-1]
    assert 1 / 3 <= last["weight/max"] <= 1 and 0 <= last["adapted/prototypes"] <= 1


def test_data_without_descriptions_are_refused(encoder, tmp_path):
    with pytest.raises(ConfigError, match="strategy.name: fed_mp needs .* the array 'text'"):
        run(tmp_path, data={"name": "noise", "shape": [D], "classes": 3, "clients": 3})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "regression"}, "task: client FedMP needs a class for each sample"),
        ({"model": {"name": "mlp", "hidden": [4]}}, "strategy.name: fed_mp compares .*use model: gate"),
    ],
)
def test_other_tasks_and_models_are_refused_before_round_0(change, message, encoder, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, **change)
