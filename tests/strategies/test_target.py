"""TARGET: losses and moments on paper; images, bytes, neutral setting, resumption and refusals in runs."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fl
from clients.target import TARGET as Client
from clients.target import replay_loss
from fl import CohortSampler
from fl.config.config import resolve
from fl.config.reading import read
from fl.data.image_bytes import from_bytes, to_bytes
from fl.data.sets.digits import Digits
from fl.models.batch_norm import with_statistics
from fl.models.binding import module_params
from fl.simulation.simulation import Simulation
from fl.simulation.workload import workload_of
from fl.tasks.supervised import Classification
from fl.tensors.params import NOTHING
from partitions.classes import Classes, Masked
from strategies.inversion import Generator, Settings, first_progress, moment_distance, novelty, one_round
from strategies.target import TARGET
from tests.interfaces.laws import check_on_ray, check_resumed, rows
from tests.watching import AfterRound

INVERSION = {"batches": 3, "batch": 4, "steps": 3, "student_steps": 2, "warm_up": 1}
STREAM = {"name": "classes", "tasks": 5, "rounds": 2, "head": "joint", "masked": True}
RUN = {
    "data": {"name": "digits", "test": 0.6},
    "stream": STREAM,
    "partition": {"name": "iid", "clients": 4},
    "splits": {"val": 0},
    "model": {"name": "mlp", "hidden": [12]},
    "cohort": {"fraction": 1.0},
    "strategy": {"name": "target", "inversion": "input", "bn": 0.0, **INVERSION},
    "client": {"epochs": 1, "batch": 16, "lr": 0.05},
    "execution": {"executor": "serial", "plan": "loop"},
}
NORM = {"model": {"name": "./experiments/target/model.py:CNNTinyNorm", "batch_norm": "averaged"}}
WITH_GENERATOR = NORM | {"strategy.inversion": "generator", "strategy.bn": 10.0, "strategy.width": 4}
P = 64 * 12 + 12 + 12 * 10 + 10
P_NORM = (9 * 16 + 16) + 4 * 16 + (9 * 16 * 32 + 32) + 4 * 32 + (32 * 2 * 2 * 10 + 10)  # with the running statistics
IMAGES = 3 * 4 * 8 * 8  # bytes
SETTINGS = Settings(
    inversion="input", batch=6, steps=30, generator_lr=2e-3, latent_lr=0.1, oh=1.0, bn=0.0, adv=0.0, temperature=20.0,
    student_steps=3, warm_up=1, width=4, pixels=(0.0, 1.0),
)  # fmt: skip


# -- losses -----------------------------------------------------------------------------------------------------------
def test_replay_on_paper():
    """Old classes 0 and 1: targets 3/4 and 1/4 at T = 2, outputs equal; the third class counts nowhere."""
    old, z = torch.tensor([[2 * math.log(3), 0.0, 9.0]]), torch.tensor([[1.0, 1.0, -5.0]])
    assert replay_loss(z, old, 2, 2.0).item() == pytest.approx(math.log(2))
    z = torch.tensor([[2 * math.log(4), 0.0, 7.0]])  # 4/5 and 1/5
    assert replay_loss(z, old, 2, 2.0).item() == pytest.approx(-0.75 * math.log(0.8) - 0.25 * math.log(0.2), rel=1e-5)


def test_replay_has_no_gradient_at_the_old_model_nor_for_new_classes():
    z = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    replay_loss(z, z.detach(), 4, 2.0).sum().backward()
    assert z.grad.abs().max() < 1e-7
    (other,) = torch.autograd.grad(replay_loss(z, torch.zeros(5, 6), 4, 2.0).sum(), z)
    assert other[:, :4].abs().max() > 0 and not other[:, 4:].any()


def test_the_masked_loss_does_not_move_other_rows_of_the_head():
    net, task = nn.Linear(3, 6), Masked(Classification(), 2, 4)
    x, y = torch.randn(8, 3), torch.arange(8) % 2 + 2
    loss = task.loss(net(x), {"y": y})
    torch.testing.assert_close(loss, F.cross_entropy(net(x)[:, 2:4], y - 2, reduction="none"))
    loss.sum().backward()
    moved = net.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, True, True, False, False] and not net.bias.grad[[0, 1, 4, 5]].any()
    assert set(task.metrics()) == {"loss", "accuracy"}
    with pytest.raises(ValueError, match="masked: true with head: shared"):
        Classes(tasks=2, head="shared", masked=True)


def test_metrics_of_a_masked_head_compare_all_classes():
    outputs, batch = torch.tensor([[9.0, 0.0, 1.0, 0.0]]), {"y": torch.tensor([2])}
    metrics, one = Masked(Classification(), 2, 4).metrics(), torch.zeros(1, dtype=torch.int64)
    found = {name: metric.finish(metric.measure(outputs, batch, one, 1)) for name, metric in metrics.items()}
    assert found == {"accuracy": 0.0, "loss": pytest.approx(math.log(math.exp(9) + math.e + 2) - 1, rel=1e-6)}


def test_moments_on_paper():
    """Channels with the means 1 and 3 and the variances 2 and 8: |(1, 3) - (1, 0)| + |(2, 8) - (2, 4)| = 3 + 4."""
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    assert moment_distance(x, torch.tensor([1.0, 0.0]), torch.tensor([2.0, 4.0])).item() == 7.0
    norm, x = nn.BatchNorm2d(2, momentum=1.0), torch.randn(4, 2, 3, 3)
    norm(x)  # with momentum 1 the running moments are those of the batch
    assert moment_distance(x, norm.running_mean, norm.running_var) < 1e-6


def test_novelty_counts_samples_on_which_both_agree():
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, 1.0]])
    student = torch.tensor([[1e-3, 0.0], [1.0, 0.0]])  # the same class, another class
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert novelty(student, teacher).item() == pytest.approx(expected, abs=1e-3)
    assert novelty(teacher, teacher).item() == 0.0


def test_images_in_8_bits():
    x = torch.rand(100)
    assert (from_bytes(to_bytes(x), 0.0, 1.0) - x).abs().max() <= 0.5 / 255 + 1e-6
    assert from_bytes(torch.tensor([0, 255], dtype=torch.uint8), -2.0, 3.0).tolist() == [-2.0, 3.0]


# -- the inversion ----------------------------------------------------------------------------------------------------
def test_the_generator_has_the_papers_size():
    """Dense 256 -> 128 x 8 x 8, convolutions 128 -> 128 -> 64 -> 3, and three normalisations: 2.33 million."""
    dense, convolutions = 257 * 128 * 64, (9 * 128 + 1) * 128 + (9 * 128 + 1) * 64 + (9 * 64 + 1) * 3
    generator = Generator((3, 32, 32))
    assert sum(p.numel() for p in generator.parameters()) == dense + convolutions + 2 * (128 + 128 + 64)
    for shape in ((1, 14, 14), (2, 7, 9)):
        images = Generator(shape, latent=3, width=2)(torch.randn(5, 3))
        assert images.shape == (5, *shape) and 0 < images.min() and images.max() < 1


@pytest.mark.parametrize("inversion", ["input", "generator"])
def test_images_have_the_wanted_classes_and_arguments_are_unchanged(inversion):
    """A teacher that sums three pixels: the loss falls below log 3, that of equal outputs; the same call, same bits."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    weight = torch.zeros(4, 16)
    weight[range(3), range(3)] = 8.0
    weight[3] = 100.0  # a class that does not exist yet
    teacher = module_params(module).replace({"1.weight": weight, "1.bias": torch.zeros(4)})
    settings = replace(SETTINGS, inversion=inversion, adv=1.0, latent_lr=0.3, generator_lr=0.05)
    first = first_progress((1, 4, 4), teacher * 0.5, settings, 3)
    before = first.student.clone(), None if first.generator is None else first.generator.clone()
    one = one_round(module, teacher, NOTHING, 3, first, settings, 7)
    again = one_round(module, teacher, NOTHING, 3, first, settings, 7)
    two = one_round(module, teacher, NOTHING, 3, one, settings, 8)
    assert one.losses[0] < 0.6 * math.log(3) and one.losses == again.losses and torch.equal(one.images, again.images)
    assert one.images.dtype == torch.uint8 and two.images.shape == (12, 1, 4, 4)
    assert torch.equal(two.images[:6], one.images) and not torch.equal(two.images[6:], one.images)
    assert torch.equal(first.student.buffers[0], before[0].buffers[0])
    assert not torch.equal(one.student.buffers[0], first.student.buffers[0])  # it learns after `warm_up` rounds
    if inversion == "generator":
        assert torch.equal(first.generator.buffers[0], before[1].buffers[0])
        assert not torch.equal(one.generator.buffers[0], first.generator.buffers[0])


