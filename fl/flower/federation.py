"""Options of a Flower federation: which ones count here, and a line about each that does not.

[tool.flwr.federations.NAME]                        in pyproject.toml
options.num-supernodes = 10
options.backend.client-resources.num-gpus = 0.25

--federation-config "num-supernodes=10 client-resources-num-gpus=0.25"      of `flwr run`; replaces the above
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl.errors import ConfigError
from fl.execution.workers.gpus import GpuShares
from fl.flower.node_config import flatten, parse_pairs

NODES = 10  # if neither the command nor the app gives a number
NUM_NODES, CLIENT_GPUS, GPUS = "num-supernodes", "client-resources.num-gpus", "init-args.num-gpus"
_SECTIONS = ("client-resources", "init-args")
# options of Flower without effect: the values that ask for nothing else than what happens, and what to do instead
_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "client-resources.num-cpus": ((1,), "a client computes with one thread; --workers N lets N clients work at a time"),
    "init-args.num-cpus": ((), "--workers sets the number of processes"),
    "init-args.logging-level": ((), "set FLWR_LOG_LEVEL"),
    "init-args.log-to-driver": ((False,), "what clients print is shown with --workers 1 only"),
    "backend": (("ray",), "this engine replaces it"),
    "verbose": ((False,), "--traceback shows all of an error"),
    "address": ((), "this is a simulation"),
    "insecure": ((), "this is a simulation"),
    "root-certificates": ((), "this is a simulation"),
    "federation": ((), "this is a simulation"),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Federation:
    """What a federation asks for.

    Args:
        nodes: number of nodes.
        gpus_per_client: share of a GPU for each client; None if the federation does not say.
        gpus: number of GPUs of this machine; None counts them.
    """

    nodes: int = NODES
    gpus_per_client: float | None = None
    gpus: int | None = None


def read_federation(federations: Mapping[str, Any], name: str | None = None, changes: str | None = None) -> Federation:
    """Read a federation, and warn about its options without effect.

    Args:
        federations: the table [tool.flwr.federations] of an app; may be empty.
        name: which of them; None is the default one.
        changes: the text of --federation-config, or None.
    """
    tables = {key: table for key, table in federations.items() if isinstance(table, dict)}
    chosen = name if name is not None else federations.get("default")
    if chosen is not None and chosen not in tables:
        raise ConfigError("--federation", f"{chosen!r} is not one of {sorted(tables)} in [tool.flwr.federations]")
    found = flatten(tables[chosen]) if chosen is not None else {}
    found |= parse_pairs(changes, "--federation-config") if changes else {}
    options = {_canonical(key): value for key, value in found.items()}
    for key, value in options.items():
        if key not in (NUM_NODES, CLIENT_GPUS, GPUS):
            _warn(key, value)
    nodes = _number(options, NUM_NODES, int, 1)
    share, gpus = _number(options, CLIENT_GPUS, (int, float), 0), _number(options, GPUS, int, 0)
    return Federation(NODES if nodes is None else nodes, share, gpus)


def _canonical(key: str) -> str:
    """Return the name of an option without its tables.

    >>> _canonical("options.backend.client-resources.num-gpus"), _canonical("client-resources-num-gpus")
    ('client-resources.num-gpus', 'client-resources.num-gpus')
    """
    short = key.removeprefix("options.")
    short = "backend" if short == "backend.name" else short.removeprefix("backend.")
    for section in _SECTIONS:
        if short.startswith(f"{section}-"):
            return f"{section}.{short.removeprefix(f'{section}-')}"
    return short


def _warn(key: str, value: Any) -> None:
    same, instead = _WITHOUT_EFFECT.get(key, ((), "it is unknown here"))
    if value not in same:
        log.warning("the federation's option %s = %r has no effect: %s", key, value, instead)


def _number(options: Mapping[str, Any], key: str, kind: type[int] | tuple[type[int], type[float]], least: int) -> Any:
    value = options.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, kind) or not value >= least:
        raise ConfigError(key, f"{value!r} is not {'an int' if kind is int else 'a number'} of at least {least}")
    return value


def gpu_shares(workers: int | None, gpus_per_client: float | None, gpus: int | None) -> GpuShares | None:
    """Return the GPUs of worker processes, None for none. `workers` is None for clients in this process.

    Raises:
        ConfigError: a share above one GPU is no whole number, this machine has no GPU, or the workers do not fit.
    """
    share = gpus_per_client or 0.0
    if share < 0 or (share > 1 and share != int(share)):
        raise ConfigError("gpus_per_client", f"{share:g} is neither a fraction of a GPU nor a whole number of GPUs")
    shares = GpuShares(share, gpus)
    found = shares.on_this_machine()
    if not share:
        if found and workers is not None and gpus_per_client is None:
            log.warning(
                "clients see none of the %d GPUs of this machine; --federation-config client-resources-num-gpus=%g "
                "gives each of %d workers a share",
                *(found, min(1.0, found / workers), workers),
            )
        if found and workers is None and gpus_per_client is not None:
            log.warning(
                "clients in this process see its %d GPUs, although client-resources.num-gpus is 0; set "
                "CUDA_VISIBLE_DEVICES= to hide them, or use --workers 2",
                found,
            )
        return None
    if not found:
        import torch

        raise ConfigError(
            "gpus_per_client",
            f"each client needs {share:g} GPUs (client-resources.num-gpus), but torch {torch.__version__} sees none. "
            "--federation-config client-resources-num-gpus=0 uses the CPU; if another library sees GPUs, "
            "init-args-num-gpus=1 says how many there are",
        )
    room = shares.room(found)
    if room is not None and (workers or 1) > room:
        raise ConfigError(
            "workers",
            f"{workers or 1} workers with {share:g} GPUs each do not fit on {found} GPUs, which have room for {room}",
        )
    return shares if workers is not None else None
