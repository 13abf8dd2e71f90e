"""The laws of `fl.check.check`: all registered parts satisfy them, and each law finds parts that break it."""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from fl import registry
from fl.check.bench import Bench
from fl.check.check import LAWS, bench_of, check, find
from fl.check.finding import Broken, try_law
from fl.check.ledger import the_ledger_counts_every_byte
from fl.check.runs import an_asynchronous_server_without_delays_is_a_synchronous_one as asynchronous_is_synchronous

TARGETS = [f"{kind}:{name}" for kind in LAWS for name in registry.names(kind)]


@functools.cache
def home(target: str) -> str:
    """Return the strategy whose federation is also that of a client, or the target itself."""
    if find(target)[0] != "client":
        return target
    ours = bench_of(target, Path())
    strategy = f"strategy:{ours.strategy['name']}"
    theirs = bench_of(strategy, Path())
    return strategy if (ours.strategy, ours.client) == (theirs.strategy, theirs.client) else target


@functools.cache
def findings(target: str) -> dict:
    """Return the findings of a part by law. A strategy and its client, in one federation, share their runs."""
    if find(target)[0] != "strategy":
        return {finding.law: finding for finding in check(target)}
    with tempfile.TemporaryDirectory() as folder:
        bench = bench_of(target, Path(folder))
        laws = dict.fromkeys([*LAWS["strategy"], *LAWS["client"]])
        return {law.__name__: try_law(law, bench) for law in laws}


# the laws of these parts are quick tests: sums, halves of adapters, control variates
QUICK = {"strategy:fedavg", "strategy:fedsa_lora", "client:scaffold", "data:digits", "data:noise", "model:mlp"}


def cases() -> Iterator[ParameterSet]:
    """Yield a case for each part and law; one process checks all laws of a strategy and its client."""
    for target in TARGETS:
        kind = target.partition(":")[0]
        slow = kind in ("strategy", "client", "data", "model") and target not in QUICK
        marks = [pytest.mark.xdist_group(home(target))] + [pytest.mark.slow] * slow
        for law in LAWS[kind]:
            yield pytest.param(target, law.__name__, id=f"{target}-{law.__name__}", marks=marks)


@pytest.mark.parametrize("target, law", list(cases()))
def test_law(target, law):
    finding = findings(home(target))[law]
    assert finding.ok, finding.detail


