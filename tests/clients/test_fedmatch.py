"""FedMatch's two parts of each weight: their sum is the model, and a penalty keeps them together."""

import pytest
import torch
import torch.nn.functional as F

import fl
from clients.fedmatch import FedMatch
from fl import ConfigError

CONFIG = {
    "data": {"name": "digits", "strong": ["cutout"]},
    "partition": {"name": "iid", "clients": 4},
    "labels": {"name": "budget", "total": 40},
    "model": {"name": "mlp", "hidden": [4]},
    "cohort": {"size": 2},
    "strategy": "fedmatch",
    "execution": {"executor": "serial"},
    "rounds": 1,
}


def test_the_penalty_by_hand():
    """s = (1, 2), u = (3, -1): l1 |u| + l2 |s - u|^2 = 4 l1 + 13 l2; its slope reaches u only."""
    s, u = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, -1.0], requires_grad=True)
    found = FedMatch(l1=0.5, l2=0.1).decomposition_penalty({"w": s, "psi.w": u})
    found.backward()
    assert found.item() == pytest.approx(4 * 0.5 + 13 * 0.1)
    assert u.grad.tolist() == pytest.approx([0.5 + 0.2 * 2, -0.5 - 0.2 * 3]) and s.grad is None


def test_the_sum_of_both_parts_is_the_model():
    module, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    w = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    extended = FedMatch().extend(module, (4,), 3)
    torch.testing.assert_close(extended(x), F.linear(x, w["weight"], w["bias"]))
    with torch.no_grad():
        extended.get_parameter("psi.weight").fill_(0.5)
    torch.testing.assert_close(extended(x), F.linear(x, w["weight"] + 0.5, w["bias"]))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.freeze": ["1.*"]}, "strategy.name: fedmatch trains two parts of each weight, and only psi.1.bias"),
        ({"model.freeze": ["psi.*"]}, "strategy.name: fedmatch trains two parts of each weight, and only 1.bias"),
        ({"model.adapter": {"name": "lora", "rank": 2}}, "fedmatch has no second part for .*; leave model.adapter out"),
    ],
)
def test_parts_without_the_other_part_are_refused_before_round_0(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fl.run(CONFIG, out=tmp_path / "run", **change)


def test_trained_models_are_evaluated_without_helpers_and_change_no_bit(tmp_path):
    ends = [fl.run(CONFIG, out=tmp_path / "run", rounds=2, **{"evaluation.stage": "received"})]
    ends.append(fl.run(CONFIG, out=tmp_path / "both", rounds=2, **{"evaluation.stage": ["received", "trained"]}))
    assert ends[0].digest == ends[1].digest and "trained/val/accuracy" in ends[1].metrics[-1]
