"""Gradients of transformers with adapters in machine code ("fused"): the interface of native/transformer.py.

    frozen weights W        packed once for the clients of a chunk
    each client's A, B      written beside W, so that W x + s B (A x) is one product
    one client at a time    its arrays stay in the near caches; no graph is recorded

Steps, batches, optimisers and hooks are those of all plans that train clients together (batched.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl.execution.training.chunk import Chunk, ChunkMasks
from fl.execution.training.compiled import thread_memory
from fl.execution.training.customised import own_loss
from fl.execution.workers.process import release_lock
from fl.method.local_training import LocalTraining, StepContext
from fl.models import adapter
from fl.models.architectures.transformer import Attention, IdTransformer, Layer
from fl.models.binding import bind
from fl.tasks.task import Task
from fl.tensors.params import Layout, Params

MULTIPLE = 16  # widths are multiples of it: columns of a tile of products
HEAD = ("head.weight", "head.bias")
LINEAR = ("attention.inputs", "attention.output", "up", "down")  # the layers in the order of native/transformer.py


class Fused:
    """Gradients for the models that `covers` accepts; see `chunk.Gradients`."""

    takes_views: ClassVar[bool] = False

    @staticmethod
    def covers(algorithm: LocalTraining, module: nn.Module, task: Task) -> str | None:
        """Why this backend cannot compute the gradients, or `None`."""
        if reason := own_loss(algorithm):
            return reason
        if task.kernel != "cross_entropy" or type(task).objective is not Task.objective:
            return f"the loss of {type(task).__name__} is not cross-entropy"
        if type(module) is not IdTransformer:
            return f"the model is a {type(module).__name__}, not a transformer over ids"
        return _structure_obstacle(module) or _adapters_obstacle(module)

    def __init__(self, algorithm: LocalTraining, chunk: Chunk, local: Params, theta: Params, index: int | None):
        bind(chunk.module, local.row(0), chunk.initial)
        self.masks = ChunkMasks(chunk, index)
        whole = _completed(local, chunk.initial.trained)
        self.model = _Model(chunk.module, whole.layout)
        # if a method trains some of the tensors: the other tensors, and memory for all gradients
        self.whole: tuple[Params, Params] | None = None
        if theta.layout is not whole.layout:
            self.whole = (whole.clone(), whole.layout.empty(*whole.batch))

    def __call__(
        self,
        params: Params,
        batch: Mapping[str, Tensor],
        weights: Tensor,
        masks: list[Tensor],
        at: StepContext,
        grad: Params,
    ) -> Tensor:
        if self.whole is None:
            return self.model.gradients(params, batch, weights, grad)
        whole, found = (each.row(slice(0, len(weights))) for each in self.whole)
        losses = self.model.gradients(whole.copy_(params, names=params), batch, weights, found)
        grad.copy_(found, names=grad)
        return losses


def _completed(local: Params, initial: Params) -> Params:
    """The parameters of clients (C,) with the initial values of those that they lack."""
    lacking = {name: initial[name] for name in initial if name not in local}
    if not lacking:
        return local
    whole = Params.of({**{name: tensor[0] for name, tensor in local.items()}, **lacking}).layout.empty(*local.batch)
    return whole.copy_(local, names=local).copy_(lacking, names=lacking)


class _Model:
    """Frozen tensors of a module as machine code takes them.

    Args:
        module: the model, bound to its frozen tensors.
        layout: the layout of the trained parameters.
    """

    def __init__(self, module: nn.Module, layout: Layout):
        from fl.execution.training.native.tiles import PANEL, THIN
        from fl.execution.training.native.transformer_tape import Sizes

        assert isinstance(module, IdTransformer)
        found, entries, layers = adapter.layers(layout.entries), layout.entries, _layers(module)
        names = [f"layers.{layer}.{name}" for layer in range(len(layers)) for name in LINEAR]
        ranks = {name: entries[a].shape[0] for name, (a, _) in found.items()}
        rank = -(-max(ranks.values()) // THIN) * THIN
        places, width = module.positions.shape
        bases = [_base(module.get_submodule(name)) for name in names]
        widest = max(base.out_features for base in bases)
        self.scales = np.zeros(len(names), np.float32)
        self.biases = np.zeros((len(names), widest), np.float32)
        self.linear = np.zeros((len(names), 8), np.int64)
        forward: list[Tensor] = []
        backward: list[Tensor] = []
        offsets = np.zeros(3, np.int64)  # in the panels forward and backward, and in the factors
        for k, (name, base) in enumerate(zip(names, bases)):
            weight, (n_out, n_in) = base.weight.detach(), base.weight.shape
            self.linear[k, :2], self.linear[k, 5:] = (n_in, n_out), offsets
            if name in found:
                a, b = found[name]
                self.linear[k, 2:5] = ranks[name], entries[a].offset, entries[b].offset
                self.scales[k] = adapter.scale(module, name)
            self.biases[k, :n_out] = base.bias.detach().numpy()
            forward.append(torch.zeros(n_out // PANEL, n_in + rank, PANEL))
            forward[k][:, :n_in] = weight.view(-1, PANEL, n_in).mT
            backward.append(torch.zeros(n_in // PANEL, n_out + rank, PANEL))
            backward[k][:, :n_out] = weight.view(n_out, -1, PANEL).transpose(0, 1)
            offsets += forward[k].numel(), backward[k].numel(), (n_in + n_out) * rank
        self.forward, self.backward = (torch.cat([p.view(-1) for p in of]).numpy() for of in (forward, backward))
        norms = [norm for layer in layers for norm in (layer.before_attention, layer.before_forward)]
        self.norms = torch.stack([torch.stack([n.weight, n.bias]) for n in (*norms, module.norm)]).detach().numpy()
        self.embedding, self.positions = module.embedding.weight.detach().numpy(), module.positions.detach().numpy()
        self.sizes = Sizes(
            places=places,
            rows=-(-places // MULTIPLE) * MULTIPLE,
            width=width,
            heads=layers[0].attention.heads,
            forward=_base(layers[0].up).out_features,
            layers=len(layers),
            classes=module.head.out_features,
            rank=rank,
            causal=int(module.hidden.any()),
            padding=-1 if module.padding is None else module.padding,
            head=entries[HEAD[0]].offset,
            bias=entries[HEAD[1]].offset,
        )
        self.factors = int(offsets[2])

    def gradients(self, params: Params, batch: Mapping[str, Tensor], weights: Tensor, grad: Params) -> Tensor:
        """Write the gradients into `grad`, batched (A,); return the losses of all samples, (A, B).

        Raises:
            IndexError: an id or a label is too large, or negative.
        """
        from fl.execution.training.native.transformer import gradients
        from fl.execution.training.native.transformer_tape import memory_length

        ids, labels = (batch[name].long().contiguous().numpy() for name in ("x", "y"))
        labels, s = labels.reshape(weights.shape), self.sizes
        _check(ids, len(self.embedding), "id", "ids")
        _check(labels, s.classes, "label", "classes")
        losses = torch.empty(weights.shape)
        memory = thread_memory(memory_length(s, weights.shape[1], self.factors))
        given = (
            params.buffers[0].detach().contiguous().numpy(),
            self.linear,
            self.scales,
            self.embedding,
            self.positions,
            self.norms,
        )
        arrays = ids, labels, weights.contiguous().numpy(), grad.buffers[0].numpy(), losses.numpy(), memory
        with release_lock():
            gradients(*given, self.biases, self.forward, self.backward, tuple(s), *arrays)
        return losses


def _check(numbers: np.ndarray, count: int, what: str, among: str) -> None:
    if numbers.size and not (0 <= numbers.min() and numbers.max() < count):
        wrong = next(int(number) for number in numbers.ravel() if not 0 <= number < count)
        raise IndexError(f"{what} {wrong} is not one of the model's {count} {among}")


def _layers(module: IdTransformer) -> list[Any]:
    """The layers of a transformer."""
    return [*module.layers]


def _base(layer: Any) -> nn.Linear:
    """The frozen linear layer of an adapted layer, or the layer itself."""
    return layer if type(layer) is nn.Linear else layer.base_layer


def _structure_obstacle(module: IdTransformer) -> str | None:
    """Why machine code does not know the layers of a transformer, or `None`."""
    if module.predicts != "mean":
        return "the model predicts at each position"
    for layer in _layers(module):
        if type(layer) is not Layer or type(layer.attention) is not Attention:
            return f"the model has a layer {type(layer).__name__}"
        if any(type(norm) is not nn.LayerNorm for norm in (layer.before_attention, layer.before_forward, module.norm)):
            return "the model has a norm other than LayerNorm"
        if not all(isinstance(drop, nn.Identity) for drop in (layer.drop_attention, layer.drop_forward)):
            return "the model has a Dropout layer"
    for name, child in module.named_modules():
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks:
            return f"a hook is registered at {name or 'the model'}"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "the model's parameters are not float32"
    if type(module.head) is not nn.Linear:
        return "the head is no plain linear layer"
    first = _layers(module)[0]
    for what, number in (
        ("width of a head", module.positions.shape[1] // first.attention.heads),
        ("width of the feed-forward parts", _base(first.up).out_features),
    ):
        if number % MULTIPLE:
            return f"the {what}, {number}, is not a multiple of {MULTIPLE}"
    return None


def _adapters_obstacle(module: IdTransformer) -> str | None:
    """Why machine code does not know the adapters or the trained tensors of a transformer, or `None`."""
    trained, known = {name for name, p in module.named_parameters() if p.requires_grad}, set(HEAD)
    for index, layer in enumerate(_layers(module)):
        for name in LINEAR:
            linear: Any = layer.get_submodule(name)
            if type(linear) is nn.Linear:
                continue
            kind = f"{type(linear).__module__}.{type(linear).__name__}"
            if (
                kind != "peft.tuners.lora.layer.Linear"
                or linear.lora_variant
                or linear.lora_B["default"].bias is not None
            ):
                return f"layers.{index}.{name} has an adapter other than LoRA"
            if not isinstance(linear.lora_dropout["default"], nn.Identity):
                return "the adapters have Dropout"
            known |= {f"layers.{index}.{name}.lora_{factor}.default.weight" for factor in "AB"}
    if len(known) == len(HEAD):
        return "the model has no adapter"
    if others := sorted(trained - known):
        return f"{others[0]} is trained"
    if frozen := sorted(known - trained):
        return f"{frozen[0]} is frozen"
    return None
