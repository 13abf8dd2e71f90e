"""Runs of convolutions in machine code, beside torch's layers in float64."""

import copy
import ctypes
import gc
import itertools
import math
import mmap
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import fl
from fl.execution.training import convolutions
from fl.execution.training.convolutions import compute, passes, takes
from fl.execution.training.memory_format import compiled_runs, use_memory_format


def run_of(layers):
    """What computes the layers, and their weights."""
    assert compiled_runs(nn.Sequential(*layers, nn.Flatten())) == [list(layers)]
    convolved = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    weights = [each for layer in convolved for each in (layer.weight, layer.bias)]
    return convolutions.convolutions(layers), weights


def assert_as_in_float64(layers, x):
    """Outputs and all gradients are those of torch in float64; without the gradient in the images the same bits."""
    run, weights = run_of(layers)
    leaves = [x.requires_grad_(), *(weight for weight in weights if weight is not None)]
    out = compute(run, x, weights)
    slopes = torch.randn(out.shape)
    ours = torch.autograd.grad(out, leaves, slopes)
    with torch.no_grad():
        assert torch.equal(compute(run, x, weights), out)
    alone = torch.autograd.grad(compute(run, x.detach(), weights), leaves[1:], slopes)
    assert all(map(torch.equal, alone, ours[1:]))
    module = nn.Sequential(*layers)
    parameters = {name: value.detach().double().requires_grad_() for name, value in module.named_parameters()}
    exact = x.detach().double().requires_grad_()
    expected = torch.func.functional_call(module, parameters, exact)
    theirs = torch.autograd.grad(expected, [exact, *parameters.values()], slopes.double())
    for mine, other in zip([out, *ours], [expected, *theirs], strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=4e-6 * scale)


CASES = {
    "cnn_small": ([(3, 32, 3), "relu", (32, 32, 3), "relu", "pool", (32, 64, 3), "relu", "pool"], (3, 3, 21, 22)),
    "cnn_fedavg": ([(1, 32, 5, 1, 2), "relu", "pool", (32, 64, 5, 1, 2), "relu", "pool"], (2, 1, 28, 28)),
    "LeNet": ([(1, 6, 5, 1, 2), "relu", "pool", (6, 16, 5), "relu", "pool"], (4, 1, 28, 28)),
    "pool before ReLU": ([(3, 20, 3, 1, 1), "pool", "relu", (20, 50, 3), "relu", "pool"], (2, 3, 17, 13)),
    "pool without ReLU": ([(2, 33, 3), "pool", (33, 7, 3), "pool"], (2, 2, 16, 15)),
    "two ReLUs": ([(3, 16, 3), "relu", "relu", "pool", "relu"], (2, 3, 9, 9)),
    "100 channels": ([(100, 100, 1), "relu", (100, 17, 3, 1, 1), "relu"], (1, 100, 5, 6)),
    "strides": ([(3, 8, 3, 2, 1), "relu", (8, 16, 3, (2, 3), (0, 2)), "relu", "pool"], (2, 3, 23, 26)),
    "stride beyond the kernel": ([(4, 5, 1, 2), "relu", (5, 6, 2, 3)], (2, 4, 15, 16)),
    "not square": ([(3, 16, (3, 1), 1, (1, 0)), "relu", (16, 8, (1, 5), 1, (0, 2)), "relu"], (2, 3, 7, 11)),
    "one pixel": ([(2, 3, 3, 1, 1), "relu", (3, 4, 1), "relu"], (3, 2, 1, 1)),
    "kernel of the image": ([(2, 3, 5), "relu", (3, 40, 1), "relu"], (3, 2, 5, 5)),
}


def layers_of(described):
    kinds = {"relu": nn.ReLU, "pool": lambda: nn.MaxPool2d(2)}
    return [kinds[each]() if isinstance(each, str) else nn.Conv2d(*each) for each in described]


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_torch_in_float64(name):
    torch.manual_seed(1)  # with it, no number is so close to 0 that float32 has another sign
    described, shape = CASES[name]
    assert_as_in_float64(layers_of(described), torch.randn(shape))


def test_random_runs_are_those_of_torch_in_float64():
    draw = np.random.default_rng(0)
    tried = 0
    while tried < 40:
        torch.manual_seed(tried)
        channels, layers = int(draw.choice([1, 2, 3, 5, 8, 16, 17, 32])), []
        shape = (int(draw.integers(1, 4)), channels, *map(int, draw.integers(1, 20, 2)))
        for _ in range(draw.integers(1, 4)):
            outputs, kernel = int(draw.choice([1, 4, 15, 16, 20, 32, 48])), tuple(map(int, draw.integers(1, 6, 2)))
            stride, pad = tuple(map(int, draw.choice([1, 1, 1, 2], 2))), tuple(int(draw.integers(k)) for k in kernel)
            layers.append(nn.Conv2d(channels, outputs, kernel, stride, pad, bias=bool(draw.integers(2))))
            after = [nn.ReLU() if k == "R" else nn.MaxPool2d(2) for k in draw.choice(["", "R", "RP", "PR", "P"])]
            layers, channels = layers + after, outputs
        if len(layers) < 2 or passes(convolutions.convolutions(layers), *shape[2:], True) is None:
            continue
        tried += 1
        assert_as_in_float64(layers, torch.randn(shape))