def test_matching_moments_lowers_their_distance():
    torch.manual_seed(0)
    module = with_statistics(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)), "averaged"
    )
    teacher = module_params(module)
    losses = []
    for steps in (1, 60):
        settings = replace(SETTINGS, oh=0.0, bn=1.0, steps=steps)
        start = first_progress((1, 4, 4), teacher, settings, 0)
        losses += one_round(module, teacher, NOTHING, 2, start, settings, 1).losses
    assert losses[1] < 0.7 * losses[0]


# -- runs -------------------------------------------------------------------------------------------------------------
def states(folder, **overrides):
    seen = []
    with Simulation(resolve(read(RUN, overrides)), folder) as simulation:
        result = simulation.run([AfterRound(lambda _: seen.append(simulation.state))])
    return seen, result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return states(tmp_path_factory.mktemp("target") / "run")


def closed_form(params):
    """Bytes down per client and round: the model; the old model and the images in the first round of later tasks."""
    later = [4 * params + 4 * params + IMAGES, 4 * params]
    return [4 * params, 4 * params, *later * 4]


def test_images_are_made_after_each_task_but_the_last(run):
    seen, result = run
    assert [len(state.images) for state in seen] == [0] + [12] * 9
    assert all(state.images.dtype == torch.uint8 and state.images.shape[1:] == (1, 8, 8) for state in seen)
    for t in range(1, 9, 2):  # made in round t, kept until round t + 2
        assert torch.equal(seen[t].images, seen[t + 1].images)
        assert torch.equal(seen[t].teacher.buffers[0], seen[t].model.buffers[0])
    assert torch.equal(seen[9].images, seen[8].images) and not torch.equal(seen[7].images, seen[5].images)
    made = [row.get("inversion/images") for row in result.metrics]
    assert made == [None, 12] * 4 + [None, None]


