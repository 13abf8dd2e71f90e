"""FedEWC, FedLwF and FedGPM, compared with closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.fedewc import FedEWC as EWCClient
from clients.fedewc import fisher, springs
from clients.fedgpm import FedGPM as GPMClient
from clients.fedlwf import FedLwF as LwFClient
from clients.fedlwf import distillation
from fl import ModelOutputs
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.views import View
from fl.method.context import ClientContext
from fl.method.optimiser import SGD, Adam, Torch
from fl.models.binding import Initial, module_params
from fl.simulation.simulation import Simulation
from fl.tasks.supervised import Classification, Regression
from fl.tensors.params import Params
from partitions.classes import Slice
from strategies.fedewc import FedEWC, State, consolidated
from strategies.fedlwf import FedLwF
from tests.toys import fail_in_round
from tests.watching import AfterRound

RUN = {
    "data": {"name": "digits", "test": 0.6},
    "stream": {"name": "permuted", "tasks": 3, "rounds": 2},
    "partition": {"name": "iid", "clients": 4},
    "splits": {"val": 0},
    "model": {"name": "mlp", "hidden": [12]},
    "cohort": {"fraction": 1.0},
    "client": {"epochs": 1, "batch": 32, "lr": 0.1},
    "execution": {"executor": "serial", "plan": "loop"},
}
P = 64 * 12 + 12 + 12 * 10 + 10


def states(tmp_path, strategy, **overrides):
    seen = []
    with Simulation(resolve(read(RUN, {"strategy": strategy, **overrides})), tmp_path) as simulation:
        seen.append(simulation.state)
        result = simulation.run([AfterRound(lambda _: seen.append(simulation.state))])
    return seen, result


def floats(result, direction):
    """Return the floats of all four clients per round."""
    return [row[f"{direction}link_bytes"] / 4 / 4 for row in result.metrics]


def params(*numbers):
    return Params.of({"w": torch.tensor(numbers)})


# -- EWC --------------------------------------------------------------------------------------------------------------
def context(module, x, y, task):
    view = View({"x": x, "y": y}, np.arange(len(x)))
    shared = {"received": {}, "config": {}, "state": None, "train": view, "val": view, "test": view}
    initial = Initial.of(module)
    return ClientContext(
        client=0, seed=0, round=0, rounds=1, participation=0, initial=initial, module=module, task=task, **shared
    )


def test_fisher_of_a_linear_regression():
    """The loss 1/2 (w.x - y)^2 has the gradient (w.x - y) x, so its mean square is known."""
    module = nn.Linear(3, 1, bias=False)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 3, generator=g), torch.randn(20, generator=g)
    model = module_params(module)
    error = x @ model["weight"][0] - y
    expected = (error[:, None] * x).square().mean(0, keepdim=True)
    torch.testing.assert_close(fisher(context(module, x, y, Regression()), model)["weight"], expected)


def test_fisher_is_of_samples_not_of_their_mean():
    """Two samples with opposite gradients have non-zero Fisher information; expected values by autograd per sample."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(7, 4), torch.arange(7) % 3
    model = module_params(module)
    expected = {name: torch.zeros_like(model[name]) for name in model}
    for i in range(7):
        grads = torch.autograd.grad(F.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), list(module.parameters()))
        for name, grad in zip(expected, grads):
            expected[name] += grad.square() / 7
    found = fisher(context(module, x, y, Classification()), model)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_the_spring_pulls_to_the_anchors():
    """F_1 = (1, 4) at w_1 = (0, 1), F_2 = (3, 0) at w_2 = (2, 9).

    The gradient is sum_t F_t (w - w_t) with an anchor per task, and F (w - w_2) with the last anchor only.
    """
    start = State(params(0.0, 1.0), params(0.0, 0.0), params(0.0, 0.0), 0)
    w, lam = params(1.0, 2.0), 10.0
    expected = {"every": [10 * (1 * 1 + 3 * -1), 10 * 4 * 1], "last": [10 * 4 * -1, 10 * 4 * -7]}
    for anchors, pull in expected.items():
        one = consolidated(start, params(1.0, 4.0), 1.0, anchors)
        two = consolidated(State(params(2.0, 9.0), one.fisher, one.pull, 1), params(3.0, 0.0), 1.0, anchors)
        gradient = springs(two.fisher, two.pull, lam).add_gradient(params(0.0, 0.0), w)
        assert gradient["w"].tolist() == pull and two.tasks == 2


