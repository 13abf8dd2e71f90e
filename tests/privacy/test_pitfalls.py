"""A test for each pitfall of docs/privacy_pitfalls.md: a run does the right thing, or is refused with the reason."""

import dataclasses
import math
import re
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fl.check.bench import Bench
from fl.errors import ClientError, ConfigError
from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Update
from fl.method.min_separation import MinSeparation
from fl.method.reduction import Meta, Stack, Sum, WeightedMean
from fl.method.requests import Evaluate, Exchange, ServerWork
from fl.method.sampler import Poisson
from fl.method.strategy import Strategy
from fl.privacy.factorised import Banded, TreeAggregation
from fl.privacy.fixed import Fixed
from fl.privacy.gaussian import Gaussian
from fl.privacy.mechanism import Release, Sampling
from fl.privacy.plan import PrivacyPlan
from fl.privacy.private_sum import PrivateSum
from fl.privacy.rounding import rounded, step_of
from fl.privacy.sampling import rate_of
from fl.privacy.section import Privacy
from fl.privacy.streams import Streams
from fl.simulation.private_figures import check_same_noise
from fl.tensors.params import Params

CLIENTS = 8
PAGE = Path(__file__).parents[2] / "docs" / "privacy_pitfalls.md"


# -- small methods ----------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class Says(ClientAlgorithm):
    """Sends `value` in each coordinate and claims `examples` samples."""

    value: float = 1.0
    examples: int = 1

    def work(self, name, ctx, carry):
        update = ctx.received["model"] * 0 + self.value
        return Reply(Update({"model": update}, self.examples, {"loss": 0.0}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asks(Strategy):
    """FedAvg that does one thing more, which is not private."""

    client: ClassVar[str] = "test_pitfalls.py:Says"
    what: str = "nothing"

    def setup(self, state, ctx):
        if self.what == "work before round 0":
            yield Exchange(state)
        yield from ()
        return state, {}

    def round(self, state, ctx):
        if self.what == "nothing to reduce":
            yield Exchange(state, {})
        if self.what == "cohort":
            len(ctx.cohort)
        if self.what == "losses of single clients":
            yield Evaluate(state, {"all": np.arange(4)}, cohort=np.array([0, 1]))
        cohort = np.array([0, 1]) if self.what == "own cohort" else None
        rule = Stack() if self.what == "single updates" else WeightedMean()
        outcome = yield Exchange(state, rule, cohort=cohort)
        if self.what == "second exchange" or (self.what == "second exchange in the last round" and ctx.round == 2):
            yield Exchange(state)
        if self.what == "losses after work of the server":
            yield ServerWork(abs, (1,))
            yield Evaluate(state, {"all": np.arange(4)}, cohort=np.array([0, 1]))
        if self.what == "metrics":
            float(outcome.metrics["loss"])
        if self.what == "numbers of samples":
            outcome.num_examples.sum()
        return state + outcome.value, {}


SAYS, ASKS = f"{__file__}:Says", f"{__file__}:Asks"


@pytest.fixture
def federation(tmp_path):
    return Bench({"name": "fedavg"}, {"name": SAYS}, tmp_path)


def private(rounds=1, **section):
    """Settings of a private run; a key with a dot, or of no privacy section, belongs to the run."""
    names = {field.name for field in dataclasses.fields(Privacy)}
    run = {key: section.pop(key) for key in list(section) if key not in names}
    noise = {} if "epsilon" in section else {"noise_multiplier": 0.0}
    defaults = {"sampling": {"rate": 0.5}, "clipping": {"bound": 1e6}, "delta": 1e-5, **noise}
    return {"rounds": rounds, "cohort": None, "splits": {"val": 0}, **run, "privacy": {**defaults, **section}}


def change(federation, client=None, **settings):
    """The change of the model, in one vector, and the rows of metrics."""
    federation = dataclasses.replace(
        federation, client={"name": SAYS, **(client or {})}, folder=Path(tempfile.mkdtemp(dir=federation.folder))
    )
    with federation.simulation(**private(**settings)) as run:
        before = run.run_setup.model
        result = run.run()
    return (result.model - before).compact().double(), result.metrics


def refused(federation, message, **settings):
    with pytest.raises(ConfigError, match=re.escape(message)), federation.simulation(**private(**settings)) as run:
        run.run()


# -- no guarantee -----------------------------------------------------------------------------------------------------
def test_divisor_is_constant(federation):
    """Every client sends 1: a round moves the model by cohort / 4, where 4 is expected; the mean would move it by 1."""
    moved, rows = change(federation, rounds=3)
    sizes = [row["cohort_size"] for row in rows]
    assert len(set(sizes)) > 1
    torch.testing.assert_close(moved, torch.full_like(moved, sum(sizes) / 4), rtol=1e-6, atol=1e-6)


def test_weights_are_uniform_or_capped(federation):
    everyone = {"sampling": {"rate": 1.0}}
    for examples in (1, 1000):
        moved, _ = change(federation, {"examples": examples}, **everyone)
        torch.testing.assert_close(moved, torch.ones_like(moved))
    for examples, weight in ((5, 0.5), (10, 1.0), (1000, 1.0)):
        moved, _ = change(federation, {"examples": examples}, cap=10, **everyone)
        torch.testing.assert_close(moved, torch.full_like(moved, weight))


def test_all_groups_are_clipped_together_and_noisy():
    """Norms 3 and 4 together are 5, so that a bound of 1 leaves 3/5 and 4/5."""
    rule = PrivateSum({"model": WeightedMean(), "control": Sum()}, Fixed(bound=1.0))
    groups = {"model": Params.of({"w": torch.tensor([3.0])}), "control": torch.tensor([0.0, 4.0])}
    clipped = rule.lift(groups, Meta(client=0, num_examples=1))["sums"]
    assert clipped["model"]["w"].item() == pytest.approx(0.6) and clipped["control"].tolist() == [0, pytest.approx(0.8)]
    noise, _ = Gaussian().noise(None, clipped, release(0))
    assert noise["model"]["w"].all() and noise["control"].all()


def release(index, streams=Streams(0), sampler=Poisson(rate=0.5)):
    return Release(index, 1.0, Sampling(sampler, rate_of(sampler), 100, 16), streams)


def test_batch_norm_statistics_are_refused(federation):
    refused(federation, "model.batch_norm: noise on averaged statistics", **{"model.batch_norm": "averaged"})


def test_clipping_is_after_decoding(federation):
    """random_k multiplies what it keeps by 10; the sum of 8 equal updates is 8 bounds at most nevertheless."""
    settings = {"sampling": {"rate": 1.0}, "clipping": {"bound": 0.5}}
    moved, _ = change(federation, {"value": 100.0}, **settings)
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)
    moved, _ = change(federation, {"value": 100.0}, codec={"up": {"name": "random_k", "ratio": 0.1}}, **settings)
    assert 0 < float(moved.norm()) <= 0.5 * (1 + 1e-5)


def test_fixed_sizes_are_not_poisson(federation):
    refused(
        federation, "privacy.sampling: 'uniform' draws clients that depend", sampling={"name": "uniform", "size": 4}
    )


@pytest.mark.parametrize("name", ["power_of_choice", "oort"])
def test_selection_by_clients_rows_is_refused(federation, name):
    sampler = {"name": name, "size": 2} | ({"candidates": 4} if name == "power_of_choice" else {})
    refused(federation, f"privacy.sampling: {name!r} draws clients that depend", sampling=sampler)


def test_bands_need_separated_participations(federation):
    mechanism = {"name": "banded", "bands": 3}
    refused(federation, "lets a client take part in every round", rounds=4, mechanism=mechanism)
    sampler, last = MinSeparation(separation=4, rate=0.5), np.full(40, -4)
    for round_ in range(50):
        drawn = sampler.sample(None, round_, 0, np.ones(40))[1]
        assert (round_ - last[drawn] >= 4).all()
        last[drawn] = round_


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("cohort", "the strategy reads ctx.cohort"),
        ("metrics", "the strategy reads ExchangeResult.metrics"),
        ("numbers of samples", "the strategy reads ExchangeResult.num_examples"),
        ("losses of single clients", "the strategy evaluates the models of single clients"),
        ("own cohort", "the strategy chooses the clients of an exchange"),
        ("second exchange", "epsilon counts one private exchange in each round"),
        ("second exchange in the last round", "epsilon counts one private exchange in each round"),
        ("losses after work of the server", "the strategy evaluates the models of single clients"),
        ("nothing to reduce", "there is nothing to protect; leave privacy out"),
        ("work before round 0", "epsilon counts one private exchange in each round"),
        ("single updates", "the reduction Stack of the group 'model' is no bounded sum"),
    ],
)
def test_strategies_get_nothing_but_the_noisy_sum(federation, what, message):
    asks = dataclasses.replace(federation, strategy={"name": ASKS, "what": what})
    refused(asks, message, rounds=3, noise_multiplier=1.0, clipping={"bound": 1.0})


