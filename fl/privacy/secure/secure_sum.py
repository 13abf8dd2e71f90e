"""The reduction of secure aggregation: quantise, mask, add integers.

lift: reduction's lift -> linear codec -> clip -> integers -> masks      merge: integer sum      finish: the words

The words stay masked. The server opens them when it knows whose updates are in the sum (session.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl.communication.codec import Codec, Encoded, decode, encode
from fl.communication.codecs.identity import Identity
from fl.communication.transmit import Sizes
from fl.method.reduction import Accumulator, Meta, Reduction
from fl.privacy.distributed_discrete_gaussian import discrete_gaussian
from fl.privacy.secure.keys import derived
from fl.privacy.secure.masking import Masking
from fl.privacy.secure.masks import cut, signed, word_type
from fl.privacy.secure.messages import COUNTERS
from fl.privacy.secure.quantiser import Quantiser
from fl.privacy.secure.summands import Summable, Summands, accumulator, shrinkage, summands
from fl.privacy.secure.vectors import vectors_of
from fl.tensors.random import hash64
from fl.tensors.serialise import flatten, shapes, unflatten
from fl.tensors.trees import Tree, row

IDENTITY = Identity()


class Words(NamedTuple):
    """Integers modulo 2^32 or 2^64 of one client, of several stacked, or of a sum.

    Attributes:
        words: (n,) or (C, n), int32 or int64: all vectors, the counters, the share of clipped elements.
        form: form of one client's accumulator (`fl.tensors.serialise.flatten`).
    """

    words: Tensor
    form: str


@dataclass(frozen=True)
class ClientNoise:
    """Discrete normal noise of the clients of one exchange.

    Args:
        std: standard deviation of a client's noise, in integers.
        root: root of all draws, 32 bytes.
    """

    std: float
    root: bytes

    def of(self, client: int, count: int) -> np.ndarray:
        """Return the noise of a client, int64 (count,)."""
        key = int.from_bytes(derived(self.root, client, "noise"), "little")
        return discrete_gaussian(self.std, count, np.random.Generator(np.random.Philox(key=key)))


@dataclass(frozen=True)
class SecureSum(Reduction):
    """The sum of quantised and masked updates. It replaces the reductions of a strategy.

    Args:
        reduction: the strategy's reductions by group.
        quantiser: turns numbers into integers.
        seed: seed of the run.
        number: number of the exchange in the run; part of the address of random rounding.
        counters: number of counters in the sum (summands.py).
        codec: linear codec of the vectors.
        masking: adds masks; None: no client masks its words.
        noise: noise that each client adds to its integers; None: none.
    """

    reduction: Summable
    quantiser: Quantiser
    seed: int
    number: int
    counters: int
    codec: Codec = IDENTITY
    masking: Masking | None = None
    noise: ClientNoise | None = None
    linear: ClassVar[bool] = True
    integer: ClassVar[bool] = True

    @property
    def batched(self) -> bool:  # type: ignore[override]  # depends on the reductions
        """Whether `lift` takes C clients at once."""
        return self.reduction.batched

    def lift(self, value: Mapping[str, Tree], meta: Meta) -> Words:
        """Return the masked words of one client, or of C clients stacked.

        Raises:
            ValueError: a client reports more samples than the modulus was made for, or a group is not dense.
        """
        stacked = isinstance(meta.client, Tensor) and meta.client.ndim > 0
        acc = self.reduction.lift(value, meta)
        if not stacked:
            words = self._words(int(meta.client), acc)
            return Words(torch.from_numpy(words.view(f"i{words.itemsize}")), flatten(acc)[0])
        clients = np.asarray(meta.client).tolist()
        together = np.empty((0, 0))
        for i, client in enumerate(clients):
            words = self._words(client, row(acc, i), together[i] if i else None)
            if i == 0:
                together = np.empty((len(clients), len(words)), words.dtype)
                together[0] = words
        return Words(torch.from_numpy(together.view(f"i{together.itemsize}")), flatten(row(acc, 0))[0])

    def merge(self, a: Words, b: Words) -> Words:
        return Words(a.words.add_(b.words), a.form)

    def _words(self, client: int, acc: Accumulator, out: np.ndarray | None = None) -> np.ndarray:
        """Return the masked words of one client, unsigned (n,), from its accumulator; `out` receives them."""
        quantiser, parts = self.quantiser, summands(self.reduction, acc)
        self._check_weights(client, parts)
        vectors = [
            (group, weight, k, self._encoded(vector, group, k))
            for group, weight in parts.weights.items()
            for k, vector in enumerate(parts.vectors[group])
        ]
        count = sum(len(vector) for *_, vector in vectors)
        words = np.empty(count + self.counters + 1, word_type(quantiser.width)) if out is None else out
        at, clipped, factor = 0, 0, shrinkage(self.reduction, count, quantiser.levels)
        for group, weight, k, vector in vectors:
            key = int(hash64(self.seed, client, self.number, "secure/rounding", group, k))
            clipped += quantiser.quantised(vector, group, weight, key, words[at : at + len(vector)], factor)
            at += len(vector)
        if self.noise is not None:
            words[:count] += self.noise.of(client, count).astype(f"i{words.itemsize}").view(words.dtype)
        share = -(-clipped * self._whole // max(count, 1))  # rounded up
        words[count:] = (
            np.array([*parts.counters[: self.counters], share]).astype(f"i{words.itemsize}").view(words.dtype)
        )
        if self.masking is not None:
            self.masking.add(client, words)
            cut(words, quantiser.width)
        return words

    @property
    def _whole(self) -> int:
        """The integer that stands for all elements in the share of clipped ones: the largest that may be summed."""
        return self.quantiser.levels * self.quantiser.largest_weight

    def _check_weights(self, client: int, parts: Summands) -> None:
        """Raise a ValueError for a weight that could make the sum overflow."""
        for group, weight in parts.weights.items():
            if weight > self.quantiser.largest_weight:
                raise ValueError(
                    f"secure_aggregation.largest_weight: client {client} reports {weight:g} samples for the group "
                    f"{group!r}, and the modulus holds sums of weights up to {self.quantiser.largest_weight}; set it "
                    "to the largest number of samples"
                )

    def _encoded(self, vector: Tensor, group: str, k: int) -> np.ndarray:
        """Return the vector that is added to the sum, (m,)."""
        if isinstance(self.codec, Identity):
            return vector.numpy()
        return encode(self.codec, vector, self._key(group, k)).tensor("values").numpy()

    def _key(self, group: str, vector: int) -> int:
        """Return the key of the codec: all clients of the exchange have the same."""
        return int(hash64(self.seed, self.number, "secure/codec", group, vector)) if self.codec.draws else 0

    # -- the server's side ---------------------------------------------------------------------------------------------
    def opened(self, total: np.ndarray, form: str, clients: int) -> tuple[dict[str, Tree] | None, float]:
        """Return (reduced groups, share of the elements that were clipped) from the sum without masks.

        Args:
            total: sum of the words, unsigned (n,).
            form: form of one client's accumulator.
            clients: number of clients in the sum.
        """
        empty = unflatten(form, [torch.zeros(shape, dtype=dtype) for dtype, shape in shapes(form)])
        vectors: dict[str, list[Tensor]] = {}
        at = 0
        integers = signed(total, self.quantiser.width)
        for group, forms in summands(self.reduction, empty).vectors.items():
            vectors[group] = []
            for k, (vector, length) in enumerate(zip(forms, self.lengths(forms))):
                values = torch.from_numpy(integers[at : at + length] * self.quantiser.step(group))
                at += length
                if not isinstance(self.codec, Identity):
                    values = self._decoded(values, vector.shape[-1], self._key(group, k))
                vectors[group].append(values)
        *counters, clipped = integers[at:].tolist()
        value = self.reduction.finish(accumulator(self.reduction, empty, vectors, counters))
        return value, clipped / (self._whole * max(clients, 1))

    def _decoded(self, values: Tensor, n: int, key: int) -> Tensor:
        return decode(self.codec, Encoded({"values": values.float()}), n, key)

    # -- sizes ---------------------------------------------------------------------------------------------------------
    def lengths(self, vectors: Sequence[Tensor]) -> list[int]:
        """Return how many words each vector takes."""
        lengths = []
        for vector in vectors:
            sizes = self.codec.sizes(vector.shape[-1])
            assert sizes is not None, "linear codecs have a known size"
            lengths.append(sizes[1])
        return lengths

    def packed(self, words: int) -> int:
        """Return the bytes of a number of words on the wire."""
        return -(-words * self.quantiser.width // 8)

    def sizes(self, groups: Mapping[str, Tree], sizes: Mapping[str, Sizes], stacked: bool) -> Mapping[str, Sizes]:
        found = {
            name: Sizes(of_group.payload_bytes, self.group_bytes(groups[name], stacked), 1)
            for name, of_group in sizes.items()
        }
        return found | {COUNTERS: Sizes(8 * (self.counters + 1), self.counter_bytes, 1)}

    def group_bytes(self, tree: Tree, stacked: bool = False) -> int:
        """Return the bytes of a group on the wire, per client."""
        return self.packed(sum(self.lengths(vectors_of(tree, stacked))))

    @property
    def counter_bytes(self) -> int:
        """Bytes of the counters on the wire, per client."""
        return self.packed(self.counters + 1)
