"""Recurrent models: parameter counts by hand, the equations of the cells, and their plans."""

import pytest
import torch

from clients.sgd import LocalSGD
from fl.execution.section import Execution
from fl.execution.training.plan import make_plan
from fl.models.architectures.recurrent import CharGRU, CharLSTM
from fl.models.binding import module_params
from fl.tasks.supervised import Classification


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_leafs_model_on_paper():
    def paper(v, biases):
        gates = 4 * 256
        return v * 8 + gates * (8 + 256 + biases) + gates * (256 + 256 + biases) + 256 * v + v

    assert (paper(80, 1), paper(82, 1), paper(90, 1)) == (817_872, 818_402, 820_522)
    assert count(CharLSTM().build((80,), 80)) == paper(80, 2) == 819_920
    gru = 80 * 8 + 3 * 256 * (8 + 256 + 2) + 3 * 256 * (512 + 2) + 257 * 80
    assert count(CharGRU().build((80,), 80)) == gru


@pytest.mark.parametrize("model", [CharLSTM, CharGRU])
def test_last_place_or_all(model):
    ids = torch.randint(0, 80, (3, 7), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    last = model(hidden=5).build((7,), 11)
    every = model(hidden=5, predicts="all").build((7,), 11)
    every.load_state_dict(last.state_dict())
    assert last(ids).shape == (3, 11) and every(ids).shape == (3, 7, 11)
    assert torch.allclose(every(ids)[:, -1], last(ids), atol=1e-6)
    assert torch.allclose(every(ids[:, :4]), every(ids)[:, :4], atol=1e-6)  # outputs do not depend on later tokens


def test_lstm_is_hochreiters():
    module = CharLSTM(vocabulary=4, embedding=3, hidden=2, layers=1).build((3,), 5)
    ids = torch.tensor([[1, 3, 0]])
    w_x, w_h, b_x, b_h = module.layers.parameters()
    h = c = torch.zeros(2)
    for x in module.embedding.weight[ids[0]]:
        i, f, g, o = (w_x @ x + b_x + w_h @ h + b_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    assert torch.allclose(module(ids)[0], module.head.weight @ h + module.head.bias, atol=1e-6)


def test_trained_in_the_loop():
    module = CharLSTM(hidden=3).build((4,), 5)
    args = (LocalSGD(), module, module_params(module), Classification(), torch.zeros(2, 4, dtype=torch.int32))
    plan = make_plan(*args, Execution())
    assert (plan.kind, plan.chunk) == ("loop", 1) and "LSTM" in plan.why
    with pytest.raises(ValueError, match="'vmap' is not possible: LSTM is one fused kernel"):
        make_plan(*args, Execution(plan="vmap"))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: CharLSTM().build((1, 8, 8), 5), r"char_lstm takes ids \(length,\), a sample is \(1, 8, 8\)"),
        (lambda: CharGRU(predicts="first"), "predicts: 'first' is not one of"),
        (lambda: CharGRU(hidden=0), "hidden: 0 is not at least 1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
