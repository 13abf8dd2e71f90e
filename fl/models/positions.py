"""Layers of a causal language model that work at some positions alone, because no other output counts.

    x (B, L, in) -> x at index (B, K), (B, K, in) -> layer -> (B, K, out) -> zeros (B, L, out) with these at index

After the attention of the last block a position sees no other one. So where only the scores at some positions count,
such as those of an answer, the last block's queries, its attention's output layer and its feed-forward layers may leave
out all others: the same scores, and the same gradients, for less work. `last_layers` finds these layers by trial, for
any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Layer = Callable[..., Tensor]


def positions(where: Tensor) -> Tensor:
    """Return K positions of each row, those of `where` (B, L) first, (B, K): K is the largest number of these, or 1.

    >>> positions(torch.tensor([[False, True, False, True], [False, False, True, False]])).tolist()
    [[1, 3], [2, 0]]
    """
    most = max(int(where.sum(-1).max()), 1)
    return where.int().argsort(dim=-1, descending=True, stable=True)[:, :most]


def at_positions(index: Tensor, layer: Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the outputs of a layer at the positions index (B, K), and zeros at all others, (B, L, out)."""
    y = layer(x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1])), *args, **kwargs)
    there = index.unsqueeze(-1).expand(-1, -1, y.shape[-1])
    return y.new_zeros(*x.shape[:-1], y.shape[-1]).scatter(1, there, y)


@contextmanager
def replaced(module: nn.Module, names: Sequence[str], by: Callable[..., Tensor]) -> Iterator[None]:
    """Within: each layer of these names is `by(layer, *inputs)`."""
    places = []
    for name in names:
        parent, _, last = name.rpartition(".")
        children: dict[str, Any] = module.get_submodule(parent)._modules
        places.append((children, last, children[last]))
    try:
        for children, last, layer in places:
            children[last] = partial(by, layer)
        yield
    finally:
        for children, last, layer in places:
            children[last] = layer


@contextmanager
def only_at(module: nn.Module, names: Sequence[str], index: Tensor) -> Iterator[None]:
    """Within: the layers of these names work at the positions index (B, K) alone."""
    with replaced(module, names, partial(at_positions, index)):
        yield


def last_layers(body: Any) -> tuple[str, ...]:
    """Return the names of the layers whose outputs at a position change the scores at this position alone.

    A layer is one of them if its inputs and outputs at all other positions may be NaN, and the scores stay finite. Only
    layers of the last block are tried; () where a model has no blocks, or other scores with these layers `only_at` some
    positions.

    Args:
        body: a Hugging Face causal language model, in evaluation mode.
    """
    ids = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]])
    where = torch.tensor([[False, False, True, False], [False, True, False, False]])
    with torch.inference_mode():
        found = _last_block(body, ids)
        if found is None:
            return ()
        name, run = found
        names = tuple(_finite(body, name, run, where))
        if not names:
            return ()
        whole = body.base_model(input_ids=ids, use_cache=False).last_hidden_state[where]
        with only_at(body, names, positions(where)):
            some = body.base_model(input_ids=ids, use_cache=False).last_hidden_state[where]
    error = 1e-4 if body.dtype == torch.float32 else 0.05  # of rounding, as a share of the states
    same = (whole - some).abs().max() <= error * whole.abs().max()
    return names if same else ()


def _last_block(body: nn.Module, ids: Tensor) -> tuple[str, Callable[[], Tensor]] | None:
    """Return the name of the block that runs last on ids (B, L), and a call that runs it again."""
    blocks: dict[str, nn.Module] = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{block}.") for block in blocks):
            blocks |= {f"{name}.{part}": block for part, block in module.named_children()}
    last: dict[str, Any] = {}

    def see(name: str, _block: nn.Module, args: Any, kwargs: Any) -> None:
        last.update(name=name, args=args, kwargs=kwargs)

    hooks = [b.register_forward_pre_hook(partial(see, name), with_kwargs=True) for name, b in blocks.items()]
    try:
        body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        return None

    def run() -> Tensor:
        outputs = blocks[last["name"]](*last["args"], **last["kwargs"])
        return outputs[0] if isinstance(outputs, tuple) else outputs

    return last["name"], run


def _finite(body: nn.Module, name: str, run: Callable[[], Tensor], where: Tensor) -> Iterator[str]:
    """Yield the largest parts of a module whose values outside of `where` (B, L) never reach the outputs there."""
    unknown = (~where).unsqueeze(-1)

    def without_others(layer: Layer, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return layer(x.masked_fill(unknown, torch.nan), *args, **kwargs).masked_fill(unknown, torch.nan)

    for part, child in body.get_submodule(name).named_children():
        if not any(isinstance(layer, nn.Linear) for layer in child.modules()):
            continue
        with replaced(body, [f"{name}.{part}"], without_others):
            try:
                alone = bool(run()[where].isfinite().all())
            except Exception:  # a part may take or return anything
                alone = False
        if alone:
            yield f"{name}.{part}"
        else:
            yield from _finite(body, f"{name}.{part}", run, where)
