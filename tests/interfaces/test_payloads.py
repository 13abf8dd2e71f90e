"""Payloads that depend on a client's state. The toy sends each client only the elements that its own mask names.

d = 650 elements (softmax on digits, 64 x 10 + 10), k = 65 of them in a mask: 4 d bytes down at first, 4 k afterwards.
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fl
from fl import Broadcast, LocalTraining, Params, Strategy
from fl.errors import ConfigError
from fl.simulation.build import set_up_run
from tests.interfaces.laws import check_on_ray, check_resumed, traced_devices

K, D = 65, 650
CONFIG = {
    "rounds": 4,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 6, "alpha": 0.5, "min_size": 8},
    "model": "softmax",
    "cohort": {"name": "cyclic", "size": 4},
    "strategy": f"{__file__}:Masked",
    "client": {"steps": 3, "batch": 8},
    "execution": {"executor": "serial"},
}


# -- the toy ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Masked(Strategy):
    """FedAvg whose clients receive the elements in their masks; a new client receives all elements."""

    client: ClassVar[str] = "test_payloads.py:KeepsMask"

    def broadcast(self, state, ctx):
        return Broadcast(shared={"model": state}, select={"part": ("model", chosen)}, hidden=("model",))

    def step(self, state, mean, ctx):
        return state + mean, {}


def chosen(client, state):
    return torch.arange(D) if state is None else state["mask"]


@dataclass(frozen=True, kw_only=True)
class KeepsMask(LocalTraining):
    """Trains its own copy of the model; its next mask names the `K` elements that changed most."""

    receives: ClassVar[tuple[str, ...]] = ("part",)

    def first_state(self, inputs):
        return {"mask": torch.arange(D), "model": inputs.initial.trained}

    def start(self, inputs):
        if "part" not in inputs.received:  # the server's evaluation has no client, and so no mask
            return inputs.received["model"]
        vector = inputs.state["model"].compact().clone()
        vector[inputs.state["mask"]] = inputs.received["part"]
        return Params.expand(inputs.state["model"].layout, vector)

    def finish(self, end):
        mask = end.delta.compact().abs().topk(K).indices.sort().values
        return {"model": end.delta}, {"mask": mask, "model": end.params}


# -- laws -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return fl.run(CONFIG, out=tmp_path_factory.mktemp("serial") / "run")


def test_the_ledger_counts_the_elements_of_the_mask(serial):
    seen, expected = set(), []
    for round_ in range(4):
        for client in sorted({(4 * round_ + i) % 6 for i in range(4)}):
            expected.append((round_, client, 4 * K if client in seen else 4 * D))
            seen.add(client)
    down = [row for row in serial.ledger.to_pylist() if row["direction"] == "down"]
    assert {row["group"] for row in down} == {"part"}
    assert sorted((row["round"], row["client"], row["payload_bytes"]) for row in down) == expected
    assert [row["downlink_bytes"] for row in serial.metrics] == [
        sum(n for r, _, n in expected if r == round_) for round_ in range(4)
    ]


def test_a_resumed_run_has_the_same_bits(serial, tmp_path):
    check_resumed(CONFIG, serial, tmp_path)


@pytest.mark.ray
def test_ray_has_the_same_bits(serial, tmp_path):
    check_on_ray(CONFIG, serial, tmp_path)


def test_virtual_time_passes_for_the_elements_of_the_mask(tmp_path):
    """Round 0 downloads 4 d bytes, a round of known clients 4 k bytes, at 10,000 bytes a second."""
    system = traced_devices(tmp_path, [f"{c},0,1,0.08" for c in range(6)])
    cohort = {"name": "fixed", "clients": [0, 1, 2]}
    result = fl.run(CONFIG | {"rounds": 2, "system": system, "cohort": cohort}, out=tmp_path / "run")
    seconds = [row["simulated_download_seconds"] for row in result.metrics]
    assert seconds == pytest.approx([4 * D / 10_000, 4 * K / 10_000])


# -- misuse -----------------------------------------------------------------------------------------------------------
def test_a_deployment_refuses_before_round_0(tmp_path, capsys):
    pytest.importorskip("flwr", minversion="1.22")
    from fl.flower import simulate
    from fl.flower.deploy import client_app, server_app
    from fl.flower.export import export

    with pytest.raises(ConfigError, match="strategy: Masked: the payload depends on the client's state") as error:
        apps = server_app(CONFIG, out=tmp_path / "there"), client_app(CONFIG)
        simulate(*apps, 6, out=tmp_path / "grid")
    with pytest.raises(ConfigError, match="strategy: Masked: the payload depends on the client's state"):
        export(CONFIG, tmp_path / "project")
    assert "fl run" in str(error.value) and not (tmp_path / "there/metrics.jsonl").read_text()


def test_an_asynchronous_server_refuses_before_round_0(tmp_path):
    system = traced_devices(tmp_path, [f"{c},0,1,0.08" for c in range(6)])
    server = {"server": {"name": "buffered", "buffer": 2, "concurrency": 4}, "system": system}
    with pytest.raises(ConfigError, match="server: an asynchronous server takes strategies that send the same to all"):
        fl.run(CONFIG | server, out=tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


# -- the server's context ---------------------------------------------------------------------------------------------
def test_a_strategy_knows_the_shape_of_a_sample_and_the_number_of_outputs():
    ctx = set_up_run(fl.config.config.resolve(CONFIG)).server_context(0, torch.arange(0).numpy())
    assert (ctx.sample_shape, ctx.outputs) == ((1, 8, 8), 10)
