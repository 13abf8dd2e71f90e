"""A federated-learning simulator: define a method once, run it anywhere, same bits, every byte counted.

`import fl` costs milliseconds: `fl.run`, `fl.Strategy` and the rest are imported when first used.

The packages beside this one have generic names, so that a file or folder of yours may hide one of them: better an error
here than a run with the wrong method.
"""

import importlib
import importlib.util
import os
from pathlib import Path

__version__ = "0.1.0"

_HOMES = {
    "run": "fl.simulation.run",
    "resume": "fl.simulation.run",
    "Result": "fl.simulation.result",
    "Params": "fl.tensors.params",
    "Broadcast": "fl.method.messages",
    "Update": "fl.method.messages",
    "Strategy": "fl.method.strategy",
    "Exchange": "fl.method.strategy",
    "ClientAlgorithm": "fl.method.client",
    "LocalTraining": "fl.method.client",
    "register": "fl.registry",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"fl has no {name!r}; it has {__all__} and its modules")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def _check_siblings() -> None:
    """The four packages beside ours are the ones that Python finds."""
    root = Path(__file__).resolve().parent.parent
    for name in ("strategies", "clients", "partitions", "experiments"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(
                f"fl needs its own package {name!r} beside it in {root}, and there is none: install fl again"
            )
        place = next(iter(spec.submodule_search_locations or [spec.origin]))
        if Path(place).resolve() != root / name:
            raise ImportError(
                f"fl needs its own package {name!r} in {root}, but {spec.origin or place} hides it. "
                f"Rename or uninstall that, or put fl's own first: PYTHONSAFEPATH=1 PYTHONPATH={root}"
            )


_check_siblings()

# nothing is reported to anyone unless the user asks for it; ray and flwr read these when they are imported
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
