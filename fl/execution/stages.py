"""The stage of an exchange at which an error was raised: broadcast, train, encode, reduce, evaluate, ..."""

from __future__ import annotations

from types import TracebackType


class during:
    """Context that names the stage of an error raised within. The innermost context counts.

    >>> try:
    ...     with during("train"), during("encode"):
    ...         raise ValueError
    ... except ValueError as error:
    ...     stage_of(error, "broadcast")
    'encode'
    """

    def __init__(self, stage: str):
        self.stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not hasattr(error, "exchange_stage"):
            error.exchange_stage = self.stage  # type: ignore[attr-defined]  # an exception carries it to the guard


def stage_of(error: Exception, default: str) -> str:
    """Return the stage that an error was raised at, `default` if no context named it."""
    return vars(error).pop("exchange_stage", default)
