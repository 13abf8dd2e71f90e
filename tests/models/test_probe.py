"""Modules that draw random numbers, keep state or leave parameters out: the same bits everywhere, or refused."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from fl.config.config import resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.models.probe import ModuleFacts, ModuleState, probe
from fl.simulation.build import set_up_run

D, K = 6, 3


def config(module, **changes):
    base = {
        "rounds": 2,
        "data": {"name": "noise", "shape": [D], "classes": K, "clients": 6, "samples": 9},
        "partition": "natural",
        "splits": {"val": 0.25},
        "model": module,
        "cohort": {"size": 3},
        "strategy": "fedavg",
        "client": {"epochs": 2, "batch": 4, "lr": 0.1},
        "evaluation": {"server": False},
        "execution": {"executor": "serial", "plan": "auto"},
    }
    return read(base, changes)


class Net(nn.Module):
    """A linear layer, and what a subclass does beside it."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.l = nn.Linear(shape[0], outputs)
        self.begin()

    def begin(self):
        pass


class FunctionalDropout(Net):
    def forward(self, x):
        return self.l(F.dropout(x, 0.5, self.training))


class AlphaDropout(Net):
    def begin(self):
        self.drop = nn.AlphaDropout(0.3)

    def forward(self, x):
        return self.l(self.drop(x))


