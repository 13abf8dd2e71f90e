"""The hook after the reduction: strategies of both forms see the changed value, with its metrics in the round's row."""

from dataclasses import dataclass

import pytest
import torch

from fl.check.bench import Bench
from fl.checks import not_negative, one_of
from fl.errors import ConfigError
from fl.method.after_reduction import AfterReduction, ReductionContext
from fl.method.reduction import WeightedMean
from fl.method.requests import Exchange
from fl.method.strategy import Strategy
from fl.tensors.params import Params
from tests.flower.test_deploy import same_run
from tests.interfaces.laws import check_order_and_resume

ONE_ROUND = {"rounds": 1}


@dataclass(frozen=True, kw_only=True)
class Scale(AfterReduction):
    """Multiplies the group "model" by `factor`; its row counts clients and names the exchange's work."""

    factor: float = 0.5

    def apply(self, groups, ctx: ReductionContext):
        answered = {f"{ctx.work}_clients": len(ctx.clients), "part": ctx.part}
        return {**groups, "model": groups["model"] * self.factor}, answered


@dataclass(frozen=True, kw_only=True)
class AsGenerator(Strategy):
    """FedAvg, written as a generator with a mapping of reductions."""

    def round(self, state, ctx):
        outcome = yield Exchange(state, {"model": WeightedMean()})
        return state + outcome.value["model"], {}


@dataclass(frozen=True, kw_only=True)
class Loses(AfterReduction):
    """Returns no groups."""

    def apply(self, groups, ctx: ReductionContext):
        return {}, {}


@dataclass(frozen=True, kw_only=True)
class Noise(AfterReduction):
    """Adds normal noise to the group `group`. Its row has the deviation."""

    std: float = 0.01
    group: str = "model"

    def __post_init__(self):
        not_negative(std=self.std)

    def check(self, groups):
        one_of(sorted(groups), group=self.group)

    def apply(self, groups, ctx: ReductionContext):
        generator = ctx.generator("noise")
        tensors = {name: torch.randn(t.shape, generator=generator) for name, t in groups[self.group].items()}
        return {**groups, self.group: groups[self.group] + self.std * Params.of(tensors)}, {"noise_std": self.std}


SCALE = f"{__file__}:Scale"
NOISE = f"{__file__}:Noise"


def bench(folder, strategy="fedavg"):
    return Bench({"name": strategy}, {"name": "sgd", "epochs": 2, "batch": 8, "lr": 0.1}, folder)


def moved(folder, strategy="fedavg", **settings):
    """Change of the model in one round, in one vector, and the row."""
    with bench(folder, strategy).simulation(**ONE_ROUND, **settings) as run:
        first = flat(run.run_setup.model)
        result = run.run()
    return flat(result.model) - first, result.metrics[0]


def flat(params):
    return torch.cat([tensor.reshape(-1) for tensor in params.values()]).double()


@pytest.mark.parametrize("strategy", ["fedavg", f"{__file__}:AsGenerator"], ids=["simple form", "generator form"])
def test_strategies_see_the_changed_value(strategy, tmp_path):
    """Two parts, factors 1/2 and 1/4: an eighth of the mean. The row has the metrics of the last part."""
    plain, _ = moved(tmp_path / "plain")
    chain = [{"name": SCALE}, {"name": SCALE, "factor": 0.25}]
    scaled, row = moved(tmp_path / "scaled", strategy, after_reduction=chain)
    torch.testing.assert_close(scaled, plain / 8, rtol=1e-4, atol=2e-7)
    assert row["train_clients"] == 5 and row["part"] == 1


def test_asynchronous_servers_pass_through_it(tmp_path):
    system = {"devices": {"name": "identical", "ms_per_sample": 1}}
    server = {"name": "buffered", "concurrency": 4, "buffer": 2}
    plain, _ = moved(tmp_path / "plain", system=system, server=server)
    scaled, row = moved(tmp_path / "scaled", system=system, server=server, after_reduction=[{"name": SCALE}])
    torch.testing.assert_close(scaled, plain / 2, rtol=1e-4, atol=2e-7)
    assert row["train_clients"] == 2


def test_noise(tmp_path):
    """The model moves by std * n more: mean 0 and deviation std over the 3,000 parameters, linear in std."""
    wide = {"model": {"name": "mlp", "hidden": [270]}}
    plain, _ = moved(tmp_path / "plain", **wide)
    noise = {}
    for std in (0.1, 0.2):
        noisy, row = moved(tmp_path / f"{std}", **wide, after_reduction=[{"name": NOISE, "std": std}])
        noise[std], n = noisy - plain, len(plain)
        assert row["noise_std"] == std and n > 2900
        assert abs(noise[std].mean()) < 4 * std / n**0.5 and float(noise[std].std()) == pytest.approx(std, rel=0.06)
    torch.testing.assert_close(noise[0.2], 2 * noise[0.1], rtol=0, atol=2e-6)
    chain = [{"name": NOISE, "std": 0.1}] * 2
    twice, _ = moved(tmp_path / "twice", **wide, after_reduction=chain)
    assert float((twice - plain).std()) == pytest.approx(0.1 * 2**0.5, rel=0.06), "the parts of a chain draw apart"


def test_order_of_work_and_a_resume_change_no_bits(tmp_path):
    settings = {"after_reduction": [{"name": NOISE, "std": 0.01}]}
    federation = bench(tmp_path)
    plain, _ = check_order_and_resume(federation, settings)
    silent = federation.run(after_reduction=[{"name": NOISE, "std": 0.0}])
    assert all(torch.equal(a, b) for a, b in zip(silent.model.buffers, federation.run().model.buffers))
    assert plain.ledger == silent.ledger


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_deployment_gives_the_same_bits(tmp_path, capsys):
    settings = {"after_reduction": [{"name": NOISE, "std": 0.01}], "execution.plan": "loop"}
    same_run(bench(tmp_path).config(**settings), tmp_path)


@pytest.mark.parametrize(
    "part, error, message",
    [
        ({"name": NOISE, "std": -1}, ConfigError, r"after_reduction\[0\].std: -1.0 is negative"),
        (
            {"name": NOISE, "std": 1, "group": "modle"},
            ConfigError,
            r"after_reduction\[0\].group: 'modle' is not one of \['model'\]",
        ),
        ({"name": f"{__file__}:Loses"}, ValueError, r"Loses: apply returned the groups \[\], expected \['model'\]"),
    ],
)
def test_errors(part, error, message, tmp_path):
    with pytest.raises(error, match=message):
        bench(tmp_path).run(after_reduction=[part])
