"""Models: parameter counts in closed form, shapes, and refusals."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fl
from fl.models.architectures.cnn import CNNFedAvg, CNNLeaf, CNNPfl, CNNPFLlib, CNNSmall, CNNTiny
from fl.models.architectures.linear import MLP, Softmax
from fl.models.architectures.resnet import ResNet8, ResNet18
from fl.models.dropout import Dropout
from fl.registry import lookup, names


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense(*widths) -> int:
    return sum(a * b + b for a, b in zip(widths, widths[1:]))


def conv(*channels, kernel=3) -> int:
    return sum(kernel**2 * a * b + b for a, b in zip(channels, channels[1:]))


def residual(channels, outputs, *widths, blocks) -> int:
    """Count a ResNet: convolutions without biases, two numbers per channel of each normalisation, a dense head."""
    total, last = 9 * channels * widths[0] + 2 * widths[0], widths[0]
    for width in widths:
        total += 9 * last * width + (2 * blocks - 1) * 9 * width * width + 2 * blocks * 2 * width
        total += (last * width + 2 * width) * (last != width)
        last = width
    return total + last * outputs + outputs


@pytest.mark.parametrize(
    "model, shape, outputs, expected",
    [
        (Softmax(), (60,), 10, 61 * 10),
        (Softmax(), (1, 8, 8), 10, 65 * 10),
        (MLP(hidden=(200, 200)), (1, 28, 28), 62, 209_662),
        (MLP(hidden=(200, 200)), (784,), 62, dense(784, 200, 200, 62)),
        (MLP(hidden=(), dropout=0.5), (4,), 2, dense(4, 2)),
        (CNNSmall(), (3, 32, 32), 10, 271_786),
        (CNNSmall(), (1, 28, 28), 62, conv(1, 32, 32, 64, 64) + dense(64 * 4 * 4, 128, 62)),
        (CNNSmall(), (1, 16, 17), 2, conv(1, 32, 32, 64, 64) + dense(64, 128, 2)),
        (CNNTiny(), (1, 8, 8), 10, 6_090),
        (CNNTiny(), (3, 5, 9), 4, conv(3, 16, 32) + dense(32 * 1 * 2, 4)),
        (CNNFedAvg(), (1, 28, 28), 10, 1_663_370),
        (CNNFedAvg(), (3, 32, 35), 10, conv(3, 32, 64, kernel=5) + dense(64 * 8 * 8, 512, 10)),
        (CNNLeaf(), (1, 28, 28), 62, 6_603_710),
        (CNNLeaf(), (1, 4, 4), 2, conv(1, 32, 64, kernel=5) + dense(64, 2048, 2)),
        (CNNPFLlib(), (1, 28, 28), 10, 582_026),
        (CNNPFLlib(), (3, 32, 32), 10, conv(3, 32, 64, kernel=5) + dense(1600, 512, 10)),
        (CNNPFLlib(), (1, 16, 21), 2, conv(1, 32, 64, kernel=5) + dense(64 * 1 * 2, 512, 2)),
        (CNNPfl(), (3, 32, 32), 10, 1_626_442),
        (CNNPfl(), (1, 6, 9), 2, conv(1, 32, 64) + dense(64 * 1 * 2, 128, 2)),
        (ResNet8(), (3, 32, 32), 10, 78_042),
        (ResNet8(width=64), (3, 32, 32), 10, residual(3, 10, 64, 128, 256, blocks=1)),
        (ResNet8(norm="batch"), (1, 28, 28), 62, residual(1, 62, 16, 32, 64, blocks=1)),
        (ResNet8(norm="layer", width=9), (1, 4, 5), 2, residual(1, 2, 9, 18, 36, blocks=1)),
        (ResNet18(), (3, 32, 32), 10, 11_173_962),
        (ResNet18(width=8), (3, 8, 8), 100, residual(3, 100, 8, 16, 32, 64, blocks=2)),
    ],
)
def test_parameters_and_outputs(model, shape, outputs, expected):
    module = model.build(shape, outputs).eval()
    assert count(module) == expected
    assert module(torch.zeros(3, *shape)).shape == (3, outputs)


def test_registered_names():
    literature = {"cnn_fedavg", "cnn_leaf", "cnn_pfllib", "cnn_pfl", "resnet8", "resnet18"}
    assert {"softmax", "mlp", "cnn_small", "cnn_tiny"} | literature <= set(names("model"))
    assert lookup("model", "softmax") is Softmax and lookup("model", "cnn_tiny") is CNNTiny


def test_softmax_is_affine():
    module, x = Softmax().build((2, 3), 4), torch.arange(12.0).view(2, 2, 3)
    weight, bias = module.parameters()
    assert torch.allclose(module(x), x.view(2, 6) @ weight.T + bias)


@pytest.mark.parametrize(
    "activation, phi", [("relu", lambda z: z.clamp(min=0)), ("tanh", torch.tanh), ("sigmoid", torch.sigmoid)]
)
def test_mlp_is_what_its_docstring_says(activation, phi):
    module = MLP(hidden=(5,), activation=activation).build((3,), 2)
    w1, b1, w2, b2 = module.parameters()
    x = torch.linspace(-2, 2, 12).view(4, 3)
    assert torch.allclose(module(x), phi(x @ w1.T + b1) @ w2.T + b2)


def test_mlp_dropout_reads_its_mask():
    module = MLP(hidden=(5,), dropout=0.5).build((3,), 2).train()
    x = torch.ones(1, 3)
    with pytest.raises(RuntimeError, match="no mask"):
        module(x)
    module[3].mask = torch.zeros(1, 5)
    assert torch.equal(module(x)[0], module[-1].bias)
    w1, b1, w2, b2 = module.parameters()
    assert torch.allclose(module.eval()(x), (x @ w1.T + b1).relu() @ w2.T + b2)


def kinds(module) -> list[str]:
    return [
        f"{type(m).__name__} {m.padding[0]}" if isinstance(m, nn.Conv2d) else type(m).__name__
        for m in module
        if not isinstance(m, nn.Flatten)
    ]


def test_layers_are_those_of_the_programs():
    pair, tail = ["ReLU", "MaxPool2d"], ["Linear", "ReLU", "Linear"]
    for model in (CNNFedAvg(), CNNLeaf()):
        assert kinds(model.build((1, 28, 28), 10)) == ["Conv2d 2", *pair, "Conv2d 2", *pair, *tail]
    assert kinds(CNNPFLlib().build((1, 28, 28), 10)) == ["Conv2d 0", *pair, "Conv2d 0", *pair, *tail]
    built = CNNPfl().build((3, 32, 32), 10)
    middle = ["Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert kinds(built) == ["Conv2d 0", "ReLU", "Conv2d 0", *pair, *middle]
    assert [m.p for m in built if isinstance(m, Dropout)] == [0.25, 0.5]


def test_glorot_weights():
    layers = [m for m in CNNPfl().build((3, 32, 32), 10) if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer, (fan_in, fan_out) in zip(layers, [(27, 288), (288, 576), (12544, 128), (128, 10)]):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("norm, groups", [("group", 2), ("group", 4), ("layer", 1)])
def test_resnet8_is_what_its_docstring_says(norm, groups):
    module = ResNet8(norm=norm, groups=groups, width=8).build((2, 8, 8), 3)
    with torch.no_grad():
        for p in module.parameters():  # change scales and shifts, too, so that the comparison notices if one is ignored
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.3)
    p, x = dict(module.named_parameters()), torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))

    def n(name, z):
        parts = z.reshape(2, groups, -1)
        unit = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return unit.view_as(z) * p[f"{name}.weight"].view(-1, 1, 1) + p[f"{name}.bias"].view(-1, 1, 1)

    h = n("stem.1", F.conv2d(x, p["stem.0.weight"], padding=1)).relu()
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        name = f"stage{stage}.0"
        inner = n(f"{name}.norm1", F.conv2d(h, p[f"{name}.conv1.weight"], stride=stride, padding=1)).relu()
        inner = n(f"{name}.norm2", F.conv2d(inner, p[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            h = n(f"{name}.shortcut.1", F.conv2d(h, p[f"{name}.shortcut.0.weight"], stride=2))
        h = (inner + h).relu()
    assert h.shape == (2, 32, 2, 2)
    torch.testing.assert_close(module(x), h.mean((2, 3)) @ p["head.weight"].T + p["head.bias"], rtol=1e-4, atol=1e-4)


def test_resnet18_has_two_blocks_a_stage_and_halves_three_times():
    module = ResNet18(width=8).build((3, 32, 32), 10)
    sides, x = [], torch.zeros(1, 3, 32, 32)
    for name, layer in module.named_children():
        x = layer(x)
        sides += [x.shape[-1]] if name.startswith("stage") else []
    assert sides == [32, 16, 8, 4]
    assert [len(module.get_submodule(f"stage{s}")) for s in (1, 2, 3, 4)] == [2, 2, 2, 2]
    assert not any(isinstance(m, nn.MaxPool2d) for m in module.modules())


def test_weights_begin_as_he_has_them():
    weight = ResNet8(width=64).build((3, 32, 32), 10).get_parameter("stage3.0.conv1.weight").detach()
    assert weight.std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def norms(model) -> list[nn.Module]:
    return [m for m in model.build((3, 8, 8), 2).modules() if isinstance(m, (nn.GroupNorm, nn.BatchNorm2d))]


def test_norms():
    assert {m.num_groups for m in norms(ResNet8())} == {2}
    assert {m.num_groups for m in norms(ResNet8(norm="layer"))} == {1}
    assert [type(m) for m in norms(ResNet8(norm="batch"))] == [nn.BatchNorm2d] * 9


TRAINED = {
    "rounds": 1,
    "data": {"name": "noise", "shape": [3, 16, 16], "classes": 3, "clients": 4, "samples": 12},
    "partition": "natural",
    "cohort": {"size": 3},
    "strategy": "fedavg",
    "client": {"lr": 0.01, "batch": 5},
    "evaluation": {"clients": 0, "server": False},
    "execution": {"executor": "serial"},
}


@pytest.mark.parametrize(
    "model",
    [
        {"name": "resnet8", "width": 8},
        {"name": "resnet8", "width": 3, "norm": "layer"},
        {"name": "resnet18", "width": 8},
        "cnn_pfl",
        "cnn_pfllib",
    ],
)
def test_all_plans_and_memory_formats_agree(model):
    config = TRAINED | {"model": model}
    memory_formats = ["contiguous", "channels_last"] + ["compiled"] * (model in ("cnn_pfl", "cnn_pfllib"))
    plans = [{"plan": "loop", "memory_format": kind} for kind in memory_formats] + [
        {"plan": p, "chunk": 4} for p in ("flat", "vmap")
    ]
    loop, *others = (fl.run(config, **{f"execution.{k}": v for k, v in plan.items()}).model for plan in plans)
    for name, tensor in loop.items():
        for other in others:
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: CNNSmall().build((3, 15, 32), 10), r"cnn_small takes images \(channels, 16 or more, 16 or more\)"),
        (lambda: CNNTiny().build((64,), 10), r"a sample is \(64,\)"),
        (lambda: CNNFedAvg().build((1, 3, 28), 10), r"cnn_fedavg takes images \(channels, 4 or more, 4 or more\)"),
        (lambda: CNNLeaf().build((784,), 62), r"cnn_leaf takes images .* a sample is \(784,\)"),
        (lambda: CNNPFLlib().build((1, 28, 15), 10), "cnn_pfllib takes images .* 16 or more"),
        (lambda: CNNPfl().build((3, 5, 6), 10), "cnn_pfl takes images .* 6 or more"),
        (lambda: ResNet8().build((3, 3, 32), 10), "resnet8 takes images .* 4 or more"),
        (lambda: ResNet18().build((3, 7, 7), 10), "resnet18 takes images .* 8 or more"),
        (lambda: ResNet8(norm="instance"), "norm: 'instance' is not one of"),
        (lambda: ResNet8(groups=3), "groups: 3 does not divide the 16 channels"),
        (lambda: ResNet8(width=0), "width: 0 is not positive"),
        (lambda: MLP(hidden=(20, 0)), r"hidden: \(20, 0\) has a width"),
        (lambda: MLP(activation="gelu"), "activation: 'gelu' is not one of"),
        (lambda: MLP(dropout=1.0), "dropout: 1.0 is not in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
