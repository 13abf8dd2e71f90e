"""Private runs: the round's step by hand, empty cohorts, the account, same bits, and refusals."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fl.check.bench import Bench
from fl.errors import ConfigError
from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Update
from fl.privacy import accounting
from fl.simulation.private_examples import PrivateExamples
from fl.simulation.simulation import Simulation
from tests.interfaces.laws import check_order_and_resume

PRIVACY = {
    "sampling": {"rate": 0.5},
    "clipping": {"bound": 0.5},
    "noise_multiplier": 1.0,
    "delta": 1e-3,
}
COHORT = {"cohort": {"size": 3}}
SYSTEM = {"devices": {"name": "identical", "ms_per_sample": 1}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "cache_folder", lambda: tmp_path / "cache")


@dataclass(frozen=True, kw_only=True)
class Ones(ClientAlgorithm):
    """Sends an update of ones, times the client's id."""

    def work(self, name, ctx, carry):
        ones = ctx.received["model"] * 0 + float(ctx.client)
        return Reply(Update({"model": ones}, len(ctx.train)))


def bench(folder, strategy="fedavg", client="sgd"):
    settings = {} if ":" in client else {"epochs": 1, "batch": 8, "lr": 0.1}
    settings = {"steps": 3, "rate": 0.3} if client == "dp_sgd" else settings
    return Bench({"name": strategy}, {"name": client, **settings}, folder)


def settings(privacy=None, **others):
    return {"cohort": None, "privacy": {**PRIVACY, **(privacy or {})}, "rounds": 2, **others}


def moved(federation, **options):
    """Change of the model in one round, one vector, and the row."""
    with federation.simulation(**{**options, "rounds": 1}) as run:
        first = run.run_setup.model.clone()
        result = run.run()
    change = torch.cat([(result.model[name] - first[name]).reshape(-1) for name in first]).double()
    return change, result.metrics[0]


def test_a_round_by_hand(tmp_path):
    """Eight clients send (i, i, ...) in 59 coordinates: clipped to 0.5, client 0 sends zeros; divided by 8."""
    change, row = moved(
        bench(tmp_path, client=f"{__file__}:Ones"), **settings({"sampling": {"rate": 1.0}, "noise_multiplier": 0.0})
    )
    torch.testing.assert_close(change, torch.full((59,), 7 * 0.5 / math.sqrt(59) / 8).double(), rtol=1e-5, atol=1e-8)
    assert row["clipped"] == 7 / 8 and row["noise_std"] == 0 and row["clip_bound"] == 0.5


def test_an_empty_cohort_gets_noise_and_is_accounted(tmp_path):
    """Nobody is drawn: the model moves by noise alone, of deviation z * bound / (rate * clients)."""
    wide = {"model": {"name": "mlp", "hidden": [270]}}
    change, row = moved(bench(tmp_path), **settings({"sampling": {"rate": 0.01}}, **wide))
    assert row["cohort_size"] == 0 and row["noise_std"] == pytest.approx(0.5 / 0.08) and row["epsilon"] > 0
    assert float(change.std()) == pytest.approx(0.5 / 0.08, rel=0.06)
    assert "clipped" not in row and row["signal_to_noise"] == 0


@pytest.mark.parametrize("strategy, client", [("fedavg", "sgd"), ("scaffold", "scaffold"), ("fedadam", "sgd")])
def test_order_of_work_and_a_resume_change_no_bits(strategy, client, tmp_path):
    """The bound adapts, so that a resumed run needs it."""
    adaptive = {"clipping": {"name": "adaptive", "sigma_b": 2.0}, "sampling": {"rate": 0.3}}
    plain, _ = check_order_and_resume(bench(tmp_path, strategy, client), settings(adaptive, rounds=3))
    rows = [json.loads(row) for row in plain.metrics]
    assert (
        len({row["clip_bound"] for row in rows}) == 3 and rows[0]["epsilon"] < rows[1]["epsilon"] < rows[2]["epsilon"]
    )


