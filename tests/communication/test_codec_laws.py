"""The laws of codecs detect broken codecs."""

import pytest

from fl.check.check import check

CODECS = '''
from dataclasses import dataclass
import numpy as np
import torch
from fl.communication.codec import Codec, Encoded
from fl.communication.keys import keys_of

@dataclass(frozen=True)
class Plain(Codec):
    def encode(self, values):
        return Encoded({"values": values.float()})
    def decode(self, encoded, n):
        return encoded.parts["values"]

class SaysItIsUnbiased(Plain):
    unbiased = True
    def decode(self, encoded, n):
        return 1.01 * encoded.parts["values"]

class BiasedDraws(Plain):
    """Rounds up three times of four."""
    draws = unbiased = True
    def encode(self, values, key=0):
        up = (keys_of(key, values.shape[:-1].numel()) % np.uint64(4) > 0).astype(np.float32)
        up = torch.from_numpy(up).reshape(*values.shape[:-1], 1) * (values != 0)
        return Encoded({"values": (values.floor() + up).float()})
    def decode(self, encoded, n, key=0):
        return encoded.parts["values"]

class SaysItIsExact(Plain):
    def bound(self, values):
        return 0.0
    def decode(self, encoded, n):
        return encoded.parts["values"].half().float()

class Hides(Plain):
    def encode(self, values):
        return Encoded({"values": values.nan_to_num(0, 0, 0)})

class Draws(Plain):
    """Numbers of its own, whatever the key."""
    draws = True
    def encode(self, values, key=0):
        return Encoded({"values": values + torch.rand(values.shape) * (values != 0)})
    def decode(self, encoded, n, key=0):
        return encoded.parts["values"]
'''
BROKEN = {
    "Plain": set(),
    "SaysItIsUnbiased": {"an_unbiased_codec_has_the_right_mean"},
    "BiasedDraws": {"an_unbiased_codec_has_the_right_mean"},
    "SaysItIsExact": {"errors_stay_within_the_bound"},
    "Hides": {"non_finite_numbers_are_not_hidden"},
    "Draws": {"encoding_is_deterministic", "a_batch_is_encoded_like_its_rows"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_codec_is_found_out(name, tmp_path):
    (tmp_path / "mine.py").write_text(CODECS)
    assert {f.law for f in check(f"{tmp_path}/mine.py:{name}") if not f.ok} == BROKEN[name]
