"""Secure aggregation in a run: same bits everywhere, bytes, seconds, drop-outs, and what is refused."""

import math
from collections import defaultdict

import numpy as np
import pytest
import yaml
from scipy import stats
from typer.testing import CliRunner

import fl
from fl.cli.app import app
from fl.errors import ConfigError
from fl.method.fold import Fold
from fl.privacy.secure.secure_sum import Words

CONFIG = {
    "seed": 3,
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5, "min_size": 5},
    "model": "softmax",
    "cohort": {"size": 8},
    "strategy": "fedavg",
    "client": {"lr": 0.1},
    "evaluation": {"every": 3, "server": False, "clients": 0},
    "execution": {"executor": "serial", "plan": "flat"},
    "secure_aggregation": {"protocol": "secagg"},
}
DEVICES = {"name": "identical", "ms_per_sample": 1.0, "up_mbps": 1.0, "down_mbps": 4.0, "latency_ms": 50.0}
PARAMETERS = 650  # 64 pixels x 10 classes + 10


def bits_of(out, **overrides):
    return fl.run(CONFIG, out=out, **overrides).digest


def test_masks_seeds_chunks_and_workers_change_no_bit(tmp_path):
    whole = bits_of(tmp_path / "a")
    assert bits_of(tmp_path / "b", **{"secure_aggregation.masks": False}) == whole
    assert bits_of(tmp_path / "c", **{"secure_aggregation.seeds": "cryptographic"}) == whole
    assert bits_of(tmp_path / "d", **{"secure_aggregation.protocol": {"name": "secagg_plus", "degree": 4}}) == whole
    assert bits_of(tmp_path / "e", **{"execution.chunk": 2}) == whole
    assert bits_of(tmp_path / "f", rounds=2) != whole
    assert fl.resume(tmp_path / "f", rounds=3).digest == whole


@pytest.mark.ray
def test_ray_gives_the_same_bits(tmp_path):
    ray = {"executor": "ray", "workers": 2}
    assert bits_of(tmp_path / "ray", execution={**ray, "plan": "flat"}) == bits_of(tmp_path / "serial")


def test_the_result_is_that_of_a_plain_run_up_to_quantisation(tmp_path):
    fine = {"secure_aggregation.bits": 30}
    secure, plain = (
        fl.run(CONFIG, out=tmp_path / name, **own).model
        for name, own in (("secure", fine), ("plain", {"secure_aggregation": None}))
    )
    for name in plain:
        assert float((secure[name] - plain[name]).abs().max()) < 1e-6


def test_bytes_by_group_are_those_of_the_messages(tmp_path):
    result = fl.run(CONFIG, out=tmp_path / "run", rounds=1, **{"secure_aggregation.largest_weight": 1000})
    rows = defaultdict(list)
    for row in result.ledger.to_pylist():
        rows[row["group"], row["direction"]].append(row["encoded_bytes"])
    # 8 x (1000 x (2^15 - 1) + 1) < 2^(b - 1): b = 29 bits
    masked = math.ceil(PARAMETERS * 29 / 8)
    expected = {
        ("model", "up"): masked,
        ("model", "down"): 4 * PARAMETERS,
        ("secure/counters", "up"): math.ceil(2 * 29 / 8),  # the weight, and the share of clipped elements
        ("secure/keys", "up"): 2 * 32,
        ("secure/keys", "down"): 7 * (4 + 2 * 32),
        ("secure/shares", "up"): 7 * (4 + 8 + 2 * 16 + 16),
        ("secure/shares", "down"): 7 * (4 + 8 + 2 * 16 + 16),
        ("secure/unmasking", "up"): 8 * 16,
        ("secure/unmasking", "down"): 1,
    }
    assert rows == {key: [nbytes] * 8 for key, nbytes in expected.items()}


def test_seconds_are_those_of_the_messages(tmp_path):
    plain, secure = (
        fl.run(CONFIG, out=tmp_path / name, rounds=1, system={"devices": DEVICES}, **own).metrics[0]
        for name, own in (
            ("plain", {"secure_aggregation": None}),
            ("secure", {"secure_aggregation.modulus_bits": 32}),
        )
    )
    up, down, latency = 1e6 / 8, 4e6 / 8, 0.05
    keys = latency + 64 / up  # all clients are the same
    shares = 2 * latency + 7 * 68 / down + 7 * 60 / up
    unmasking = 2 * latency + 1 / down + 8 * 16 / up
    more = keys + shares + 7 * 60 / down + 8 / up + unmasking  # 8: the counters; 32 bits are as long as a float32
    assert secure["simulated_seconds"] == pytest.approx(plain["simulated_seconds"] + more)
    assert secure["simulated_unmasking_seconds"] == pytest.approx(unmasking)


