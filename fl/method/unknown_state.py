"""Stand-in for a client's state on the server of a deployment, which has no states of clients."""

from __future__ import annotations

from typing import Any, NoReturn


class StateNotHere(ValueError):
    """A payload needs the client's state on a machine that does not have it."""


class UnknownState:
    """The state of a client that only the client has. Any use of it raises `StateNotHere`.

    >>> try:
    ...     UnknownState()["mask"]
    ... except StateNotHere as error:
    ...     print(str(error).partition(",")[0])
    the payload depends on the client's state
    """

    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise StateNotHere(
            "the payload depends on the client's state, which a deployed server does not have; simulate the "
            "method with `fl run`, or let clients send what the server needs"
        )

    __getitem__ = __iter__ = __len__ = __bool__ = __contains__ = __array__ = __float__ = __int__ = _refuse
    __getattr__ = _refuse

    @classmethod
    def __torch_function__(cls, *args: Any, **options: Any) -> NoReturn:
        cls()._refuse()
