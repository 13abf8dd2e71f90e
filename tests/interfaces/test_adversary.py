"""Adversaries: what they see, what they send, and that nothing else changes.

The toy `Follower` sends the update of the first honest client, plus the index of the attacker's row.
"""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import fl
from fl.check.bench import CLIENTS, Bench, finish
from fl.errors import ClientError, ConfigError
from fl.method.adversary import Adversary, AttackContext, GaussianUpdate, MeanShift, SignFlip, largest_z
from fl.simulation import attacked_exchanges
from fl.tensors.params import Params
from tests.interfaces.laws import check_order_and_resume

ALL = {"cohort": {"name": "uniform", "size": CLIENTS}}
LOOP = {"execution.plan": "loop"}


@dataclass(frozen=True, kw_only=True)
class Follower(Adversary):
    """Copies the first honest client."""

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        return honest[:1] + torch.arange(len(own))[:, None].to(own.dtype)


def bench(folder, strategy="fedavg", client="sgd", **arguments):
    return Bench({"name": strategy}, {"name": client, "epochs": 2, "batch": 8, "lr": 0.1, **arguments}, folder)


def updates(folder, **settings):
    """Each client's honest update of round 0: the difference of the models of a round alone and the first model."""
    found = []
    for client in range(CLIENTS):
        alone = {"cohort": {"name": "fixed", "clients": [client]}, "rounds": 1, **LOOP, **settings}
        with bench(folder / f"alone{client}").simulation(**alone) as run:
            first = run.run_setup.model.clone()
            result = run.run()
        found.append(flat(result.model) - flat(first))
        sizes = run.run_setup.sizes(0)
    return flat(first), torch.stack(found), torch.as_tensor(sizes).double()


def flat(params: Params) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in params.values()]).double()


def mean(rows: Tensor, sizes: Tensor) -> Tensor:
    return (rows * sizes[:, None]).sum(0) / sizes.sum()


def without_count(run):
    """The run without the number of attackers in its rows."""
    rows = ({k: v for k, v in json.loads(row).items() if k != "attackers"} for row in run.metrics)
    return replace(run, metrics=[json.dumps(row) for row in rows])


# -- what they send ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plan", ["loop", "stacked"])
def test_attacked_means_by_hand(plan, tmp_path):
    """The mean of the eight updates of round 0, computed from each client's own update, with 1 and 6 as attackers."""
    first, own, sizes = updates(tmp_path)
    honest = [0, 2, 3, 4, 5, 7]
    flipped = own.clone()
    flipped[[1, 6]] *= -2
    shifted = own.clone()
    shifted[[1, 6]] = own[honest].mean(0) - 0.5 * (own[honest] - own[honest].mean(0)).square().mean(0).sqrt()
    copied = own.clone()
    copied[1], copied[6] = own[0], own[0] + 1
    attacks = {
        "sign_flip": ({"scale": 2.0}, flipped),
        "mean_shift": ({"z": 0.5}, shifted),
        f"{__file__}:Follower": ({}, copied),
    }
    for name, (arguments, rows) in attacks.items():
        adversary = {"name": name, "clients": [6, 1], **arguments}
        run = bench(tmp_path / name.replace("/", "")).run(
            **ALL, rounds=1, adversary=adversary, **{"execution.plan": plan}
        )
        torch.testing.assert_close(flat(run.model) - first, mean(rows, sizes), rtol=0, atol=2e-6, msg=name)


def test_an_attack_that_changes_nothing_gives_the_bits_of_an_honest_run(tmp_path):
    """scale -1 sends what was trained, with a codec that draws, clipping on both sides, and states of clients."""
    settings = {
        "transforms": [{"name": "clip", "bound": 0.3}, {"name": "clip", "bound": 0.25, "side": "server"}],
        "codec": {"up": [{"name": "quantise", "bits": 4}]},
        **LOOP,
    }
    honest = bench(tmp_path / "honest", "scaffold", "scaffold").run(**settings)
    neutral = {"name": "sign_flip", "share": 0.5, "scale": -1.0}
    attacked = bench(tmp_path / "neutral", "scaffold", "scaffold").run(adversary=neutral, **settings)
    without_count(attacked).require_same(honest, "a neutral attack and no attack")


