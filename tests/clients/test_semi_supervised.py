"""Semi-supervised clients: pseudo-labels by hand, no gradient through them, no true label seen, FedAvg's traffic."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fl
from clients.fedlabel import FedLabel, confidence, surer
from clients.fedmatch import FedMatch
from clients.fixmatch import FixMatch
from clients.freematch import FreeMatch, class_thresholds
from clients.sage import SAGE, soft_targets
from clients.semi_supervised import pseudo_label_losses
from clients.semifl import SemiFL
from clients.sgd import LocalSGD
from fl import ConfigError, Params, StepContext, train_on_rows
from fl.config.config import resolve
from fl.data.dataset import Dataset
from fl.data.sets.digits import Digits
from fl.data.views import NO_ROWS, View
from fl.models.binding import Initial
from fl.simulation.build import set_up_run
from fl.simulation.workload import workload_of
from fl.tasks.supervised import Classification

TASK = Classification()
UP_DOWN = ("up", "down")
CLASSES = 3
FILE = Path(__file__).resolve()
METHODS = [FedLabel(), FixMatch(), FixMatch(expert="received"), SAGE()]
TRAINING = {"lr": 0.2, "batch": 10, "steps": 3, "unlabelled_steps": 3}
RUN = {
    "rounds": 2, "data": {"name": "digits", "strong": ["cutout"]}, "partition": {"name": "iid", "clients": 6},
    "labels": {"name": "budget", "share": 0.1}, "model": "softmax", "strategy": "fedlabel",
    "client": {"name": "fedlabel", "threshold": 0.2, **TRAINING}, "cohort": {"size": 4},
    "evaluation": {"every": 2, "clients": 0}, "execution": {"executor": "serial", "plan": "loop"},
}  # fmt: skip
PLAIN = RUN | {"strategy": "fedavg", "client": {"name": "sgd", "lr": 0.2, "batch": 10, "steps": 3}}


# -- one unlabelled step ----------------------------------------------------------------------------------------------
def model(seed: int) -> tuple[torch.nn.Module, Params]:
    torch.manual_seed(seed)
    module = torch.nn.Linear(4, CLASSES).double()
    return module, Params.of(dict(module.named_parameters()))


def batch(seed: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return {"x": x, "strong": x + torch.randn(12, 4, generator=generator, dtype=torch.float64)}


def at_step(client, received: Params, module: torch.nn.Module) -> StepContext:
    phase = client.phases(0, 1)[1]
    return StepContext({"model": received}, None, {}, Initial.of(module), phase=phase, start=received, module=module)


def losses(client, local: Params, received: Params, module: torch.nn.Module, samples) -> torch.Tensor:
    def net(x):
        return torch.func.functional_call(module, dict(local), (x,))

    return client.objective(net, samples, at_step(client, received, module), TASK)


def test_how_sure_a_model_is():
    for classes in (2, 3, 10):
        one_hot, uniform = torch.eye(classes)[:1], torch.full((1, classes), 1 / classes)
        assert confidence(one_hot).item() == pytest.approx((classes - 1) / classes**2)
        assert confidence(uniform).item() == pytest.approx(0, abs=1e-7)
        assert confidence(one_hot, "entropy").item() == 0
        assert confidence(uniform, "entropy").item() == pytest.approx(-math.log(classes), rel=1e-6)
        assert confidence(uniform, "max").item() == pytest.approx(1 / classes)
    local, received = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.2, 0.8]]), torch.tensor([[0.3, 0.7], [0.6, 0.4], [1, 0]])
    assert surer(local, received).tolist() == [received[0].tolist(), local[1].tolist(), received[2].tolist()]


def test_pseudo_labels_by_hand():
    """Row 0 is sure of class 1, row 1 is not sure; the loss of outputs (0, log 3) on class 1 is log 4/3."""
    outputs = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    p = torch.tensor([[0.1, 0.9], [0.6, 0.4]])
    assert pseudo_label_losses(TASK, outputs, p, 0.7).tolist() == pytest.approx([math.log(4 / 3), 0.0])
    by_class = pseudo_label_losses(TASK, outputs, p, torch.tensor([0.5, 0.95]))
    assert by_class.tolist() == pytest.approx([0.0, math.log(2)])


def test_without_local_steps_both_models_are_one():
    """At w_k = w the choice of the expert changes nothing, and the distance of the models is 0."""
    module, w = model(0)
    samples, threshold = batch(), 0.6
    one, other, both, near = (
        losses(client, w, w, module, samples)
        for client in (
            FixMatch(threshold=threshold),
            FixMatch(threshold=threshold, expert="received"),
            FedLabel(threshold=threshold, agreement=0.0),
            FedLabel(threshold=threshold),
        )
    )
    assert 0 < (one > 0).sum() < 12
    assert torch.equal(one, other) and torch.equal(one, both)
    torch.testing.assert_close(near, both, rtol=0, atol=1e-12)
    mixed = losses(SAGE(threshold=threshold), w, w, module, samples)  # both labels agree, so the target is one-hot
    torch.testing.assert_close(mixed, one)


def test_equally_sure_models_with_one_label_may_be_exchanged():
    """The second model has the first one's probabilities with the two unlikely classes exchanged."""
    module, w = model(0)
    with torch.no_grad():
        other = Params.of({"weight": w["weight"][[0, 2, 1]], "bias": w["bias"][[0, 2, 1]]})
    samples = {name: x[module(batch()["x"]).argmax(-1) == 0] for name, x in batch().items()}
    client = FedLabel(threshold=0.4, agreement=0.0)
    p, q = (torch.func.functional_call(module, dict(m), (samples["x"],)).softmax(-1) for m in (w, other))
    torch.testing.assert_close(confidence(p), confidence(q))
    strong = module(samples["strong"])
    one, two = (pseudo_label_losses(TASK, strong, surer(*pair), client.threshold) for pair in ((p, q), (q, p)))
    assert len(p) and torch.equal(one, two)