@pytest.mark.parametrize("order", [("relu", "pool"), ("pool", "relu"), ("pool",)])
def test_of_equal_numbers_the_first_is_the_maximum(order):
    """Numbers are small integers, so that pools have equal maxima and windows without a positive number."""
    torch.manual_seed(0)
    layers = layers_of([(2, 20, 3), *order])
    with torch.no_grad():
        layers[0].weight.copy_(torch.randint(-1, 2, layers[0].weight.shape))
        layers[0].bias.copy_(torch.randint(-3, 1, (20,)))
    x = torch.randint(-1, 2, (4, 2, 16, 14)).float()
    run, weights = run_of(layers)
    out, expected = compute(run, x, weights), nn.Sequential(*layers)(x)
    slopes = torch.randint(-9, 9, out.shape).float()
    assert torch.equal(out, expected)  # sums of small integers are exact
    for mine, theirs in zip(torch.autograd.grad(out, weights, slopes), torch.autograd.grad(expected, weights, slopes)):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("channels", [2, 20])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("order", [("relu", "pool"), ("pool", "relu"), ("relu",), ("pool",)])
def test_numbers_that_are_not_finite_pass_through(order, value, channels):
    """The loss is NaN or infinite where torch's is, so that a client that diverges is seen."""
    torch.manual_seed(0)
    layers = layers_of([(channels, 20, 3, 1, 1), *order])
    x = torch.randn(2, channels, 9, 8)
    x[1, 0, 3, 5] = value
    run, weights = run_of(layers)
    out, expected = compute(run, x, weights), nn.Sequential(*layers)(x)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, equal_nan=True)
    slopes = torch.where(expected.isfinite(), 1.0, math.nan)
    ours, theirs = (torch.autograd.grad(y, weights, slopes) for y in (out, expected))
    assert ours[1].isnan().any() and torch.equal(ours[1].isnan(), theirs[1].isnan())


def test_a_result_does_not_depend_on_the_other_images_of_a_batch():
    torch.manual_seed(0)
    run, weights = run_of(layers_of([(3, 20, 3), "relu", "pool", (20, 24, 3), "relu"]))
    x = torch.randn(5, 3, 14, 13)
    with torch.no_grad():
        whole = compute(run, x, weights)
        assert all(torch.equal(compute(run, x[i : i + 1], weights), whole[i : i + 1]) for i in range(5))


def test_nothing_is_read_or_written_beyond_an_array(monkeypatch):
    """Each array ends where a page ends, and the next page cannot be opened: a step too far stops the process."""
    libc, page = ctypes.CDLL(None), mmap.PAGESIZE
    kept = []

    def guarded(elements):
        pages = -(-max(4 * elements, 1) // page)
        memory = mmap.mmap(-1, (pages + 1) * page)
        address = np.frombuffer(memory, np.uint8).ctypes.data
        pointer = ctypes.c_void_p(address + pages * page)
        assert libc.mprotect(pointer, page, 0) == 0
        kept.append((memory, pointer))
        return torch.frombuffer(memory, dtype=torch.float32, count=elements, offset=pages * page - 4 * elements)

    monkeypatch.setattr(convolutions, "_split", lambda sizes: [guarded(size).numpy() for size in sizes])
    torch.manual_seed(0)
    runs = [
        (size, layers_of([(channels, 20, 3, 1, 1), "relu", "pool", (20, 5, 2), "relu", (5, 33, 2)]))
        for channels, size in itertools.product((1, 3, 16, 20), (7, 12))
    ]
    monkeypatch.setattr(convolutions, "_empty", lambda *shape: guarded(math.prod(shape)).view(shape))
    try:
        for size, layers in runs:
            channels, (run, weights) = layers[0].in_channels, run_of(layers)
            weights = [guarded(each.numel()).view(each.shape).copy_(each.detach()).requires_grad_() for each in weights]
            x = guarded(2 * channels * size * size).view(2, channels, size, size).normal_().requires_grad_()
            out = compute(run, x, weights)
            slopes = guarded(out.numel()).view(out.shape).normal_()
            assert all(each.isfinite().all() for each in torch.autograd.grad(out, [x, *weights], slopes))
    finally:
        for _, pointer in kept:
            libc.mprotect(pointer, page, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=3),
        nn.Conv2d(4, 4, 2, padding="same"),
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, padding=1),
        nn.AvgPool2d(2),
        nn.ReLU6(),
    ],
)
def test_layers_that_machine_code_does_not_know(layer):
    assert not takes(layer)