# -- each law can fail -----------------------------------------------------------------------------------------------
USER_FILE = '''
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
import numpy as np
import torch
from fl.data.augment import Augment
from fl.method.adversary import Adversary
from fl.method.after_reduction import AfterReduction
from fl.method.local_training import LocalTraining
from fl.communication.codec import Codec, Encoded
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.tensors.params import Params
from fl.method.reduction import Sum
from fl.method.sampler import CohortSampler
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.method.requests import Exchange
from fl.privacy.clipping import Clipping, all_tensors
from fl.privacy.gaussian import Gaussian
from fl.tasks.supervised import Loss, Regression

@dataclass(frozen=True)
class Good(Strategy):
    """Nothing wrong with it."""
    def step(self, state, mean, ctx):
        return state + mean, {}

@dataclass(frozen=True)
class Mutates(Strategy):
    def step(self, state, mean, ctx):
        return state.add_(mean), {}

@dataclass(frozen=True)
class Dice(Strategy):
    def step(self, state, mean, ctx):
        return state + np.random.default_rng().random() * mean, {}

@dataclass(frozen=True)
class Box:
    model: Params
    rule: Any

@dataclass(frozen=True)
class NotATree(Strategy):
    def init(self, model, ctx):
        return Box(model, lambda x: x)
    def step(self, state, mean, ctx):
        return Box(state.model + mean, state.rule), {}

@dataclass(frozen=True)
class Explodes(Strategy):
    def step(self, state, mean, ctx):
        return state + mean / 0.0, {}

@dataclass(frozen=True)
class Remembers(Strategy):
    """Counts its rounds in itself, which a resumed run builds anew."""
    memory: list = field(default_factory=list)
    def step(self, state, mean, ctx):
        self.memory.append(0)
        return state + mean / len(self.memory), {}

class MeanOfMeans(Sum):
    def merge(self, a, b):
        return 0.5 * (a + b)

@dataclass(frozen=True)
class Grouping(Strategy):
    def reduction(self, state, ctx):
        return MeanOfMeans()
    def step(self, state, mean, ctx):
        return state + mean, {}

@dataclass(frozen=True)
class SaysItIsFedAvg(Strategy):
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent()
    def step(self, state, mean, ctx):
        return state + 0.999 * mean, {}

@dataclass(frozen=True)
class NeedsSomebody(Strategy):
    def round(self, state, ctx):
        outcome = yield Exchange(self.broadcast(state, ctx), Sum())
        return state + outcome.value / len(outcome.clients), {}

@dataclass(frozen=True, kw_only=True)
class Gossip(LocalTraining):
    """Keeps what the clients before it left."""
    heard: ClassVar[list] = []
    def finish(self, end):
        self.heard.append(float(end.delta.buffers[0].sum()))
        return {"model": end.delta}, {"heard": torch.tensor(self.heard)}

@dataclass(frozen=True, kw_only=True)
class Scribbles(LocalTraining):
    def finish(self, end):
        delta = end.delta
        end.received["model"].add_(delta)
        return {"model": delta}, None

@dataclass(frozen=True, kw_only=True)
class Withholds(LocalTraining):
    sends: ClassVar[tuple] = ("model", "more")

@dataclass(frozen=True, kw_only=True)
class TwoMethods(LocalTraining):
    def gradient(self, grad, params, at):
        return 1.01 * grad if params.batch else grad

@dataclass(frozen=True, kw_only=True)
class OneClient(LocalTraining):
    """Its finish is written for one client: it takes the largest element of all."""
    def finish(self, end):
        return {"model": end.delta / max(1e-9, *(float(b.abs().max()) for b in end.delta.buffers))}, None

@dataclass(frozen=True, kw_only=True)
class SaysOne(OneClient):
    one_at_a_time: ClassVar[bool] = True

@dataclass(frozen=True, kw_only=True)
class Divides(LocalTraining):
    def objective(self, net, batch, at, task):
        return task.loss(net(batch["x"]), batch).mean()

@dataclass(frozen=True, kw_only=True)
class BooksHalf(LocalTraining):
    """Books half of the gradients that it takes."""
    def workload(self, sizes, round_, rounds, name="train"):
        steps, samples = super().workload(sizes, round_, rounds, name)
        return steps, samples // 2

@dataclass(frozen=True)
class Plain(Codec):
    def encode(self, values):
        return Encoded({"values": values})
    def decode(self, encoded, n):
        return encoded.parts["values"].float()

class Short(Plain):
    def decode(self, encoded, n):
        return encoded.parts["values"][..., 1:]

class Announces(Plain):
    def sizes(self, n, width=4):
        return 1, n, width

class Centres(Plain):
    def encode(self, values):
        return Encoded({"values": values - values.sum() / 10})

class Noisy(Plain):
    def encode(self, values):
        return Encoded({"values": values + torch.randn(values.shape) * (values != 0)})

@dataclass(frozen=True)
class Shares:
    clients: int = 4
    seed: int = 0
    min_size: int = 0
    def split(self, dataset):
        order = np.random.default_rng(self.seed).permutation(len(dataset))
        return Partition(order, np.arange(5) * 2)

class Overlaps(Shares):
    def split(self, dataset):
        return Partition(np.zeros(8, np.int64), np.arange(5) * 2)

class Unseeded(Shares):
    def split(self, dataset):
        return Partition(np.random.permutation(len(dataset)), np.arange(5) * len(dataset) // 4)

@dataclass(frozen=True)
class Louder:
    """What a client sees is louder by a factor of its own."""
    seed: int = 0
    def gains(self, dataset, partition):
        return 1 + np.arange(1 + self.seed, 9 + self.seed)
    def apply(self, dataset, partition):
        x, owners = dataset.train["x"].copy(), np.repeat(np.arange(8), np.diff(partition.offsets))
        x[partition.indices] *= self.gains(dataset, partition)[owners].reshape(-1, 1, 1, 1)
        return replace(dataset, train={**dataset.train, "x": x})

class Rolls(Louder):
    def gains(self, dataset, partition):
        return np.random.random(8)

class Fixed(Louder):
    def gains(self, dataset, partition):
        return np.full(8, 2)

class Writes(Louder):
    def apply(self, dataset, partition):
        dataset.train["x"][partition.indices] += 1
        return dataset

class Sorts(Louder):
    def apply(self, dataset, partition):
        partition.indices.sort()
        return super().apply(dataset, partition)

class Everyone(Louder):
    def apply(self, dataset, partition):
        return replace(dataset, train={**dataset.train, "x": dataset.train["x"] + 1})

class Renames(Louder):
    def apply(self, dataset, partition):
        after = super().apply(dataset, partition)
        y = after.train["y"].copy()
        y[partition.indices] = 3 - y[partition.indices]
        return replace(after, train={**after.train, "y": y})

class SaysIt(Renames):
    changes = ("x", "y")

class Tests(Louder):
    def apply(self, dataset, partition):
        after = super().apply(dataset, partition)
        return replace(after, test={**after.test, "x": after.test["x"] + 1})

class Nothing(Louder):
    def apply(self, dataset, partition):
        return dataset

class Relative(Louder):
    """Looks at what others have."""
    def gains(self, dataset, partition):
        return super().gains(dataset, partition) / np.abs(dataset.train["x"][partition.indices]).max()

class ByPlace(Louder):
    """Goes by where in its list a row is."""
    def apply(self, dataset, partition):
        x = dataset.train["x"].copy()
        x[partition.indices] += np.arange(len(partition.indices)).reshape(-1, 1, 1, 1)
        return replace(dataset, train={**dataset.train, "x": x})

@dataclass(frozen=True)
class First(CohortSampler):
    size: int = 3
    def sample(self, state, round_, seed, sizes):
        return state, np.arange(self.size)

class Descends(First):
    def sample(self, state, round_, seed, sizes):
        return state, np.arange(self.size)[::-1]

class Forgets(First):
    def sample(self, state, round_, seed, sizes):
        return state, np.sort(np.random.choice(12, 3, replace=False))

class Mixed(Augment):
    """Samples meet each other."""
    def apply(self, x, words):
        return 0.5 * (x + x.flip(0))

@dataclass(frozen=True)
class Linear:
    def build(self, shape, outputs):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(shape)), outputs))

class Unlucky(Linear):
    """Weights by a generator of its own."""
    def build(self, shape, outputs):
        module = super().build(shape, outputs)
        torch.nn.init.constant_(module[1].bias, np.random.rand())
        return module

class Narrow(Linear):
    def build(self, shape, outputs):
        return super().build(shape, outputs - 1)

class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0)

class Together(Linear):
    """Outputs that depend on who else is there."""
    def build(self, shape, outputs):
        return torch.nn.Sequential(super().build(shape, outputs), Centred())

@dataclass(frozen=True, kw_only=True)
class Squared(Regression):
    pass

class FirstOfParts(Loss):
    def merge(self, a, b):
        return a

class Halves(Squared):
    """A metric that forgets all parts but the first."""
    def metrics(self):
        return {"loss": FirstOfParts(self)}

class BesideTheMean(Squared):
    """A loss beside the mean of the batch."""
    def loss(self, outputs, batch):
        losses = super().loss(outputs, batch)
        return losses - 0.5 * losses.mean()

@dataclass(frozen=True)
class Rows:
    def load(self):
        return Dataset({"x": np.ones((4, 2)), "y": np.arange(4)}, {"x": np.ones((2, 2)), "y": np.arange(2)})

class Thrown(Rows):
    def load(self):
        return Dataset({"x": np.random.rand(4, 2), "y": np.arange(4)})

class Rolled(Augment):
    """By a number of pixels that no word says."""
    def apply(self, x, words):
        return x.roll(1, -1)

class Doubles(Adversary):
    """A sound attack."""
    def attack(self, honest, own, ctx):
        return 2 * own

class OneRow(Adversary):
    """All attackers in one row."""
    def attack(self, honest, own, ctx):
        return own[:1]

class Worsens(Adversary):
    """A change of what it was given."""
    def attack(self, honest, own, ctx):
        return own.neg_()

class Whims(Adversary):
    """Noise from the global generator."""
    def attack(self, honest, own, ctx):
        return torch.randn_like(own)

class Crowd(Adversary):
    """The mean of the honest clients, also where there is none."""
    def attack(self, honest, own, ctx):
        return honest.mean(0).expand_as(own)

class Volunteers(Adversary):
    """One attacker less than the share."""
    def attack(self, honest, own, ctx):
        return -own
    def attackers(self, seed, population):
        return np.arange(population) < round(self.share * population) - 1

class Shorter(AfterReduction):
    """A sound change."""
    def apply(self, groups, ctx):
        return {"model": 0.5 * groups["model"]}, {"factor": 0.5}

class Joins(AfterReduction):
    """A vector in place of parameters."""
    def apply(self, groups, ctx):
        return {"model": groups["model"].compact()}, {}

class InPlace(AfterReduction):
    """A change of what it was given."""
    def apply(self, groups, ctx):
        groups["model"].buffers[0].zero_()
        return groups, {}

class Jitters(AfterReduction):
    """Noise from the global generator."""
    def apply(self, groups, ctx):
        return {"model": float(torch.rand(())) * groups["model"]}, {}

class Hushed(Gaussian):
    """Sound noise."""

class Understated(Gaussian):
    """Half of the noise that it states."""
    def noise(self, state, like, release):
        noise, state = super().noise(state, like, release)
        return {name: 0.5 * tree for name, tree in noise.items()}, state

class Restless(Gaussian):
    """Noise from the global generator."""
    def noise(self, state, like, release):
        noise, state = super().noise(state, like, release)
        return {name: float(torch.randn(())) * tree for name, tree in noise.items()}, state

class Leaves(Clipping):
    """One tensor of several is clipped."""
    def parts(self, groups):
        return (all_tensors(groups)[:1],)
    def bounds_at(self, state, parts, norm):
        return (0.5,)
'''
BROKEN = {
    "Good": set(),
    "Mutates": {"a_round_is_a_pure_function"},
    "Dice": {
        "the_same_configuration_gives_the_same_bits",
        "a_resumed_run_gives_the_same_bits",
        "a_round_is_a_pure_function",
    },
    "NotATree": {"the_server_state_can_be_saved_and_restored"},
    "Explodes": {"three_rounds_run_and_stay_finite"},
    "Remembers": {"a_resumed_run_gives_the_same_bits", "a_round_is_a_pure_function"},
    "Grouping": {"order_of_summation_changes_at_most_1e_6"},
    "SaysItIsFedAvg": {
        "the_fedavg_setting_is_fedavg",
        "the_fedavg_setting_is_fedavg_with_dropout",
        "a_cohort_of_one_is_that_client",
    },
    "NeedsSomebody": {"an_empty_round_changes_nothing"},
    "Gossip": {
        "the_same_configuration_gives_the_same_bits",
        "worker_and_order_of_tasks_do_not_matter",
        "client_states_do_not_leak",
        "client_work_is_a_pure_function",
    },
    "Scribbles": {"client_work_is_a_pure_function"},
    "Withholds": {"clients_send_the_groups_they_declare"},
    "TwoMethods": {"loop_and_batched_training_agree"},
    "OneClient": {"loop_and_batched_training_agree"},
    "SaysOne": set(),
    "Divides": {"three_rounds_run_and_stay_finite"},
    "BooksHalf": {"the_work_done_is_the_work_booked"},
    "Plain": set(),
    "Short": {"decoded_values_have_the_shape_and_type_of_the_input"},
    "Announces": {"counted_bytes_are_the_bytes_sent"},
    "Centres": {"a_batch_is_encoded_like_its_rows"},
    "Noisy": {"encoding_is_deterministic"},
    "Shares": {
        "a_row_has_at_most_one_client",
        "each_client_has_at_least_min_size_rows",
        "impossible_arguments_are_refused",
    },
    "Overlaps": {"a_row_has_at_most_one_client", "the_seed_determines_the_partition"},
    "Unseeded": {"the_seed_determines_the_partition"},
    "Louder": set(),
    "Rolls": {"the_seed_determines_the_shift", "rows_of_other_clients_do_not_matter"},
    "Fixed": {"the_seed_determines_the_shift"},
    "Writes": {"the_input_is_not_changed"},
    "Sorts": {"the_input_is_not_changed"},
    "Everyone": {"only_declared_arrays_change", "the_seed_determines_the_shift"},
    "Renames": {"only_declared_arrays_change"},
    "SaysIt": set(),
    "Tests": {"only_declared_arrays_change"},
    "Nothing": {"only_declared_arrays_change", "the_seed_determines_the_shift"},
    "Relative": {"rows_of_other_clients_do_not_matter"},
    "ByPlace": {"rows_of_other_clients_do_not_matter", "the_seed_determines_the_shift"},
    "First": {"impossible_cohort_sizes_are_refused"},
    "Descends": {"cohorts_are_ascending_distinct_ids"},
    "Forgets": {"a_draw_depends_on_state_round_and_seed_only"},
    "Mixed": {"a_sample_changes_by_its_own_word_alone", "the_words_decide_the_change"},
    "Rolled": {"the_words_decide_the_change"},
    "Linear": set(),
    "Unlucky": {"the_seed_determines_the_first_weights"},
    "Narrow": {"outputs_are_finite_and_have_the_requested_size"},
    "Together": {"evaluation_treats_each_sample_alone"},
    "Squared": set(),
    "Halves": {"merged_metrics_are_those_of_the_whole"},
    "BesideTheMean": {"each_sample_has_its_own_loss"},
    "Rows": set(),
    "Thrown": {"loading_twice_gives_the_same_finite_data"},
    "Doubles": set(),
    "OneRow": {"attackers_send_finite_updates_of_their_own_form"},
    "Worsens": {"attackers_send_finite_updates_of_their_own_form"},
    "Whims": {"the_same_exchange_is_attacked_in_the_same_way"},
    "Crowd": {"a_cohort_of_attackers_is_possible"},
    "Volunteers": {"the_seed_determines_the_attackers"},
    "Shorter": set(),
    "Joins": {"groups_keep_their_form"},
    "InPlace": {"groups_keep_their_form"},
    "Jitters": {"the_same_exchange_gives_the_same_values"},
    "Hushed": set(),
    "Understated": {"noise_has_its_stated_deviation"},
    "Restless": {"noise_follows_from_seed_and_release"},
    "Leaves": {"no_update_is_longer_than_the_sensitivity"},
}


