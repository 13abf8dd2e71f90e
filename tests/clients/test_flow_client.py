"""The private flow: what it is trained on, how it scores, and clients with few rows."""

import numpy as np
import pytest
import torch
from torch import nn

from clients.flow import Flow, unit_features
from fl.data.views import NO_ROWS, View
from fl.method.context import ClientContext
from fl.models import flow
from fl.models.binding import Initial
from fl.tasks.auroc import auroc
from fl.tasks.one_class import OneClass
from fl.tensors.params import NOTHING, Params

D = 4


def context(rows: int) -> ClientContext:
    """Return the context of a client whose samples lie around one direction; the model is the identity."""
    draw = torch.Generator().manual_seed(5)
    x = torch.tensor([3.0, 1.0, 0.0, 0.0]) + 0.3 * torch.randn(60, D, generator=draw)
    net = nn.Linear(D, D, bias=False)
    model = Params.of({"weight": torch.eye(D)})
    return ClientContext(
        client=0,
        seed=0,
        round=0,
        rounds=1,
        participation=0,
        received={"model": model},
        config={},
        state={"prototype": torch.ones(D)},
        train=View({"x": x}, np.arange(rows)),
        val=NO_ROWS,
        test=NO_ROWS,
        initial=Initial(model, NOTHING),
        module=net,
        task=OneClass(features=D),
    )


def fitted(client: Flow, ctx: ClientContext) -> ClientContext:
    return client.context_after_training(ctx, client.work("train", ctx, None))


def test_scores_are_log_densities_of_standardised_unit_features():
    client, ctx = Flow(couplings=2, hidden=(8,), epochs=2), context(50)
    reply = client.work("train", ctx, None)
    assert not any(t.any() for t in reply.update.groups["model"].values()) and set(reply.update.groups) == {"model"}
    h = unit_features(ctx.train.take()["x"])
    torch.testing.assert_close(h.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(reply.state["mean"], h.mean(0))
    torch.testing.assert_close(reply.state["deviation"], h.std(0, correction=0))
    x = torch.randn(9, D)
    expected = flow.log_density(reply.state["flow"], (unit_features(x) - h.mean(0)) / h.std(0, correction=0))
    torch.testing.assert_close(client.predictor(client.context_after_training(ctx, reply))(x), expected)


def test_training_raises_the_density_of_own_samples_and_finds_others():
    ctx = context(50)
    start, end = (fitted(Flow(couplings=4, hidden=(16,), epochs=e, lr=r), ctx) for e, r in ((1, 0.0), (20, 3e-3)))
    own, client = ctx.train.arrays["x"][50:], Flow()
    others = torch.randn(50, D, generator=torch.Generator().manual_seed(6))
    mean_own = [float(client.predictor(fit)(own).mean()) for fit in (start, end)]
    assert mean_own[1] > mean_own[0]
    scores = client.predictor(end)(torch.cat([own, others]))
    assert auroc(scores, torch.arange(60) < 10) > 0.9
    trained, h = end.state["flow"], unit_features(own)
    torch.testing.assert_close(flow.inverse(trained, flow.forward(trained, h)[0]), h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_client_with_fewer_than_two_rows_has_the_standard_normal_density(rows):
    ctx = context(rows)
    scores = Flow(epochs=1).predictor(fitted(Flow(epochs=1), ctx))(torch.eye(D))
    torch.testing.assert_close(scores, torch.full((D,), -0.5 * (1 + D * float(np.log(2 * np.pi)))))


def test_equal_rows_give_finite_scores():
    ctx = context(2)
    ctx.train.arrays["x"][1] = ctx.train.arrays["x"][0]
    assert Flow(epochs=1).predictor(fitted(Flow(epochs=1), ctx))(torch.randn(5, D)).isfinite().all()


@pytest.mark.parametrize(
    "arguments, message",
    [({"couplings": 0}, "couplings: 0"), ({"noise": -1.0}, "noise: -1"), ({"epochs": 0}, "epochs: 0")],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Flow(**arguments)