@pytest.mark.parametrize("client", METHODS, ids=lambda client: f"{type(client).__name__}")
def test_no_gradient_passes_through_pseudo_labels(client):
    """Central differences of the loss with pseudo-labels held fixed; they are computed here, apart from the client."""
    (module, w), (_, theirs) = model(1), model(2)
    client, samples = replace(client, threshold=0.5), batch()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in w.items()}

    def net(x, weights=leaves):
        return torch.func.functional_call(module, weights, (x,))

    client.objective(net, samples, at_step(client, theirs, module), TASK).mean().backward()
    with torch.no_grad():
        p_l, out_g = net(samples["x"]).softmax(-1), net(samples["x"], dict(theirs))
        p_g = out_g.softmax(-1)
        target, kept = fixed_targets(client, p_l, p_g)
        agree = (p_l.argmax(-1) == p_g.argmax(-1)).double() * (getattr(client, "agreement", 0) > 0)

        def loss(weights):
            learnt = -(target * net(samples["strong"], weights).log_softmax(-1)).sum(-1) * kept
            near = F.kl_div(net(samples["x"], weights).log_softmax(-1), p_g, reduction="none").sum(-1) * agree
            return (learnt + agree.mean() * near).mean()

        assert 0 < kept.sum() < 12
        for name, leaf in leaves.items():
            for place in range(leaf.numel()):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = {n: t.detach().clone() for n, t in leaves.items()}
                    moved[name].view(-1)[place] += step
                    ends.append(loss(moved))
                slope = (ends[0] - ends[1]) / 2e-6
                assert leaf.grad.view(-1)[place].item() == pytest.approx(slope.item(), abs=1e-6)