def test_attacks_are_clipped_and_booked_like_any_update(tmp_path):
    """All eight attack with a factor of 1e6: each coordinate of the mean stays within the bound; bytes as without."""
    settings = {**ALL, "rounds": 1, "transforms": [{"name": "clip", "bound": 0.1}]}
    honest = bench(tmp_path / "honest").run(**settings)
    adversary = {"name": "sign_flip", "share": 1.0, "scale": 1e6}
    with bench(tmp_path / "bad").simulation(adversary=adversary, **settings) as run:
        first, attacked = flat(run.run_setup.model), finish(run)
    assert attacked.ledger == honest.ledger
    assert (flat(attacked.model) - first).norm() <= 0.1 + 1e-6


def test_robust_rules_see_the_attack(tmp_path):
    """Median of eight: attackers that send 1e6 move the mean far, and the median hardly."""
    adversary = {"name": "gaussian", "clients": [0, 3], "std": 1e6}
    largest = {}
    for strategy in ("fedavg", "median", "trimmed_mean"):
        rule = bench(tmp_path / strategy, strategy)
        rule.strategy |= {"beta": 0.25} if strategy == "trimmed_mean" else {}
        largest[strategy] = float(flat(rule.run(**ALL, rounds=1, adversary=adversary).model).abs().max())
    assert largest["fedavg"] > 1e4 and max(largest["median"], largest["trimmed_mean"]) < 10


def test_attacks_by_hand():
    """z of Baruch et al.: n = 50, m = 24: s = 2, Phi(z) = 24 / 26, z = 1.426 (normal table)."""
    honest, own = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[5.0, -1.0]])
    none = None
    assert SignFlip(share=0.1, scale=3.0).attack(honest, own, none).tolist() == [[-15.0, 3.0]]
    assert MeanShift(share=0.1, z=0.5).attack(honest, own, none).tolist() == [[1.5, 3.0]]  # means 2, 4; deviations 1, 2
    assert MeanShift(share=0.1, z=0.5, sees="own").attack(honest, own, none).tolist() == [[5.0, -1.0]]
    assert largest_z(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert largest_z(10, 2) == pytest.approx(0.0)  # s = 4: Phi(z) = 4 / 8
    assert largest_z(10, 8) == 0.0 and largest_z(1, 1) == 0.0


def test_gaussian_updates_are_addressed():
    """Each client, exchange and block has its own draws, in any company."""
    ids = np.array([2, 5])
    ctx = AttackContext(0, 0, 7, "train", "model", 0, 0, ids[:0], ids[:0], ids, np.ones(2))
    both = GaussianUpdate(share=0.1, std=2.0).attack(torch.zeros(0, 4), torch.zeros(2, 4), ctx)
    alone = GaussianUpdate(share=0.1, std=2.0).attack(
        torch.zeros(0, 4), torch.zeros(1, 4), replace(ctx, clients=ids[1:])
    )
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])


def test_who_attacks():
    """20 % of 10 clients are 2; the draw depends on the seed."""
    drawn = [SignFlip(share=0.2).attackers(seed, 10) for seed in range(5)]
    assert all(one.sum() == 2 for one in drawn) and len({tuple(one) for one in drawn}) > 1
    assert np.flatnonzero(SignFlip(clients=(4, 1)).attackers(0, 6)).tolist() == [1, 4]


