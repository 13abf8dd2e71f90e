"""Base of the personal methods that train the whole model and have no frozen part."""

from __future__ import annotations

from dataclasses import dataclass

from fl import LocalTraining


@dataclass(frozen=True, kw_only=True)
class Personal(LocalTraining):
    """Local training of the whole model; `trains` is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trains is not None:
            raise ValueError(f"trains: {self.trains} is not for {type(self).__name__}; fix tensors with model.freeze")
