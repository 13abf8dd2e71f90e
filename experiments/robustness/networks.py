"""Modules that draw random numbers, keep state or leave parameters out, and modules that do not fit the task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

D = 6  # features of a sample


class Net(nn.Module):
    """A linear layer `l`, and the layers that a subclass makes in `begin`."""

    def __init__(self, shape: Sequence[int], outputs: int):
        super().__init__()
        self.l = nn.Linear(shape[0], outputs)
        self.begin()

    def begin(self) -> None:
        """Make more layers, or the first state."""

    def forward(self, x: Tensor) -> Any:
        return self.l(x)


# -- random numbers ---------------------------------------------------------------------------------------------------
class FunctionalDropout(Net):
    """Dropout by a function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(F.dropout(x, 0.5, self.training))


class DropoutLayers(Net):
    """Random layers other than `nn.Dropout`."""

    def begin(self) -> None:
        self.channels, self.alpha = nn.Dropout1d(0.5), nn.FeatureAlphaDropout(0.3)
        self.images, self.leaky, self.dense = nn.Dropout2d(0.5), nn.RReLU(), nn.AlphaDropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.alpha(self.channels(x.view(-1, D // 2, 2)))
        return self.l(self.dense(self.leaky(self.images(x[..., None]).flatten(1))))


class Recurrent(Net):
    """Dropout between the layers of an LSTM."""

    def begin(self) -> None:
        self.r = nn.LSTM(2, D, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.r(x.view(-1, D // 2, 2))[0][:, -1])


class Noise(Net):
    """Normal noise in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x + torch.randn_like(x)) if self.training else self.l(x)


class Gumbel(Net):
    """A random choice by the Gumbel trick."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x * F.gumbel_softmax(x))


class NumpyNoise(Net):
    """Factors drawn from NumPy's and from Python's generator."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x * float(np.random.uniform(0.5, 1.5)) * random.uniform(0.5, 1.5))


class NoiseInEvaluation(Net):
    """Normal noise in training and evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x + 0.1 * torch.randn_like(x))


class Encoder(Net):
    """A transformer layer with its default dropout; that of the attention is a function."""

    def begin(self) -> None:
        self.e = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.e(x.view(-1, D // 2, 2)).flatten(1))


class LateDropout(Net):
    """Draws from its fourth call on, counted in a list."""

    def begin(self) -> None:
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return self.l(F.dropout(x, 0.5, self.training and self.calls[0] > 3))


DRAWS = [FunctionalDropout, DropoutLayers, Recurrent, Noise, Gumbel, NumpyNoise, NoiseInEvaluation, Encoder]
LATE_DRAWS = [LateDropout]


# -- Dropout layers ---------------------------------------------------------------------------------------------------
class ReusedDropout(Net):
    """One Dropout layer that is called twice."""

    def begin(self) -> None:
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.l(self.drop(x)))


class RaggedDropout(Net):
    """A Dropout layer with another shape in each batch."""

    def begin(self) -> None:
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        kept = x[:, : 2 + int(x.sum().abs()) % (D - 1)]
        return self.l(F.pad(self.drop(kept), (0, D - kept.shape[1])))


class InPlaceDropout(Net):
    """A Dropout layer that changes its input."""

    def begin(self) -> None:
        self.drop = nn.Dropout(0.4, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.l(x))


DROPOUTS = [ReusedDropout, RaggedDropout, InPlaceDropout]


# -- state ------------------------------------------------------------------------------------------------------------
class IntegerBuffer(Net):
    """Counts its training steps in a buffer."""

    n: Tensor

    def begin(self) -> None:
        self.register_buffer("n", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.n += 1
        return self.l(x) * (1 + 0.1 * self.n)


class HiddenBuffer(Net):
    """A running mean in a buffer that state dicts leave out."""

    m: Tensor

    def begin(self) -> None:
        self.register_buffer("m", torch.zeros(D), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.m = 0.9 * self.m + 0.1 * x.detach().mean(0)
        return self.l(x - self.m)


class InPlaceBuffer(HiddenBuffer):
    """A running mean that is changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.m.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.l(x - self.m)


class DataBuffer(HiddenBuffer):
    """A running mean that is changed through `.data`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.m.data += 0.1 * x.detach().mean(0)
        return self.l(x - self.m)


class TensorAttribute(HiddenBuffer):
    """A running mean in a plain attribute."""

    def begin(self) -> None:
        self.m = torch.zeros(D)


class Counter(Net):
    """Counts in a number, and in a list inside a dict."""

    def begin(self) -> None:
        self.n, self.seen = 0, {"batches": [0]}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.n, self.seen["batches"][0] = self.n + 1, self.seen["batches"][0] + 1
        return self.l(x) * (1 + 0.1 * self.n + 0.1 * self.seen["batches"][0])


class NewAttribute(Net):
    """Keeps a number in an attribute that it has only after a first step."""

    def forward(self, x: Tensor) -> Tensor:
        last = getattr(self, "last", 0.0)
        if self.training:
            self.last = float(x.mean())
        return self.l(x + last)


class ChangesInEvaluation(Net):
    """Counts its evaluations."""

    def begin(self) -> None:
        self.n = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += not self.training
        return self.l(x) * (1 + 0.1 * self.n)


class LateCounter(Net):
    """Changes its state with batches of more than two samples only, which the first look does not show."""

    def begin(self) -> None:
        self.state = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2 and self.training:
            self.state = self.state + 1
        return self.l(x) * (1 + self.state)


class Centred(Net):
    """A constant buffer."""

    mean: Tensor

    def begin(self) -> None:
        self.register_buffer("mean", torch.full((D,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.l(x - self.mean)


class Running(Net):
    """Batch normalisation."""

    def begin(self) -> None:
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.norm(x))


STATES = [IntegerBuffer, HiddenBuffer, InPlaceBuffer, DataBuffer, TensorAttribute, Counter, NewAttribute]
STATES += [ChangesInEvaluation]


# -- parameters -------------------------------------------------------------------------------------------------------
class Unused(Net):
    """A layer that the loss does not depend on."""

    def begin(self) -> None:
        self.u = nn.Linear(3, 3)


class Ids(nn.Module):
    """An embedding with 12 ids, and a linear layer.

    Args:
        shape: shape of a sample.
        outputs: number of outputs.
        embedding: arguments of the embedding.
    """

    def __init__(self, shape: Sequence[int], outputs: int, **embedding: Any):
        super().__init__()
        self.l, self.e = nn.Linear(4, outputs), nn.Embedding(12, 4, **embedding)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.e(x.long()).mean(1))


class SparseIds(Ids):
    """An embedding with sparse gradients."""

    def __init__(self, shape: Sequence[int], outputs: int):
        super().__init__(shape, outputs, sparse=True)


class BoundedIds(Ids):
    """An embedding that scales its own weights down in its forward pass."""

    def __init__(self, shape: Sequence[int], outputs: int):
        super().__init__(shape, outputs, max_norm=0.1)


class OneHotIds(Ids):
    """Ids as one-hot vectors."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l((F.one_hot(x.long(), 12).float() @ self.e.weight).mean(1))


class AttentionByHand(Net):
    """Multi-head attention, which reads the weight of its `out_proj` and does not call it."""

    def begin(self) -> None:
        self.a = nn.MultiheadAttention(2, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        z = x.view(-1, D // 2, 2)
        return self.l(self.a(z, z, z)[0].flatten(1))


# -- outputs ----------------------------------------------------------------------------------------------------------
class Object:
    """What models of Hugging Face return.

    Args:
        logits: the outputs.
    """

    def __init__(self, logits: Tensor):
        self.logits = logits


class Wrapped(Net):
    """Returns an object with `logits`."""

    def forward(self, x: Tensor) -> Object:
        return Object(self.l(x))


class Tuple(Net):
    """Returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.l(x), x


class Dict(Net):
    """Returns a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.l(x)}


class TooFew(Net):
    """One output too few."""

    def __init__(self, shape: Sequence[int], outputs: int):
        super().__init__(shape, outputs - 1)


class WrongWidth(Net):
    """A first layer for one feature more than there are."""

    def __init__(self, shape: Sequence[int], outputs: int):
        super().__init__((shape[0] + 1,), outputs)


# -- Hugging Face -----------------------------------------------------------------------------------------------------
class Bert(nn.Module):
    """Hugging Face's encoder with 2 layers of width 64; its pooler is not used."""

    def __init__(self, shape: Sequence[int], outputs: int):
        from transformers import BertConfig, BertModel

        super().__init__()
        self.bert = BertModel(BertConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2))
        self.l = nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.bert(x).last_hidden_state[:, 0])


class GPT2(nn.Module):
    """Hugging Face's causal language model with 2 layers of width 64; the logits of the last token are the outputs."""

    def __init__(self, shape: Sequence[int], outputs: int):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.gpt = GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=4, n_layer=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.gpt(x).logits[:, -1]


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """Return 60 sequences of 8 token ids, and the class of each, which follows from its first token."""
    x = np.random.default_rng(0).integers(1000, 2000, (60, 8))
    return x, x[:, 0] % 3
