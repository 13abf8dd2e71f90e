"""Communication graphs of clients, and the weights of their averages.

    edges (E, 2) int64, each undirected edge once, smaller id first
    metropolis:  w_ij = 1 / (1 + max(degree_i, degree_j)),   w_ii = 1 - sum_j w_ij          doubly stochastic

Weights: Xiao, Boyd 2004, "Fast linear iterations for distributed averaging" (Metropolis-Hastings).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from fl.data.folder import locate
from fl.tensors import random

NAMES = ("ring", "torus", "complete", "random_regular")
TRIES = 100  # draws of a random graph before giving up on a connected one


@functools.lru_cache(maxsize=8)
def edges_of(graph: str | tuple[tuple[int, int], ...], n: int, degree: int, seed: int) -> np.ndarray:
    """Return the edges (E, 2) of a graph on n clients; a `ValueError` if there is no such graph or it is not connected.

    Args:
        graph: a name of `NAMES`, a file with a pair of ids on each line, or the pairs themselves.
        n: number of clients.
        degree: number of neighbours in `random_regular`.
        seed: seed of `random_regular`.
    """
    if graph == "ring":
        edges = ring(n)
    elif graph == "torus":
        edges = torus(n)
    elif graph == "complete":
        edges = sorted_edges(zip(*np.triu_indices(n, 1)))
    elif graph == "random_regular":
        edges = random_regular(n, degree, seed)
    else:
        edges = sorted_edges(_read(graph) if isinstance(graph, str) else graph)
        unknown = edges[(edges < 0) | (edges >= n)]
        if len(unknown):
            raise ValueError(f"graph: client {unknown[0]} is not in 0..{n - 1}")
    isolated = np.setdiff1d(np.arange(n), edges)
    if len(isolated) and n > 1:
        raise ValueError(f"graph: client {isolated[0]} has no neighbour; give it an edge")
    if not connected(edges, n):
        raise ValueError(f"graph: {graph!r:.60} is not connected; every client must reach every other")
    return edges


def ring(n: int) -> np.ndarray:
    """Return a ring: each client with the next, the last with the first.

    >>> ring(3).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    return sorted_edges((i, (i + 1) % n) for i in range(n) if n > 1)


def torus(n: int) -> np.ndarray:
    """Return a grid, as square as n allows, with joined borders: four neighbours (three if a side has length two)."""
    rows = max(r for r in range(1, math.isqrt(n) + 1) if n % r == 0)
    if rows == 1:
        raise ValueError(f"graph: {n} clients make no grid of two or more rows; use ring")
    columns = n // rows
    right = ((i, i // columns * columns + (i + 1) % columns) for i in range(n))
    return sorted_edges([*right, *((i, (i + columns) % n) for i in range(n))])


def random_regular(n: int, degree: int, seed: int) -> np.ndarray:
    """Return a connected random graph in which every client has `degree` neighbours.

    It starts as a ring of near neighbours; then 10 E random pairs of edges exchange ends.
    """
    if not 1 <= degree < n:
        raise ValueError(f"degree: {degree} is not in 1..{n - 1}; each of {n} clients has {n - 1} others")
    if n * degree % 2:
        raise ValueError(
            f"degree: {degree} times {n} clients is odd, and an edge has two ends; use one more or one less"
        )
    steps = [*range(1, degree // 2 + 1), *([n // 2] if degree % 2 else [])]
    start = sorted_edges((i, (i + step) % n) for step in steps for i in range(n))
    for attempt in range(TRIES):
        edges = _switched([tuple(edge) for edge in start.tolist()], 10 * len(start), seed, attempt)
        if connected(edges, n):
            return edges
    raise ValueError(
        f"degree: no connected graph of degree {degree} on {n} clients was found in {TRIES} draws; use a larger degree"
    )


def _switched(edges: list[tuple[int, int]], times: int, seed: int, attempt: int) -> np.ndarray:
    """Replace random pairs of edges ab, cd by ad, cb unless that makes a loop or a double edge; degrees stay."""
    present = set(edges)
    draws = random.uniform(seed, "graph", attempt, np.arange(3 * times)).reshape(times, 3)
    for one, other, turn in zip(*(draws[:, :2].T * len(edges)).astype(int).tolist(), draws[:, 2].tolist()):
        (a, b), (c, d) = edges[one], edges[other] if turn < 0.5 else edges[other][::-1]
        new = [(min(a, d), max(a, d)), (min(c, b), max(c, b))]
        if len({a, b, c, d}) < 4 or new[0] in present or new[1] in present:
            continue
        present -= {edges[one], edges[other]}
        present |= set(new)
        edges[one], edges[other] = new
    return sorted_edges(edges)


def sorted_edges(pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return the edges (E, 2), sorted, each once with the smaller id first; a loop is an error."""
    edges = np.array([sorted(map(int, pair)) for pair in pairs], np.int64).reshape(-1, 2)
    loops = edges[edges[:, 0] == edges[:, 1]]
    if len(loops):
        raise ValueError(f"graph: client {loops[0, 0]} is its own neighbour; leave that edge out")
    return np.unique(edges, axis=0)


def connected(edges: np.ndarray, n: int) -> bool:
    """Return whether every client reaches every other."""
    begins, others, _ = directed(edges, n, np.zeros(len(edges)))
    seen, frontier = {0}, [0]
    while frontier:
        here = frontier.pop()
        new = set(others[begins[here] : begins[here + 1]].tolist()) - seen
        seen |= new
        frontier += new
    return len(seen) == n


def metropolis(edges: np.ndarray, n: int) -> np.ndarray:
    """Return the weight of each edge, (E,).

    >>> metropolis(np.array([[0, 1], [1, 2]]), 3).round(3).tolist()
    [0.333, 0.333]
    """
    degree = np.bincount(edges.ravel(), minlength=n)
    return 1.0 / (1 + degree[edges].max(1))


def directed(edges: np.ndarray, n: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each edge in both directions, sorted by client: (begins (n + 1,), others (2E,), weights (2E,)).

    The neighbours of client i are others[begins[i]:begins[i + 1]], in ascending order.
    """
    ends, both = np.concatenate([edges, edges[:, ::-1]]), np.concatenate([weights, weights])
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    begins = np.concatenate([[0], np.cumsum(np.bincount(ends[:, 0], minlength=n))])
    return begins, ends[order, 1], both[order]


def _read(path: str) -> list[tuple[int, int]]:
    """Read two ids from each line, separated by a blank or a comma."""
    pairs = []
    if "." not in path and "/" not in path:
        raise ValueError(f"graph: {path!r} is not one of {list(NAMES)}, nor a file of pairs, nor a list of pairs")
    for number, line in enumerate(locate(path).read_text().splitlines()):
        ids = line.replace(",", " ").split()
        if ids and (len(ids) != 2 or not all(i.isdigit() for i in ids)):
            raise ValueError(f"graph: {path}: line {number + 1}: {line!r} is not a pair of client ids")
        pairs += [(int(ids[0]), int(ids[1]))] if ids else []
    return pairs