class Recurrent(Net):
    def begin(self):
        self.r = nn.LSTM(2, D, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.l(self.r(x.view(-1, D // 2, 2))[0][:, -1])


class Noise(Net):
    def forward(self, x):
        return self.l(x + torch.randn_like(x)) if self.training else self.l(x)


class NumpyNoise(Net):
    def forward(self, x):
        return self.l(x * float(np.random.uniform(0.5, 1.5)) * random.uniform(0.5, 1.5))


class NoiseInEvaluation(Net):
    def forward(self, x):
        return self.l(x + 0.1 * torch.randn_like(x))


class Encoder(Net):
    def begin(self):
        self.e = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)

    def forward(self, x):
        return self.l(self.e(x.view(-1, D // 2, 2)).flatten(1))


class ReusedDropout(Net):
    def begin(self):
        self.drop = nn.Dropout(0.4)

    def forward(self, x):
        return self.drop(self.l(self.drop(x)))


class RaggedDropout(Net):
    def begin(self):
        self.drop = nn.Dropout(0.4)

    def forward(self, x):
        kept = x[:, : 2 + int(x.sum().abs()) % (D - 1)]
        return self.l(F.pad(self.drop(kept), (0, D - kept.shape[1])))


class LateDropout(Net):
    """Draws from its third call on."""

    def begin(self):
        self.calls = [0]

    def forward(self, x):
        self.calls[0] += 1
        return self.l(F.dropout(x, 0.5, self.training and self.calls[0] > 3))


DRAWS = [FunctionalDropout, AlphaDropout, Recurrent, Noise, NumpyNoise, NoiseInEvaluation, Encoder, LateDropout]


class IntegerBuffer(Net):
    def begin(self):
        self.register_buffer("n", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        if self.training:
            self.n += 1
        return self.l(x) * (1 + 0.1 * self.n)


class HiddenBuffer(Net):
    def begin(self):
        self.register_buffer("m", torch.zeros(D), persistent=False)

    def forward(self, x):
        if self.training:
            self.m = 0.9 * self.m + 0.1 * x.detach().mean(0)
        return self.l(x - self.m)


class InPlaceBuffer(HiddenBuffer):
    def forward(self, x):
        if self.training:
            self.m.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.l(x - self.m)


class DataBuffer(HiddenBuffer):
    def forward(self, x):
        if self.training:
            self.m.data += 0.1 * x.detach().mean(0)
        return self.l(x - self.m)


class TensorAttribute(Net):
    def begin(self):
        self.m = torch.zeros(D)

    def forward(self, x):
        if self.training:
            self.m = 0.9 * self.m + 0.1 * x.detach().mean(0)
        return self.l(x - self.m)


class Counter(Net):
    def begin(self):
        self.n, self.seen = 0, {"batches": [0]}

    def forward(self, x):
        if self.training:
            self.n, self.seen["batches"][0] = self.n + 1, self.seen["batches"][0] + 1
        return self.l(x) * (1 + 0.1 * self.n + 0.1 * self.seen["batches"][0])


class NewAttribute(Net):
    def forward(self, x):
        last = getattr(self, "last", 0.0)
        if self.training:
            self.last = float(x.mean())
        return self.l(x + last)


class ChangesInEvaluation(Net):
    def begin(self):
        self.n = 0

    def forward(self, x):
        self.n += not self.training
        return self.l(x) * (1 + 0.1 * self.n)


STATES = [IntegerBuffer, HiddenBuffer, InPlaceBuffer, DataBuffer, TensorAttribute, Counter, NewAttribute]
STATES += [ChangesInEvaluation]
PLAIN = [ReusedDropout, RaggedDropout]


@pytest.mark.parametrize("module", [*DRAWS, *STATES, *PLAIN])
def test_one_worker_and_clients_in_any_company_give_the_same_bits(module, tmp_path):
    """Same run twice in one process, with the global generators elsewhere, and with clients alone: the same bits."""
    first = fl.run(config(module), out=tmp_path / "a")
    torch.rand(3), np.random.rand(3), random.random()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    again = fl.run(config(module), out=tmp_path / "b")
    assert first.digest == again.digest and first.metrics[-1]["val/loss"] == again.metrics[-1]["val/loss"]
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]


@pytest.mark.slow
@pytest.mark.parametrize("module", [*DRAWS, *STATES, *PLAIN])
def test_ray_workers_give_the_serial_bits(module, tmp_path):
    serial = fl.run(config(module), out=tmp_path / "a")
    ray = {"execution.executor": "ray", "execution.workers": 2}
    shared = fl.run(config(module, **ray), out=tmp_path / "b")
    assert serial.digest == shared.digest
    assert serial.metrics[-1]["val/loss"] == shared.metrics[-1]["val/loss"]


@pytest.mark.parametrize("module", DRAWS[:-1])
def test_draws_differ_from_step_to_step_client_to_client_and_round_to_round(module):
    facts = set_up_run(resolve(config(module))).facts
    assert facts.draws and facts.one_at_a_time


@pytest.mark.parametrize("module", STATES)
def test_what_a_pass_changes_is_found_and_each_client_begins_with_the_first_state(module, tmp_path):
    run_setup = set_up_run(resolve(config(module)))
    assert run_setup.facts.state and run_setup.plan.kind == "loop"


def test_a_client_is_trained_as_if_it_were_alone(tmp_path):
    """By hand: the counter is 1, 2, 3, ... at the steps of each client, whoever came before."""
    steps = {"client.steps": 3, "client.epochs": None, "client.batch": "full", "rounds": 1, "splits.val": 0.0}
    whole = {"cohort.size": 6}
    run_setup = set_up_run(resolve(config(IntegerBuffer, **steps, **whole)))
    model = fl.run(config(IntegerBuffer, **steps, **whole), out=tmp_path / "run").model
    partition, data = run_setup.periods[0].partition, run_setup.dataset.train
    w0, b0 = (run_setup.model[name] for name in ("l.weight", "l.bias"))
    deltas, weights = [], []
    for c in range(6):
        rows = partition.view_rows(c, "train")
        x, y = torch.tensor(data["x"][rows]), torch.tensor(data["y"][rows])
        w, b = w0.clone().requires_grad_(), b0.clone().requires_grad_()
        for n in (1, 2, 3):
            gradients = torch.autograd.grad(F.cross_entropy((x @ w.T + b) * (1 + 0.1 * n), y), (w, b))
            w, b = ((p - 0.1 * g).detach().requires_grad_() for p, g in zip((w, b), gradients))
        deltas.append(w.detach() - w0), weights.append(len(rows))
    mean = sum(d * n for d, n in zip(deltas, weights)) / sum(weights)
    torch.testing.assert_close(model["l.weight"], w0 + mean, rtol=1e-5, atol=1e-6)


def test_a_constant_buffer_is_taken_as_it_is(tmp_path):
    class Centred(Net):
        def begin(self):
            self.register_buffer("mean", torch.full((D,), 0.5))

        def forward(self, x):
            return self.l(x - self.mean)

    facts = set_up_run(resolve(config(Centred))).facts
    assert facts == ModuleFacts()


class Unused(Net):
    def begin(self):
        self.u = nn.Linear(3, 3)

    def forward(self, x):
        return self.l(x)


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "feddyn", "fedadam"])
def test_parameters_without_gradient_keep_their_values(strategy, tmp_path):
    decay = {"client.optimiser": {"name": "sgd", "weight_decay": 0.1}} if strategy == "fedavg" else {}
    run_setup = set_up_run(resolve(config(Unused, strategy=strategy, **decay)))
    assert run_setup.facts.unused == ("u.weight", "u.bias")
    result = fl.run(config(Unused, strategy=strategy, **decay), out=tmp_path / "run")
    assert torch.equal(result.model["u.weight"], run_setup.model["u.weight"])
    assert not torch.equal(result.model["l.weight"], run_setup.model["l.weight"])


def test_sparse_gradients_are_made_dense(tmp_path):
    class Embeds(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.e, self.l = nn.Embedding(5, 4, sparse=True), nn.Linear(4, outputs)

        def forward(self, x):
            return self.l(self.e(x.abs().long().clamp(max=4)).mean(1))

    adam = {"client.optimiser": "adam", "client.lr": 0.01}
    assert fl.run(config(Embeds, **adam), out=tmp_path / "run").metrics[-1]["train/loss"] > 0


def test_evaluation_does_not_change_the_model(tmp_path):
    """An embedding with a largest norm scales its own weights down in its forward pass."""

    class Embeds(nn.Module):
        def __init__(self, shape, outputs):
            super().__init__()
            self.e, self.l = nn.Embedding(5, 4, max_norm=0.1), nn.Linear(4, outputs)

        def forward(self, x):
            return self.l(self.e(x.abs().long().clamp(max=4)).mean(1))

    assert set_up_run(resolve(config(Embeds))).facts.writes_parameters
    often = fl.run(config(Embeds), out=tmp_path / "a")
    never = fl.run(config(Embeds, **{"evaluation.every": 9}), out=tmp_path / "b")
    assert often.digest == never.digest


class Object:
    def __init__(self, logits):
        self.logits = logits


def test_logits_of_an_object_are_the_outputs(tmp_path):
    class Wrapped(Net):
        def forward(self, x):
            return Object(self.l(x))

    class Bare(Net):
        def forward(self, x):
            return self.l(x)

    wrapped, bare = (
        fl.run(config(m, **{"execution.plan": "loop"}), out=tmp_path / m.__name__) for m in (Wrapped, Bare)
    )
    assert wrapped.digest == bare.digest


class Tuple(Net):
    def forward(self, x):
        return self.l(x), x


class TooFew(nn.Module):
    def __init__(self, shape, outputs):
        super().__init__()
        self.l = nn.Linear(shape[0], outputs - 1)

    def forward(self, x):
        return self.l(x)


class WrongWidth(TooFew):
    def __init__(self, shape, outputs):
        super().__init__(shape, outputs)
        self.l = nn.Linear(shape[0] + 1, outputs)


class Running(Net):
    def begin(self):
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x):
        return self.l(self.norm(x))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Tuple, r"model: forward returns a tuple of \(float32 of shape \(2, 3\), float32 of shape \(2, 6\)\)"),
        (TooFew, r"model: forward returns float32 of shape \(2, 2\), but the task needs 3 outputs"),
        (WrongWidth, r"model: a first pass in training mode with 2 samples, x of shape \(2, 6\) and float32, fails"),
        (Running, r"model: has buffers that training changes \(norm.running_mean"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_round(module, message):
    with pytest.raises(ConfigError, match=message):
        set_up_run(resolve(config(module)))


class LateCounter(Net):
    """Changes its state at its second call, on a first pass it does not."""

    def begin(self):
        self.state = torch.zeros(())

    def forward(self, x):
        if len(x) > 2 and self.training:
            self.state = self.state + 1
        return self.l(x) * (1 + self.state)


@pytest.mark.parametrize("plan", ["loop", "flat"])
def test_a_change_that_the_first_look_did_not_see_stops_the_run_at_the_client(plan, tmp_path):
    chosen = {"execution.plan": plan}
    assert not set_up_run(resolve(config(LateCounter, **chosen))).facts.state
    with pytest.raises(fl.errors.ClientError, match=r"client.* \S+, round 0, stage 'train': .*changed state"):
        fl.run(config(LateCounter, **chosen), out=tmp_path / plan)


def test_a_state_is_restored_in_place():
    module = Counter((D,), K)
    seen, state = module.seen, ModuleState(module)
    module(torch.zeros(2, D))
    module.extra = 1
    assert set(state.changes()) == {"n", "seen", "extra"}
    state.restore()
    assert state.changes() == () and module.seen is seen and seen == {"batches": [0]} and module.n == 0


def test_the_first_look_leaves_the_module_and_the_generators_as_they_were():
    module, batch = Counter((D,), K), {"x": torch.randn(2, D), "y": torch.zeros(2).long()}
    before, weights = torch.get_rng_state(), {n: p.clone() for n, p in module.named_parameters()}
    facts = probe(module, batch, lambda net, batch: F.cross_entropy(net(batch["x"]), batch["y"], reduction="none"))
    assert facts.state == ("n", "seen") and module.n == 0
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in module.named_parameters())


class Bert(nn.Module):
    """Hugging Face's encoder as it comes: attention dropout by the global generator, and a pooler that nobody reads."""

    def __init__(self, shape, outputs):
        from transformers import BertConfig, BertModel

        super().__init__()
        self.bert = BertModel(BertConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2))
        self.l = nn.Linear(64, outputs)

    def forward(self, x):
        return self.l(self.bert(x).last_hidden_state[:, 0])


class GPT2(nn.Module):
    """Hugging Face's causal language model as it comes; the logits of the last token are the outputs."""

    def __init__(self, shape, outputs):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.gpt = GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=4, n_layer=2))

    def forward(self, x):
        return self.gpt(x).logits[:, -1]


