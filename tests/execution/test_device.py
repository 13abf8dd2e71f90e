"""Devices: training creates tensors on its own device only; a GPU gives the CPU's results."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from fl.config.config import resolve
from fl.data.views import View
from fl.errors import ConfigError
from fl.execution.client_work import BACKENDS
from fl.execution.training import batched, loop
from fl.execution.training.chunk import Chunk
from fl.execution.training.steps import LocalSteps
from fl.method.context import ClientContext
from fl.method.optimiser import SGD
from fl.models.binding import Initial
from fl.simulation.build import set_up_run
from fl.tensors.params import norm
from fl.tensors.serialise import digest
from fl.tensors.trees import to_device

CONFIG = {
    "seed": 3,
    "rounds": 3,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 12, "alpha": 0.5, "min_size": 5},
    "model": {"name": "mlp", "hidden": [16], "dropout": 0.2},
    "cohort": {"size": 5},
    "strategy": "fedavg",
    "client": {"epochs": 1, "batch": 8, "lr": 0.1},
    "execution": {"executor": "serial"},
}
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_missing_gpu_is_refused_before_the_run_starts(tmp_path):
    with pytest.raises(ConfigError, match="execution.device: 'cuda', but torch .* sees no GPU"):
        fl.run(CONFIG | {"execution": {"executor": "serial", "device": "cuda"}}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="execution.precision: 'tf32' needs a GPU"):
        fl.run(CONFIG | {"execution": {"executor": "serial", "precision": "tf32"}})


def on_meta(tree):
    """Move tensors to "meta": they have no values, and mixing them with CPU tensors is an error, as with a GPU's."""
    return to_device(tree, "meta")


@pytest.fixture(scope="module")
def job():
    return set_up_run(resolve(CONFIG)).job(Path(), Path())


def placed(job):
    initial = Initial(on_meta(job.initial.trained), on_meta(job.initial.frozen))
    arrays = {name: array.to("meta") for name, array in job.arrays.items()}
    return initial, arrays, copy.deepcopy(job.module).to("meta")


