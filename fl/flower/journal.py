"""A journal of replies, so that the run of any ServerApp can continue after it was killed.

    add(key, replies) ...   commit() -> stored with the round     after a restart: take(key) -> replies, batch by batch

The ServerApp runs again from its beginning. As long as the journal has batches, it gets the replies of the first run,
and no client works. `key` is a digest of the messages: an app that sends other messages the second time is not a
function of its seed. Records are text and tensors in a segment file (`fl.storage.segments`). They take the bytes of
every reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Error, Message

from fl.flower.records import content_digest, content_to_tree, tree_to_content
from fl.storage.segments import Segments
from fl.tensors.trees import Tree


class Journal:
    """The journal of one run.

    Args:
        folder: Folder of its segment files.
        committed: What `commit` returned, to continue a run.
    """

    def __init__(self, folder: Path, committed: Sequence[Sequence[int]] = ()) -> None:
        self.segments = Segments(folder)
        self.segments.write_to(0)
        self.locations = [(int(segment), int(offset), int(length)) for segment, offset, length in committed]
        self.remaining = list(self.locations)  # batches that the ServerApp has not asked for again

    @property
    def nbytes(self) -> int:
        """Bytes of all batches."""
        return sum(length for _, _, length in self.locations)

    def add(self, key: str, replies: Sequence[Message | None]) -> None:
        """Add the replies to a batch of messages; None for a reply that was late."""
        self.locations.append(self.segments.append([key, [_to_tree(reply) for reply in replies]]))

    def take(self, key: str, messages: Sequence[Message]) -> list[Message | None] | None:
        """Return the recorded replies to the next batch; None when there are no more."""
        if not self.remaining:
            return None
        batch = len(self.locations) - len(self.remaining)
        recorded, trees = self.segments.read(self.remaining.pop(0))
        if recorded != key:
            raise RuntimeError(
                f"batch {batch} of messages differs from the run that is resumed: the ServerApp does not send the same "
                "messages for the same seed (does it read the time, or files that have changed?). Start a new run"
            )
        return [_from_tree(tree, message) for tree, message in zip(trees, messages)]

    def commit(self) -> list[list[int]]:
        """Return the locations of all batches, to store with the round."""
        return [list(location) for location in self.locations]

    def close(self) -> None:
        """Close the segment file."""
        self.segments.close()


def batch_key(messages: Sequence[Message]) -> str:
    """Return a digest of the messages: receivers, types, groups and contents."""
    digest = hashlib.sha256()
    known: dict[int, str] = {}
    for message in messages:
        content, to = message.content, message.metadata
        if id(content) not in known:  # the messages of a round share a content
            known[id(content)] = content_digest(content)
        digest.update(f"{to.dst_node_id} {to.message_type} {to.group_id} {known[id(content)]}\n".encode())
    return digest.hexdigest()


def _to_tree(reply: Message | None) -> Tree:
    if reply is None:
        return []
    return [reply.error.code, reply.error.reason] if reply.has_error() else {"content": content_to_tree(reply.content)}


def _from_tree(tree: Tree, message: Message) -> Message | None:
    if not tree:
        return None
    if isinstance(tree, dict):
        return Message(tree_to_content(tree["content"]), reply_to=message)
    return Message(Error(code=tree[0], reason=tree[1]), reply_to=message)
