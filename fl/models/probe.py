"""A first look at a module: training and evaluation passes of two samples and of one, on a copy, before round 0.

    facts = probe(module, batch, loss)     ->  what the module does beside computing outputs from inputs and parameters

Plans, guards and messages follow from these facts, not from class names. A module may do something for the first time
later, or for some data only, so workers compare its state again after each client (`ModuleState`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl.errors import dotted
from fl.models.dropout import Dropout, DropoutDraws
from fl.models.outputs import OutputsDoNotFit
from fl.models.structure import structure
from fl.tensors.generators import GeneratorWatch, preserved_generators

Batch = Mapping[str, Tensor]

# Attributes that nn.Module itself keeps; their content is compared in other ways, or is no state.
_OWN = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class ModuleFacts:
    """What a module does in a forward and a backward pass.

    Attributes:
        draws: a training pass draws random numbers from a global generator (torch's, NumPy's or Python's).
        draws_in_evaluation: an evaluation pass draws random numbers.
        state: names of buffers and attributes that a pass changes.
        writes_parameters: a pass changes parameters, as `nn.Embedding(max_norm=...)` does.
        unused: names of trained parameters that get no gradient.
        dropout_once: each Dropout layer of ours is called once in a pass, so its mask can be drawn beforehand.
        needs_two: a training pass of one sample fails, because normalisation needs more values.
        needs_two_in_evaluation: an evaluation pass of one sample fails for this reason.
        dropout_idle: a training pass `net(x)` calls some Dropout layer of ours not at all.
        outputs: size of the last axis of what an evaluation pass returns; 0 if unknown.
    """

    draws: bool = False
    draws_in_evaluation: bool = False
    state: tuple[str, ...] = ()
    writes_parameters: bool = False
    unused: tuple[str, ...] = ()
    dropout_once: bool = True
    needs_two: bool = False
    needs_two_in_evaluation: bool = False
    dropout_idle: bool = False
    outputs: int = field(default=0, compare=False)

    @property
    def one_at_a_time(self) -> str | None:
        """Why clients cannot be trained together by batched plans that call the module, or None."""
        if self.draws:
            return "the model draws random numbers in its forward pass"
        if self.state:
            return f"the model changes its own state in its forward pass ({', '.join(self.state[:3])})"
        if self.writes_parameters:
            return "the model changes its parameters in its forward pass"
        if self.unused:
            return f"the loss does not depend on some parameters ({', '.join(self.unused[:3])})"
        if self.dropout_idle:
            return "net(x) alone calls not all Dropout layers of the model, so their masks cannot be drawn beforehand"
        return None if self.dropout_once else "the model calls a Dropout layer several times in one pass"

    @property
    def notes(self) -> list[str]:
        """Sentences for the first lines of a run: what a user may not know about the module."""
        found = []
        if self.unused:
            found.append(f"no gradient reaches {_some(self.unused)}: they keep their values, and are sent")
        if self.state:
            found.append(f"each client starts with the model's first {_some(self.state)}, which training changes")
        return found


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


class ModuleChanged(RuntimeError):
    """A module did something that its first look did not show, and that would pass from client to client."""


class ProbeFailed(ValueError):
    """The module cannot be called with the data, or what it returns does not fit the task."""


def probe(module: nn.Module, batch: Batch, losses: Callable[[nn.Module, Batch], Tensor]) -> ModuleFacts:
    """Call a copy of `module` with a few samples, and return what it does.

    Args:
        module: the model.
        batch: two samples or more, name -> (B, ...).
        losses: (module, batch) -> the loss of each sample, (B,).

    Raises:
        ProbeFailed: a pass fails, or the losses are no tensor (B,).
        OutputsDoNotFit: raised by `losses`.
    """
    module = copy.deepcopy(module)
    dropout = DropoutDraws(structure(module).dropout, ("probe",), repeats=True)
    parameters = {name: p.detach().clone() for name, p in module.named_parameters()}
    state = ModuleState(module)
    with preserved_generators():
        moved = GeneratorWatch()
        module.train()
        dropout.begin_batch(0)
        with dropout.gradient():
            unused = _backward(module, batch, losses)
            once = all(layer.calls <= 1 for layer in dropout.layers)
            idle = any(layer.calls == 0 for layer in dropout.layers)
        draws, changed = moved.since_last(), state.changes()
        module.eval()
        with torch.no_grad():
            _called(lambda: losses(module, batch), "in evaluation mode", batch)
        drawn = moved.since_last()
        changed = tuple(sorted({*changed, *state.changes()}))
        written = any(not torch.equal(p, parameters[name]) for name, p in module.named_parameters())
        alone = {name: array[:1] for name, array in batch.items()}
        with dropout.gradient(), torch.no_grad():
            needs_two = [_cannot_normalise(lambda: losses(module.train(mode), alone)) for mode in (True, False)]
    found = ModuleFacts(draws, drawn, changed, written, unused, once, *needs_two)
    return replace(found, dropout_idle=idle)


def _cannot_normalise(call: Callable[[], Any]) -> bool:
    """Whether a call fails because batch normalisation needs more values."""
    try:
        call()
    except Exception as error:  # other errors of a module are reported where it is used
        return "Expected more than 1 value per channel" in str(error)
    return False


def _backward(module: nn.Module, batch: Batch, losses: Callable[[nn.Module, Batch], Tensor]) -> tuple[str, ...]:
    """Run a forward and a backward pass; return the names of trained parameters that get no gradient."""
    loss = _called(lambda: losses(module, batch), "in training mode", batch)
    count = len(batch["x"])
    if not isinstance(loss, Tensor) or tuple(loss.shape) != (count,):
        shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ProbeFailed(f"the loss of {count} samples is {shown}; it has to be one number per sample, ({count},)")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        raise ProbeFailed("the loss does not depend on any trained parameter")
    gradients = torch.autograd.grad(loss.mean(), list(trained.values()), allow_unused=True)
    return tuple(name for name, gradient in zip(trained, gradients) if gradient is None)


def _called(make: Callable[[], Any], mode: str, batch: Batch) -> Any:
    try:
        return make()
    except OutputsDoNotFit:
        raise
    except Exception as error:
        x = batch["x"]
        raise ProbeFailed(
            f"a first pass {mode} with {len(x)} samples, x of shape {tuple(x.shape)} and {_dtype(x)}, fails: "
            f"{type(error).__name__}: {error}"
        ) from error


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class ModuleState:
    """What a module holds beside its parameters: buffers, and attributes of all its submodules.

    It sees tensors and arrays that were replaced or changed in place, numbers and strings, and lists, tuples, dicts and
    sets of all these. Other objects are compared by identity. Running statistics with an owner
    (fl/models/batch_norm.py) and masks of Dropout layers belong to the engine and are left out.

    Args:
        module: the module, in the state that `restore` returns to.
    """

    def __init__(self, module: nn.Module):
        self.entries: list[tuple[str, dict[str, Any], str, Kept]] = []  # (name, where it is held, key, value)
        self.spaces: list[tuple[str, dict[str, Any], int]] = []  # (submodule's prefix, its attributes, their number)
        for prefix, child in module.named_modules():
            if isinstance(child, Dropout) or hasattr(child, "policy"):
                continue
            self.spaces.append((prefix, vars(child), len(vars(child))))
            held: list[tuple[dict[str, Any], str, Any]] = [(child._buffers, *item) for item in child._buffers.items()]
            held += [(vars(child), key, value) for key, value in vars(child).items() if key not in _OWN]
            held = [entry for entry in held if not _only_parameters(entry[2])]
            self.entries += [(dotted(prefix, key), space, key, Kept(value)) for space, key, value in held]

    def changes(self) -> tuple[str, ...]:
        """Names of what has changed since the state was taken."""
        found = [name for name, space, key, kept in self.entries if self._counts(space, key, kept)]
        if any(len(space) != count for _, space, count in self.spaces):
            found += [dotted(prefix, key) for prefix, _, key in self._added()]
        return tuple(found)

    def restore(self) -> None:
        """Give the module its state back."""
        for _, space, key, kept in self.entries:
            if self._counts(space, key, kept):
                space[key] = kept.restored()
        for _, space, key in list(self._added()):
            del space[key]

    @staticmethod
    def _counts(space: dict[str, Any], key: str, kept: Kept) -> bool:
        now = space.get(key)
        if kept.content is None and now is kept.value:  # most attributes; a call less
            return False
        return kept.differs(now) and not _only_parameters(now)

    def _added(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Attributes that the module did not have: (prefix of the submodule, its attributes, key)."""
        for prefix, space, count in self.spaces:
            if len(space) != count:
                known = {key for _, of, key, _ in self.entries if of is space} | _OWN
                new = [key for key, value in space.items() if key not in known and not _only_parameters(value)]
                yield from ((prefix, space, key) for key in new)


class Kept:
    """A value, and a copy of its content that later changes do not touch.

    >>> counts = [1, {"n": 2}]
    >>> kept = Kept(counts)
    >>> counts[1]["n"] += 1
    >>> kept.differs(counts), kept.restored() is counts, counts
    (True, True, [1, {'n': 2}])
    """

    __slots__ = ("content", "value")

    def __init__(self, value: Any):
        self.value = value
        self.content: Any = None  # of objects that are compared by value or identity
        if isinstance(value, Tensor):
            self.content = value.detach().clone()
        elif isinstance(value, np.ndarray):
            self.content = value.copy()
        elif isinstance(value, (list, tuple)):
            self.content = [Kept(item) for item in value]
        elif isinstance(value, dict):
            self.content = {key: Kept(item) for key, item in value.items()}
        elif isinstance(value, set):
            self.content = set(value)

    def differs(self, now: Any) -> bool:
        """Whether `now` differs from the kept value."""
        value, content = self.value, self.content
        if content is None:
            return now is not value and not (isinstance(value, _PLAIN) and type(now) is type(value) and now == value)
        if type(now) is not type(value):
            return True
        if isinstance(value, Tensor):
            return now.shape != content.shape or now.dtype != content.dtype or not _equal(now.detach(), content)
        if isinstance(value, np.ndarray):
            return now.dtype != content.dtype or now.shape != content.shape or now.tobytes() != content.tobytes()
        if isinstance(value, set):
            return now != content
        if len(now) != len(content):
            return True
        if isinstance(value, dict):
            return any(key not in now or kept.differs(now[key]) for key, kept in content.items())
        return any(kept.differs(item) for kept, item in zip(content, now))

    def restored(self) -> Any:
        """The value itself, with its old content."""
        value, content = self.value, self.content
        if content is None:
            return value
        if isinstance(value, Tensor):
            value.data = content.clone()  # not in place: the memory may be that of a received model
        elif isinstance(value, np.ndarray):
            np.copyto(value, content)
        elif isinstance(value, list):
            value[:] = [kept.restored() for kept in content]
        elif isinstance(value, tuple):
            for kept in content:
                kept.restored()
        else:
            value.clear()
            value.update(content if isinstance(value, set) else {key: kept.restored() for key, kept in content.items()})
        return value


def _only_parameters(value: Any) -> bool:
    """Whether a value only refers to parameters, as the lists that recurrent layers keep of their weights."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_only_parameters, value))
    return isinstance(value, (nn.Parameter, weakref.ref))


_PLAIN = (bool, int, float, complex, str, bytes)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape and type hold the same values; NaN equals NaN."""
    if torch.equal(a, b):
        return True
    return a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all())
