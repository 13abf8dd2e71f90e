"""Size of a group on the wire as a Flower message, by a formula that the tests compare with real serialisation.

    request   PushMessages: metadata and the tree of object ids
    request   PushObject, one per object:   Message > RecordDict > ArrayRecord (a group) > Array > ArrayChunk (.npy
    data)

Each object is named by a SHA-256 digest of 64 letters. The digest appears in the object's own request, in the tree and
in the object's parent. The formula counts the request bodies of a reply in flwr 1.41, without HTTP and TLS, for names
of 12 letters and arrays of one chunk. An instruction, which answers no message, is 135 bytes shorter. Further chunks,
one per 5 MiB, would add 0.006 %. An object that repeats another one (two equal biases) is counted, though Flower sends
it once.
"""

from typing import overload

import numpy as np

MESSAGE_BYTES = 850
RECORD_BYTES = 360
ARRAY_BYTES = 855


@overload
def wire_bytes(encoded_bytes: int, arrays: int, message: bool = True) -> int: ...
@overload
def wire_bytes(encoded_bytes: np.ndarray, arrays: int, message: bool = True) -> np.ndarray: ...
def wire_bytes(encoded_bytes: int | np.ndarray, arrays: int, message: bool = True) -> int | np.ndarray:
    """Return the bytes of a group of `arrays` arrays.

    Args:
        encoded_bytes: Bytes of the encoded arrays, a number or one per client.
        arrays: Number of arrays in the group.
        message: Whether to count the message around the group: True for the first group of a message only.

    >>> wire_bytes(1000, arrays=2)
    3920
    """
    return encoded_bytes + ARRAY_BYTES * arrays + RECORD_BYTES + MESSAGE_BYTES * message
