"""The section `secure_aggregation:` of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fl.checks import at_least, one_of, within
from fl.privacy.secure.masks import LARGEST_WIDTH
from fl.privacy.secure.protocol import SecureProtocol
from fl.privacy.secure.quantiser import Quantiser, smallest_width
from fl.privacy.secure.secagg import SecAgg


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """The server learns sums over a cohort only. Updates are quantised, masked and added modulo 2^b.

    Args:
        protocol: who shares masks with whom, and how many answers the unmasking needs.
        clip: largest magnitude of an element of an update, positive, for all groups or a mapping by group. Larger
            elements are cut; the metric `secure/clipped` counts them.
        bits: bits of an element before it is weighted, 2 to 32: 2^(bits - 1) - 1 levels on each side of 0.
        rounding: "stochastic", at random and without bias, or to the "nearest" level.
        modulus_bits: b, 2 to 62: bits of an element on the wire. Default: the fewest that no sum overflows.
        largest_weight: largest number of training samples that a client may report, 1 or more. Default: that of the
            data. With uniform weights it is not needed.
        masks: compute keys, shares and masks. False leaves them out: the result, the bytes and the virtual seconds are
            the same, and large cohorts run much faster.
        seeds: "reproducible" secrets follow from the run's seed; "cryptographic" ones come from the operating system.
            The sums are the same.
    """

    protocol: SecureProtocol = field(default_factory=SecAgg)
    clip: float | dict[str, float] = 1.0
    bits: int = 16
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    modulus_bits: int | None = None
    largest_weight: int | None = None
    masks: bool = True
    seeds: Literal["reproducible", "cryptographic"] = "reproducible"

    def __post_init__(self) -> None:
        for clip in self.clip.values() if isinstance(self.clip, Mapping) else (self.clip,):
            within("(0, inf)", clip=clip)
        within("[2, 32]", bits=self.bits)
        within(f"[2, {LARGEST_WIDTH}]", modulus_bits=self.modulus_bits)
        at_least(1, largest_weight=self.largest_weight)
        one_of(("stochastic", "nearest"), rounding=self.rounding)
        one_of(("reproducible", "cryptographic"), seeds=self.seeds)

    def quantiser(
        self,
        cohort: int,
        largest_weight: int,
        clip: float | Mapping[str, float] | None = None,
        noise_std: float = 0.0,
    ) -> Quantiser:
        """Return the quantiser for cohorts of at most `cohort` clients, each with a weight up to `largest_weight`.

        `clip`: the clip range; default: that of the section. `noise_std`: standard deviation of the noise that each
        client adds to its integers.

        Raises:
            ValueError: a sum could overflow the modulus; the message begins with the key.
        """
        needed = smallest_width(self.bits, cohort, largest_weight, noise_std)
        width = self.modulus_bits or needed
        about = (
            f"{self.bits} bits for an element, weights up to {largest_weight} and cohorts of {cohort} clients need "
            f"{needed} bits"
        )
        if width < needed:
            raise ValueError(
                f"modulus_bits: {width} is too few: {about}. Leave modulus_bits out, or take fewer bits, smaller "
                "cohorts or uniform weights"
            )
        if width > LARGEST_WIDTH:
            raise ValueError(
                f"bits: {about}, and a sum has at most {LARGEST_WIDTH}; take fewer bits or smaller weights"
            )
        return Quantiser(
            self.clip if clip is None else clip, self.bits, self.rounding == "stochastic", width, largest_weight
        )