def test_gamma_lets_go_of_old_tasks():
    old = State(params(1.0, 1.0), params(2.0, 4.0), params(0.0, 0.0), 1)
    assert consolidated(old, params(1.0, 1.0), 0.5, "last").fisher["w"].tolist() == [2.0, 3.0]


def test_what_ewc_sends_and_keeps(tmp_path):
    seen, result = states(tmp_path, {"name": "fedewc", "lam": 5.0})
    assert floats(result, "up") == [P, 2 * P] * 3
    assert floats(result, "down") == [P, 2 * P, P + 2 * P, 2 * P, P + 2 * P, 2 * P]  # F and b once per task
    assert [s.tasks for s in seen] == [0, 0, 1, 1, 2, 2, 3]
    for old, new in zip(seen[2::2], seen[4::2]):
        assert all((new.fisher[name] >= old.fisher[name]).all() for name in new.fisher)


def test_a_stiffer_spring_moves_less(tmp_path):
    moved, importance = [], None
    for lam in (20.0, 5.0, 0.0):
        seen, _ = states(tmp_path / str(lam), {"name": "fedewc", "lam": lam}, **{"client.lr": 0.02})
        importance = importance or seen[2].fisher  # the first task is the same for all
        step = seen[3].model - seen[2].model
        moved.append(sum(float((importance[n] * step[n].square()).sum()) for n in step))
    assert 0 < moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("fails, tasks", [({"train"}, [0, 0, 1, 1, 2]), ({"train", "fisher"}, [0, 0, 0, 1, 2])])
def test_the_end_of_a_task_without_answers_is_taken_with_the_next(tmp_path, monkeypatch, fails, tasks):
    fail_in_round(monkeypatch, EWCClient, 1, fails)
    seen, _ = states(tmp_path, "fedewc", **{"stream.tasks": 2, "execution.on_client_error": "drop"})
    assert [state.tasks for state in seen] == tasks
    assert [bool(state.fisher.buffers[0].any()) for state in seen] == [bool(number) for number in tasks]