def fixed_targets(client, p_l, p_g):
    """Return the targets (B, C) and whether they count, from the definitions."""
    if isinstance(client, SAGE):
        rows = []
        for one, other in zip(p_l, p_g):
            m = math.exp(-math.log(2) / 0.05 * abs(one.max() - other.max())) if one.max() >= 0.5 else 0.0
            row = torch.zeros(CLASSES, dtype=torch.float64)
            row[one.argmax()] += m
            row[other.argmax()] += 1 - m
            rows.append(row)
        return torch.stack(rows), (torch.maximum(p_l.amax(-1), p_g.amax(-1)) >= 0.5).double()
    if isinstance(client, FedLabel):
        chosen = torch.stack([a if a.square().sum() >= b.square().sum() else b for a, b in zip(p_l, p_g)])
    else:
        chosen = p_l if client.expert == "local" else p_g
    return F.one_hot(chosen.argmax(-1), CLASSES).double(), (chosen.amax(-1) >= 0.5).double()


def test_sage_mixes_labels_by_the_gap_of_confidence():
    local = torch.tensor([[0.9, 0.1, 0.0], [0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    received = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.2, 0.8], [0.0, 0.1, 0.9], [0.3, 0.6, 0.1]])
    targets, counts = soft_targets(local, received, threshold=0.7, half=0.05)
    torch.testing.assert_close(targets[0], torch.tensor([1.0, 0.0, 0.0]))  # equally sure: the local label
    torch.testing.assert_close(targets[1], torch.tensor([0.25, 0.0, 0.75]))  # .1 apart: 2^-2
    torch.testing.assert_close(targets[2], torch.tensor([0.0, 0.0, 1.0]))  # only the received model is sure
    assert counts.tolist() == [True, True, True, False]


def test_thresholds_follow_the_model():
    client, p = FreeMatch(decay=0.9), torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    state = client.averaged({"sure": torch.tensor(0.5), "share": torch.tensor([0.5, 0.5])}, p)
    assert state["sure"].item() == pytest.approx(0.9 * 0.5 + 0.1 * 0.7)
    assert state["share"].tolist() == pytest.approx([0.52, 0.48])
    assert class_thresholds(**state).tolist() == pytest.approx([0.52, 0.52 * 0.48 / 0.52])


# -- runs -------------------------------------------------------------------------------------------------------------
def run(config, out, **changes):
    return fl.run(config | changes, out=out)


def same(a, b) -> bool:
    return all(map(torch.equal, a.model.buffers, b.model.buffers))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(PLAIN, tmp_path_factory.mktemp("plain") / "run")


def test_without_pseudo_labels_it_is_labelled_only(plain, tmp_path):
    off = {**RUN["client"], "threshold": 2.0, "agreement": 0.0, "weight_view": "train"}
    assert same(run(RUN, tmp_path / "off", client=off), plain)
    assert not same(run(RUN, tmp_path / "on"), plain)
    few = {"name": "freematch", "unlabelled_steps": 0, "weight_view": "train", "lr": 0.2, "batch": 10, "steps": 3}
    assert same(run(RUN, tmp_path / "free", strategy="freematch", client=few), plain)


def test_with_all_labels_the_unlabelled_phase_takes_no_step(tmp_path):
    all_labels = {"labels": {"name": "budget", "share": 1.0}, "rounds": 1}
    one, other = (run(config, tmp_path / name, **all_labels) for name, config in (("all", RUN), ("plain", PLAIN)))
    assert same(one, other)
    client = FedLabel(**TRAINING)
    labelled, unlabelled = np.array([20, 20, 0]), np.array([50, 0, 50])
    steps, samples = workload_of(client, labelled, unlabelled, 0, 1, "train")
    assert steps.tolist() == [6, 3, 3] and samples.tolist() == [30 + 2 * 30, 30, 2 * 30]  # two gradients of a row
    single = workload_of(replace(client, agreement=0.0), labelled, unlabelled, 0, 1, "train")
    assert single[1].tolist() == [60, 30, 30]


@dataclass(frozen=True)
class Poisoned:
    """Digits, of which the rows in a file have wrong labels."""

    rows: str = ""

    def load(self) -> Dataset:
        dataset = Digits().load()
        if not self.rows:
            return dataset
        y = dataset.train["y"].copy()
        rows = np.load(self.rows)
        y[rows] = (y[rows] + 1) % 10
        return replace(dataset, train={**dataset.train, "y": y})


