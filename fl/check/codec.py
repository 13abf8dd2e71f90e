"""Laws of codecs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fl.check.finding import Broken, Law, require_equal
from fl.communication.codec import Codec, decode, encode
from fl.communication.keys import Key
from fl.tensors import random

EXAMPLES = {"ratio": 0.25, "value": 0.5}
KEYS = 4096  # number of keys over which the mean of an unbiased codec is taken


def _vectors() -> list[Tensor]:
    """Vectors of several lengths and distributions, the empty one and constants included."""
    draw = random.torch_generator("check", "codec")
    drawn = [torch.randn(n, generator=draw) for n in (1, 7, 64, 1000)]
    uneven = torch.randn(300, generator=draw) ** 5
    return [torch.empty(0), *drawn, uneven, 1e-6 * drawn[2], torch.ones(12), torch.zeros(33), torch.tensor([-2.5])]


def _round_trip(codec: Codec, values: Tensor, key: Key = 7) -> Tensor:
    """The values after encoding and decoding."""
    return decode(codec, encode(codec, values, key), values.shape[-1], key)


def decoded_values_have_the_shape_and_type_of_the_input(codec: Codec) -> None:
    """Decoding gives as many finite float32 numbers as were encoded; zeros stay zeros."""
    for values in _vectors():
        decoded = _round_trip(codec, values)
        both = (decoded.shape, decoded.dtype), (values.shape, torch.float32)
        require_equal(*both, f"{len(values)} numbers: shape and dtype")
        if not torch.isfinite(decoded).all() or (not values.any() and decoded.any()):
            raise Broken(f"{values[:5]}... arrives as {decoded[:5]}...")


def counted_bytes_are_the_bytes_sent(codec: Codec) -> None:
    """`nbytes` is the length of the encoded bytes, and so is `exact_size` where the codec announces it."""
    for values in _vectors():
        encoded = encode(codec, values, 7)
        require_equal(len(bytes(encoded)), encoded.nbytes, f"{len(values)} numbers: bytes sent and counted")
        announced = codec.exact_size(len(values))
        if announced is not None:
            require_equal(encoded.nbytes, announced, f"{len(values)} numbers: bytes and exact_size")


def a_batch_is_encoded_like_its_rows(codec: Codec) -> None:
    """Encoding many clients at once gives each the bytes, the count and the values that it would get alone."""
    for n in (0, 1, 50, 333):
        rows = torch.stack([torch.randn(n, generator=random.torch_generator("check", "batch", i)) for i in range(3)])
        keys = random.hash64("check", "keys", np.arange(3))
        encoded = encode(codec, rows, keys)
        together, counted = decode(codec, encoded, n, keys), np.broadcast_to(encoded.nbytes, 3)
        for i, values in enumerate(rows):
            alone = encode(codec, values.clone(), keys[i])
            require_equal(bytes(alone), bytes(encoded.row(i)), f"bytes of row {i}")
            require_equal(alone.nbytes, int(counted[i]), f"bytes counted of row {i}")
            if not torch.equal(decode(codec, alone, n, keys[i]), together[i]):
                raise Broken(f"row {i} arrives with other values alone than in a batch")


def encoding_is_deterministic(codec: Codec) -> None:
    """The same numbers and key give the same bytes; encoding does not change its input."""
    for values in _vectors():
        before = values.clone()
        one, two = (bytes(encode(codec, values, 7)) for _ in range(2))
        require_equal(one, two, f"encodings of {len(values)} numbers")
        if not torch.equal(values, before):
            raise Broken("encode() changed the numbers it was given")


def an_unbiased_codec_has_the_right_mean(codec: Codec) -> str | None:
    """The mean of an unbiased codec over random keys is within six standard errors of the input."""
    if not codec.unbiased:
        return "does not claim to be unbiased"
    keys = random.hash64("check", "mean", np.arange(KEYS if codec.draws else 1))
    for n in (1, 7, 40):
        values = torch.randn(n, generator=random.torch_generator("check", "mean", n))
        arrived = _round_trip(codec, values.repeat(len(keys), 1), keys).double()
        away = (arrived.mean(0) - values.double()).abs()
        error = arrived.std(0, correction=0) / len(keys) ** 0.5
        if (away > 6 * error + 1e-4 * float(values.abs().max())).any():
            worst = away.argmax()
            raise Broken(f"{values[worst]:.4f} arrives as {arrived.mean(0)[worst]:.4f} in the mean")
    return None


def errors_stay_within_the_bound(codec: Codec) -> str | None:
    """No error (L2 norm) exceeds the codec's own `bound`, whatever is drawn."""
    for values in _vectors():
        bound = codec.bound(values)
        if bound is None:
            return "states no bound"
        for key in range(5):
            error = float((_round_trip(codec, values, key).double() - values.double()).norm())
            if error > bound * (1 + 1e-4) + 1e-6 * float(values.double().norm()):
                raise Broken(f"{len(values)} numbers of norm {values.norm():.3g}: error {error:.6g}, bound {bound:.6g}")
    return None


def an_exact_codec_returns_the_same_bits(codec: Codec) -> str | None:
    """What a codec that is `exact` decodes has the bits of what was encoded."""
    if not codec.exact:
        return "does not claim to be exact"
    for values in _vectors():
        if not torch.equal(_round_trip(codec, values).view(torch.int32), values.view(torch.int32)):
            raise Broken(f"{values[:5]}... arrives as {_round_trip(codec, values)[:5]}...")
    return None


def non_finite_numbers_are_not_hidden(codec: Codec) -> None:
    """A NaN or an infinity is refused with a ValueError, or the decoded vector is not finite either."""
    for bad in (math.nan, math.inf, -math.inf):
        for n in (1, 50):
            values = torch.linspace(-1, 1, n)
            values[n // 3] = bad
            try:
                arrived = _round_trip(codec, values)
            except ValueError:
                continue
            if torch.isfinite(arrived).all():
                raise Broken(f"{bad} among {n} numbers arrives as {float(arrived[n // 3])}; refuse it")


def encodings_of_a_linear_codec_add_up(codec: Codec) -> str | None:
    """With one key, the sum of encodings is the encoding of the sum; the only part is "values", of known length."""
    if not codec.linear:
        return "not checked: the codec is not linear"
    for n in (1, 64, 1000):
        one, two = (torch.randn(n, generator=random.torch_generator("check", "linear", k)) for k in range(2))
        parts = [encode(codec, values, 7) for values in (one, two, one + two)]
        require_equal({tuple(part.parts) for part in parts}, {("values",)}, "names of the parts")
        a, b, both = (part.tensor("values").double() for part in parts)
        require_equal(len(both), (codec.sizes(n) or (0, -1))[1], f"{n} numbers: length and announced length")
        distance = float((a + b - both).abs().max()) if len(both) else 0.0
        if distance > 1e-5 * (1 + float(both.abs().max())):
            raise Broken(f"{n} numbers: the sum of encodings and the encoding of the sum differ by {distance:g}")
    return None


LAWS: list[Law] = [
    encodings_of_a_linear_codec_add_up,
    decoded_values_have_the_shape_and_type_of_the_input,
    counted_bytes_are_the_bytes_sent,
    a_batch_is_encoded_like_its_rows,
    encoding_is_deterministic,
    an_unbiased_codec_has_the_right_mean,
    errors_stay_within_the_bound,
    an_exact_codec_returns_the_same_bits,
    non_finite_numbers_are_not_hidden,
]
