"""Record inputs and outputs of layers, and find layers by their role."""

import pytest
import torch
from torch import nn

from fl.models.hooks import layer_inputs, layer_outputs
from fl.models.layers import head_layer, head_names, last_layer, norm_names


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))


def hooks(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def test_inputs_and_outputs_are_recorded_in_the_order_of_calls():
    module, x = net(), torch.arange(8.0).view(2, 4)
    with layer_inputs(module, "3", "0") as inputs, layer_outputs(module, "2", "") as outputs:
        y = module(x)
    assert [name for name, _ in inputs] == ["0", "3"] and [name for name, _ in outputs] == ["2", ""]
    assert inputs[0][1] is x and inputs[1][1] is outputs[0][1] and outputs[1][1] is y
    module(x)
    assert len(inputs) == 2 and hooks(module) == 0


def test_a_layer_that_is_used_twice_is_recorded_twice():
    relu = nn.ReLU()
    module = nn.Sequential(relu, nn.Linear(4, 4), relu)
    with layer_outputs(module, "0") as outputs:
        module(torch.zeros(2, 4))
    assert [name for name, _ in outputs] == ["0", "0"]


def test_hooks_are_removed_after_an_error():
    module = net()
    with pytest.raises(RuntimeError), layer_inputs(module, "0"):
        module(torch.zeros(2, 5))
    assert hooks(module) == 0


def test_the_head_is_the_last_linear_layer_with_named_tensors():
    module = net()
    names = [name for name, _ in module.named_parameters()]
    assert head_names(module, names) == ["3.weight", "3.bias"] and head_layer(module, names) == "3"
    assert head_names(module, ["0.weight", "1.weight"]) == ["0.weight"]
    assert head_names(nn.Linear(2, 2), ["weight", "bias"]) == ["weight", "bias"]
    assert head_layer(nn.Linear(2, 2), ["weight", "bias"]) == ""
    with pytest.raises(ValueError, match="no linear layer that is trained"):
        head_names(module, ["1.weight"])


def test_last_layer_and_norms():
    module = net()
    assert last_layer(module) == "3" and last_layer(module[:3]) == "1"
    assert norm_names(module, [name for name, _ in module.named_parameters()]) == ["1.weight", "1.bias"]