@pytest.mark.parametrize("method", ["fedlabel", "fixmatch", "freematch", "sage", "semifl", "fedmatch"])
def test_poisoned_labels_change_no_bit(method, tmp_path):
    """The labels of unlabelled rows are wrong in one run. Both have the same model, metrics and ledger."""
    labels = {"name": "server", "share": 0.1} if method == "semifl" else RUN["labels"]
    client = {"name": method, "lr": 0.2, "batch": 10, "steps": 3}
    client |= {} if method == "freematch" else {"threshold": 0.2}
    client |= {} if method == "semifl" else {"unlabelled_steps": 3}
    data = {"name": f"{FILE}:Poisoned", "strong": ["cutout"]}
    config = RUN | {"data": data, "labels": labels, "strategy": method, "client": client}
    rows = set_up_run(resolve(config)).periods[0].partition.rows_of("unlabelled")
    assert len(rows) > 500
    np.save(tmp_path / "rows.npy", rows)
    clean, poisoned = (
        run(config, tmp_path / name, data=data | {"rows": file})
        for name, file in (("clean", ""), ("poisoned", str(tmp_path / "rows.npy")))
    )
    assert same(clean, poisoned) and clean.ledger.to_pylist() == poisoned.ledger.to_pylist()
    assert clean.metrics[-1]["train/loss"] == poisoned.metrics[-1]["train/loss"] > 0


@pytest.mark.parametrize("method", ["fedlabel", "fixmatch", "freematch", "sage", "semifl"])
@pytest.mark.parametrize("width, parameters", [(0, 650), (3, 64 * 3 + 3 + 3 * 10 + 10)])
def test_the_traffic_is_fedavgs(method, width, parameters, tmp_path):
    """4 bytes a parameter each way, 4 clients, one round; no state, thresholds or pseudo-labels travel."""
    shape = {"name": "mlp", "hidden": [width]} if width else "softmax"
    labels = {"name": "server", "share": 0.1} if method == "semifl" else RUN["labels"]
    client = {"name": method, "batch": 10, "steps": 1}
    rows = run(RUN, tmp_path / "run", strategy=method, client=client, model=shape, rounds=1, labels=labels)
    rows = rows.ledger.to_pylist()
    assert {row["group"] for row in rows} == {"model"}
    for direction in ("up", "down"):
        assert sum(row["payload_bytes"] for row in rows if row["direction"] == direction) == 4 * 4 * parameters


def test_edge_clients(tmp_path):
    """Clients with no label, and clients with fewer rows than a batch, of two classes at most."""
    few = {"partition": {"name": "pathological", "clients": 40, "num_classes_per_partition": 2}, "cohort": {"size": 12}}
    few |= {"labels": {"name": "clients", "labelled": 10}}
    for strategy in ("fedlabel", "freematch"):
        client = {"name": strategy, **TRAINING, "batch": 50}
        result = run(RUN | few, tmp_path / strategy, strategy=strategy, client=client)
        assert torch.isfinite(result.model.buffers[0]).all()


# -- two parts of each weight -----------------------------------------------------------------------------------------
FEDMATCH = {"name": "fedmatch", "labelled_weight": 1.0, "threshold": 0.2, **TRAINING}


def parts(model):
    """Return (s, u) of a model: name -> tensor."""
    u = {name.removeprefix("psi."): t for name, t in model.items() if name.startswith("psi.")}
    return {name: t for name, t in model.items() if name in u}, u


def test_labels_move_one_part_and_pseudo_labels_the_other(plain, tmp_path):
    """Without unlabelled steps s is FedAvg's model and u stays zero. A client without labels moves u only."""
    config = RUN | {"strategy": {"name": "fedmatch", "helpers": 0}}
    labelled = run(config, tmp_path / "s", client=FEDMATCH | {"unlabelled_steps": 0, "weight_view": "train"})
    s, u = parts(labelled.model)
    assert s.keys() == plain.model.keys() and all(torch.equal(s[name], plain.model[name]) for name in s)
    assert not any(t.any() for t in u.values())
    config |= {"labels": {"name": "clients", "labelled": [0]}, "cohort": {"name": "fixed", "clients": [1, 2]}}
    s, u = parts(run(config, tmp_path / "u", client=FEDMATCH).model)
    first = set_up_run(resolve(config)).model
    assert all(torch.equal(s[name], first[name]) for name in s) and any(t.any() for t in u.values())


