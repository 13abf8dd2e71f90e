"""Memory formats of images: the same gradients, and modules unchanged afterwards."""

import contextlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from fl.config.config import resolve
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.training.fisher import mean_squares
from fl.execution.training.memory_format import compiled_runs, fastest_format, format_obstacle, use_memory_format
from fl.models.architectures.cnn import CNNPfl, CNNSmall
from fl.simulation.build import set_up_run
from fl.tasks.supervised import Classification
from fl.tensors.params import Params


@dataclass(frozen=True, kw_only=True)
class Flat(Classification):
    """Losses that are flat in the images."""

    def objective(self, net, batch):
        x = batch["x"].detach().clone().requires_grad_()
        losses = self.loss(net(x), batch)
        if not torch.is_grad_enabled():
            return losses
        (slopes,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        return losses + 10 * slopes.square().flatten(1).sum(1)


def gradients(module, x, y):
    module.eval()  # Dropout is the identity
    return torch.autograd.grad(F.cross_entropy(module(x), y), list(module.parameters()))


@contextlib.contextmanager
def called_layers(module):
    """The layers that torch computes."""
    called = []
    with torch.nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(layer)):
        yield called


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.randint(0, 10, (6,), generator=generator)


@pytest.mark.parametrize("memory_format", ["channels_last", "compiled"])
@pytest.mark.parametrize("model", [CNNSmall(), CNNPfl()])
def test_gradients_are_those_of_plain_torch(model, memory_format, images):
    torch.manual_seed(0)
    module = model.build((3, 32, 32), 10)
    plain = gradients(module, *images)
    with use_memory_format(module, memory_format), called_layers(module) as called:
        ours = gradients(module, *images)
    assert not any(isinstance(layer, nn.Conv2d) for layer in called) == (memory_format == "compiled")
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(gradients(module, *images), plain, strict=True):  # the module is as before
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 1, padding=1), nn.MaxPool2d(3, 2, ceil_mode=True)]
)
def test_pools_of_all_kinds_have_the_gradients_of_plain_torch(pool, images):
    """Most numbers are small integers: pools have equal maxima, and windows without a positive number."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), pool, nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), pool, pool),
        *(nn.Flatten(), nn.LazyLinear(10)),
    )
    x, y = images[0].round(), images[1]
    module(x)
    with torch.no_grad():
        for convolution in (module[0], module[4]):
            convolution.weight.copy_(torch.randint(-1, 2, convolution.weight.shape))
            convolution.bias.copy_(torch.randint(-9, 1, convolution.bias.shape))
    plain = gradients(module, x, y)
    with use_memory_format(module, "compiled"):
        ours = gradients(module, x, y)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_hooks_see_what_layers_take_and_return_in_the_order_that_is_given(images):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 15 * 15, 10))
    plain, seen = module[:3](images[0]), []
    with use_memory_format(module, "compiled"):
        for layer in module[:3]:
            layer.register_forward_hook(lambda _, __, output: seen.append(output))
        module(images[0])
    convolved, positive, pooled = seen
    assert convolved.min() < 0
    torch.testing.assert_close(positive, convolved.relu())
    torch.testing.assert_close(pooled, plain)


def test_compiled_runs_start_with_a_convolution_and_end_before_other_layers():
    relu = nn.ReLU()
    module = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3), relu, nn.Dropout(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8))
    assert compiled_runs(module) == [[module[1], relu]]
    assert compiled_runs(nn.Sequential(nn.Conv2d(3, 8, 3, groups=1, dilation=2), nn.ReLU())) == []
    assert compiled_runs(nn.ModuleList([nn.Conv2d(3, 8, 3), nn.ReLU()])) == []


def test_a_layer_used_in_two_places(images):
    relu = nn.ReLU()
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), relu, nn.Conv2d(8, 8, 3), nn.MaxPool2d(2), relu),
        *(nn.Flatten(), nn.Linear(8 * 14 * 14, 10), relu),
    )
    plain = gradients(module, *images)
    with use_memory_format(module, "compiled"):
        ours = gradients(module, *images)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_an_error_leaves_the_module_as_it_was():
    module = CNNSmall().build((3, 32, 32), 10)
    with pytest.raises(RuntimeError), use_memory_format(module, "compiled"):
        module(torch.zeros(1, 5, 32, 32))
    assert not any("forward" in vars(child) for child in module.modules())


def test_a_container_with_its_own_forward_is_left_alone():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    module = Residual(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
    assert compiled_runs(module) == []
    x = torch.randn(1, 3, 8, 8)
    with use_memory_format(module, "compiled"):
        assert torch.equal(module(x), x + module[1](module[0](x)))


def test_evaluation_uses_the_format_of_training():
    config = {
        **{"strategy": "fedavg", "rounds": 1, "data": "digits", "partition": {"name": "iid", "clients": 4}},
        **{"model": "cnn_tiny", "cohort": {"size": 2}, "splits": {"val": 0.2}, "evaluation": {"every": 1}},
    }
    losses, by_torch = {}, []

    def note(layer, *_):
        by_torch.append(isinstance(layer, nn.Conv2d) and torch.is_inference_mode_enabled())

    for memory_format in ("contiguous", "compiled"):
        by_torch.clear()
        execution = {"executor": "serial", "plan": "loop", "memory_format": memory_format}
        with torch.nn.modules.module.register_module_forward_hook(note):
            metrics = fl.run(config, execution=execution).metrics
        losses[memory_format] = metrics[-1]["val/loss"]
        assert any(by_torch) == (memory_format == "contiguous")
    assert losses["compiled"] == pytest.approx(losses["contiguous"], rel=1e-4)


def test_a_format_whose_gradients_overwrite_memory_is_refused():
    about = "cpu", "float32"
    few, many = (nn.Sequential(nn.Conv2d(channels, 8, 1, stride=2)) for channels in (3, 16))
    assert "would overwrite other memory" in format_obstacle("channels_last", few, *about)
    assert format_obstacle("channels_last", many, *about) is None
    assert fastest_format(few, *about) == "contiguous" and fastest_format(many, *about) == "channels_last"


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"model": {"name": "mlp", "hidden": [4]}}, "no convolution is followed by"),
        ({"model": "cnn_tiny", "execution.plan": "vmap"}, "in the loop only, and the plan is 'vmap'. Use 'contiguous'"),
        ({"model": "cnn_tiny", "execution.precision": "bf16"}, "bf16 needs autocast"),
    ],
)
def test_impossible_machine_code_is_refused(changes, why):
    config = {
        "rounds": 1,
        "data": "digits",
        "partition": {"name": "iid", "clients": 4},
        "cohort": {"size": 2},
        "execution": {"executor": "serial", "memory_format": "compiled"},
    }
    with pytest.raises(ConfigError, match=rf"memory_format: 'compiled' is not possible: .*{why}"):
        fl.run({"strategy": "fedavg"} | config, **changes)


@pytest.mark.parametrize("plan", ["vmap", "flat"])
def test_plans_other_than_the_loop_have_no_formats(plan):
    config = {"rounds": 1, "data": "digits", "partition": {"name": "iid", "clients": 4}, "cohort": {"size": 2}}
    config |= {"model": "cnn_tiny", "strategy": "fedavg", "execution": {"plan": plan}}
    assert set_up_run(resolve(config)).plan.memory_format == "contiguous"
    config["execution"]["memory_format"] = "channels_last"
    with pytest.raises(ConfigError, match=f"memory_format: 'channels_last' is not possible: .* plan is '{plan}'"):
        set_up_run(resolve(config))


def test_a_task_may_take_second_derivatives():
    """Its penalty is the squared gradient of the loss in the images, so that the loss is larger than without it."""
    config = {"rounds": 1, "data": "digits", "partition": {"name": "iid", "clients": 4}, "cohort": {"size": 2}}
    config |= {"model": "cnn_tiny", "strategy": "fedavg", "execution": {"executor": "serial", "plan": "loop"}}
    penalised, runs = config | {"task": f"{__file__}:Flat"}, {}
    assert set_up_run(resolve(penalised)).plan.memory_format == "compiled"
    for memory_format in ("contiguous", "compiled"):
        runs[memory_format] = fl.run(penalised, **{"execution.memory_format": memory_format})
    assert runs["compiled"].metrics[-1]["train/loss"] > fl.run(config).metrics[-1]["train/loss"]
    for name, tensor in runs["contiguous"].model.items():
        torch.testing.assert_close(runs["compiled"].model[name], tensor, rtol=1e-3, atol=1e-5)


def test_squares_of_gradients_are_the_same_with_machine_code(images):
    """FedCurv and FedEWC take a gradient for each sample with torch.func, which does not know machine code."""
    torch.manual_seed(0)
    module = CNNSmall().build((3, 32, 32), 10).eval()
    x, y = images
    params = Params.of({name: parameter.detach() for name, parameter in module.named_parameters()})
    squares = [[g.square() for g in gradients(module, x[i : i + 1], y[i : i + 1])] for i in range(len(x))]
    with use_memory_format(module, "compiled"):
        found = mean_squares(module, params, View({"x": x, "y": y}, np.arange(len(x))), Classification())
    for name, *each in zip(params, *squares):
        torch.testing.assert_close(found[name], torch.stack(each).mean(0), rtol=1e-3, atol=1e-7)