@pytest.mark.parametrize("privacy", [{"where": "local"}, {"unit": "example", "sampling": None}])
def test_noise_of_clients_has_the_same_bits(privacy, tmp_path):
    client = "dp_sgd" if "unit" in privacy else "sgd"
    options = settings(privacy)
    if "unit" in privacy:
        del options["cohort"]
    check_order_and_resume(bench(tmp_path, client=client), options)


def test_secret_seeds_cannot_be_repeated_and_are_kept(tmp_path):
    secret = settings({"seeds": "cryptographic", "sampling": {"rate": 1.0}})
    one, two = (moved(bench(tmp_path / name), **secret)[0] for name in "ab")
    assert not torch.equal(one, two)
    with bench(tmp_path / "c").simulation(**secret) as first:
        first.run(interrupt=lambda: True)
        key = first.exchanges.private.secret
    with Simulation(first.config, first.directory, resumed=True) as last:
        assert last.exchanges.private.secret == key and len(key) == 64


def test_the_account_covers_the_rounds_that_ran(tmp_path):
    """A calibrated run of 3 rounds ends at epsilon 4; a run with a budget ends before the round that exceeds it."""
    calibrated = {"noise_multiplier": None, "epsilon": 4.0}
    whole = json.loads(bench(tmp_path / "a").run(**settings(calibrated, rounds=3)).metrics[-1])
    assert 3.9 < whole["epsilon"] <= 4.0
    stopped = bench(tmp_path / "b").run(**settings(calibrated, rounds=3, stop={"target": {"epsilon": 3.0}}))
    assert 0.0 < json.loads(stopped.metrics[-1])["epsilon"] <= 3.0 and len(stopped.metrics) < 3


HALF = {"sampling": {"rate": 1.0}, "mechanism": "laplace", "noise_multiplier": 2.0, "delta": 0}  # epsilon 0.5 a round


@pytest.mark.parametrize(
    "privacy, target, rounds",
    [
        (HALF, {"epsilon": 1.2}, 2),  # 3 * 0.5 exceeds it
        (HALF, {"epsilon": 1.0}, 2),
        (HALF, {"epsilon": 1.2, "clip_bound": 2.0}, 2),  # the limit holds, whatever other targets are reached
        (HALF, {"epsilon": 9.0, "clip_bound": 0.5}, 1),
        ({**HALF, "where": "local"}, {"epsilon": 1.2}, 2),
    ],
)
def test_no_round_exceeds_the_budget(privacy, target, rounds, tmp_path):
    rows = bench(tmp_path).run(**settings(privacy, rounds=4, stop={"target": target})).metrics
    assert [json.loads(row)["epsilon"] for row in rows] == [0.5, 1.0][:rounds]


def test_example_level_privacy_has_a_budget(tmp_path):
    """3 steps with all examples and noise 2 are Gaussian mechanisms: epsilon after n rounds by dp-accounting."""
    accountants = pytest.importorskip("dp_accounting.rdp")
    from dp_accounting import GaussianDpEvent

    two = accountants.RdpAccountant().compose(GaussianDpEvent(2.0), 6).get_epsilon(1e-3)
    private = Bench({"name": "fedavg"}, {"name": "dp_sgd", "steps": 3, "rate": 1.0, "lr": 0.1}, tmp_path)
    options = {"unit": "example", "sampling": None, "noise_multiplier": 2.0, "accountant": "rdp"}
    everybody = {"cohort": {"name": "uniform", "size": 8}, "stop": {"target": {"epsilon": two * 1.001}}}
    rows = private.run(**{**settings(options, rounds=4), **everybody}).metrics
    assert [json.loads(row)["epsilon"] for row in rows][1:] == [pytest.approx(two, rel=1e-3)]


def test_a_budget_below_the_first_round_is_refused(tmp_path):
    budget = settings(HALF, stop={"target": {"epsilon": 0.4}})
    with (
        pytest.raises(ConfigError, match="stop.target: the next round has epsilon 0.5, and stop.target allows 0.4"),
        bench(tmp_path).simulation(**budget),
    ):
        pass


