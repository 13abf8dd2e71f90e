"""Flat training: layers with a tensor per client train as in the loop; impossible modules are refused.

The loop runs the unchanged module, one client at a time; test_loop_batched.py compares both with plain torch.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import clients.fedprox
import clients.ffa_lora
import clients.sgd
from fl.data.views import View
from fl.execution.section import Execution
from fl.execution.training import batched
from fl.execution.training.flat import Flat
from fl.execution.training.plan import make_plan
from fl.method.optimiser import Adam
from fl.method.phase import Phase
from fl.models.adapters.lora import LoRA, RsLoRA, VeRA
from fl.models.architectures.transformer import Transformer
from fl.models.binding import Initial, module_params
from fl.models.dropout import Dropout, with_addressed_dropout
from fl.tasks.language import LanguageModelling
from fl.tasks.supervised import Classification
from tests.execution.test_loop_batched import SIZES, assert_engines_agree, like, make, normal

TRAINING = clients.sgd.LocalSGD(lr=0.1, batch=20, epochs=2)
IDS = torch.arange(sum(SIZES) * 6).mul(7).remainder(9).view(-1, 6)
IMAGES = normal(sum(SIZES), 4, 5, 6, address="images")
VECTORS = normal(sum(SIZES), 3, 4, address="vectors")


def case(module, x, task=Classification(), y=None, **fields):
    """Return the same clients, with samples `x`, for both engines."""
    chunk, contexts = make(module, task=task, **fields)
    arrays = {**chunk.arrays, "x": x} | ({} if y is None else {"y": y})
    return replace(chunk, arrays=arrays), [replace(c, train=View(arrays, c.train.rows)) for c in contexts]


def assert_trains_flat(algorithm, module, x, **fields):
    task = fields.get("task", Classification())
    assert Flat.covers(algorithm, module, task, x) is None
    assert_engines_agree(algorithm, *case(module, x, **fields), Flat)


class Places(nn.Module):
    """A container with its own class token and position table, then the module `then`; returns the token's output."""

    def __init__(self, then, squeezed):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.table = nn.Parameter(torch.randn(*(() if squeezed else (1,)), 7, 8))
        self.embedding, self.then, self.head = nn.Embedding(9, 8), then, nn.Linear(8, 4)

    def forward(self, ids):
        h = torch.cat([self.token.expand(len(ids), -1, -1), self.embedding(ids)], 1) + self.table
        return self.head(self.then(h)[:, 0])


class Last(nn.Module):
    def forward(self, h):
        return h[:, -1]


def images(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4))


def texts(*layers, **embedding):
    return nn.Sequential(nn.Embedding(9, 8, **embedding), *layers, Last(), nn.Linear(8, 4))


LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 4, bias=False)), VECTORS),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm((3, 5)), nn.Flatten(), nn.Linear(15, 4)),
        VECTORS,
    ),
    "layer norm, no bias": (lambda: texts(nn.LayerNorm(8, bias=False)), IDS),
    "rms norm": (lambda: texts(nn.RMSNorm(8), nn.Linear(8, 8), nn.GELU()), IDS),
    "group norm": (lambda: images(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()), IMAGES),
    "group norm of rows": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.GroupNorm(1, 6), nn.Linear(6, 4)),
        VECTORS,
    ),
    "convolutions": (
        lambda: images(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, (2, 3), dilation=1, bias=False)),
        IMAGES,
    ),
    "one-dimensional": (
        lambda: nn.Sequential(nn.Conv1d(3, 5, 3, padding="same"), nn.Flatten(), nn.Linear(20, 4)),
        VECTORS,
    ),
    "embedding with padding": (lambda: texts(nn.Linear(8, 8), padding_idx=4), IDS),
    "places": (lambda: Places(nn.Linear(8, 8), squeezed=True), IDS),
    "places with an axis": (lambda: Places(nn.LayerNorm(8), squeezed=False), IDS),
    "dropout": (lambda: texts(nn.Linear(8, 8), Dropout(0.3)), IDS),
}


def built(name):
    make_module, x = LAYERS[name]
    torch.manual_seed(1)
    module = make_module()
    with torch.no_grad():
        module.eval()(x[:2])  # initialises lazy layers
    return module, x


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert_trains_flat(TRAINING, *built(name))


# y = W x + b with W or b frozen in each layer: not sent at all, or sent but not trained
@pytest.mark.parametrize("half", ["weight", "bias"])
@pytest.mark.parametrize("name", ["linear", "layer norm", "group norm", "convolutions"])
def test_a_layer_with_one_trained_tensor(name, half):
    module, x = built(name)
    patterns = tuple(n for n, _ in module.named_parameters() if n.endswith(half))
    assert_trains_flat(replace(TRAINING, trains=patterns), module, x)
    for parameter_name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter_name in patterns)
    assert_trains_flat(TRAINING, module, x)


def test_a_module_used_twice():
    linear, norm = nn.Linear(8, 8), nn.LayerNorm(8)
    assert_trains_flat(TRAINING, texts(linear, norm, nn.GELU(), linear, norm), IDS)


def test_frozen_tensors_that_differ_between_clients():
    """In the second phase the body is frozen, and it differs between clients."""

    class BodyThenHead(clients.sgd.LocalSGD):
        def phases(self, round_, rounds):
            return (
                Phase(self.optimiser, 0.1, self.batch, trains=("0.*", "1.*"), name="body"),
                Phase(self.optimiser, 0.1, self.batch, trains=("3.*",), name="head"),
            )

    assert_trains_flat(BodyThenHead(batch=20), texts(nn.Linear(8, 8)), IDS)


