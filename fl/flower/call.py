"""The message format of a deployed run: what the server asks of one client, and what the client replies.

    server  -- Call, groups, settings, rows -->  client
    server  <-- ClientReply, groups or metric sums, metrics --  client        or a Failure

Groups travel as ArrayRecords under their own names; everything else has a record name of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fl.data.partition import ViewName
from fl.execution.training.memory_format import MemoryFormat
from fl.flower.records import get_config, get_text

CALL = "fl.call"  # a Call, a ClientReply or a Failure
METRICS = "metrics"
ROWS = "fl.rows"  # rows of the server's data to evaluate on
SETTINGS = "fl.config"  # tensors of the client's settings
SUMS = "fl.merge"  # metric sums of an evaluation
Coding = Literal["", "shared", "own", "static"]  # how a group was encoded; "" is without a codec
Written = tuple[ArrayRecord, str, Coding]  # a group as arrays, its form, and how it was encoded


class GroupForm(NamedTuple):
    """How to read a group: the form from `fl.flower.group_records`, and which key its codec used."""

    form: str
    coding: Coding


class PatchForm(NamedTuple):
    """How to read a patch of a static group: the version that it is applied to, its form, and how it was encoded.

    The patch travels as the record "GROUP/VERSION" (`patch_record`).
    """

    version: int
    form: str
    coding: Coding


def patch_record(group: str, version: int) -> str:
    """Return the name of the record that holds a patch."""
    return f"{group}/{version}"


@dataclass(frozen=True)
class Call:
    """One client's share of an exchange or of an evaluation; the fields are those of `ExchangeDispatch`.

    state and carry are numbers of the exchanges that wrote them; None if there is none. `patches` maps static groups to
    the patches that the client applies, in order, to the value in the message, or else to the value that it has stored.
    `store` and `stored` map static groups to versions: those that the client stores from this message, and those that
    it has stored before.
    """

    kind: Literal["work", "evaluate"]
    work: str
    round: int
    period: int
    number: int
    client: int
    split: ViewName
    memory_format: MemoryFormat
    state: int | None
    carry: int | None
    settings: str
    groups: Mapping[str, GroupForm]
    patches: Mapping[str, Sequence[PatchForm]]
    store: Mapping[str, int]
    stored: Mapping[str, int]

    def to_record(self) -> ConfigRecord:
        """Return the call as a record."""
        return _to_record(asdict(self))

    @staticmethod
    def of(content: RecordDict) -> Call:
        """Read the call of a message."""
        fields = _fields(content)
        groups = {name: GroupForm(*pair) for name, pair in fields.pop("groups").items()}
        patches = {name: [PatchForm(*each) for each in forms] for name, forms in fields.pop("patches").items()}
        return Call(**fields, groups=groups, patches=patches)


@dataclass(frozen=True)
class ClientReply:
    """A client's reply to a `Call`.

    groups maps the groups of an update to their forms; `wrote` lists what the client stored ("state", "carry"); `sums`
    is the form of the metric sums of an evaluation.
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    wrote: Sequence[str] = ()
    sums: str = ""

    def to_record(self) -> ConfigRecord:
        """Return the reply as a record."""
        return _to_record(asdict(self))

    @staticmethod
    def of(content: RecordDict) -> ClientReply:
        """Read the reply of a message."""
        return ClientReply(**_fields(content))


@dataclass(frozen=True)
class Failure:
    """An error at a client: the stage of its work and the error's text."""

    stage: str
    error: str

    def to_record(self) -> ConfigRecord:
        """Return the failure as a record."""
        return ConfigRecord({"error": self.error, "stage": self.stage})

    @staticmethod
    def of(content: RecordDict) -> Failure | None:
        """Read the failure of a message; None if the client replied."""
        record = get_config(content, CALL)
        return Failure(get_text(record, "stage"), get_text(record, "error")) if "error" in record else None


def _to_record(fields: Mapping[str, Any]) -> ConfigRecord:
    return ConfigRecord({"call": json.dumps(fields, separators=(",", ":"))})


def _fields(content: RecordDict) -> dict[str, Any]:
    return json.loads(get_text(get_config(content, CALL), "call"))
