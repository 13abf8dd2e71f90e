"""Adapters on plain modules: outputs, trained parameters, and models from files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.models import adapter
from fl.models.adapters.lora import LoRA
from fl.models.binding import module_params

CONFIG = {
    "rounds": 2,
    "data": "digits",
    "partition": {"name": "iid", "clients": 5},
    "model": {"name": "mlp", "hidden": [12]},
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "execution": {"executor": "serial"},
}
SCALES = {"lora": 6 / 3, "rslora": 6 / 3**0.5}


def built(**model) -> nn.Module:
    torch.manual_seed(0)
    return resolve(read(CONFIG, {f"model.{k}": v for k, v in model.items()})).model.build((1, 8, 8), 10)


@pytest.mark.parametrize("name", SCALES)
def test_lora_adds_a_scaled_product(name):
    net = built(adapter={"name": name, "rank": 3, "alpha": 6})
    layers = adapter.layers(module_params(net))
    assert list(layers) == ["1", "3"]
    params = module_params(net)
    for a, b in layers.values():
        assert params[a].shape[0] == params[b].shape[1] == 3
        assert not params[b].any()
    with torch.no_grad():
        for _, b in layers.values():
            net.get_parameter(b).normal_()
    params, x = module_params(net), torch.randn(4, 1, 8, 8)
    h = x.flatten(1)
    for layer in ("1", "3"):
        base, (a, b) = net.get_submodule(layer).base_layer, layers[layer]
        assert adapter.scale(net, layer) == pytest.approx(SCALES[name])
        assert torch.equal(base.weight, net.get_parameter(adapter.base_name(layer)))
        h = h @ (base.weight + SCALES[name] * params[b] @ params[a]).T + base.bias
        h = torch.relu(h) if layer == "1" else h
    torch.testing.assert_close(net(x), h)


def test_vera_trains_two_vectors_a_layer():
    net = built(adapter={"name": "vera", "rank": 3})
    params = module_params(net)
    assert {tuple(params[n].shape) for n in adapter.first(params)} == {(3,)}
    assert [params[n].shape[0] for n in adapter.second(params)] == [12, 10]
    assert not adapter.head(params)


class Encoder(nn.Module):
    """One encoder layer of torch over the eight rows of a digit."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, outputs)

    def forward(self, x):
        return self.head(self.layer(x[:, 0]).mean(1))


def adapted_encoder(**arguments) -> nn.Module:
    torch.manual_seed(0)
    return LoRA(rank=2, **arguments).wrap(Encoder((1, 8, 8), 10))


def test_weights_that_attention_only_reads_are_not_adapted():
    layers = list(adapter.layers(module_params(adapted_encoder())))
    assert sorted(layers) == ["head", "layer.linear1", "layer.linear2"]
    assert list(adapter.layers(module_params(adapted_encoder(targets=("linear1",))))) == ["layer.linear1"]
    with pytest.raises(ValueError, match="targets: 'out_proj' belongs to nn.MultiheadAttention"):
        adapted_encoder(targets=("out_proj",))


def test_a_misspelt_layer_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"targets: 'linaer1' is not .* Did you mean 'linear1'\?"):
        adapted_encoder(targets=("linaer1",))


def test_evaluation_uses_the_adapters_of_encoder_layers():
    """The fast path of torch in evaluation would read the base weights of the adapted layers."""
    net, x = adapted_encoder(), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in adapter.second(module_params(net)):
            net.get_parameter(name).normal_()
        trained, evaluated = net.train()(x), net.eval()(x)
    torch.testing.assert_close(evaluated, trained, rtol=1e-5, atol=1e-5)


def test_an_adapted_encoder_layer_trains(tmp_path):
    (tmp_path / "m.py").write_text("from tests.models.test_adapters import Encoder\n")
    own = {"model": {"name": f"{tmp_path}/m.py:Encoder", "adapter": {"name": "lora", "rank": 2}}}
    result = fl.run(CONFIG | own, out=tmp_path / "run")
    assert len(result.model) == 6 and all(result.model[name].any() for name in result.model)