# -- LwF --------------------------------------------------------------------------------------------------------------
def test_distillation_is_the_divergence_of_softened_outputs():
    g = torch.Generator().manual_seed(0)
    z, t = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)
    expected = 9 * F.kl_div((z / 3).log_softmax(-1), (t / 3).softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(distillation(z, t, 3.0), expected)
    assert distillation(t, t, 2.0).abs().max() < 1e-6


def test_the_teacher_is_the_last_stages_model_and_goes_down_once(tmp_path):
    seen, result = states(tmp_path, {"name": "fedlwf"})
    assert floats(result, "up") == [P] * 6 and floats(result, "down") == [P, P, 2 * P, P, 2 * P, P]
    for i in (3, 4):
        assert torch.equal(seen[i].teacher.buffers[0], seen[2].model.buffers[0])
    assert torch.equal(seen[5].teacher.buffers[0], seen[4].model.buffers[0])


def test_a_heavy_teacher_keeps_the_outputs(tmp_path):
    """The larger the teacher's weight, the less the outputs on the new task's samples change."""
    apart = []
    for weight in (0.0, 1.0, 10.0):
        seen, _ = states(tmp_path / str(weight), {"name": "fedlwf", "weight": weight}, **{"client.lr": 0.02})
        with Simulation(resolve(read(RUN, {"strategy": "fedavg"})), tmp_path / f"x{weight}") as simulation:
            x, module = torch.from_numpy(simulation.run_setup.dataset.train["x"]), simulation.run_setup.module
            x = x[simulation.run_setup.periods[1].partition.indices]
        old, new = (torch.func.functional_call(module, dict(s.model), (x,)) for s in (seen[2], seen[4]))
        apart.append(float(distillation(new, old, 2.0).mean()))
    assert apart[0] > apart[1] > apart[2]


def test_with_a_head_per_task_old_heads_are_distilled():
    """The loss uses outputs 2 and 3, and the divergence outputs 0 and 1 only."""
    g = torch.Generator().manual_seed(0)
    z, t, y = torch.randn(6, 6, generator=g), torch.randn(6, 6, generator=g), torch.tensor([2, 3, 2, 2, 3, 3])
    config, task = {"weight": 0.5, "temperature": 2.0}, Slice(Classification(), 2, 4)
    constants = LwFClient().constants({"teacher": ModelOutputs(t, t)}, config, task)
    found = LwFClient().sample_losses(ModelOutputs(z, z), constants, {"x": z, "y": y}, config, task)
    own = F.cross_entropy(z[:, 2:4], y - 2, reduction="none")
    torch.testing.assert_close(found, own + 0.5 * distillation(z[:, :2], t[:, :2], 2.0))


# -- GPM --------------------------------------------------------------------------------------------------------------
def test_gpm_projects_at_the_client(tmp_path):
    """Updates have no component in the subspace, even with momentum. Bases are sent once per task."""
    seen, result = states(tmp_path, "fedgpm", **{"client.optimiser": {"name": "sgd", "momentum": 0.5}})
    for old, new in zip(seen, seen[1:]):
        for name, u in old.bases.items():
            w = old.model[name]
            assert ((new.model[name] - w) @ u).abs().max() <= 2e-6 * w.norm()
    known = [sum(u.numel() for u in s.bases.values()) for s in seen]
    assert floats(result, "down") == [P, P, P + known[2], P, P + known[4], P]


@pytest.mark.parametrize("server", [{"name": "momentum"}, {"name": "adam", "lr": 0.03}])
def test_gpm_with_a_server_optimiser_stays_outside_the_subspace(tmp_path, server):
    seen, _ = states(tmp_path, "fedgpm", **{"strategy.server_optimiser": server})
    for old, new in zip(seen, seen[1:]):
        for name, u in old.bases.items():
            w = old.model[name]
            assert ((new.model[name] - w) @ u).abs().max() <= 2e-6 * w.norm()


@pytest.mark.parametrize(
    "optimiser, complaint",
    [
        (Adam(), "optimiser: 'adam' rescales"),
        (Torch(cls="RMSprop"), "optimiser: 'torch' rescales"),
        (SGD(weight_decay=0.1), "optimiser.weight_decay: 0.1 moves weights within the subspace"),
    ],
)
def test_gpm_refuses_steps_that_enter_the_subspace(optimiser, complaint):
    with pytest.raises(ValueError, match=complaint):
        GPMClient(optimiser=optimiser)


def test_gpm_is_fot_where_a_client_takes_one_step(tmp_path):
    """With one step of plain SGD, projection before the mean equals projection after it.

    The test compares the first two rounds of the second task; later bases differ by rounding errors of their inputs.
    """
    one = {"client.batch": "full", "strategy.gpse": "gram", "strategy.residual_ratio": "energy"}
    a, b = (states(tmp_path / s, {"name": s}, **one)[0] for s in ("fot", "fedgpm"))
    for i in (2, 3, 4):
        torch.testing.assert_close(a[i].model.buffers[0], b[i].model.buffers[0], rtol=1e-5, atol=1e-6)


# -- neutral settings and refusals ------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", [{"name": "fedewc", "lam": 0.0}, {"name": "fedlwf", "weight": 0.0}])
def test_without_their_terms_they_are_fedavg_to_the_bit(tmp_path, strategy):
    plain = fl.run(RUN, out=tmp_path / "a", strategy="fedavg")
    assert fl.run(RUN, out=tmp_path / "b", strategy=strategy).digest == plain.digest


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: FedEWC(lam=-1.0), "lam: -1.0 is negative"),
        (lambda: FedEWC(gamma=1.5), "gamma: 1.5 is not in"),
        (lambda: FedEWC(anchors="first"), "anchors: 'first' is not one of"),
        (lambda: FedLwF(weight=-1.0), "weight: -1.0 is negative"),
        (lambda: FedLwF(temperature=0.0), "temperature: 0.0 is not positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()
