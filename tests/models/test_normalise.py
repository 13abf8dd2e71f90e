"""FN and LN: values on paper, invariances, the places of the layers, and equal training in every plan."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl
from fl.errors import ConfigError
from fl.models.architectures.cnn import CNNFedAvg, CNNPfl, CNNPFLlib, CNNSmall, CNNTiny
from fl.models.architectures.linear import MLP
from fl.models.architectures.resnet import ResNet8, ResNet18
from fl.models.dropout import Dropout
from fl.models.normalise import LAYER_EPS, FeatureNorm, SampleNorm

CONFIG = {
    "rounds": 2,
    "data": {"name": "noise", "shape": [1, 8, 8], "classes": 4, "clients": 5, "samples": 14},
    "partition": "natural",
    "splits": {"val": 0.0},
    "cohort": {"fraction": 1.0},
    "strategy": "fedavg",
    "client": {"steps": 3, "batch": 5, "lr": 0.1},
    "evaluation": {"every": 2, "clients": 0},
    "execution": {"executor": "serial"},
}
MODELS = {
    "mlp": {"name": "mlp", "hidden": [9, 7], "bias": False},
    "cnn_tiny": {"name": "cnn_tiny", "bias": False},
    "resnet8": {"name": "resnet8", "norm": "none", "width": 2, "bias": False},
}
SIZES = {  # without biases
    "mlp": 64 * 9 + 9 * 7 + 7 * 4,
    "cnn_tiny": 9 * 16 + 9 * 16 * 32 + 32 * 2 * 2 * 4,
    "resnet8": 9 * (2 + 2 * 2 * 2 + 2 * 4 + 4 * 4 + 4 * 8 + 8 * 8) + 2 * 4 + 4 * 8 + 8 * 4,
}


# -- the layers on paper ----------------------------------------------------------------------------------------------
def test_feature_norm_by_hand():
    assert torch.allclose(FeatureNorm()(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.848528, 1.131371]]), atol=1e-6)
    z = torch.randn(20, 37, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(FeatureNorm()(z).norm(dim=-1), torch.full((20,), math.sqrt(37)), rtol=1e-6)


def test_zero_features_stay_zero_with_a_finite_gradient():
    z = torch.zeros(2, 4, requires_grad=True)
    outputs = FeatureNorm()(z)
    (gradient,) = torch.autograd.grad(outputs.sum(), z)
    assert torch.equal(outputs, torch.zeros(2, 4)) and gradient.isfinite().all()


def test_sample_norm_by_hand():
    one = 1 / math.sqrt(1 + LAYER_EPS)  # (1, 3) has variance 1
    assert torch.allclose(SampleNorm()(torch.tensor([[1.0, 3.0]])), torch.tensor([[-one, one]]), atol=1e-6)
    assert torch.equal(SampleNorm()(torch.full((1, 2, 3, 3), 5.0)), torch.zeros(1, 2, 3, 3))


def test_a_map_is_one_group_of_channels_and_positions():
    x = np.random.default_rng(0).normal(2.0, 3.0, (4, 3, 5, 6))
    flat = x.reshape(4, -1)
    expected = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + LAYER_EPS)
    assert np.allclose(SampleNorm()(torch.from_numpy(x)).numpy(), expected.reshape(x.shape), atol=1e-12)


# -- invariances of networks without biases ---------------------------------------------------------------------------
LAST_HIDDEN = [  # (model, shape, name of the last hidden layer)
    (MLP(hidden=(20, 12), bias=False, normalise="feature"), (1, 8, 8), "3"),
    (CNNTiny(bias=False, normalise="feature"), (1, 8, 8), "3"),
    (CNNPfl(dropout=False, bias=False, normalise="feature"), (3, 8, 8), "6"),
]


@pytest.mark.parametrize("model, shape, layer", LAST_HIDDEN)
def test_the_scale_of_the_last_hidden_layer_does_not_count(model, shape, layer):
    torch.manual_seed(0)
    module, x = model.build(shape, 4), torch.randn(6, *shape)
    before = module(x).detach()
    module.get_submodule(layer).weight.data.mul_(7.3)
    assert torch.allclose(module(x), before, rtol=0, atol=1e-6 * float(before.abs().max()))


@pytest.mark.parametrize("model, shape, layer", LAST_HIDDEN)
def test_a_gradient_step_is_orthogonal_to_the_last_hidden_layer(model, shape, layer):
    """<W, g> = 0 by Euler, so |W - lr g|^2 = |W|^2 + lr^2 |g|^2."""
    torch.manual_seed(0)
    module, x, y = model.build(shape, 4).double(), torch.randn(6, *shape).double(), torch.arange(6) % 4
    weight = module.get_submodule(layer).weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(module(x), y), weight)
    weight = weight.detach()
    assert float((weight * gradient).sum()) == pytest.approx(0, abs=1e-12)
    after = (weight - 0.7 * gradient).square().sum()
    assert float(after) == pytest.approx(float(weight.square().sum() + 0.49 * gradient.square().sum()), rel=1e-12)


# -- where the layers are ---------------------------------------------------------------------------------------------
def kinds(module) -> list[str]:
    return [type(layer).__name__ for layer in module]


def test_places_in_a_perceptron():
    layers = MLP(hidden=(5,), dropout=0.5, bias=False, normalise="layer").build((3,), 2)
    assert kinds(layers) == ["Flatten", "Linear", "ReLU", "SampleNorm", "Dropout", "Linear"]
    features = MLP(hidden=(5, 4), bias=False, normalise="feature").build((3,), 2)
    assert kinds(features) == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "FeatureNorm", "Linear"]


@pytest.mark.parametrize("model, shape", [(CNNSmall, (1, 16, 16)), (CNNFedAvg, (1, 4, 4)), (CNNPFLlib, (1, 16, 16))])
def test_places_in_a_convolutional_network(model, shape):
    layers = kinds(model(bias=False, normalise="layer").build(shape, 2))
    after = [following for layer, following in zip(layers, layers[1:]) if layer == "ReLU"]
    assert set(after) == {"SampleNorm"} and layers.count("SampleNorm") == len(after)
    assert kinds(model(bias=False, normalise="feature").build(shape, 2))[-2:] == ["FeatureNorm", "Linear"]


def test_dropout_comes_before_feature_normalisation():
    assert kinds(CNNPfl(bias=False, normalise="feature").build((3, 8, 8), 2))[-3:] == [
        *(Dropout.__name__, "FeatureNorm", "Linear")
    ]


@pytest.mark.parametrize("normalise", ["feature", "layer"])
@pytest.mark.parametrize("model, blocks", [(ResNet8, 3), (ResNet18, 8)])
def test_residual_networks_have_no_other_normalisation(model, blocks, normalise):
    module = model(width=4, bias=False, normalise=normalise).build((1, 8, 8), 2)
    found = [type(layer) for layer in module.modules()]
    assert not {nn.GroupNorm, nn.BatchNorm2d} & set(found)
    assert not [name for name, _ in module.named_parameters() if "bias" in name or "norm" in name]
    calls = []
    for layer in module.modules():
        if isinstance(layer, (FeatureNorm, SampleNorm, nn.ReLU)):
            layer.register_forward_hook(lambda layer, inputs, outputs: calls.append(type(layer)))
    assert module(torch.randn(3, 1, 8, 8)).shape == (3, 2)
    if normalise == "feature":
        assert kinds(module)[-2:] == ["FeatureNorm", "Linear"] and calls == [nn.ReLU] * (1 + 2 * blocks) + [FeatureNorm]
    else:
        assert calls == [nn.ReLU, SampleNorm] * (1 + 2 * blocks)


def test_norm_none_leaves_normalisation_out():
    module = ResNet8(norm="none", width=4).build((1, 8, 8), 2)
    assert {type(layer) for layer in module.modules()} & {nn.GroupNorm, FeatureNorm, SampleNorm} == set()


# -- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "model, message",
    [
        ({"name": "mlp", "normalise": "batch"}, "model.normalise: 'batch' is not 'none', 'feature' or 'layer'"),
        ({"name": "mlp", "hidden": [], "bias": False, "normalise": "layer"}, "normalise: layer needs a hidden layer"),
        ({"name": "resnet8", "norm": "group", "normalise": "layer", "bias": False}, "norm: group beside normalise"),
    ],
)
def test_refusals(tmp_path, model, message):
    with pytest.raises(ConfigError, match=message):
        fl.run({**CONFIG, "model": model}, out=tmp_path)


def test_biases_get_a_warning(caplog):
    MLP(normalise="feature")
    assert "set bias: false" in caplog.text


# -- runs: traffic, and the plans -------------------------------------------------------------------------------------
@pytest.mark.parametrize("normalise", ["none", "feature", "layer"])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_plans(tmp_path, name, normalise):
    """Each client sends 4 d bytes in a round and receives as many, and all plans end in the same model."""
    ends = {}
    for plan in ("loop", "flat", "vmap", *(("stacked", "compiled") if name == "mlp" else ())):
        execution = {"executor": "serial", "plan": plan}
        config = {**CONFIG, "model": {**MODELS[name], "normalise": normalise}, "execution": execution}
        ends[plan] = fl.run(config, out=tmp_path / plan)
    loop = ends["loop"].model
    assert loop.numel == SIZES[name]
    for plan, result in ends.items():
        assert torch.allclose(result.model.compact(), loop.compact(), rtol=0, atol=1e-5), plan
        assert result.summary["total_uplink_bytes"] == 2 * 5 * 4 * SIZES[name]
        assert result.summary["total_downlink_bytes"] == 2 * 5 * 4 * SIZES[name]
