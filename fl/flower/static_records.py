"""Static groups in Flower messages: the server sends what a client lacks, and the client keeps the decoded value.

server    StaticSender.parts(versions that a client has stored) -> values, patches
client    read_stored, add_patches -> value     store_static: the value in the Context's state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, RecordDict

from fl.communication.codec import Codec
from fl.communication.codecs.identity import Identity
from fl.communication.keys import Key, patch_key
from fl.communication.transmit import Sizes
from fl.execution.job import Job
from fl.flower.call import PatchForm, Written, patch_record
from fl.flower.group_records import read_group, record_to_tree, tree_to_record, write_group
from fl.flower.records import get_arrays, get_config, get_text
from fl.method.messages import Static
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.static_pieces import Pieces
from fl.tensors.trees import Tree


# -- server -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class StaticParts:
    """What one client receives of the static groups.

    Args:
        whole: group -> the value of the key version.
        patches: group -> the patches, by the version that they are applied to, in order.
        stored: group -> its version, if the client has stored it already.
    """

    whole: dict[str, Written] = field(default_factory=dict)
    patches: dict[str, dict[int, Written]] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)


class StaticSender:
    """The static groups of one dispatch as records. Each piece is encoded once, when a client needs it.

    Args:
        static: the groups.
        codec: codec of the dispatch.
        seed: seed of the run.
    """

    def __init__(self, static: Mapping[str, Static], codec: Codec, seed: int) -> None:
        self.codec = codec
        self.pieces = {
            name: Pieces(name, value, seed, self._write, lambda sent: encoded_size(sent[1]))
            for name, value in static.items()
        }

    def _write(self, group: str, tree: Tree, key: Key) -> tuple[Written, Sizes]:
        record, form, sizes = write_group(self.codec, tree, key)
        return (record, form, "" if isinstance(self.codec, Identity) else "static"), sizes

    def parts(self, versions: Mapping[str, int]) -> StaticParts:
        """Return what a client receives that has stored `versions`, group -> version."""
        parts = StaticParts()
        for name, pieces in self.pieces.items():
            version = pieces.static.version
            if name in versions and versions[name] == version:
                parts.stored[name] = version
                continue
            due = pieces.due(versions.get(name, -1)) or (None,)  # version -1 needs no bytes in the ledger
            if None in due:
                parts.whole[name] = pieces[None][0]
            if patches := {piece: pieces[piece][0] for piece in due if piece is not None}:
                parts.patches[name] = patches
        return parts


# -- client -----------------------------------------------------------------------------------------------------------
def store_static(state: RecordDict, name: str, version: int, value: Tree) -> None:
    """Keep the value of a static group in the `state` of a node's Context."""
    form, arrays = tree_to_record(value)
    state[f"fl.static/{name}"] = arrays
    state[f"fl.static/{name}.form"] = ConfigRecord({"form": form, "version": version})


def read_stored(state: RecordDict, name: str, version: int) -> Tree:
    """Return the value of a static group that `store_static` kept."""
    form_key = f"fl.static/{name}.form"
    stored = get_config(state, form_key) if form_key in state else None
    if stored is None or stored["version"] != version:
        raise LookupError(
            f"version {version} of {name!r} is not in the client's Context: its SuperNode has been restarted"
        )
    return record_to_tree(get_text(stored, "form"), get_arrays(state, f"fl.static/{name}"))


def add_patches(job: Job, content: RecordDict, name: str, value: Tree, patches: Sequence[PatchForm]) -> Tree:
    """Return the value of a static group after the patches of a message."""
    for version, form, coding in patches:
        record = get_arrays(content, patch_record(name, version))
        key = patch_key(job.seed, name, version)
        patch, _ = read_group(job.down if coding else Identity(), record, form, key)
        value = job.algorithm.patched(name, value, patch)
    return value