# broken parts that break only the listed laws
EXACTLY = (
    "Good",
    "Plain",
    "Mutates",
    "Withholds",
    "SaysItIsFedAvg",
    "NeedsSomebody",
    "BooksHalf",
    "OneClient",
    "SaysOne",
)
EXACTLY += ("Doubles", "Shorter", "Whims", "Crowd", "Volunteers", "Jitters", "Hushed", "Understated", "Leaves")
EXACTLY += ("Louder", "Fixed", "Renames", "SaysIt", "Tests", "Relative", "Nothing", "Everyone", "ByPlace")


# strategies and clients; their laws run the federation
RUN = (
    "Good",
    "Dice",
    "NotATree",
    "Explodes",
    "Remembers",
    "Grouping",
    "SaysItIsFedAvg",
    "NeedsSomebody",
    "Gossip",
    "Scribbles",
    "Withholds",
    "TwoMethods",
    "OneClient",
    "SaysOne",
    "Divides",
    "BooksHalf",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RUN else n for n in BROKEN])
def test_a_broken_part_is_found_out(name, tmp_path):
    (tmp_path / "mine.py").write_text(USER_FILE)
    found = {finding.law for finding in check(f"{tmp_path}/mine.py:{name}") if not finding.ok}
    assert found >= BROKEN[name]
    if name in EXACTLY:
        assert found == BROKEN[name]