@pytest.mark.parametrize(
    "section", [{"where": "local"}, {"unit": "example", "sampling": None}], ids=["local", "example"]
)
def test_late_updates_are_accounted(tmp_path, section):
    """The server sees an update that arrives after the deadline. All are late, and two rounds spend as without it."""
    dp_sgd = {"name": "dp_sgd", "lr": 0.1, "steps": 2, "rate": 0.1}
    example = "unit" in section
    client = dp_sgd if example else {"name": SAYS}
    late = {"system": {"devices": {"name": "identical", "ms_per_sample": 1000}}, "server": {"deadline_seconds": 1e-3}}
    spent = []
    for name, settings in (("in time", {}), ("late", late)):
        section = {"sampling": {"rate": 1.0}, **section, "clipping": {"bound": 1.0}, "noise_multiplier": 2.0}
        settings = private(rounds=2, **section, **settings) | ({"cohort": {"size": CLIENTS}} if example else {})
        with Bench({"name": "fedavg"}, client, tmp_path / name).simulation(**settings) as run:
            spent.append(run.run().metrics[-1]["epsilon"])
    assert spent[0] == spent[1] > 0


def test_statistics_of_rows_are_refused(tmp_path):
    """Fisher information has no negative numbers; with noise it does, and FedCurv's penalty would have no minimum."""
    refused(Bench({"name": "fedcurv"}, {"name": "fedcurv"}, tmp_path), "sends the groups ['fisher', 'pull']")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": {"name": "buffered", "concurrency": 4, "buffer": 2}}, "server: the clock of an asynchronous"),
        ({"server": {"name": "sync", "needed": 2}}, "server.needed: with over-selection"),
        ({"system.availability": {"name": "diurnal"}}, "system.availability: who is available"),
    ],
    ids=["asynchronous", "over-selection", "availability"],
)
def test_cohorts_are_those_that_the_account_assumes(federation, settings, message):
    system = {"devices": {"name": "identical", "ms_per_sample": 1}}
    refused(federation, message, **{"system": system, **settings})


