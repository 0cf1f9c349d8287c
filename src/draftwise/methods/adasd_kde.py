"""The distances that AdaSD has seen, in bounded memory, and the density estimate of its version 2.

    n f(d) = sum over seen d_j of phi((d - d_j) / h) / h        phi the standard normal density
    h = s * n ** -0.2                                           Scott's bandwidth, s the standard deviation with n - 1

The exact sum costs the whole history at every token. Here each distance is shared between its two neighbours on a grid over [0, 1], in
proportion to its nearness, which keeps every mean and leaves a relative error of about (step / h) ** 2 / 8 in f: 3e-4 at h = 0.08. The
moments that h is made of are kept exactly. h is at least one step of the grid, as finer structure is lost.

References: Scott 1992, "Multivariate density estimation" (bandwidth); Wand 1994, "Fast computation of multivariate kernel estimators"
(linear binning).
"""

from __future__ import annotations

import math
from typing import NamedTuple

POINTS = 257


class Distances(NamedTuple):
    """Of the distances seen: how many (`n`), their sum, their sum of squares, the least and the greatest, and their counts on a grid (empty where
    no density is wanted)."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = 1.0
    high: float = 0.0
    grid: tuple[float, ...] = ()


def seen(before: Distances, distances: list[float]) -> Distances:
    """`before` and some more distances, each in [0, 1]."""
    grid = list(before.grid)
    for d in distances if grid else ():
        left = min(int(d * (len(grid) - 1)), len(grid) - 2)
        share = d * (len(grid) - 1) - left
        grid[left] += 1 - share
        grid[left + 1] += share
    return Distances(
        n=before.n + len(distances),
        total=before.total + sum(distances),
        squares=before.squares + sum(d * d for d in distances),
        low=min(before.low, *distances, 1.0),
        high=max(before.high, *distances, 0.0),
        grid=tuple(grid),
    )


def mean(distances: Distances) -> float:
    """Of at least one distance."""
    return distances.total / distances.n


def bandwidth(distances: Distances) -> float:
    """Scott's h, at least one step of the grid. Needs two distances or more."""
    n = distances.n
    variance: float = max(distances.squares - distances.total**2 / n, 0.0) / (n - 1)
    return max(math.sqrt(variance) / math.pow(n, 0.2), 1 / (len(distances.grid) - 1))


def mass(distances: Distances, d: float) -> float:
    """n f(d)."""
    h, step = bandwidth(distances), 1 / (len(distances.grid) - 1)
    kernels = (share * math.exp(-0.5 * ((d - i * step) / h) ** 2) for i, share in enumerate(distances.grid) if share)
    return sum(kernels) / (h * math.sqrt(2 * math.pi))


def posterior(accepted: Distances, rejected: Distances, d: float) -> float:
    """The probability that a token at distance `d` is of the accepted kind, with the shares of the two kinds as priors; 0 where neither
    has any mass."""
    good, bad = mass(accepted, d), mass(rejected, d)
    return good / (good + bad) if good + bad > 0 else 0.0