def test_drop_outs_are_removed_and_too_few_answers_change_nothing(tmp_path):
    system = {"devices": DEVICES, "dropout": 0.15}
    few = {"secure_aggregation.protocol.threshold": 0.4, "system": system}
    rounds = fl.run(CONFIG, out=tmp_path / "few", **few).metrics
    plain = fl.run(CONFIG, out=tmp_path / "plain", secure_aggregation=None, system=system)
    assert sum(row["secure/missing"] for row in rounds) > 0
    assert not any(row["secure/aborted"] for row in rounds)
    assert [row["clients_in"] for row in rounds] == [row["clients_in"] for row in plain.metrics]
    # shares of all clients are needed, so each drop-out aborts the round; the first model stays
    many = {"secure_aggregation.protocol.threshold": 1.0, "system": {"devices": DEVICES, "dropout": 0.9}}
    aborted = fl.run(CONFIG, out=tmp_path / "many", **many)
    nothing = fl.run(CONFIG, out=tmp_path / "nothing", **many, **{"client.lr": 0.2})
    assert all(row["secure/aborted"] or row["clients_in"] == 0 for row in aborted.metrics)
    assert any("shares of a secret" in line for row in aborted.metrics for line in row.get("errors", []))
    assert aborted.digest == nothing.digest


def test_what_reaches_the_server_in_a_run_is_uniform(tmp_path, monkeypatch):
    """Every leaf of the reduction holds words of one client; they are uniform. Without masks they are not."""
    leaves, add = [], Fold.add

    def spy(fold, level, k, acc):
        if level == 0 and isinstance(acc, Words):
            leaves.append(acc.words.numpy().copy())
        add(fold, level, k, acc)

    monkeypatch.setattr(Fold, "add", spy)
    for masks in (True, False):
        leaves.clear()
        how = {"secure_aggregation.masks": masks, "secure_aggregation.modulus_bits": 32, "execution.plan": "loop"}
        result = fl.run(CONFIG, out=tmp_path / str(masks), rounds=1, **how)
        assert len(leaves) == 8 and all(own.dtype == np.int32 for own in leaves)
        for own in leaves:
            counts = np.bincount(own.view(np.uint32) >> 28, minlength=16)
            assert (stats.chisquare(counts).pvalue > 1e-5) == masks
        assert result.metrics[0]["secure/aborted"] == 0


FAILS = """
from dataclasses import dataclass
from fl import LocalTraining

@dataclass(frozen=True, kw_only=True)
class Fails(LocalTraining):
    def work(self, name, ctx, carry):
        if ctx.client % 4 == 0:
            raise RuntimeError("no battery")
        return super().work(name, ctx, carry)
"""


