"""Meta-training of an encoder by prototypical episodes.

    an episode: `ways` classes with `shots` samples to learn and `queries` to classify
    loss = mean over queries of -log softmax_c(-|z - mu_c|^2) at the query's class,    mu_c: mean embedding of the shots

Snell, Swersky, Zemel 2017, arXiv:1703.05175.  Adam, its rate halved every 2,000 episodes.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import Params, Table, embed, prototypes, random, squared_distances

BATCH = 256  # images in a forward pass on the server


def episode_loss(z: Tensor, shots: int) -> Tensor:
    """Return the loss of an episode from embeddings z (ways, shots + queries, D)."""
    ways, each, width = z.shape
    scores = -squared_distances(z[:, shots:].reshape(-1, width), z[:, :shots].mean(1))
    return F.cross_entropy(scores, torch.arange(ways).repeat_interleave(each - shots))


def episode(y: Tensor, ways: int, each: int, generator: torch.Generator, rotate: bool = False) -> tuple[Tensor, Tensor]:
    """Draw an episode from labels y (n,): (rows (ways, each), quarter turns (ways,)).

    It has `each` distinct samples of each of `ways` distinct classes. Classes with fewer samples are left out.
    """
    classes, counts = torch.unique(y, return_counts=True)
    classes = classes[counts >= each]
    if len(classes) < ways:
        raise ValueError(f"ways: {ways} classes of {each} samples, but only {len(classes)} classes have enough samples")
    drawn = classes[torch.randperm(len(classes), generator=generator)[:ways]]
    rows = []
    for c in drawn:
        members = (y == c).nonzero()[:, 0]
        rows.append(members[torch.randperm(len(members), generator=generator)[:each]])
    turns = torch.randint(4, (ways,), generator=generator) if rotate else torch.zeros(ways, dtype=torch.int64)
    return torch.stack(rows), turns


def meta_train(
    module: nn.Module,
    encoder: Params,
    x: Tensor,
    y: Tensor,
    episodes: int,
    ways: int,
    shots: int,
    queries: int,
    lr: float,
    rotate: bool,
    seed: int,
) -> Params:
    """Return the encoder (all tensors of `module`) after one Adam step on each of `episodes` episodes.

    x (n, ...), y (n,) are the samples. With `rotate`, each class of an episode is rotated by a multiple of 90 degrees.
    """
    if rotate and (x.ndim != 4 or x.shape[-1] != x.shape[-2]):
        raise ValueError(f"rotate: samples of {tuple(x.shape[1:])} are not square images; set rotate: false")
    net = _loaded(module, encoder).train()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=lr)
    for i in range(episodes):
        for group in optimiser.param_groups:
            group["lr"] = lr * 0.5 ** (i // 2000)
        drawn = random.torch_generator(seed, "server", "episode", i)
        rows, turns = episode(y, ways, shots + queries, drawn, rotate)
        images = torch.stack([torch.rot90(x[row], int(k), (-2, -1)) if k else x[row] for row, k in zip(rows, turns)])
        z = net(images.flatten(0, 1)).unflatten(0, (ways, shots + queries))
        optimiser.zero_grad()
        episode_loss(z, shots).backward()
        optimiser.step()
    return encoder.layout.zeros().copy_({**dict(net.named_parameters()), **dict(net.named_buffers())}, names=encoder)


def class_sums(module: nn.Module, encoder: Params, x: Tensor, y: Tensor) -> Table:
    """Return per class of y (n,) the sum of the embeddings of x (n, ...), in float64, and their number."""
    table = prototypes(embed(_loaded(module, encoder).eval(), x, BATCH).double(), y)
    counts = table.counts.double()
    return Table(table.keys, table.values * counts[:, None], counts)


def _loaded(module: nn.Module, encoder: Params) -> nn.Module:
    """Return a copy of the module with the encoder's tensors."""
    net = copy.deepcopy(module)
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if name in encoder:
                tensor.data = encoder[name].clone()
    return net
