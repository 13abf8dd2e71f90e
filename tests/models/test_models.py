"""Models: parameter counts in closed form, shapes, and refusals."""

import pytest
import torch

from fl.models.cnn import CNNSmall, CNNTiny
from fl.models.linear import MLP, Softmax
from fl.registry import lookup, names


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense(*widths) -> int:
    return sum(a * b + b for a, b in zip(widths, widths[1:]))


def conv(*channels) -> int:
    return sum(9 * a * b + b for a, b in zip(channels, channels[1:]))


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
    ],
)
def test_parameters_and_outputs(model, shape, outputs, expected):
    module = model.build(shape, outputs)
    assert count(module) == expected
    assert module(torch.zeros(3, *shape)).shape == (3, outputs)


def test_registered_names():
    assert {"softmax", "mlp", "cnn_small", "cnn_tiny"} <= set(names("model"))
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


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: CNNSmall().build((3, 15, 32), 10), r"cnn_small takes images \(channels, 16 or more, 16 or more\)"),
        (lambda: CNNTiny().build((64,), 10), r"a sample is \(64,\)"),
        (lambda: MLP(hidden=(20, 0)), r"hidden: \(20, 0\) has a width"),
        (lambda: MLP(activation="gelu"), "activation: 'gelu' is not one of"),
        (lambda: MLP(dropout=1.0), "dropout: 1.0 is not in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