# -- adapters ---------------------------------------------------------------------------------------------------------
ADAPTERS = {
    "lora": LoRA(rank=2, alpha=5, trains=("head.*",)),
    "lora with dropout": LoRA(rank=2, dropout=0.3, trains=("head.*",)),
    "rslora of some": RsLoRA(rank=3, targets=("up", "inputs"), trains=("head.*", "positions")),
    "vera": VeRA(rank=3, trains=("*norm.*", "head.*")),
}


def adapted(name, **settings):
    torch.manual_seed(2)
    made = Transformer(vocabulary=9, width=8, heads=2, forward=12, layers=1, **settings).build((6,), 4)
    return with_addressed_dropout(ADAPTERS[name].wrap(made))


@pytest.mark.parametrize("settings", [{}, {"optimiser": Adam(eps=0.1), "clip": 1.0}], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, settings):
    assert_trains_flat(replace(TRAINING, lr=0.05, epochs=1, **settings), adapted(name, padding=3), IDS)


def test_adapters_with_one_frozen_factor():
    module = adapted("lora")
    model = module_params(module)
    received = {"model": like(model.select(["*lora_B*"]), "second"), "head": model.select(["head.*"])}
    assert_trains_flat(clients.ffa_lora.FFALoRA(lr=0.1, batch=20), module, IDS, received=received)
    assert_trains_flat(replace(TRAINING, trains=("*lora_A*",)), module, IDS)


def test_a_fully_trained_transformer():
    torch.manual_seed(3)
    module = Transformer(vocabulary=9, width=8, heads=2, forward=12, layers=2, dropout=0.2, padding=3).build((6,), 4)
    assert_trains_flat(TRAINING, module, IDS)


def test_language():
    torch.manual_seed(4)
    module = Transformer(vocabulary=9, width=8, heads=2, forward=12, layers=1, predicts="all").build((6,), 9)
    y = torch.where(IDS % 4 == 0, -1, IDS.roll(-1, 1))
    y[::5] = -1  # samples without a known token
    for wrapped in (module, ADAPTERS["lora"].wrap(copy.deepcopy(module))):
        assert_trains_flat(clients.fedprox.FedProx(batch=20, mu=0.2), wrapped, IDS, task=LanguageModelling(), y=y)


def test_the_gradient_of_one_step_by_hand():
    """A full-batch step of learning rate 1 gives W - g, with g from autograd of y = W x + s B A x."""
    module = LoRA(rank=2, alpha=6).wrap(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
    initial = Initial.of(module)
    b = initial.trained["1.lora_B.default.weight"].copy_(normal(4, 2, address="second"))
    w, bias = initial.frozen["1.base_layer.weight"], initial.frozen["1.base_layer.bias"]
    algorithm = clients.sgd.LocalSGD(lr=1.0, batch="full")
    chunk, _ = case(module, VECTORS, received={"model": initial.trained})
    update = batched.train(algorithm, replace(chunk, initial=initial), Flat).update
    for c, (start, size) in enumerate(zip(chunk.starts, chunk.sizes)):
        rows = torch.from_numpy(chunk.rows[start : start + size])
        x, y = VECTORS[rows].flatten(1), chunk.arrays["y"][rows]
        first = initial.trained["1.lora_A.default.weight"].clone().requires_grad_()
        second = b.clone().requires_grad_()
        scores = x @ (w + 3 * second @ first).T + bias
        loss = -scores.log_softmax(1)[torch.arange(size), y].mean()
        grads = torch.autograd.grad(loss, (first, second))
        for name, g in zip(("1.lora_A.default.weight", "1.lora_B.default.weight"), grads):
            torch.testing.assert_close(update.groups["model"][name][c], -g)


# -- modules that cannot be stacked ------------------------------------------------------------------------------------
class Tied(nn.Module):
    """A module that uses the embedding's table outside the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, ids):
        return nn.functional.linear(self.inner(self.embedding(ids)).mean(1), self.embedding.weight)


class Shares(nn.Module):
    """A module with one tensor in two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, ids):
        return self.two(self.one(ids.float()).tanh())


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    "module, said",
    [
        (Tied, "no attribute 'weight'|_Embedding"),
        (Shares, "give other outputs"),
        (lambda: texts(Centred()), "give other outputs"),
        (lambda: texts(nn.Linear(8, 8), max_norm=1.0), "0 .Embedding. has max_norm"),
        (lambda: texts(nn.Bilinear(8, 8, 8)), "raise TypeError: .*forward"),
    ],
)
def test_modules_that_cannot_be_stacked_are_refused(module, said):
    assert_refused(TRAINING, module(), said)


def assert_refused(algorithm, module, said):
    with pytest.raises(ValueError, match=f"plan: 'flat' is not possible: .*({said})"):
        make_plan(algorithm, module, module_params(module), Classification(), IDS, Execution(plan="flat"))


def test_an_own_objective_is_refused():
    class Own(clients.sgd.LocalSGD):
        def objective(self, net, batch, at, task):
            return 2 * super().objective(net, batch, at, task)

    assert_refused(Own(), texts(nn.Linear(8, 8)), "Own has its own objective")
