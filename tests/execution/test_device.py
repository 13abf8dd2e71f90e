"""Devices: training makes nothing elsewhere than on its device; a GPU, where there is one, gives what the CPU gives."""

import numpy as np
import pytest
import torch

import fl
from fl.assembly import assemble
from fl.config import ConfigError, resolve
from fl.execution import batched
from fl.execution.device import Device
from fl.execution.worker import InProgress  # noqa: F401

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
def test_a_gpu_that_is_not_there_is_refused_before_work_starts(tmp_path):
    with pytest.raises(ConfigError, match="execution.device: 'cuda', but torch .* sees no GPU"):
        fl.run(CONFIG | {"execution": {"executor": "serial", "device": "cuda"}}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="execution.precision: 'tf32' is of GPUs"):
        fl.run(CONFIG | {"execution": {"executor": "serial", "precision": "tf32"}})


class Meta(Device):
    """Tensors without values: an operation of one of them with one of the CPU's is an error, as it is with a GPU's."""

    def computing(self):
        return torch.device("meta")


@pytest.mark.parametrize("plan", ["stacked", "vmap", "flat"])
def test_training_together_stays_on_its_device(plan):
    assembly = assemble(resolve(CONFIG | {"execution": {"executor": "serial", "plan": plan}}))
    job = assembly.job(None, None)
    partition = assembly.stages[0].partition
    starts, sizes = partition.train_slices()
    device = Meta()
    put = lambda tree: batched.leaves and fl.trees.moved(tree, "meta")  # noqa: E731
    assert device and put
    clients = np.arange(4)
    from fl.execution.worker import BACKENDS
    from fl.params import Initial

    initial = Initial(put(job.initial.trained), put(job.initial.frozen))
    chunk = batched.Chunk(
        clients,
        0,
        0,
        1,
        0,
        {"model": initial.trained},
        {},
        [None] * 4,
        {name: array.to("meta") for name, array in job.arrays.items()},
        partition.indices,
        starts[clients],
        sizes[clients],
        initial,
        job.module.to("meta"),
        assembly.stages[0].task,
    )
    with device.computing():
        update, _ = batched.train(assembly.config.client, chunk, BACKENDS[plan])
    assert all(leaf.device.type == "meta" for leaf in update.groups["model"].buffers)