def test_a_resumed_run_keeps_to_its_budget(tmp_path):
    limit = {"stop": {"target": {"epsilon": 1.2}}}
    with bench(tmp_path).simulation(**settings(HALF, rounds=2, **limit)) as run:
        run.run()
    with Simulation(bench(tmp_path).config(**settings(HALF, rounds=5, **limit)), run.directory, resumed=True) as more:
        result = more.run()
    assert more.round == 2 and result.reason == "the next round has epsilon 1.5, and stop.target allows 1.2"


def test_without_noise_a_budget_is_exceeded_at_once(tmp_path):
    none = settings(
        {**HALF, "noise_multiplier": 0.0, "mechanism": "gaussian", "delta": 1e-3},
        **{"stop": {"target": {"epsilon": 8.0}}},
    )
    with pytest.raises(ConfigError, match="epsilon inf"), bench(tmp_path).simulation(**none):
        pass


def test_the_most_updates_of_a_client_in_a_round_bound_the_next_one():
    """A client has two updates in a round, while another has more in all."""
    plan = SimpleNamespace(
        epsilon=float,
        noise_multiplier=1.0,
        section=SimpleNamespace(clipping=SimpleNamespace(bounds_at=lambda *_: [1.0])),
    )
    private = PrivateExamples(plan, clients=3, seed=0, steps=1)
    for clients in ([0], [0], [0], [1, 1]):
        private.begin(0, True)
        private.release(None, None, np.array(clients))
    assert private.next_epsilon() == 3 + 2


def test_more_rounds_than_the_noise_was_made_for_are_refused(tmp_path):
    with bench(tmp_path).simulation(**settings({"noise_multiplier": None, "epsilon": 4.0})) as run:
        run.run()
    longer = bench(tmp_path).config(**settings({"noise_multiplier": None, "epsilon": 4.0}, rounds=5))
    with pytest.raises(ConfigError, match="rounds: the first rounds had noise multiplier"):
        Simulation(longer, run.directory, resumed=True)


def test_a_configuration_with_privacy_is_read_back(tmp_path):
    from fl.config.config import resolve

    config = bench(tmp_path).config(**settings())
    assert "cohort" not in config.to_dict() and resolve(config.to_dict()).to_dict() == config.to_dict()


def test_dp_sgd_without_noise_is_gradient_descent(tmp_path):
    """All examples in each step, a huge bound and no noise: the steps of full-batch SGD."""
    full = Bench({"name": "fedavg"}, {"name": "sgd", "steps": 3, "batch": "full", "lr": 0.1}, tmp_path / "sgd")
    everybody = {"cohort": {"name": "uniform", "size": 8}}
    expected, _ = moved(full, **everybody, model="softmax")
    private = Bench({"name": "fedavg"}, {"name": "dp_sgd", "steps": 3, "rate": 1.0, "lr": 0.1}, tmp_path / "dp")
    options = {"unit": "example", "sampling": None, "noise_multiplier": 0.0, "clipping": {"bound": 1e6}}
    found, row = moved(private, **{**settings(options, model="softmax"), **everybody})
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert row["epsilon"] is None or math.isinf(row["epsilon"])


def test_local_noise_has_twice_the_sensitivity(tmp_path):
    """Each of 8 clients adds noise of z * 2 * bound: the mean has deviation 2 * bound / sqrt(8)."""
    wide = {"model": {"name": "mlp", "hidden": [270]}}
    still = settings({"where": "local", "sampling": {"rate": 1.0}}, **wide)
    quiet = settings({"where": "local", "sampling": {"rate": 1.0}, "noise_multiplier": 0.0}, **wide)
    noise = moved(bench(tmp_path / "a"), **still)[0] - moved(bench(tmp_path / "b"), **quiet)[0]
    assert float(noise.std()) == pytest.approx(1 / math.sqrt(8), rel=0.06)


