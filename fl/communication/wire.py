"""What a group takes on the wire as a Flower message, by a formula that the tests hold against the real serialisation.

    request   PushMessages: metadata and the tree of object ids
    request   PushObject, one per object:   Message > RecordDict > ArrayRecord (a group) > Array > ArrayChunk (.npy data)

Every object is named by a SHA-256 digest of 64 letters, in its own request, in the tree and in its parent. Counted are the
bodies of the requests for a reply in flwr 1.41 (HTTP and TLS are not; an instruction, which answers nothing, is 135 bytes
shorter), for names of 12 letters and arrays of one chunk: further chunks, one per 5 MiB, would add 0.006 %. An object that
repeats another (two equal biases) is counted, though Flower sends it once.
"""

MESSAGE_BYTES = 850
RECORD_BYTES = 360
ARRAY_BYTES = 855


def wire_bytes(encoded_bytes: int, arrays: int, message: bool = True) -> int:
    """Bytes of a group of `arrays` arrays; `message=False` for the further groups of one message."""
    return encoded_bytes + ARRAY_BYTES * arrays + RECORD_BYTES + MESSAGE_BYTES * message