def test_default_targets_are_whole_names():
    """The linear layer "0" is a target; the convolution "a.0" is not, although its name ends in the same way."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4))
    net.add_module("a", nn.Sequential(nn.Conv2d(1, 1, 1)))
    assert list(adapter.layers(module_params(LoRA(rank=1).wrap(net)))) == ["0"]


def test_marks_are_whole_parts_of_names():
    pair = ["explora_A.lora_A.default.weight", "explora_A.lora_B.default.weight"]
    names = ["explora_A.weight", "explora_B.weight", *pair]
    assert (adapter.first(names), adapter.second(names)) == (pair[:1], pair[1:])
    assert adapter.head(names) == names[:2]
    assert adapter.layers(names) == {"explora_A": tuple(pair)}


def test_halves_and_head_are_all_that_trains():
    params = module_params(built(adapter={"name": "lora", "rank": 2, "trains": ["3.*"]}))
    assert adapter.first(params) == ["1.lora_A.default.weight"]
    assert adapter.second(params) == ["1.lora_B.default.weight"]
    assert adapter.head(params) == ["3.weight", "3.bias"]


def test_what_is_frozen_stays_and_costs_nothing(tmp_path):
    result = fl.run(CONFIG, out=tmp_path / "run", **{"model.freeze": ["1.*"]})
    assert set(result.model) == {"3.weight", "3.bias"}
    sent = {row["encoded_bytes"] for row in result.ledger.to_pylist()}
    assert sent == {4 * (12 * 10 + 10)}


def test_a_model_begins_with_the_weights_of_a_file(tmp_path):
    first = fl.run(CONFIG, out=tmp_path / "first")
    for init in (first.directory, first.directory / "model.safetensors"):
        again = built(init=str(init))
        assert all(torch.equal(p, first.model[n]) for n, p in again.named_parameters())
    adapted = built(init=str(first.directory), adapter="lora")
    assert torch.equal(adapted.get_parameter("1.base_layer.weight"), first.model["1.weight"])


@pytest.mark.parametrize(
    "model, said",
    [
        (
            {"adapter": {"name": "lora", "targets": ["query"]}},
            r"^model.adapter.targets: 'query' is not a layer .* \['1', '3'\]",
        ),
        (
            {"adapter": {"name": "lora", "targets": ["2"]}},
            r"^model.adapter.targets: .*ReLU\(\) is not supported.*'3'\]",
        ),
        ({"adapter": {"name": "lora", "rank": 0}}, "model.adapter.rank: 0 is not at least 1"),
        ({"freeze": ["9.*"]}, "pattern '9.\\*' matches no parameter"),
        ({"freeze": ["*"]}, "model.freeze: nothing is left to train"),
        ({"init": "nowhere.safetensors"}, "model.init: there is no file nowhere.safetensors"),
        ({"adapter": "lorra"}, "Did you mean 'lora'"),
    ],
)
def test_bad_models_are_refused(model, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        fl.run(CONFIG, **{f"model.{k}": v for k, v in model.items()})


def test_a_file_of_another_model_is_refused(tmp_path):
    save_file({"1.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="and the model differ in"):
        fl.run(CONFIG, **{"model.init": str(tmp_path / "other.safetensors")})


def test_fedsa_needs_an_adapter():
    with pytest.raises(ConfigError, match="model.adapter: there is no adapter"):
        fl.run(CONFIG, strategy="fedsa_lora")


def test_another_adapter_drops_what_it_lacks(caplog):
    config = read(
        {**CONFIG, "model": {"name": "mlp", "adapter": {"name": "lora", "rank": 4, "alpha": 8}}},
        {"model.adapter.name": "vera"},
    )
    assert config["model"]["adapter"] == {"name": "vera", "rank": 4}
    assert "alpha" in caplog.text
