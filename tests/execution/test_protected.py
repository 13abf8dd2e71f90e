"""Protected subspaces: what the hook `protected` may return, in the plans `loop`, `stacked` and `compiled`."""

import numpy as np
import pytest
import torch

from clients.sgd import LocalSGD
from fl import StepContext
from fl.execution.training import batched
from fl.execution.training.compiled import Compiled
from fl.execution.training.kernels import LinearStack
from fl.method.protected import protected_by
from fl.models.binding import Initial
from tests.execution.test_loop_batched import BASES, guarded_mlp, make

PLANS = {"loop": None, "stacked": LinearStack, "compiled": Compiled}
GOOD = BASES["1.weight"]  # (12, 5)
WEIGHT = r"client Mine: protected\['1.weight'\]"
FORM = r"expected orthonormal columns, the same for all clients: torch.float32 \(12, k\) with k at most 12"


class Mine(LocalSGD):
    """Returns what a test asks for."""

    def protected(self, at):
        return type(self).bases


def change(plan: str, bases, module=None, method=Mine) -> list:
    """Train the clients; return the change of the parameters of each."""
    method.bases = bases
    algorithm, (chunk, contexts) = method(lr=0.1, batch=8), make(guarded_mlp() if module is None else module)
    if plan == "loop":
        return [algorithm.work("train", ctx, None).update.groups["model"] for ctx in contexts]
    together = batched.train(algorithm, chunk, PLANS[plan]).update.groups["model"]
    return [together.row(c) for c in range(len(contexts))]


RESULTS = {
    "nothing": (None, "client Mine: protected returned NoneType, expected a dict of matrices by the name of a weight"),
    "a list": ([GOOD], "client Mine: protected returned list, expected a dict"),
    "an unknown name": ({"1.wieght": GOOD}, r"client Mine: protected names '1.wieght'; .* Did you mean '1.weight'\?"),
    "a bias": (
        {"1.bias": GOOD},
        r"client Mine: protected\['1.bias'\]: the tensor has the shape \(20,\); only weights with inputs",
    ),
    "no tensor": ({"1.weight": None}, f"{WEIGHT} is NoneType, {FORM}"),
    "numpy": ({"1.weight": GOOD.numpy()}, f"{WEIGHT} is ndarray, {FORM}"),
    "float64": ({"1.weight": GOOD.double()}, rf"{WEIGHT} is torch.float64 \(12, 5\), {FORM}"),
    "int64": ({"1.weight": torch.eye(12, 5, dtype=torch.int64)}, rf"{WEIGHT} is torch.int64 \(12, 5\), {FORM}"),
    "a vector": ({"1.weight": GOOD[:, 0]}, rf"{WEIGHT} is torch.float32 \(12,\), {FORM}"),
    "one for each client": ({"1.weight": GOOD.expand(3, 12, 5)}, rf"{WEIGHT} is torch.float32 \(3, 12, 5\), {FORM}"),
    "another number of inputs": ({"1.weight": torch.eye(20, 5)}, rf"{WEIGHT} is torch.float32 \(20, 5\), {FORM}"),
    "more columns than inputs": ({"1.weight": torch.eye(12, 13)}, rf"{WEIGHT} is torch.float32 \(12, 13\), {FORM}"),
    "lengths of 2": (
        {"1.weight": 2 * GOOD},
        rf"{WEIGHT}: its columns are not orthonormal, the largest .* is 3, above 0.1;",
    ),
    "equal columns": (
        {"1.weight": torch.eye(12)[:, [0, 0]]},
        rf"{WEIGHT}: its columns are not orthonormal, the largest .* is 1, above 0.1; torch.linalg.qr",
    ),
    "NaN": (
        {"1.weight": GOOD * torch.nan},
        f"{WEIGHT}: its columns are not orthonormal, the largest .* is nan, above 0.1;",
    ),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", RESULTS)
def test_a_wrong_result_is_an_error_that_names_class_hook_and_tensor(name, plan):
    bases, message = RESULTS[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        change(plan, bases)


@pytest.mark.parametrize("plan", PLANS)
def test_a_basis_may_require_gradients(plan):
    """As a parameter of a user's module does. It changes no bits, and weights keep out of its span."""
    plain = change(plan, {"1.weight": GOOD})
    for one, other in zip(change(plan, {"1.weight": GOOD.clone().requires_grad_()}), plain):
        assert torch.equal(one.buffers[0], other.buffers[0]) and not one.buffers[0].requires_grad
    moved = torch.stack([one["1.weight"] for one in plain])
    assert moved.norm() > 0.01 and (moved @ GOOD).norm() < 1e-4 * moved.norm()


@pytest.mark.parametrize("plan", PLANS)
def test_a_basis_may_be_rounded_by_a_codec(plan):
    """FedGPM's basis comes through the codec of broadcasts; bfloat16 keeps 8 bits, a relative error of 2^-9."""
    moved = torch.stack([one["1.weight"] for one in change(plan, {"1.weight": GOOD.bfloat16().float()})])
    assert moved.norm() > 0.01 and (moved @ GOOD).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("plan", PLANS)
def test_names_of_frozen_weights_are_left_out(plan):
    def frozen():
        module = guarded_mlp()
        module[1].weight.requires_grad_(False)
        return module

    without = change(plan, {"4.weight": BASES["4.weight"]}, frozen())
    for one, other in zip(change(plan, {"1.weight": GOOD, "4.weight": BASES["4.weight"]}, frozen()), without):
        assert "1.weight" not in one and torch.equal(one.buffers[0], other.buffers[0])


def test_the_loop_asks_once_for_each_phase():
    calls = []

    class Counted(Mine):
        def protected(self, at):
            calls.append(at.start)
            return super().protected(at)

    chunk = make(guarded_mlp())[0]
    change("loop", {"1.weight": GOOD}, method=Counted)
    assert len(calls) == np.count_nonzero(chunk.sizes) and chunk.sizes.max() > 8  # so a client takes several steps


def test_methods_and_contexts_keep_their_own_bases():
    class Other(Mine):
        bases = None

    chunk, module = make(guarded_mlp())[0], guarded_mlp()
    model, one, other = chunk.received["model"], Mine(lr=0.1, batch=8), Other(lr=0.1, batch=8)
    first, second = (
        StepContext({"model": model}, None, {}, Initial.of(module), phase=one.phases(0, 1)[0], start=model)
        for _ in range(2)
    )
    Mine.bases, Other.bases = {"1.weight": GOOD}, {"4.weight": BASES["4.weight"]}
    assert [*protected_by(one, first)] == ["1.weight"]
    assert [*protected_by(other, first)] == ["4.weight"]
    Mine.bases = {}
    assert [*protected_by(one, second)] == []


@pytest.mark.parametrize("plan", PLANS)
def test_a_basis_without_columns_protects_nothing(plan):
    for one, other in zip(change(plan, {"1.weight": torch.zeros(12, 0)}), change(plan, {})):
        torch.testing.assert_close(one.buffers[0], other.buffers[0], rtol=1e-6, atol=1e-7)