def test_images_and_weights_that_machine_code_does_not_know_are_left_to_torch():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d(2))
    x = torch.randn(2, 3, 8, 8)
    with use_memory_format(module, "compiled"):
        torch.testing.assert_close(module(x[0]), module(x)[0])  # a single image has three dimensions
        assert module(x[:0]).shape == (0, 4, 2, 2)
        torch.testing.assert_close(module(x.mT.contiguous().mT), module(x), rtol=0, atol=0)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="Output size is too small"):
            module(x[..., :1])
        assert module.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives_are_those_of_torch(frozen):
    """A gradient penalty. One layer is used twice. `frozen`: no gradient in the images and the first bias."""
    torch.manual_seed(0)
    twice = nn.Conv2d(4, 4, 3, padding=1)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), twice, nn.MaxPool2d(2), nn.ReLU(), twice, nn.ReLU())
    module[0].bias.requires_grad_(not frozen)
    x = torch.randn(3, 2, 12, 12, requires_grad=not frozen)
    own = [tensor for tensor in (x, *module.parameters()) if tensor.requires_grad]
    weight = torch.randn(module(x).shape)

    def derivatives():
        first = torch.autograd.grad((module(x) ** 2 * weight).sum(), own, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), own)

    plain = derivatives()
    with use_memory_format(module, "compiled"):
        ours = derivatives()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("name, kept", [("weight", np.s_[:2]), ("weight", np.s_[:, :2]), ("bias", np.s_[:1])])
def test_tensors_that_were_cut_are_left_to_torch(name, kept):
    """The layer still states its first number of channels. torch refuses what does not fit."""
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3, bias=name == "bias"), nn.ReLU()), torch.randn(2, 3, 6, 6)
    setattr(module[0], name, nn.Parameter(getattr(module[0], name).detach()[kept].clone()))

    def outcome():
        try:
            return module(x)
        except RuntimeError as error:
            return str(error)

    plain = outcome()
    with use_memory_format(module, "compiled"):
        ours = outcome()
    assert torch.equal(ours, plain) if isinstance(plain, torch.Tensor) else ours == plain


def test_a_layer_with_a_forward_method_of_its_own_is_left_alone():
    module, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(1, 1, 5, 5)
    module[1].forward = torch.sin
    with use_memory_format(module, "compiled"):
        assert torch.equal(module(x), module[0](x).sin())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_and_tracing_are_left_to_torch():
    torch.manual_seed(0)
    module, x, slope = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(1, 1, 5, 5), torch.randn(1, 1, 5, 5)
    plain, expected = torch.func.jvp(module, (x,), (slope,))
    with use_memory_format(module, "compiled"):
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x, slope))).tangent
        traced = torch.jit.trace(module, x)
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(traced(x), plain)


def test_defaults_of_torch_do_not_matter():
    module, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.randn(1, 1, 5, 5)
    run, weights = run_of(list(module))
    out = compute(run, x, weights)
    gradients = torch.autograd.grad(out.sum(), weights)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            same = compute(run, x, weights)
            others = torch.autograd.grad(same.sum(), weights)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, [out, *gradients], [same, *others]))


def test_backward_frees_what_forward_saved():
    """As with torch's own layers, the outputs may be kept. Biases are not saved, so they may change in between."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    run, weights = run_of(list(module))
    out = compute(run, torch.randn(1, 1, 5, 5), weights)
    saved = out.grad_fn.saved_tensors
    assert len(saved) == 3  # tape, images and weight
    tape = weakref.ref(saved[0].untyped_storage())
    del saved
    with torch.no_grad():
        module[0].bias.add_(1)
    out.sum().backward(retain_graph=True)
    out.sum().backward()
    gc.collect()
    assert tape() is None
    with pytest.raises(RuntimeError, match="already been freed"):
        out.grad_fn.saved_tensors


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_made_in_the_context_computes_as_torch(copied):
    module, x = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())), torch.randn(1, 1, 5, 5)
    with use_memory_format(module, "compiled"):
        other = copied(module)
        with torch.no_grad():
            module[0][0].weight.zero_()
        out = other(x)
    assert out.grad_fn.name() == "ReluBackward0" and out.max() > 0
    assert torch.equal(out, other[0][1](other[0][0](x)))


def test_all_executors_and_a_resumed_run_end_with_equal_bits(tmp_path):
    config = {
        "rounds": 2,
        "data": "digits",
        "partition": {"name": "iid", "clients": 6},
        "cohort": {"size": 4},
        "strategy": "fedavg",
        "model": "cnn_tiny",
        "execution": {"plan": "loop", "memory_format": "compiled"},
    }
    serial, ray = (fl.run(config, **{"execution.executor": name}).model for name in ("serial", "ray"))
    fl.run({**config, "rounds": 1}, out=tmp_path / "run")
    resumed = fl.resume(tmp_path / "run", rounds=2).model
    for name, tensor in serial.items():
        assert torch.equal(ray[name], tensor) and torch.equal(resumed[name], tensor)


def test_weights_may_lie_in_any_order_in_memory():
    torch.manual_seed(0)
    layers = layers_of([(3, 8, 3), "relu"])
    x, (run, (weight, bias)) = torch.randn(2, 3, 9, 9), run_of(layers)
    strided = weight.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    out, other = compute(run, x, [weight, bias]), compute(run, x, [strided, bias])
    assert torch.equal(out, other)
    (gradient,), (same,) = torch.autograd.grad(out.sum(), weight), torch.autograd.grad(other.sum(), strided)
    assert torch.equal(gradient, same)