def test_a_virtual_cohort_is_labelled(tmp_path):
    """Noise on the mean is that of 1,000 clients: z * bound / 1000; the first line and the metric say so."""
    virtual = settings({"virtual_cohort": {"size": 1000, "population": 10**6}, "delta": 1e-6})
    _, row = moved(bench(tmp_path / "a"), **virtual)
    assert row["noise_std"] == pytest.approx(0.5 / 1000) and "epsilon" not in row and row["virtual_epsilon"] > 0
    with bench(tmp_path / "b").simulation(**virtual) as run:
        line = run.headline
    assert "holds for a virtual cohort of 1000 of 1000000 clients, not for the 4 of 8 that are simulated" in line
    assert "neighbours: one client added or removed" in line and "not private" in line


def test_attackers_are_clipped(tmp_path):
    """Updates of an attacker, 1e6 times too long, move the mean by at most the bound / 8."""
    quiet = {"sampling": {"rate": 1.0}, "noise_multiplier": 0.0}
    attack = {"adversary": {"name": "sign_flip", "clients": [3], "scale": 1e6}}
    honest, _ = moved(bench(tmp_path / "a"), **settings(quiet))
    attacked, row = moved(bench(tmp_path / "b"), **settings(quiet, **attack))
    assert row["attackers"] == 1 and float((attacked - honest).norm()) <= 2 * 0.5 / 8


@pytest.mark.parametrize(
    "strategy, privacy, others, message",
    [
        ("median", {}, {}, "the reduction Collect of the group 'model' is no bounded sum"),
        ("fednova", {}, {"client": {"name": "fednova"}}, "the group 'steps' of an update is no change of a group"),
        ("q_fedavg", {}, {"client": {"name": "q_fedavg"}}, "the group 'h' of an update is no change of a group"),
        ("feddyn", {}, {"client": {"name": "feddyn"}}, "the strategy reads ExchangeResult.clients"),
        ("semifl", {}, {"client": {"name": "semifl"}}, "the strategy reads ctx.cohort"),
        ("fedavg", {}, COHORT, "cohort: beside `privacy`, whose epsilon holds for its own sampler"),
        ("fedavg", {"sampling": {"uniform": {"size": 3}}}, {}, "privacy.sampling: 'uniform' draws clients that depend"),
        ("fedavg", {"sampling": None}, {}, "privacy.sampling: None with unit 'client'; give {rate: R}"),
        ("fedavg", {"epsilon": 1.0}, {}, "epsilon: 1.0 and noise_multiplier: 1.0; give one of the two"),
        ("fedavg", {"delta": 0.0}, {}, "delta: 0 has no finite epsilon with mechanism 'gaussian'"),
        ("fedavg", {"clipping": {"adaptive": {}}}, {}, "privacy.clipping.sigma_b: noise of 0.2"),
        (
            "fedavg",
            {"clipping": {"per_group": {"bounds": {"x": 1.0}}}},
            {},
            "privacy.clipping.bounds: no pattern matches",
        ),
        ("fedavg", {"unit": "example", "sampling": None}, COHORT, "client.name: 'sgd' adds no noise to its steps"),
        ("fedavg", {"where": "local", "cap": 3}, {}, "privacy.cap: the server would learn numbers of samples"),
        ("fedavg", {}, {"client": {"name": "dp_sgd"}}, "client 'dp_sgd' needs `privacy` with unit: example"),
        ("fedavg", {}, {"system": SYSTEM, "server": {"needed": 2}}, "server.needed: with over-selection"),
        (
            "fedavg",
            {},
            {"system": {**SYSTEM, "availability": {"name": "bernoulli", "p": 0.5}}},
            "system.availability: who is available depends on how long earlier clients took",
        ),
        (
            "fedavg",
            {},
            {"system": SYSTEM, "server": {"name": "buffered", "concurrency": 4, "buffer": 2}},
            "server: the clock of an asynchronous server chooses the clients",
        ),
    ],
)
def test_refusals(strategy, privacy, others, message, tmp_path):
    with pytest.raises(ConfigError, match=message), bench(tmp_path, strategy).simulation(**settings(privacy, **others)):
        pass