def test_bytes_and_groups(run):
    """No row of a client goes up; images and the old model go down once per client and task."""
    result = run[1]
    assert [row["uplink_bytes"] / 4 for row in result.metrics] == [4 * P] * 10
    assert [row["downlink_bytes"] / 4 for row in result.metrics] == closed_form(P)
    ledger = result.ledger.to_pylist()
    assert {row["group"] for row in ledger if row["direction"] == "up"} == {"model"}
    down = {(row["group"], row["payload_bytes"]) for row in ledger if row["direction"] == "down"}
    assert down - {("images", 0)} == {("model", 4 * P), ("teacher", 4 * P), ("images", IMAGES)}


def test_bytes_and_resumption_with_a_generator_and_batch_norm(tmp_path):
    config = RUN | {"stream": STREAM | {"rounds": 1, "tasks": 2}}
    result = fl.run(config, out=tmp_path / "a", **WITH_GENERATOR)
    expected = [4 * P_NORM, 8 * P_NORM + IMAGES]
    assert [row["downlink_bytes"] / 4 for row in result.metrics] == expected
    assert [row["uplink_bytes"] / 4 for row in result.metrics] == [4 * P_NORM] * 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.values())
    fl.run(config, out=tmp_path / "b", interrupt=lambda: True, **WITH_GENERATOR)
    resumed = fl.resume(tmp_path / "b")
    assert resumed.digest == result.digest and rows(resumed) == rows(result)


def test_a_resumed_run_has_the_same_bits(run, tmp_path):
    check_resumed(RUN, run[1], tmp_path)


@pytest.mark.ray
def test_ray_has_the_same_bits(run, tmp_path):
    check_on_ray(RUN, run[1], tmp_path)


@dataclass(frozen=True)
class Listed(CohortSampler):
    """The cohorts of a list, one for each round."""

    cohorts: tuple[tuple[int, ...], ...] = ()

    def sample(self, state, round_, seed, sizes):
        return state, np.array(self.cohorts[round_])


