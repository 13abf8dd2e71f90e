"""The transformer: parameters in closed form, attention masks, and a forward pass compared with PyTorch's layers."""

import pytest
import torch
from torch import nn

import fl
from fl.models.architectures.transformer import Transformer


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("v, places, d, n, f, k", [(80, 12, 64, 2, 256, 4), (11, 5, 8, 3, 12, 2)])
def test_parameters(v, places, d, n, f, k):
    module = Transformer(vocabulary=v, width=d, layers=n, forward=f, heads=2).build((places,), k)
    assert count(module) == v * d + places * d + n * (4 * d * d + 2 * d * f + 9 * d + f) + 2 * d + (d + 1) * k
    assert module(torch.zeros(3, places, dtype=torch.int32)).shape == (3, k)


@pytest.mark.parametrize("causal", [False, True])
def test_the_same_as_pytorchs_layers(causal):
    module = Transformer(vocabulary=9, width=8, heads=2, layers=2, forward=12, predicts="all", causal=causal).build(
        (6,), 5
    )
    ids = torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(0))
    h = module.embedding(ids) + module.positions
    mask = nn.Transformer.generate_square_subsequent_mask(6) if causal else None
    for ours in module.layers:
        theirs = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
        theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias = ours.attention.inputs.parameters()
        theirs.self_attn.out_proj, theirs.linear1, theirs.linear2 = ours.attention.output, ours.up, ours.down
        theirs.norm1, theirs.norm2 = ours.before_attention, ours.before_forward
        h = theirs(h, src_mask=mask)
    assert torch.allclose(module(ids), module.head(module.norm(h)), atol=1e-5)


def test_a_causal_place_sees_nothing_after_it():
    ids = torch.randint(0, 9, (2, 6), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 4:] = (ids[:, 4:] + 1) % 9
    for causal, alike in ((None, True), (False, False)):  # causal by default if it predicts at all positions
        module = Transformer(vocabulary=9, width=8, predicts="all", causal=causal).build((6,), 5)
        assert torch.allclose(module(ids)[:, :4], module(other)[:, :4], atol=1e-6) == alike
        assert not torch.allclose(module(ids)[:, 4:], module(other)[:, 4:], atol=1e-6)


def test_padding_is_not_seen():
    short, long = (Transformer(vocabulary=9, width=8, padding=0).build((n,), 5) for n in (4, 7))
    weights = short.state_dict()
    long.load_state_dict(weights | {"positions": torch.cat([weights["positions"], torch.randn(3, 8)])})
    ids = torch.tensor([[3, 1, 4, 1], [5, 2, 0, 0]])
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.int64)], 1)
    assert torch.allclose(short(ids), long(padded), atol=1e-6)
    assert torch.isfinite(long(torch.zeros_like(padded))).all()


def test_loop_and_vmap_agree(tmp_path):
    settings = {
        "rounds": 2,
        "partition": {"name": "iid", "clients": 20},
        "strategy": "fedavg",
        "cohort": {"name": "uniform", "size": 4},
        "client": {"name": "sgd", "batch": 16, "lr": 0.1},
    }
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "from fl.data.dataset import Dataset\n"
        "@dataclass(frozen=True)\n"
        "class Ids:\n"
        "    def load(self):\n"
        "        x = np.random.default_rng(0).integers(0, 9, (200, 6))\n"
        "        return Dataset({'x': x, 'y': x[:, 0] % 3})\n"
    )
    settings |= {
        "data": f"{tmp_path}/mine.py:Ids",
        "model": {"name": "transformer", "vocabulary": 9, "width": 8, "heads": 2, "forward": 16, "dropout": 0.1},
    }
    losses = {}
    for plan in ("loop", "flat", "vmap"):
        execution = {"executor": "serial", "plan": plan}
        losses[plan] = fl.run(settings | {"execution": execution}, out=tmp_path / plan).metrics[-1]["train/loss"]
    assert losses["loop"] == pytest.approx(losses["vmap"], rel=1e-4)
    assert losses["loop"] == pytest.approx(losses["flat"], rel=1e-4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Transformer().build((1, 8, 8), 5), r"transformer takes ids \(length,\)"),
        (lambda: Transformer(width=10, heads=4), "heads: 4 do not divide the width 10"),
        (lambda: Transformer(predicts="last"), "predicts: 'last' is not one of"),
        (lambda: Transformer(dropout=1.0), "dropout: 1.0 is not in"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