def test_clients_that_fail_leave_masks_behind_that_are_removed(tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    fails = {"client.name": f"{tmp_path}/fails.py:Fails", "execution.on_client_error": "drop", "execution.plan": "loop"}
    fine = {"secure_aggregation.bits": 28, "secure_aggregation.protocol.threshold": 0.4}
    secure = fl.run(CONFIG, out=tmp_path / "secure", **fails, **fine)
    plain = fl.run(CONFIG, out=tmp_path / "plain", **fails, secure_aggregation=None)
    assert [row["secure/missing"] for row in secure.metrics] == [row["dropped"] for row in plain.metrics]
    assert sum(row["dropped"] for row in plain.metrics) > 0
    assert all(float((secure.model[name] - plain.model[name]).abs().max()) < 1e-6 for name in plain.model)


def test_cohorts_of_all_sizes(tmp_path):
    """Poisson sampling draws empty cohorts and cohorts of one: these rounds change nothing."""
    small = {"cohort": {"name": "poisson", "rate": 0.08}, "rounds": 12}
    for protocol in ("secagg", "secagg_plus"):
        rows = fl.run(CONFIG, out=tmp_path / protocol, **small, **{"secure_aggregation.protocol": protocol}).metrics
        sizes = [row["cohort_size"] for row in rows]
        assert {0, 1} <= {*sizes} and max(sizes) > 1
        assert [bool(row["secure/aborted"]) for row in rows] == [size == 1 for size in sizes]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["strategy=median"], "secure_aggregation: the group 'model' has the reduction"),
        (["secure_aggregation.modulus_bits=20"], "secure_aggregation.modulus_bits: 20 is too few: 16 bits for"),
        (["secure_aggregation.bits=64"], "secure_aggregation.bits: 64 is not in [2, 32]"),
        (["secure_aggregation.clip={control: 1.0}"], "secure_aggregation.clip: no range for the group 'model'"),
        (["codec.up=[{name: quantise}]"], "codec.up[0]: 'quantise' is not linear"),
        (
            ["codec.up=[{name: error_feedback}, {name: top_k, ratio: 0.1}]"],
            "codec.up[0]: 'error_feedback' is not possible",
        ),
        (["cohort={name: power_of_choice, size: 4, candidates: 8}"], "cohort: 'power_of_choice' learns from numbers"),
        (["cohort.size=1"], "cohort: the sum of one client is its update"),
        (["secure_aggregation.protocol.threshold=0"], "secure_aggregation.protocol.threshold: 0.0 is not in (0, 1]"),
        (["adversary={name: sign_flip, share: 0.2}"], "adversary: an attack is written from single updates"),
    ],
)
def test_what_is_refused_before_round_0(tmp_path, overrides, message):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    out = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run"), *overrides])
    assert out.exit_code == 2, out.output
    assert message in out.output + out.stderr


def test_a_client_with_more_samples_than_declared_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="largest_weight: 2 is less than the .* training samples of the largest"):
        fl.run(CONFIG, out=tmp_path / "run", **{"secure_aggregation.largest_weight": 2})


def test_linear_codecs_add_up(tmp_path):
    """A rotation changes last bits only. Random entries are the same for all clients, so they can be added."""
    fine = {"secure_aggregation.bits": 28}
    plain = fl.run(CONFIG, out=tmp_path / "a", **fine).model
    rotated = fl.run(CONFIG, out=tmp_path / "b", **fine, **{"codec.up": [{"name": "hadamard"}]}).model
    assert all(float((plain[name] - rotated[name]).abs().max()) < 1e-5 for name in plain)
    sparse = {"rounds": 1, "codec.up": [{"name": "random_k", "ratio": 0.1, "scale": False}]}
    one = fl.run(CONFIG, out=tmp_path / "c", **fine, **sparse)
    first = fl.run(CONFIG, out=tmp_path / "d", **fine, rounds=1, **{"client.lr": 1e-30}).model
    full = fl.run(CONFIG, out=tmp_path / "e", **fine, rounds=1).model
    changed = sum(int(((one.model[name] - first[name]).abs() > 1e-7).sum()) for name in first)
    assert changed <= PARAMETERS // 10
    for name in first:
        same = (one.model[name] - full[name]).abs() < 1e-6
        still = (one.model[name] - first[name]).abs() < 1e-6
        assert bool((same | still).all())
    sent = {
        row["encoded_bytes"] for row in one.ledger.to_pylist() if (row["group"], row["direction"]) == ("model", "up")
    }
    assert len(sent) == 1 and sent.pop() < 4 * PARAMETERS * 0.13


def test_with_privacy_the_sum_is_clipped_before_it_is_quantised(tmp_path):
    private = {"sampling": {"rate": 0.5}, "clipping": {"bound": 0.5}, "noise_multiplier": 0.0, "delta": 1e-3}
    config = {key: value for key, value in CONFIG.items() if key != "cohort"} | {"privacy": private}
    fine = {"secure_aggregation.bits": 28}
    secure = fl.run(config, out=tmp_path / "secure", **fine)
    plain = fl.run(config, out=tmp_path / "plain", secure_aggregation=None)
    assert [row["clipped"] for row in secure.metrics] == [row["clipped"] for row in plain.metrics]
    assert all(float((secure.model[name] - plain.model[name]).abs().max()) < 1e-5 for name in plain.model)
    with pytest.raises(ConfigError, match="privacy.where: 'local' noise"):
        fl.run(config, out=tmp_path / "local", **{"privacy.where": "local", "privacy.noise_multiplier": 1.0})