@pytest.mark.parametrize("mechanism", [Gaussian(), Banded(bands=2), TreeAggregation()], ids=lambda m: type(m).__name__)
def test_no_draw_is_used_twice(mechanism):
    """Rounds far apart, and groups of the same form, do not correlate: |r| < 6 / sqrt(10,000)."""
    like = {"a": torch.zeros(10_000), "b": torch.zeros(10_000)}
    noise = [mechanism.noise(None, like, release(t, sampler=MinSeparation(separation=4)))[0] for t in (0, 8)]
    drawn = [one[name].numpy() for one in noise for name in "ab"]
    correlations = np.corrcoef(drawn)[np.triu_indices(len(drawn), 1)]
    assert np.abs(correlations).max() < 0.06


def test_an_empty_cohort_gets_noise(federation):
    moved, rows = change(federation, noise_multiplier=1.0, clipping={"bound": 1.0}, sampling={"rate": 1e-9})
    assert rows[0]["cohort_size"] == 0
    assert float(moved.std()) == pytest.approx(rows[0]["noise_std"], rel=0.3) and rows[0]["noise_std"] > 0


def test_an_adaptive_bound_is_accounted(federation):
    """z = 1 and sigma_b = 1: the sums get z_sum = (1 - 1/4)^(-1/2) (Andrew et al. 2021, Theorem 1)."""
    clipping = {"name": "adaptive", "bound": 1.0, "sigma_b": 1.0}
    _, adaptive = change(federation, noise_multiplier=1.0, clipping=clipping)
    _, fixed = change(federation, noise_multiplier=1.0, clipping={"bound": 1.0})
    assert adaptive[0]["epsilon"] == fixed[0]["epsilon"]
    assert adaptive[0]["noise_std"] / fixed[0]["noise_std"] == pytest.approx(0.75**-0.5)


def test_noise_of_a_larger_cohort_is_labelled(federation):
    virtual = {"size": 400, "population": 8000}
    with federation.simulation(**private(noise_multiplier=1.0, virtual_cohort=virtual)) as run:
        assert "holds for a virtual cohort of 400 of 8000 clients, not for the 4 of 8" in run.headline
        row = run.run().metrics[0]
    assert "virtual_epsilon" in row and "epsilon" not in row


def test_more_rounds_than_planned_are_refused():
    """The noise of 10 rounds does not give the wanted epsilon in 20."""
    section = Privacy(sampling=Poisson(rate=0.5), clipping=Fixed(bound=1.0), noise_multiplier=1.5, delta=1e-5)
    with pytest.raises(ConfigError, match="rounds: the first rounds had noise multiplier 1.2, and 20 releases need"):
        check_same_noise(PrivacyPlan.of(section, 100, 20, Says()), 1.2)


