"""The private exchanges of a run: sums of clipped updates, noise, and the account of what has been released.

    strategy's Exchange -> PrivateSum on the workers -> + noise -> / constant -> the answer of the Exchange

Each round is one release, an empty cohort included: its sum is zero, and it gets the same noise.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.errors import ConfigError
from fl.method.messages import Broadcast
from fl.method.requests import Exchange, ExchangeResult
from fl.privacy.audit import Canaries, numel
from fl.privacy.clipping import Counts, sensitivity
from fl.privacy.example import ExampleLevel
from fl.privacy.mechanism import Release
from fl.privacy.plan import PrivacyPlan
from fl.privacy.private_sum import PrivateSum, refusal
from fl.privacy.rounding import rounded
from fl.privacy.streams import Streams
from fl.privacy.withheld import Withheld
from fl.simulation.private_examples import PrivateExamples
from fl.simulation.private_figures import check_same_noise
from fl.simulation.setup import RunSetup
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree, leaves, tree_map

ONE_RELEASE = "epsilon counts one private exchange in each round"


class PrivateRounds:
    """Makes the releases of a run. What lasts from round to round is in its `record`.

    Args:
        plan: noise multiplier and accountant.
        run_setup: the run.
    """

    def __init__(self, plan: PrivacyPlan, run_setup: RunSetup):
        self.plan, self.section = plan, plan.section
        self.reference = run_setup.config.client.delta_reference
        self.secret = secrets.token_hex(32) if self.section.seeds == "cryptographic" else ""
        self.seed = run_setup.config.seed
        self.mechanism, self.clipping = self.section.mechanism.init(), self.section.clipping.init()
        self.releases = 0
        self.forms: dict[str, Any] = {}  # of the groups that clients sent last
        self.counts = self.section.where == "local" or self.section.mechanism.distributed  # the server knows who sends
        self.participations = np.zeros(run_setup.trainable if self.counts else 0, np.int32)
        self.allowed = False
        self.asked = np.empty(0, np.int64)  # ids of the clients of the exchange at hand
        self.canaries = self._new_canaries()

    def _new_canaries(self) -> Canaries | None:
        audit, sampler = self.section.audit, self.section.sampling
        return None if audit is None or sampler is None else Canaries(audit, sampler, self.streams)

    @property
    def streams(self) -> Streams:
        """The source of random numbers."""
        return Streams(self.seed, self.secret)

    def sampling_seed(self, round_: int) -> int:
        """Return the seed with which the cohort of a round is drawn."""
        return self.streams.sampling_seed(round_)

    def begin(self, round_: int, in_round: bool) -> None:
        """Begin a round, or work outside of rounds, which has no private exchange.

        A release has the number of its round, because samplers and correlated noise count rounds.
        """
        self.allowed = in_round
        if in_round:
            self.releases = round_

    # -- an exchange ------------------------------------------------------------------------------------------------
    def reduction(self, exchange: Exchange) -> PrivateSum:
        """Return the reduction of a private exchange, in the place of the strategy's.

        Raises:
            ConfigError: the exchange is not covered by the account.
        """
        if reason := exchange_refusal(exchange, self.reference):
            raise ConfigError("privacy", reason)
        if not self.allowed:
            raise ConfigError(
                "privacy",
                f"{ONE_RELEASE}, and the strategy has another one; use a strategy with one exchange per round",
            )
        self.allowed = False
        section = self.section
        clipping = None if section.where == "local" else section.clipping
        return PrivateSum(exchange.reductions, clipping, self.clipping, section.mechanism.norm, section.cap)

    def release(self, exchange: Exchange, value: Any, clients: np.ndarray) -> tuple[dict[str, Tree], dict[str, float]]:
        """Return (noisy value of each group, metrics of the round).

        Args:
            exchange: the strategy's request.
            value: what the `PrivateSum` returned; None for an empty cohort.
            clients: ids of the clients that answered, (n,).
        """
        section, plan = self.section, self.plan
        sums = self._zeros(exchange) if value is None else value["sums"]
        self.forms = {name: _spec(tree) for name, tree in sums.items()}
        parts = section.clipping.parts(sums)
        norm = section.mechanism.norm
        bounds = section.clipping.bounds_at(self.clipping, 1 if parts is None else len(parts), norm)
        bound = sensitivity(bounds, norm)
        figures = {"clip_bound": bound}
        if section.where == "local":
            noise_std = self._local_std(bound, len(clients))
            self.participations[self.asked] += 1  # the server may see an update that arrives too late for the sum
            noisy, spent = sums, int(self.participations.max(initial=0))
        else:
            inside = np.zeros(len(bounds)) if value is None else value["inside"].numpy()
            if self.counts:
                self.participations[clients] += 1
            elif len(clients):
                figures["clipped"] = float(0.5 - inside.mean() / len(clients))
            added, counted = sums, inside
            if self.canaries is not None:
                rule = PrivateSum(exchange.reductions, section.clipping, self.clipping, norm, section.cap)
                added, counted = self.canaries.join(self.releases, sums, inside, rule, bound)
            noisy, noise_std = self._with_noise(added, bound)
            if self.canaries is not None:
                last = self.releases + 1 == plan.sampling.releases
                figures |= self.canaries.observe(noisy, sums, rule, bound, section.delta if last else None)
            self._adapt(counted)
            spent = int(self.participations.max(initial=0)) if self.counts else self.releases + 1
        self.releases += 1
        divisors = PrivateSum(exchange.reductions, None).divisors(plan.expected)
        figures["noise_std"] = noise_std / max(divisors.values())
        if noise_std > 0:
            figures["signal_to_noise"] = _norm(sums) / (noise_std * math.sqrt(numel(sums)))
        figures["epsilon" if section.virtual_cohort is None else "virtual_epsilon"] = plan.epsilon(spent)
        return {
            name: tree_map(lambda leaf, by=divisors[name]: leaf if by == 1 else leaf * (1.0 / by), tree)
            for name, tree in noisy.items()
        }, figures

    def next_epsilon(self) -> float:
        """Return the largest epsilon that is possible after one more round."""
        done = int(self.participations.max(initial=0)) if self.counts else self.releases
        return self.plan.epsilon(done + 1)

    def _with_noise(self, sums: Mapping[str, Tree], bound: float) -> tuple[Mapping[str, Tree], float]:
        """Return the noisy sums, and the standard deviation of the noise on each of their coordinates."""
        plan, mechanism = self.plan, self.section.mechanism
        multiplier = self.section.clipping.multiplier_of_sum(plan.noise_multiplier, plan.cohort)
        if multiplier == 0:
            return sums, 0.0
        scale = multiplier * bound * plan.expected / plan.cohort
        release = Release(self.releases, scale, plan.sampling, self.streams)
        if mechanism.distributed:  # the clients have added it
            return sums, mechanism.std(release)
        noise, self.mechanism = mechanism.noise(self.mechanism, sums, release)
        noisy, std = tree_map(lambda a, b: a + b, dict(sums), dict(noise)), mechanism.std(release)
        return rounded(noisy, std), std

    def _adapt(self, inside: np.ndarray) -> None:
        """Move the clip bound by the noisy numbers of clients within it, (K,)."""
        clipping, plan = self.section.clipping, self.plan
        if not clipping.adapts:
            return
        std = clipping.count_std(plan.cohort) * plan.expected / plan.cohort if plan.noise_multiplier else 0.0
        noise = [self.streams.number("clipping", self.releases, k) for k in range(len(inside))]
        self.clipping = clipping.next(self.clipping, Counts(inside + std * np.array(noise), plan.expected))

    def _local_std(self, bound: float, answered: int) -> float:
        """Return the standard deviation of the clients' noise in each coordinate of their sum."""
        scale = self.plan.noise_multiplier * 2 * bound
        return self.section.mechanism.std(Release(0, scale, self.plan.sampling, self.streams)) * math.sqrt(answered)

    def _zeros(self, exchange: Exchange) -> dict[str, Tree]:
        """Return the sums of an empty cohort: zeros in the form of the groups that clients send."""
        known, zeros = known_forms(exchange), dict[str, Tree]()
        for name in exchange.reductions:
            received = known[self.reference.get(name, name)]
            zeros[name] = (
                _of_spec(self.forms[name]) if name in self.forms else tree_map(lambda leaf: leaf * 0, received)
            )
        return zeros

    def result(
        self, exchange: Exchange, value: Mapping[str, Tree], clients: np.ndarray, num_examples: np.ndarray
    ) -> ExchangeResult:
        """Return the answer of an exchange: the noisy value, and nothing of single clients."""
        return private_result(exchange, value)

    # -- record and restore -----------------------------------------------------------------------------------------
    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "releases": self.releases,
            "planned": self.plan.sampling.releases,
            "canaries": None if self.canaries is None else self.canaries.record(),
            "noise_multiplier": self.plan.noise_multiplier,
            "mechanism": self.mechanism,
            "clipping": self.clipping,
            "forms": dict(self.forms),
            "secret": self.secret,
            "participations": torch.from_numpy(self.participations.copy()),
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`.

        Raises:
            ConfigError: the run would go on with other noise than it began with.
        """
        check_same_noise(self.plan, record["noise_multiplier"])
        if self.section.mechanism.correlated and record["planned"] != self.plan.sampling.releases:
            raise ConfigError(
                "rounds",
                f"the noise of the first rounds was made for {record['planned']} rounds, not for "
                f"{self.plan.sampling.releases}; set rounds={record['planned']}, or start a new run",
            )
        self.releases, self.secret = record["releases"], record["secret"]
        self.canaries = self._new_canaries()
        if self.canaries is not None and record["canaries"] is not None:
            self.canaries.restore(record["canaries"])
        self.mechanism, self.clipping = record["mechanism"], record["clipping"]
        self.forms, self.participations = dict(record["forms"]), record["participations"].numpy().copy()


def private_exchanges(run_setup: RunSetup) -> PrivateRounds | PrivateExamples | None:
    """Return the private exchanges of a run; None if updates are not private."""
    plan, client = run_setup.privacy, run_setup.config.client
    if plan is None:
        return None
    if isinstance(client, ExampleLevel):
        return PrivateExamples(plan, run_setup.trainable, run_setup.config.seed, client.step_sampling()[1])
    return PrivateRounds(plan, run_setup)


def known_forms(exchange: Exchange) -> dict[str, Tree]:
    """Return the groups that all clients receive: clients send groups of these forms."""
    broadcast = Broadcast.of(exchange.broadcast)
    return {**broadcast.shared, **{name: static.value for name, static in broadcast.static.items()}}


def exchange_refusal(exchange: Exchange, reference: Mapping[str, str]) -> str:
    """Return why the account does not cover an exchange, with the way out; "" if it does.

    Args:
        exchange: the strategy's request.
        reference: group of the update -> group of the broadcast that has its form; others have their own name.
    """
    if not exchange.reductions:
        return "the clients send nothing that is reduced, so there is nothing to protect; leave privacy out"
    if reason := refusal(exchange.reductions):
        return f"{reason}; use a strategy that reduces with WeightedMean or Sum (docs/privacy.md)"
    known = known_forms(exchange)
    for name in exchange.reductions:
        if reference.get(name, name) not in known:
            return (
                f"the group {name!r} of an update is no change of a group that clients receive, so that clipping would "
                "falsify it; use a strategy that sums changes of parameters (docs/privacy.md)"
            )
    if exchange.cohort is not None:
        return (
            "the strategy chooses the clients of an exchange, and the accountant assumes that `privacy.sampling` "
            "does; use a strategy that leaves the cohort to the sampler"
        )
    return ""


def private_result(exchange: Exchange, value: Mapping[str, Tree]) -> ExchangeResult:
    """Return the answer of a private exchange: the noisy value, and nothing of single clients."""
    withheld: Any = {name: Withheld(f"ExchangeResult.{name}") for name in ("clients", "num_examples", "metrics")}
    return ExchangeResult(exchange.reduced(value), **withheld)


def _norm(groups: Mapping[str, Tree]) -> float:
    return math.sqrt(sum(float(leaf.double().square().sum()) for leaf in leaves(dict(groups))))


def _spec(tree: Params | Tensor) -> Any:
    """Return the form of a group as plain values."""
    return tree.layout.spec if isinstance(tree, Params) else [list(tree.shape), str(tree.dtype).removeprefix("torch.")]


def _of_spec(spec: Any) -> Tree:
    """Return zeros of a form."""
    if isinstance(spec, str):
        return Layout.from_spec(spec).zeros()
    return torch.zeros(spec[0], dtype=getattr(torch, spec[1]))