def test_a_client_that_was_away_receives_what_it_lacks(tmp_path):
    cohorts = (0, 1, 2, 3), (0, 1), (0, 1), (0, 2), (1, 2), (0, 3)
    config = RUN | {"cohort": Listed(cohorts), "stream": STREAM | {"tasks": 2, "rounds": 3}}
    result = fl.run(config, out=tmp_path / "run")
    new = [0, 0, 0, 2, 1, 1]  # clients that lack the images: 0 and 2, then 1, then 3
    expected = [len(cohort) * 4 * P + count * (4 * P + IMAGES) for cohort, count in zip(cohorts, new)]
    assert [row["downlink_bytes"] for row in result.metrics] == expected


@pytest.mark.parametrize("model", ["mlp", "cnn_tiny"])
def test_without_weight_it_is_masked_fine_tuning_to_the_bit(tmp_path, model):
    settings = {"model": model, "stream.tasks": 2, "client.batch": 32, "execution.memory_format": "contiguous"}
    neutral = {"name": "target", "weight": 0.0, "weights": "examples"}
    ours = fl.run(RUN, out=tmp_path / "a", **settings, strategy=neutral)
    plain = fl.run(RUN, out=tmp_path / "b", **settings, strategy="fedavg")
    assert ours.digest == plain.digest
    assert [row["downlink_bytes"] for row in ours.metrics] == [row["downlink_bytes"] for row in plain.metrics]


def fixed_images(module, teacher, frozen, classes, progress, settings, seed):
    images = torch.arange(settings.batch * 64).remainder(256).view(-1, 1, 8, 8).to(torch.uint8)
    return replace(progress, images=torch.cat([progress.images, images]), losses=(*progress.losses, 0.0))


def test_clients_that_replay_can_train_together(tmp_path, monkeypatch):
    monkeypatch.setattr("strategies.target.one_round", fixed_images)
    one, other = (
        fl.run(RUN, out=tmp_path / plan, **{"stream.tasks": 2, "execution.plan": plan}).model
        for plan in ("loop", "vmap")
    )
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_clients_without_rows_of_a_task_or_with_fewer_than_a_batch(tmp_path):
    y = Digits(test=0.6).load().train["y"]
    rows_of = [np.flatnonzero(y == c) for c in range(10)]
    lists = [
        rows_of[0][:3],
        np.concatenate(rows_of[2:4]),
        rows_of[5],
        np.concatenate([rows_of[c][3:] for c in (0, 1, 4, 6, 7, 8, 9)]),
    ]
    partition = {"name": "file", "lists": [np.asarray(part).tolist() for part in lists]}
    _, result = states(tmp_path, partition=partition)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.model.values())


def test_virtual_time_books_images_from_the_second_task_on():
    client, sizes = Client(epochs=2, batch=16), np.array([0, 5, 40])
    for work, samples in (("train", [0, 10, 80]), ("replay", [0, 10 + 2 * 16, 80 + 6 * 16])):
        found = workload_of(client, sizes, 0 * sizes, 0, 1, work)
        assert [array.tolist() for array in found] == [[0, 2, 6], samples]


@pytest.mark.parametrize(
    "make, complaint",
    [
        (lambda: TARGET(warm_up=20), "warm_up: 20 is not below batches: 20, so the student would never count"),
        (lambda: TARGET(pixels=(1.0, 0.0)), "pixels: .* is not"),
        (lambda: TARGET(weight=-1.0), "weight: -1.0 is negative"),
        (lambda: TARGET(batch=1), "batch: 1 is not at least 2"),
        (lambda: TARGET(inversion="noise"), "inversion: 'noise' is not one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"stream.masked": False}, "strategy.name: target needs to know the classes .*masked: true"),
        ({"stream": {"name": "permuted", "tasks": 2}}, "strategy.name: target needs to know the classes"),
        ({"strategy.bn": 1.0}, "strategy.bn: 1.0 compares .*set model.batch_norm: averaged"),
        (NORM | {"model.batch_norm": "local", "evaluation.server": False, "strategy.bn": 1.0}, "strategy.bn: 1.0"),
        ({"strategy.augment": [{"name": "crop", "padding": 9}]}, "padding: 9 is not smaller"),
        (
            {
                "data": {"name": "noise", "shape": [6], "classes": 4},
                "strategy.inversion": "generator",
                "stream.tasks": 2,
            },
            "strategy.inversion: the generator makes images",
        ),
    ],
)
def test_runs_that_cannot_work_are_refused(change, complaint, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=complaint):
        fl.run(RUN, out=tmp_path / "run", **change)