def test_helpers_cost_bytes(tmp_path):
    """Up 2 |w|. Down 2 |w| in the first round, then (2 + 2 helpers) |w|: 4 clients, |w| = 650 floats."""
    config = RUN | {"strategy": {"name": "fedmatch", "helpers": 2}, "client": FEDMATCH}
    rows = run(config, tmp_path / "run").ledger.to_pylist()
    model = 2 * 4 * 650
    for round_, down in ((0, model), (1, 3 * model)):
        sums = {
            d: sum(r["payload_bytes"] for r in rows if (r["round"], r["direction"]) == (round_, d)) for d in UP_DOWN
        }
        assert sums == {"up": 4 * model, "down": 4 * down}


# -- labels at the server ---------------------------------------------------------------------------------------------
def server_client(module, w, x, **more) -> fl.ClientContext:
    view = View({"x": x, "y": torch.full((len(x),), -1)}, np.arange(len(x)))
    return fl.ClientContext(
        client=3, seed=0, round=0, rounds=1, participation=0, received={"model": w}, config={}, state=None,
        train=NO_ROWS, val=NO_ROWS, test=NO_ROWS, unlabelled=view.without("y"), initial=Initial.of(module),
        module=module, task=TASK, **more,
    )  # fmt: skip


def test_semifl_labels_its_rows_once():
    module, w = model(0)
    x, client = batch()["x"], SemiFL(threshold=0.6)
    p = module(x).softmax(-1).detach()
    taken = client.samples(server_client(module, w, x)).take()
    kept = p.amax(-1) >= 0.6
    assert 0 < kept.sum() < 12 and torch.equal(taken["x"], x[kept])
    assert torch.equal(taken["y"], p.argmax(-1)[kept]) and ((0 <= taken["lam"]) & (taken["lam"] <= 1)).all()
    assert len(replace(client, threshold=2.0).samples(server_client(module, w, x))) == 0
    many = client.samples(server_client(module, w, x.repeat(400, 1))).take()["lam"]
    assert many.mean().item() == pytest.approx(0.5, abs=0.03)  # Beta(a, a): variance 1 / (8 a + 4)
    assert many.var().item() == pytest.approx(1 / (8 * 0.75 + 4), abs=0.01)


def test_semifl_mixes_pairs():
    """The model returns its input, so the outputs of a mixture are the mixture."""
    x, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    samples = {"x": x, "strong": x, "y": torch.tensor([0]), "lam": torch.tensor([0.25])}
    samples |= {"other/x": other, "other/y": torch.tensor([1])}
    found = SemiFL(mix=2.0).objective(lambda x: x, samples, None, TASK)
    mixed = (math.log1p(math.exp(2.5)), math.log1p(math.exp(-2.5)))  # outputs (0.5, 3): losses on classes 0 and 1
    assert found.item() == pytest.approx(math.log1p(math.exp(-2)) + 2 * (0.25 * mixed[0] + 0.75 * mixed[1]))
    alone = {name: samples[name] for name in ("x", "strong", "y", "lam")}
    assert SemiFL(mix=0.0).objective(lambda x: x, alone, None, TASK).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_the_server_trains_on_its_rows():
    """Two full-batch steps equal gradient descent by torch; the module and the model stay as they were."""
    module, w = model(0)
    x, y = batch()["x"], torch.arange(12) % CLASSES
    before, trainer = w.clone(), LocalSGD(steps=2, batch="full", lr=0.5)
    found = train_on_rows(trainer, module, w, Params.of({}), {"x": x, "y": y}, TASK, 0, 0, 1)
    weight, bias = (w[name].clone().requires_grad_() for name in ("weight", "bias"))
    for _ in range(2):
        slopes = torch.autograd.grad(F.cross_entropy(F.linear(x, weight, bias), y), (weight, bias))
        weight, bias = ((t - 0.5 * g).detach().requires_grad_() for t, g in zip((weight, bias), slopes))
    torch.testing.assert_close(found["weight"], weight.detach())
    torch.testing.assert_close(found["bias"], bias.detach())
    assert all(torch.equal(w[name], before[name]) for name in w)


