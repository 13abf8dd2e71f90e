"""The law of data sets."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fl.check.finding import Broken, Law, require_equal
from fl.data.forms import as_dataset
from fl.data.sets.noise import RandomData

EXAMPLES = {
    "train": 300,
    "clients": 20,
    "max_samples": 20,
    "sets": (RandomData(shape=(1, 4, 4), clients=3), RandomData(shape=(3, 6, 6), clients=3)),
}


class DataPart(Protocol):
    """A data part: it loads a data set."""

    def load(self) -> Any:
        """A `Dataset`, or anything that `as_dataset` accepts."""


def loading_twice_gives_the_same_finite_data(data: DataPart) -> str | None:
    """Loaded twice, the data have the same digest; features are finite. A missing download is a remark."""
    try:
        one, two = as_dataset(data.load()), as_dataset(data.load())
    except ValueError as error:
        if "is not in" in str(error):
            return f"not checked: {str(error).partition(';')[0]}"
        raise
    require_equal(one.digest(), two.digest(), "digests of data loaded twice")
    if not np.isfinite(one.train["x"]).all():
        raise Broken("features are not finite")
    return None


LAWS: list[Law] = [loading_twice_gives_the_same_finite_data]
