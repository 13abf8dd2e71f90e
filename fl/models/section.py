"""The `model` section: a part that builds a module, and the changes to the module before training.

build -> batch_norm: whose statistics (batch_norm.py) -> init: weights from a file -> extend: parts that the method adds
(extension.py) -> freeze: parameters that are not trained -> adapter: LoRA and its variants (adapter.py)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from fl.errors import located
from fl.models.adapter import Adapter
from fl.models.batch_norm import BatchNorm, Statistics, statistics_names, with_statistics
from fl.models.extension import Extend
from fl.storage.sums import checked
from fl.tensors.params import match


class Architecture(Protocol):
    """A part that builds a module, registered under "model"."""

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module for samples of this shape (without the batch's axis)."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model of a run.

    Args:
        part: builds the module: an object with build(shape of a sample, outputs), such as a `Factory`.
        batch_norm: statistics of BatchNorm layers. "batch": those of each batch, also in evaluation. "local": each
            client's running statistics, which are never sent. "averaged": running statistics that are sent and averaged
            like parameters. None: the layers stay as they are.
        init: where the first weights come from: a safetensors file with tensors of the same names, or a run directory,
            whose final model is used. None: the initialisation of the module.
        freeze: glob patterns of parameters, such as "conv*", that keep their first values and are never sent.
        adapter: freezes the module and adds small trainable tensors, such as LoRA. None: the module itself is trained.
    """

    part: Any
    batch_norm: Statistics | None = None
    init: str | None = None
    freeze: tuple[str, ...] = ()
    adapter: Adapter | None = None

    def build(self, shape: tuple[int, ...], outputs: int, extend: Extend | None = None) -> nn.Module:
        """Build the module for samples of `shape`, with all changes of the section applied.

        `extend` adds the parts of a method. The file of `init` holds the model with these parts, or without them.
        """
        module = self.part.build(shape, outputs)
        if self.batch_norm and (extend is None or any(isinstance(m, BatchNorm) for m in module.modules())):
            module = with_statistics(module, self.batch_norm)
        loaded = stored(Path(self.init), "init") if self.init else None
        if loaded is not None:
            own = _filled(module)
            shared = {n: t for n, t in loaded.items() if n in own and own[n].shape == t.shape}
            if extend is None or len(shared) == len(own) == len(loaded):
                self._fill(own, loaded)
                loaded = None
            else:  # the file may hold the model with the parts that the method adds
                self._fill({name: own[name] for name in shared}, shared)
        if extend is not None:
            module = extend(module, shape, outputs)
            if self.batch_norm:
                module = with_statistics(module, self.batch_norm)
            if loaded is not None:
                self._fill(_filled(module), loaded)
        named = dict(module.named_parameters())
        for name in match(named, self.freeze):
            named[name].requires_grad_(False)
        if self.adapter:
            try:
                module = self.adapter.wrap(module)
            except ValueError as error:
                raise located("model.adapter", error) from error
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError("freeze: nothing is left to train")
        return module

    def _fill(self, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        fill(own, tensors, f"init: {self.init}", "they need the same names and shapes")


def _filled(module: nn.Module) -> dict[str, Tensor]:
    """The tensors that `init` sets: parameters and averaged statistics."""
    buffers = dict(module.named_buffers())
    return {**dict(module.named_parameters()), **{n: buffers[n] for n in statistics_names(module, "averaged")}}


class Factory:
    """A part made from a user's function or nn.Module class.

    The function is called with `arguments`, and with `shape` and `outputs` if it has parameters of these names.

    Args:
        make: the function or class; it returns a module, or an object with build(shape, outputs).
        arguments: arguments from the configuration; ValueError if `make` does not have them or needs others.
    """

    def __init__(self, make: Callable[..., Any], arguments: Mapping[str, Any]):
        name = getattr(make, "__name__", type(make).__name__)
        self.make, self.arguments, self.name = make, dict(arguments), name
        parameters = inspect.signature(make).parameters.values()
        named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self.given = sorted({"shape", "outputs"} & named - set(arguments))
        foreign = set() if any(p.kind is p.VAR_KEYWORD for p in parameters) else set(arguments) - named
        if foreign:
            raise ValueError(f"{min(foreign)}: not an argument of {name}, which has {sorted(named - set(self.given))}")
        needed = {p.name for p in parameters if p.name in named and p.default is p.empty}
        missing = needed - set(arguments) - set(self.given)
        if missing:
            raise ValueError(f"{min(missing)}: missing; {name} needs it (only shape and outputs are given to it)")

    def build(self, shape: tuple[int, ...], outputs: int) -> nn.Module:
        """Call the function; ValueError if the result is not a module."""
        known = {"shape": tuple(shape), "outputs": outputs}
        made = self.make(**self.arguments, **{name: known[name] for name in self.given})
        if hasattr(made, "build"):
            made = made.build(tuple(shape), outputs)
        if not isinstance(made, nn.Module):
            raise ValueError(f"model: {self.name} returns {type(made).__name__}, not an nn.Module")
        return made


def model_part(maker: Any, arguments: Mapping[str, Any]) -> Any:
    """A part from the object that a reference names: an object with build(), a function or an nn.Module class."""
    if not isinstance(maker, type) and hasattr(maker, "build"):
        return Factory(lambda: maker, arguments)
    if (
        not callable(maker)
        or isinstance(maker, nn.Module)
        or (isinstance(maker, type) and not issubclass(maker, nn.Module))
    ):
        name = maker.__name__ if isinstance(maker, type) else f"an instance of {type(maker).__name__}"
        raise ValueError(f"model: {name} has no build(shape, outputs) and is not a function or an nn.Module class")
    return Factory(maker, arguments)


def stored(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of the final model of a run directory. `key`: name of the argument."""
    from safetensors.torch import load_file

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{key}: there is no file {file}; make it first")
    return load_file(checked(file))


def fill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, hint: str) -> None:
    """Copy `tensors` into the tensors `own` of a module, with the same names and shapes.

    `source` ("key: path") and `hint` are parts of the error message.
    """
    apart = [n for n in {**own, **tensors} if n not in own or n not in tensors or own[n].shape != tensors[n].shape]
    if apart:
        raise ValueError(f"{source} and the model differ in {apart[:5]}; {hint}")
    for name, tensor in own.items():
        tensor.data.copy_(tensors[name])