def test_a_round_without_pseudo_labels_still_trains_the_server(tmp_path):
    client = {"name": "semifl", "steps": 1, "threshold": 2.0}
    config = RUN | {"strategy": "semifl", "client": client, "labels": {"name": "server", "share": 0.1}, "rounds": 1}
    result = run(config, tmp_path / "run")
    assert result.metrics[-1]["unweighted"] == 1
    assert not torch.equal(result.model.buffers[0], set_up_run(resolve(config)).model.buffers[0])


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None}, "labels: missing; client fedlabel takes steps on rows without labels"),
        ({"data": "digits"}, "data.strong: missing; client fedlabel uses the strong chain"),
        ({"task": "regression"}, "task: client FedLabel needs a class for each sample, and Regression is no"),
        ({"stream": {"name": "classes", "tasks": 2, "rounds": 1, "head": "per_task"}}, "task: client FedLabel needs"),
        ({"strategy": "semifl", "client": "semifl"}, "strategy.name: semifl trains on labels at the server"),
    ],
)
def test_mistakes_before_round_0(change, message, tmp_path):
    with pytest.raises((ConfigError, ValueError), match=message):
        run(RUN, tmp_path / "run", **change)
    assert not list((tmp_path / "run").glob("metrics.jsonl"))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FedLabel(threshold=0.0), "threshold: 0.0 is not positive"),
        (lambda: FedLabel(agreement=-1.0), "agreement: -1.0 is negative"),
        (lambda: FedLabel(confidence="sure"), "confidence: 'sure' is not one of"),
        (lambda: FixMatch(expert="global"), "expert: 'global' is not one of"),
        (lambda: FixMatch(unlabelled_steps=-1), "unlabelled_steps: -1 is negative"),
        (lambda: FreeMatch(decay=1.0), "decay: 1.0 is not in"),
        (lambda: SAGE(half=0.0), "half: 0.0 is not positive"),
        (lambda: SemiFL(alpha=0.0), "alpha: 0.0 is not positive"),
        (lambda: FedMatch(lr=0.5, l2=1.0), "l2: 1.0 with lr: 0.5 makes u diverge"),
        (lambda: FedMatch(trains=("0.*",)), "trains: fedmatch trains one part"),
        (lambda: FedLabel(weight_view="val"), "weight_view: 'val' is not one of"),
    ],
)
def test_mistakes_in_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_freematch_trains_a_part_of_the_model(tmp_path):
    """Steps on the bias alone equal those of the engine's loop with the same part, and the weight stays."""
    some = {"trains": ["1.bias"], "lr": 0.2, "batch": 10, "steps": 3}
    free = {"name": "freematch", "unlabelled_steps": 0, "weight_view": "train", **some}
    one = run(RUN, tmp_path / "free", strategy="freematch", client=free)
    assert same(one, run(PLAIN, tmp_path / "plain", client={"name": "sgd", **some}))
    learnt = run(RUN, tmp_path / "on", strategy="freematch", client=free | {"unlabelled_steps": 2})
    first = set_up_run(resolve(RUN)).model
    assert torch.equal(learnt.model["1.weight"], first["1.weight"])
    assert not torch.equal(learnt.model["1.bias"], one.model["1.bias"])


@pytest.mark.ray
def test_ray_has_the_same_bits(tmp_path):
    client = {"name": "freematch", **TRAINING}
    serial = run(RUN, tmp_path / "serial", strategy="freematch", client=client)
    workers = {"executor": "ray", "workers": 2, "plan": "loop"}
    ray = run(RUN, tmp_path / "ray", strategy="freematch", client=client, execution=workers)
    assert same(serial, ray) and serial.ledger.to_pylist() == ray.ledger.to_pylist()
