"""Fused training equals the unchanged module's autograd; chunks change no bit; other models are refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clients.fedprox
import clients.ffa_lora
import clients.sgd
import fl
from fl.execution.section import Execution
from fl.execution.training import batched
from fl.execution.training.fused import Fused
from fl.execution.training.plan import make_plan
from fl.method.optimiser import SGD, Adam
from fl.models.adapters.lora import DoRA, LoRA, RsLoRA, VeRA
from fl.models.architectures.transformer import Transformer
from fl.models.binding import module_params
from fl.tasks.supervised import Classification, Regression
from tests.execution.test_flat import case
from tests.execution.test_loop_batched import SIZES, assert_engines_agree, like

HEAD, IDS, CLASSES, CLIENTS, BATCH = ("head.*",), 9, 4, 3, 5
LORA_RUN = Path(__file__).parents[2] / "experiments/benchmarks/lora.yaml"
SMALL = {"vocabulary": IDS, "width": 32, "heads": 2, "forward": 48}
TRAINING = clients.sgd.LocalSGD(lr=0.1, batch=20, epochs=1)


def transformer(adapter=LoRA(rank=3, trains=HEAD), places=12, **changes):
    """Return a transformer with adapters whose second factors, norms and biases are not at their initial values."""
    torch.manual_seed(0)
    module = Transformer(**{**SMALL, **changes}).build((places,), CLASSES)
    module = module if adapter is None else adapter.wrap(module)
    for name, parameter in module.named_parameters():
        if "lora_B" in name or parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return module


def ids_of(count, places=12, padded=False):
    ids = 1 + torch.arange(count * places).mul(7).remainder(IDS - 1).view(count, places)
    if padded:  # texts of 1, 2, ... tokens; the fourth has none
        lengths = torch.arange(count).remainder(places) + 1
        lengths[3 % count] = 0
        ids[torch.arange(places) >= lengths[:, None]] = 0
    return ids


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"places": 16, "layers": 3},
        {"causal": True, "places": 21},
        {"padding": 0},
        {"adapter": LoRA(rank=9, alpha=4.0, trains=HEAD, targets=("up", "output"))},
        {"adapter": RsLoRA(rank=8, trains=HEAD), "width": 64, "heads": 1, "forward": 16},
    ],
    ids=["small", "three layers", "causal", "padding", "some layers, rank 9", "one head, rank 8"],
)
def test_gradients_are_those_of_autograd_in_float64(model):
    module = transformer(**model)
    places, params = module.positions.shape[0], module_params(module)
    local = like(params, "clients", CLIENTS, scale=0.1).add_(params)
    chunk, _ = case(module, ids_of(sum(SIZES), places, "padding" in model))
    backend, grad = Fused(TRAINING, chunk, local, local, None), local.layout.empty(CLIENTS)
    x = ids_of(CLIENTS * BATCH, places, "padding" in model).view(CLIENTS, BATCH, places)
    y = torch.arange(CLIENTS * BATCH).remainder(CLASSES).view(CLIENTS, BATCH)
    lengths = torch.tensor([BATCH, 1, 3])
    weights = (torch.arange(BATCH) < lengths[:, None]) / lengths[:, None]
    losses = backend(local, {"x": x, "y": y}, weights, [], None, grad)
    exact = copy.deepcopy(module).double()
    for c in range(CLIENTS):
        tensors = {name: local[name][c].double().requires_grad_() for name in local}
        count = int(lengths[c])
        outputs = torch.func.functional_call(exact, tensors, (x[c, :count],))
        expected = F.cross_entropy(outputs, y[c, :count], reduction="none")
        torch.testing.assert_close(losses[c, :count].double(), expected.detach(), rtol=1e-5, atol=1e-6)
        assert not losses[c, count:].any()
        found = torch.autograd.grad(expected.mean(), [*tensors.values()])
        for (name, tensor), g in zip(tensors.items(), found):
            assert float((grad[name][c] - g).abs().max()) <= 5e-5 * float(g.abs().max()), name


@pytest.mark.parametrize(
    "algorithm",
    [
        TRAINING,
        replace(TRAINING, optimiser=SGD(momentum=0.9), clip=0.5, epochs=2),
        clients.sgd.LocalSGD(lr=0.01, batch="full", epochs=3, optimiser=Adam(eps=1e-3)),
        clients.fedprox.FedProx(mu=0.5, lr=0.1, batch=20, epochs=2),
        replace(TRAINING, trains=("*lora_A*",)),
    ],
    ids=["sgd", "momentum and clipping", "adam, whole data", "a penalty", "first factors only"],
)
def test_it_trains_as_the_loop_does(algorithm):
    module = transformer()
    assert Fused.covers(algorithm, module, Classification()) is None
    assert_engines_agree(algorithm, *case(module, ids_of(sum(SIZES))), Fused)


def test_tensors_that_a_method_neither_sends_nor_trains_keep_their_initial_values():
    module = transformer()
    model = module_params(module)
    received = {"model": like(model.select(["*lora_B*"]), "second"), "head": model.select(["head.*"])}
    algorithm = clients.ffa_lora.FFALoRA(lr=0.1, batch=20)
    assert_engines_agree(algorithm, *case(module, ids_of(sum(SIZES)), received=received), Fused)


def test_clients_that_train_together_do_not_change_each_others_bits():
    chunk, _ = case(transformer(), ids_of(sum(SIZES)))
    together = batched.train(TRAINING, chunk, Fused).update
    for c in range(len(SIZES)):
        one = slice(c, c + 1)
        only = {name: getattr(chunk, name)[one] for name in ("clients", "starts", "sizes", "states")}
        alone = batched.train(TRAINING, replace(chunk, **only), Fused).update
        for group in together.groups:
            for mine, theirs in zip(alone.groups[group].buffers, together.groups[group].row(one).buffers):
                assert torch.equal(mine, theirs)


@pytest.mark.parametrize("wrong, said", [({"x": IDS}, "id 9 is not one of the model's 9 ids"),
                                         ({"x": -1}, "id -1 is not one"),
                                         ({"y": CLASSES}, "label 4 is not one of the model's 4 classes")])  # fmt: skip
def test_a_number_out_of_range_is_an_error(wrong, said):
    chunk, _ = case(transformer(), ids_of(sum(SIZES)))
    arrays = {name: array.clone() for name, array in chunk.arrays.items()}
    for name, value in wrong.items():
        arrays[name].view(-1)[-1] = value
    with pytest.raises(IndexError, match=said):
        batched.train(TRAINING, replace(chunk, arrays=arrays), Fused)


class OwnObjective(clients.sgd.LocalSGD):
    def objective(self, net, batch, at, task):
        return 2 * super().objective(net, batch, at, task)


def hooked(module):
    module.layers[0].up.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    "module, changes, said",
    [
        (lambda: nn.Linear(3, 3), {}, "the model is a Linear, not a transformer over ids"),
        (lambda: transformer(None), {}, "the model has no adapter"),
        (lambda: transformer(predicts="all"), {}, "the model predicts at each position"),
        (lambda: transformer(dropout=0.1), {}, "the model has a Dropout layer"),
        (lambda: transformer(LoRA(trains=HEAD, dropout=0.1)), {}, "the adapters have Dropout"),
        (lambda: transformer(DoRA(trains=HEAD)), {}, "layers.0.attention.inputs has an adapter other than LoRA"),
        (lambda: transformer(VeRA(trains=HEAD)), {}, "layers.0.attention.inputs has an adapter other than LoRA"),
        (lambda: transformer(LoRA(trains=(*HEAD, "norm.*"))), {}, "norm.bias is trained"),
        (lambda: transformer(LoRA(targets=("up",))), {}, "head.bias is frozen"),
        (lambda: transformer(LoRA()), {}, "the head is no plain linear layer"),
        (lambda: transformer(heads=4), {}, "the width of a head, 8, is not a multiple of 16"),
        (lambda: transformer(forward=40), {}, "the width of the feed-forward parts, 40, is not a multiple of 16"),
        (lambda: transformer().double(), {}, "the model's parameters are not float32"),
        (lambda: hooked(transformer()), {}, "a hook is registered at layers.0.up"),
        (transformer, {"task": Regression()}, "the loss of Regression is not cross-entropy"),
        (transformer, {"algorithm": OwnObjective()}, "OwnObjective has its own objective"),
    ],
)
def test_other_models_are_refused(module, changes, said):
    given = {"algorithm": TRAINING, "module": module(), "task": Classification(), **changes}
    assert Fused.covers(**given) == said


@pytest.mark.slow
def test_worker_processes_change_no_bit(tmp_path):
    """Two Ray workers train chunks of 8; this process trains chunks of 2."""
    settings = {"rounds": 2, "execution.plan": "fused", "execution.executor": "serial", "execution.chunk": 2}
    one = fl.run(LORA_RUN, out=tmp_path / "one", **settings).model
    two = fl.run(LORA_RUN, out=tmp_path / "two", rounds=2, **{"execution.plan": "fused", "execution.chunk": 8}).model
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_auto_takes_it_and_its_refusal_names_the_other_plans():
    def plan(module, **execution):
        return make_plan(TRAINING, module, module_params(module), Classification(), ids_of(2), Execution(**execution))

    made = plan(transformer())
    assert (made.kind, made.why) == ("fused", "a transformer with adapters")
    assert plan(transformer(None)).kind == "flat"
    assert plan(transformer(), precision="bf16").kind == "flat"
    said = "plan: 'fused' is not possible: the model has no adapter. Use 'flat', 'loop', 'vmap' or 'auto'"
    with pytest.raises(ValueError, match=said):
        plan(transformer(None), plan="fused")