@pytest.mark.parametrize("plan", ["stacked", "flat", "vmap"])  # machine code of the others runs on CPUs only
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_batched_training_makes_tensors_on_its_device_only(job, plan, momentum):
    initial, arrays, module = placed(job)
    period, clients = job.periods[0], np.arange(4)
    starts, sizes = (column[clients] for column in period.partition.train_slices())
    chunk = Chunk(
        *(
            clients,
            0,
            0,
            1,
            0,
            {"model": initial.trained},
            {},
            [None] * 4,
            arrays,
            period.partition.indices,
            starts,
            sizes,
        ),
        *(initial, module, period.task),
    )
    algorithm = replace(job.algorithm, optimiser=SGD(momentum=momentum))
    with torch.device("meta"):
        update = batched.train(algorithm, chunk, BACKENDS[plan]).update
    assert update.groups["model"].buffers[0].device.type == "meta"
    assert {update.groups["model"].batch, update.num_examples.shape} == {(4,)}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_loop_makes_tensors_on_its_device_only(job, momentum, monkeypatch):
    initial, arrays, module = placed(job)
    period, algorithm = job.periods[0], replace(job.algorithm, optimiser=SGD(momentum=momentum))
    views = {split: View(arrays, period.partition.view_rows(0, split)) for split in ("train", "val", "test")}
    ctx = ClientContext(
        *(0, 0, 0, 1, 0, {"model": initial.trained}, {}, None),
        **views,
        initial=initial,
        module=module.train(),
        task=period.task,
    )
    made = []

    class RecordedSteps(LocalSteps):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(loop, "LocalSteps", RecordedSteps)
    monkeypatch.setattr(loop, "float", lambda tensor: 0.0, raising=False)  # tensors on "meta" have no values
    with torch.device("meta"):
        model = loop.train(algorithm, ctx).update.groups["model"]
    (steps,) = made
    assert steps.loss_sum.device.type == model.device.type == "meta"
    assert (steps.samples, steps.taken) == (len(views["train"]), -(-len(views["train"]) // 8))


def test_micro_batches_add_up():
    """Gradients are sums over samples, so micro-batches change only their rounding, also with dropout."""
    whole, pieces = (
        fl.run(CONFIG | {"execution": {"executor": "serial", "plan": "loop", "micro_batch": size}}).model
        for size in (None, 3)
    )
    assert any(not torch.equal(whole[name], pieces[name]) for name in whole)  # micro-batches do change the rounding
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-4, atol=1e-6)


class Trims(nn.Module):
    """Trims its inputs to the longest of the batch, as models of text do, before and after a Dropout layer."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.a, self.b, self.l = nn.Dropout(0.3), nn.Dropout(0.5), nn.Linear(64, outputs)

    def forward(self, x):
        x = x.flatten(1)
        trimmed = self.a(x[:, : 1 + int((x > x.mean()).nonzero()[:, 1].max())])
        rows = self.b(trimmed.reshape(-1, 1)).view_as(trimmed)  # the layer's first axis is not the sample
        return self.l(F.pad(rows, (0, 64 - rows.shape[1])))


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_micro_batches_of_any_shape_of_dropout(strategy):
    """A micro batch whose Dropout inputs have a shape of their own draws masks for them; the draws are addressed."""
    config = CONFIG | {"model": Trims, "strategy": strategy}
    execution = {"executor": "serial", "plan": "loop", "micro_batch": 3}
    one, two = (fl.run(config | {"execution": execution}) for _ in range(2))
    assert one.digest == two.digest


@pytest.mark.parametrize("steps", [1, 10])
def test_half_precision_is_near_and_not_equal(steps):
    """bf16 has a relative error of 2^-9; a gradient step through three products has a few times that."""

    def after_a_step(lr, precision):
        client = {"steps": steps, "batch": 8, "lr": lr}
        execution = {"executor": "serial", "plan": "loop", "precision": precision}
        return fl.run(CONFIG | {"rounds": 1, "client": client, "execution": execution}).model

    start, full, half = after_a_step(0.0, "float32"), after_a_step(0.01, "float32"), after_a_step(0.01, "bf16")
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert 0 < norm(half - full) < 0.05 * norm(full - start)


@pytest.mark.parametrize(
    "execution, why",
    [
        ({"micro_batch": 0}, "micro_batch: 0 is not at least 1"),
        ({"micro_batch": 4, "plan": "stacked"}, "'stacked' is not possible: micro batches exist in the loop only"),
        ({"precision": "bf16", "plan": "stacked"}, "'stacked' is not possible: bf16 needs autocast"),
        ({"graphs": True}, "graphs: CUDA graphs need a GPU"),
    ],
)
def test_impossible_settings_are_refused(execution, why):
    with pytest.raises(ConfigError, match=why):
        fl.run(CONFIG | {"execution": {"executor": "serial"} | execution})


def test_own_objectives_have_no_micro_batches():
    with pytest.raises(ConfigError, match="micro_batch: not possible: Moon has its own objective"):
        fl.run(
            CONFIG | {"strategy": "moon", "client": {"batch": 8}, "execution": {"executor": "serial", "micro_batch": 4}}
        )


# -- on a GPU --------------------------------------------------------------------------------------------------------
@gpu
@pytest.mark.parametrize(
    "execution", [{"plan": p} for p in ("loop", "stacked", "flat", "vmap")] + [{"plan": "loop", "graphs": True}]
)
def test_a_gpu_gives_what_the_cpu_gives(execution):
    cpu, cuda = (
        fl.run(CONFIG | {"execution": {"executor": "serial", **changes}}).model
        for changes in ({"plan": "loop"}, {"device": "cuda", **execution})
    )
    for name in cpu:
        torch.testing.assert_close(cuda[name], cpu[name], rtol=1e-3, atol=1e-4)


@gpu
@pytest.mark.parametrize("plan", ["loop", "stacked", "flat"])
def test_same_bits_on_a_gpu_in_deterministic_mode(plan):
    digests = {
        digest(
            fl.run(CONFIG | {"execution": {"device": "cuda", "deterministic": True, "plan": plan, **executor}}).model
        )
        for executor in ({"executor": "serial"}, {"executor": "serial"}, {"executor": "ray", "workers": 2})
    }
    assert len(digests) == 1


@gpu
def test_codecs_and_states_on_a_gpu():
    """The CPU's part of a run on a GPU: encodings, and states on disk."""
    config = CONFIG | {"strategy": "scaffold", "codec": {"up": ["error_feedback", {"top_k": {"ratio": 0.1}}]}}
    cpu, cuda = (
        fl.run(config | {"execution": {"executor": "serial", "device": device, "plan": "loop"}}).metrics
        for device in ("cpu", "cuda")
    )
    assert [row["uplink_bytes"] for row in cpu] == [row["uplink_bytes"] for row in cuda]