@dataclass
class Halved(Bench):
    """A bench whose ledger records half of the bytes sent."""

    def config(self, **overrides):
        return super().config(**{"codec.up": "fp16"} | overrides)


def test_bytes_that_are_not_those_sent_are_found_out(tmp_path):
    with pytest.raises(Broken, match="rows of bytes that nobody sent"):
        the_ledger_counts_every_byte(Halved({"name": "fedavg"}, {"name": "sgd", "batch": 8}, tmp_path))


@dataclass
class Late(Bench):
    """A bench whose asynchronous server does not wait for all clients."""

    def config(self, **overrides):
        if "server" in overrides:
            overrides["server"] = overrides["server"] | {"buffer": 4}
        return super().config(**overrides)


def test_a_late_client_is_found_out(tmp_path):
    with pytest.raises(Broken, match="both servers: the models differ"):
        asynchronous_is_synchronous(Late({"name": "fedavg"}, {"name": "sgd", "batch": 8}, tmp_path))
    assert (
        asynchronous_is_synchronous(Bench({"name": "fedavg"}, {"name": "sgd", "batch": 8}, tmp_path / "whole")) is None
    )


# -- targets ----------------------------------------------------------------------------------------------------------
def test_targets(tmp_path):
    (tmp_path / "mine.py").write_text(USER_FILE + "\nANSWER = 42\n")
    assert find("fedavg") == find("strategy:fedavg") == ("strategy", "fedavg")
    assert find("fedprox") == ("strategy", "fedprox") and find("client:fedprox") == ("client", "fedprox")
    for kind, name in (("codec", "top_k"), ("partition", "iid"), ("shift", "rotate"), ("cohort", "cyclic")):
        assert find(name) == (kind, name)
    assert find(f"{tmp_path}/mine.py:Unseeded")[0] == "partition"
    assert find(f"{tmp_path}/mine.py:Louder")[0] == find("partitions.colour:Colour")[0] == "shift"
    assert find("clients.scaffold:Scaffold")[0] == "client"
    with pytest.raises(ValueError, match="'fedavq' is not one of .*'fedavg'"):
        find("fedavq")
    with pytest.raises(ValueError, match="derive it from .*'Strategy'"):
        find(f"{tmp_path}/mine.py:ANSWER")
    with pytest.raises(ValueError, match="'fedavq' is not one of .* Did you mean 'fedavg'"):
        check("strategy:fedavq")


def test_arguments():
    assert all(finding.ok for finding in check("codec:top_k", ratio=0.01))
    with pytest.raises(ValueError, match="ratio: 2 is not in"):
        check("top_k", ratio=2)
