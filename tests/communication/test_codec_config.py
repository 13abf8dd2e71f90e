"""Codecs in configurations: their notations, and mistakes that stop a run before round 0."""

import pytest

from fl.communication.chain import Chain
from fl.communication.codecs.cast import BF16
from fl.communication.codecs.quantise import Quantise
from fl.communication.codecs.top_k import TopK
from fl.communication.codecs.zstd import Zstd
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError

BASE = {
    "data": "digits",
    "partition": {"name": "iid", "clients": 9},
    "model": "softmax",
    "strategy": "fedavg",
    "cohort": {"size": 4},
    "client": {"lr": 0.1},
}


def codecs(**codec):
    return resolve(read(BASE | {"codec": codec}))


def test_the_short_form():
    config = codecs(up=[{"topk": {"ratio": 0.01}}, {"quantise": {"bits": 8}}, "zstd"], down=["bf16"])
    assert config.up == Chain((TopK(ratio=0.01), Quantise(bits=8), Zstd())) and config.down == BF16()
    written = config.to_dict()["codec"]["up"]
    assert [part["name"] for part in written] == ["top_k", "quantise", "zstd"]
    assert resolve(read(BASE | {"codec": {"up": written}})).up == config.up


def test_the_short_form_elsewhere():
    config = resolve(
        read(
            BASE
            | {
                "cohort": {"fixed": {"clients": [1, 2]}},
                "model": {"mlp": {"hidden": [4]}},
                "partition": {"dirichlet": {"clients": 9, "alpha": 0.5}},
                "strategy": {"fedavg": {"lr": 0.5}},
                "client": {"optimiser": {"sgd": {"momentum": 0.5}}},
            },
            {"strategy.lr": 0.25, "partition.clients": 8},
        )
    )
    assert config.cohort.clients == (1, 2) and config.model.part.hidden == (4,)
    assert (config.strategy.lr, config.partition.clients, config.client.optimiser.momentum) == (0.25, 8, 0.5)


BAD = [
    ({"up": [{"topk": {"ratio": 0}}]}, r"codec.up\[0\].ratio: 0.0 is not in \(0, 1\]"),
    ({"up": [{"topk": {"ratio": 1.5}}]}, r"codec.up\[0\].ratio: 1.5 is not in \(0, 1\]"),
    ({"up": [{"name": "quantise", "bits": 0}]}, r"codec.up\[0\].bits: 0 is not in \[2, 8\]; .*sign"),
    ({"down": ["fp16", {"quantise": {"bits": 16}}]}, r"codec.down\[1\].bits: 16 is not in \[2, 8\]"),
    ({"up": [{"quantise": {"bucket": 100}}]}, r"codec.up\[0\].bucket: 100 is not a power of two"),
    ({"up": [{"topkk": {"ratio": 0.1}}]}, r"codec.up\[0\]: 'topkk' is not one of .*Did you mean 'top_k'"),
    ({"up": [{"topk": {"rato": 0.1}}]}, r"codec.up\[0\].rato: not a key of 'top_k'.*Did you mean 'ratio'"),
    ({"up": ["top_k"]}, r"codec.up\[0\].ratio: missing"),
    (
        {"up": ["sign", "fp16"]},
        r"codec.up\[1\]: FP16\(\) takes floating numbers, but Sign\(\) before it gives bytes",
    ),
    ({"up": ["zstd", "fp16"]}, r"codec.up\[1\]: FP16\(\) takes floating numbers, but Zstd"),
    ({"up": [{"topk": {"ratio": 0.1}}, "error_feedback"]}, r"codec.up\[1\]: ErrorFeedback.*put it in front of TopK"),
    ({"down": ["delta", "error_feedback", "sign"]}, r"codec.down: \['delta', 'error_feedback'\] together"),
    ({"up": []}, "codec.up: an empty list; 'identity' sends numbers unchanged"),
    ({"up": [{"error_feedback": {"decay": 2}}]}, r"codec.up\[0\].decay: 2.0 is not in \[0, 1\]"),
    ({"up": [{"threshold": {"value": -1}}]}, r"codec.up\[0\].value: -1.0 is not in \[0, inf\)"),
    ({"up": [{"low_rank": {"rank": 0}}]}, r"codec.up\[0\].rank: 0 is not at least 1"),
    ({"up": [{"sketch": {"ratio": 0.1, "rows": 2}}]}, r"codec.up\[0\].rows: 2 is not odd"),
    ({"up": [{"zstd": {"level": 99}}]}, r"codec.up\[0\].level: 99 is not in \[1, 22\]"),
    ({"up": [{"eden": {"bits": 9}}]}, r"codec.up\[0\].bits: 9 is not in \[1, 8\]"),
    ({"up": [{"block_float": {"block": 5}}]}, r"codec.up\[0\].block: 5 is not a power of two"),
    (
        {"up": [{"topk": {"ratio": 0.1, "positions": "golom"}}]},
        r"codec.up\[0\].positions: 'golom' is not .*Did you mean 'golomb'",
    ),
]


@pytest.mark.parametrize(("codec", "message"), BAD, ids=lambda x: str(x)[:60])
def test_a_mistake_is_found_before_round_0(codec, message):
    with pytest.raises(ConfigError, match=message):
        codecs(**codec)