# -- laws -------------------------------------------------------------------------------------------------------------
SETTINGS = [
    {"adversary": {"name": "mean_shift", "share": 0.4}},
    {"adversary": {"name": "gaussian", "share": 0.4}, "codec": {"up": [{"name": "top_k", "ratio": 0.3}]}, **LOOP},
    {"adversary": {"name": f"{__file__}:Follower", "clients": [2, 5, 6]}, "execution.plan": "stacked"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["default plan", "loop, codec", "stacked"])
def test_order_of_work_and_a_resume_change_no_bits(settings, tmp_path):
    _, directory = check_order_and_resume(bench(tmp_path), settings)
    assert list((directory / "scratch").glob("attack*")) == []


@pytest.mark.ray
def test_ray_workers_give_the_same_bits(tmp_path):
    ray = {"execution": {"executor": "ray", "workers": 2}}
    serial = bench(tmp_path / "serial").run(**SETTINGS[0])
    bench(tmp_path / "ray").run(**SETTINGS[0], **ray).require_same(serial, "ray")


def test_blocks_of_columns_change_no_bits(tmp_path, monkeypatch):
    whole = bench(tmp_path / "whole").run(**SETTINGS[0])
    monkeypatch.setattr(attacked_exchanges, "COLUMNS", 7)
    bench(tmp_path / "blocks").run(**SETTINGS[0]).require_same(whole, "blocks of 7 columns")


def test_without_attackers_in_the_cohort_a_round_is_as_usual(tmp_path):
    cohort = {"cohort": {"name": "fixed", "clients": [0, 1, 2]}}
    attacked = bench(tmp_path / "a").run(adversary={"name": "sign_flip", "clients": [7]}, **cohort)
    without_count(attacked).require_same(bench(tmp_path / "b").run(**cohort), "no attacker takes part")


def test_all_groups_are_attacked_or_those_that_are_named(tmp_path):
    """SCAFFOLD sends model and control: with groups: [model] the control variates are honest in round 0."""
    runs = {}
    for name, groups in {"honest": None, "all": None, "model": ["model"]}.items():
        adversary = None if name == "honest" else {"name": "sign_flip", "share": 1.0, "scale": 2.0, "groups": groups}
        with bench(tmp_path / name, "scaffold", "scaffold").simulation(**ALL, rounds=1, adversary=adversary) as run:
            run.run()
            runs[name] = flat(run.state.control)
    torch.testing.assert_close(runs["all"], -2 * runs["honest"])
    torch.testing.assert_close(runs["model"], runs["honest"])


# -- failures and errors ----------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Broken(fl.LocalTraining):
    """Clients 3 (honest) and 4 (an attacker) fail; client 5 (an attacker) diverges."""

    def finish(self, end):
        return super().finish(end)

    def work(self, name, ctx, carry):
        if ctx.client in (3, 4):
            raise RuntimeError("no")
        reply = super().work(name, ctx, carry)
        if ctx.client == 5:
            for buffer in reply.update.groups["model"].buffers:
                buffer.fill_(math.nan)
        return reply


def test_failed_clients_are_dropped(tmp_path):
    adversary = {"name": "sign_flip", "clients": [4, 5, 6]}
    broken = {"client.name": f"{__file__}:Broken", "execution.on_client_error": "drop"}
    with bench(tmp_path).simulation(**ALL, **LOOP, rounds=1, adversary=adversary, **broken) as run:
        (row,) = run.run().metrics
    assert row["dropped"] == 3 and row["attackers"] == 1 and len(row["errors"]) == 3
    assert row["uplink_bytes"] == 5 * 4 * run.run_setup.model.numel


def test_an_attack_that_is_not_finite_stops_the_run(tmp_path):
    adversary = {"name": "sign_flip", "clients": [2], "scale": math.inf}
    with pytest.raises(ClientError, match="the update of client 2 is not finite"):
        bench(tmp_path).run(**ALL, adversary=adversary)


@dataclass(frozen=True, kw_only=True)
class WrongShape(Adversary):
    """One row too few."""

    def attack(self, honest: Tensor, own: Tensor, ctx: AttackContext) -> Tensor:
        return own[1:]


def test_a_wrong_shape_is_named(tmp_path):
    adversary = {"name": f"{__file__}:WrongShape", "clients": [2]}
    with pytest.raises(ValueError, match=r"WrongShape: attack returned \(0, \d+\), expected a tensor \(1, \d+\)"):
        bench(tmp_path).run(**ALL, adversary=adversary)


SYSTEM = {"devices": {"name": "identical", "ms_per_sample": 3}}
BUFFERED = {"server": {"name": "buffered", "concurrency": 4, "buffer": 2}, "system": SYSTEM}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"adversary": "sign_flip"}, "adversary.clients: None and share: None: give one of the two"),
        ({"adversary": {"name": "sign_flip", "share": 1.5}}, r"adversary.share: 1.5 is not in \(0, 1\]"),
        ({"adversary": {"name": "sign_flip", "clients": [1, 8]}}, r"adversary.clients: \[8\] are not all in 0..7"),
        ({"adversary": {"name": "sign_flip", "share": 0.2}, **BUFFERED}, "adversary: an attack needs the honest"),
        (
            {
                "adversary": {"name": "sign_flip", "share": 0.2},
                "codec": {"up": ["error_feedback", {"name": "top_k", "ratio": 0.3}]},
            },
            "codec.up: ErrorFeedback remembers what a client sent",
        ),
        (
            {"adversary": {"name": "sign_flip", "share": 1.0, "groups": ["modle"]}},
            r"adversary.groups: 'modle' is not one of \['model'\]",
        ),
    ],
)
def test_errors(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        bench(tmp_path).run(**settings)
