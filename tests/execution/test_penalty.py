"""What a user's `penalty()` returns is taken by name, without its padding, or refused in one sentence."""

import pytest
import torch

from fl.execution.training.steps import gradient_buffer
from fl.method.penalty import Penalty, fitted
from fl.tensors.params import Params

START = Params.of({"w": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([4.0])})


def filled(value: float) -> Params:
    made = START.clone()
    for buffer in made.buffers:
        buffer.fill_(value)  # the padding too
    return made


@pytest.mark.parametrize(
    "penalty, kind, text",
    [
        (0.5, TypeError, "penalty returned float, expected"),
        (Penalty("1"), TypeError, "strength of penalty is str"),
        (Penalty(torch.ones(2)), TypeError, "strength of penalty is Tensor"),
        (Penalty(float("nan")), ValueError, "strength of penalty is nan"),
        (Penalty(1.0, {"w": torch.ones(3)}), TypeError, "centre of penalty is dict"),
        (
            Penalty(slope=Params.of({"w": torch.ones(3)})),
            ValueError,
            r"trains b \(1,\), and the part has no such tensor",
        ),
        (
            Penalty(slope=Params.of({"w": torch.ones(2), "b": torch.ones(1)})),
            ValueError,
            r"trains w \(3,\), and the part has the shape \(2,\)",
        ),
        (Penalty(slope=START.layout.zeros(5)), ValueError, r"leading axes \(5,\), expected none"),
    ],
)
def test_wrong_penalties(penalty, kind, text):
    with pytest.raises(kind, match=f"Mine: .*{text}|Mine: {text}"):
        fitted(penalty, START, None, "Mine")


def test_other_order_more_tensors_and_other_types():
    slope = Params.of({"b": torch.tensor([9.0]).double(), "c": torch.ones(2), "w": torch.tensor([6.0, 7.0, 8.0])})
    taken = fitted(Penalty(slope=slope), START, None, "Mine")
    assert taken.slope.layout is START.layout
    assert taken.slope["w"].tolist() == [6.0, 7.0, 8.0] and taken.slope["b"].tolist() == [9.0]


def test_padding_does_not_count():
    """Gradients of one client's padding were those of the next."""
    penalty = fitted(Penalty(filled(2.0), filled(0.5), filled(float("inf"))), START, None, "Mine")
    for part in (penalty.strength, penalty.centre):
        assert sum(float(buffer.sum()) for buffer in part.buffers) == 4 * float(part["b"][0])  # four numbers
    for buffer in gradient_buffer(START).buffers:
        buffer.fill_(float("nan"))
    padded = zip(gradient_buffer(START).buffers, START.layout.gaps)
    assert START.layout.gaps[0] and all(not buffer[a:b].any() for buffer, gaps in padded for a, b in gaps)


def test_right_penalties_are_not_copied():
    penalty = Penalty(2.0, START, START)
    assert fitted(penalty, START, None, "Mine").centre is START
    assert fitted(Penalty(slope=START.layout.zeros(3)), START, 3, "Mine").slope.batch == (3,)
    assert fitted(Penalty(torch.tensor(0.5), START), START, None, "Mine").strength == 0.5