def tokens():
    """Sequences of 8 token ids, and which of them is the class."""
    generator = np.random.default_rng(0)
    x = generator.integers(1000, 2000, (60, 8))
    return x, x[:, 0] % K


@pytest.mark.slow
@pytest.mark.parametrize("module", [Bert, GPT2])
def test_models_of_hugging_face_repeat_to_the_bit_on_every_executor_and_after_a_resume(module, tmp_path):
    data = {"data": f"{__file__}:tokens", "partition": {"name": "iid", "clients": 5}, "client.lr": 0.01}
    data |= {"client.epochs": 1, "client.batch": 5}
    module = f"{__file__}:{module.__name__}"  # a resumed run reads it again
    serial = fl.run(config(module, **data), out=tmp_path / "serial")
    for workers in (1, 2):
        ray = {"execution.executor": "ray", "execution.workers": workers}
        assert fl.run(config(module, **data, **ray), out=tmp_path / f"ray{workers}").digest == serial.digest
    fl.run(config(module, **data), out=tmp_path / "resumed", interrupt=lambda: True)
    assert fl.resume(tmp_path / "resumed").digest == serial.digest
    if module.endswith("Bert"):
        facts = set_up_run(resolve(config(module, **data))).facts
        assert facts.unused == ("bert.pooler.dense.weight", "bert.pooler.dense.bias") and facts.draws
