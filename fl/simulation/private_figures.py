"""What client-level and example-level privacy of a run share."""

from __future__ import annotations

from fl.errors import ConfigError
from fl.privacy.plan import PrivacyPlan


def check_same_noise(plan: PrivacyPlan, before: float) -> None:
    """Check that a resumed run goes on with the noise multiplier `before` of its first rounds.

    Raises:
        ConfigError: more rounds were asked for, so that the calibrated noise is another one.
    """
    if before != plan.noise_multiplier:
        raise ConfigError(
            "rounds",
            f"the first rounds had noise multiplier {before:.6g}, and {plan.sampling.releases} releases need "
            f"{plan.noise_multiplier:.6g} for the wanted epsilon. Set rounds to what they were, or start a new run",
        )


def privacy_notes(plan: PrivacyPlan | None, rounds: int) -> list[str]:
    """Return what a reader of the run's figures must know about its privacy, in words."""
    if plan is None:
        return []
    section, virtual = plan.section, plan.section.virtual_cohort
    unit = "one training example" if section.unit == "example" else "one client"
    relation = f"{unit} added or removed"
    if section.where == "local":
        relation = "one client's data replaced"
    spent = plan.epsilon(plan.sampling.releases)
    figures = f"epsilon {spent:.4g} at delta {section.delta:g} after {rounds} rounds (noise multiplier "
    figures += f"{plan.noise_multiplier:.4g}, {section.accountant.upper()}; neighbours: {relation})"
    if virtual is not None:
        figures += (
            f" holds for a virtual cohort of {virtual.size} of {virtual.population} clients, not for the "
            f"{plan.expected:g} of {plan.members} that are simulated"
        )
    seeds = "the noise comes from a secret, so the run cannot be repeated"
    without = "train/*, val/*, clients/*, clipped, signal_to_noise and bytes have no noise: not private"
    notes = [figures, f"{without}, and neither is a best checkpoint that is selected by them"]
    if section.audit is not None:
        notes.append(f"the audit adds about {section.audit.canaries // 2} clients with random updates")
    return notes + ([seeds] if section.seeds == "cryptographic" else [])