def test_noise_covers_all_parts_of_an_update(federation):
    """Bounds 3 and 4 of two parts: one client changes the sum by 5, and not by 4."""
    clipping = {"name": "per_group", "bounds": {"*.weight": 3.0, "*": 4.0}}
    _, rows = change(federation, noise_multiplier=1.0, clipping=clipping)
    assert rows[0]["noise_std"] == pytest.approx(5.0 / 4)  # 4 clients are expected


def test_updates_that_are_not_finite_do_not_enter(federation):
    with pytest.raises(ClientError, match="finite"):
        change(federation, {"value": math.nan})
    drop = {"execution.on_client_error": "drop", "sampling": {"rate": 1.0}, "clipping": {"bound": 1.0}}
    moved, rows = change(federation, {"value": math.inf}, noise_multiplier=1.0, **drop)
    assert moved.isfinite().all() and rows[0]["noise_std"] == pytest.approx(1.0 / CLIENTS)


def test_noise_does_not_leave_with_clients(federation):
    """All clients are lost on the way; the noise is that of a round in which all arrive."""
    settings = {"noise_multiplier": 1.0, "clipping": {"bound": 1.0}, "sampling": {"rate": 1.0}}
    lost = {"execution.on_client_error": "drop"}
    without, _ = change(federation, {"value": math.nan}, **settings, **lost)
    zeros, _ = change(federation, {"value": 0.0}, **settings)
    assert torch.equal(without, zeros)


# -- weaker than it looks ---------------------------------------------------------------------------------------------
def test_delta_is_below_one_in_the_number_of_clients(federation):
    refused(federation, "privacy.delta: 0.125 allows that one of 8 clients", delta=0.125)


def test_figures_state_the_neighbours_and_what_is_not_private(federation):
    with federation.simulation(**private(noise_multiplier=1.0)) as run:
        assert "neighbours: one client added or removed" in run.headline
        assert re.search(r"train/\*, .*clients/\*.* have no noise: not private", run.headline)


@pytest.mark.parametrize("stop", [{"target": {"train/loss": 0.1}}, {"patience": 2}], ids=["target", "patience"])
def test_clients_metrics_do_not_end_a_run(federation, stop):
    refused(federation, "depends on clients' rows without noise, and the number of rounds", stop=stop)


def test_secrets_are_not_the_seed(federation):
    """Who knows the seed knows reproducible noise; cryptographic noise differs from run to run."""
    noise = {"noise_multiplier": 1.0, "clipping": {"bound": 1.0}}
    one, two = (change(federation, **noise)[0] for _ in range(2))
    assert torch.equal(one, two)
    one, two = (change(federation, seeds="cryptographic", **noise)[0] for _ in range(2))
    assert not torch.equal(one, two)


def test_last_bits_are_not_released(federation):
    """Sums are multiples of a power of 2, about a thousandth of the noise, whatever the clients send."""
    like, random = torch.zeros(1000), torch.Generator().manual_seed(0)
    for value in (0.0, 0.123456789):
        noisy = like + value + 3.0 * torch.randn(1000, generator=random)
        steps = rounded({"model": noisy.clone()}, 3.0)["model"].double() / step_of(3.0)
        assert torch.equal(steps, steps.round()) and float((steps * step_of(3.0) - noisy).abs().max()) < 3.0 / 1000
    settings = {"noise_multiplier": 1.0, "clipping": {"bound": 1.0}, "sampling": {"rate": 1.0}}
    with federation.simulation(**private(**settings)) as run:
        whole, sums = run.exchanges.private._with_noise, []
        run.exchanges.private._with_noise = lambda *args: sums.append(whole(*args)) or sums[-1]
        run.run()
    steps = sums[0][0]["model"].buffers[0].double() / step_of(1.0)
    assert torch.equal(steps, steps.round()) and steps.any()


def test_an_audit_can_refute_the_account(federation):
    """Noise of a larger cohort: the empirical bound is above the epsilon that does not hold for this run."""
    virtual = {"size": 4000, "population": 80000}
    wide = {"model.hidden": [60], "audit": {"canaries": 100}}
    settings = {"noise_multiplier": 3.0, "sampling": {"rate": 1.0}, "virtual_cohort": virtual}
    _, rows = change(federation, **settings, **wide)
    assert rows[0]["empirical_epsilon"] > rows[0]["virtual_epsilon"]


# -- the page ---------------------------------------------------------------------------------------------------------
def test_the_page_names_the_tests():
    """Each pitfall of the page names a test, and each test of this file but this one is named."""
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    here = {name for name in globals() if name.startswith("test_")} - {"test_the_page_names_the_tests"}
    elsewhere = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    assert here <= named and all(f"def {name}(" in elsewhere for name in named)
