"""HSD's planner: which models to stack, and how many tokens each level gathers before it hands them up.

Level 0 drafts token by token; level i verifies what the level below hands up until it holds at least T_i tokens. With c_j the cost of a call of
model j, a = alpha_ij the chance that j accepts a token of i (1 - E[total variation]), positions and levels independent:

    g(a, n) = (1 - a^(n+1)) / (1 - a)                tokens of one verification of n drafted ones
    R(T; a, n)                                       expected verifications until T tokens are there:  R(m) = 1 + sum_x P(x) R(m - x)
    C_0 = T_0 c_0,   C_j = R(T_j; a, T_i) (C_i + c_j),   latency per token = (C_i + c_K) / g(alpha_iK, T_i)            (b) overshoot cut off

Choosing models and buffers under (b) is a shortest path over nodes (model, T) whose edges have a gain R and a cost R c_j: `select_hierarchy`.
`kept` is the exact latency where a level hands up all it has (c), which no longer parts into edges; `fluid` the optimistic form without the
waiting for whole rounds (a).

Reference: Globerson et al. 2025, "Fast inference via hierarchical speculative decoding" (arXiv 2510.19705). A reconstruction: the printed
formula is not known to us; all three forms are derived from the standard rule and were checked against simulation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Law = NDArray[np.float64]
"""Probabilities of 0, 1, 2, ... tokens."""

Cost = float | Callable[[int], float]
"""Of a call of a model: the same at every width, or a function of the tokens it reads."""


Chance = float | Callable[[int], Law]
"""That a token stays: the same at every place, or the law of the tokens of one verification of n drafted ones, as it was counted."""


class Hierarchy(NamedTuple):
    """`models`: indices from the drafter to the target; only the target: plain decoding. `buffers`: T of each but the target. `latency`: expected
    cost per token, in the unit of the costs."""

    models: tuple[int, ...]
    buffers: tuple[int, ...]
    latency: float


def gain(a: float, n: int) -> float:
    """Expected tokens of one verification of `n` drafted ones, each accepted with probability `a`."""
    return n + 1.0 if a == 1 else (1 - a ** (n + 1)) / (1 - a)


def rounds(t: int, a: float, n: int) -> float:
    """Expected verifications of `n` drafted tokens each until `t` tokens are there."""
    return float(_renewals(_increments(a, n), t).sum())


def fluid(costs: Sequence[float], alphas: Sequence[float], buffers: Sequence[int]) -> float:
    """(a): expected cost per token of a chain, as if a level could stop within a round. `alphas[i]`: of models i and i+1 of the chain."""
    latency = costs[0]
    for cost, a, t in zip(costs[1:], alphas, buffers, strict=True):
        latency = (t * latency + cost) / gain(a, t)
    return latency


def truncated(costs: Sequence[float], alphas: Sequence[float], buffers: Sequence[int]) -> float:
    """(b): expected cost per token of a chain whose levels hand up T tokens exactly."""
    total = buffers[0] * costs[0]
    for i in range(1, len(costs) - 1):
        total = rounds(buffers[i], alphas[i - 1], buffers[i - 1]) * (total + costs[i])
    return (total + costs[-1]) / gain(alphas[-1], buffers[-1])


def kept(costs: Sequence[float], alphas: Sequence[Chance], buffers: Sequence[int]) -> float:
    """(c): expected cost per token of a chain whose levels hand up all they have."""
    law: NDArray[Any] = _certain(buffers[0])
    total = buffers[0] * costs[0]
    for i in range(1, len(costs) - 1):
        step = _mixed(alphas[i - 1], law)
        renewals = _renewals(step, buffers[i])
        total = float(renewals.sum()) * (total + costs[i])
        law = np.convolve(renewals, step)
        law[: buffers[i]] = 0  # not yet enough
    last = _mixed(alphas[-1], law)
    return (total + costs[-1]) / float(last @ np.arange(len(last)))


def select_hierarchy(costs: Sequence[float], alpha: Sequence[Sequence[float]], t_max: int) -> Hierarchy:
    """The hierarchy of least latency under (b), of all chains of models with buffers of 1 to `t_max` tokens; only the target where nothing
    pays. `costs[j]` of a call of model j at the width it verifies, cheapest first, the target last; `alpha[i][j]`, i < j. Time grows as
    (models * t_max)^2. Raises ValueError for models that form no hierarchy."""
    _check(costs, alpha, t_max)
    last = len(costs) - 1
    best: dict[tuple[int, int], Hierarchy] = {}
    for j, t in itertools.product(range(last), range(1, t_max + 1)):
        best[j, t] = Hierarchy((j,), (t,), t * costs[j])
        for (i, s), below in list(best.items()):
            if i < j and (cost := rounds(t, alpha[i][j], s) * (below.latency + costs[j])) < best[j, t].latency:
                best[j, t] = Hierarchy((*below.models, j), (*below.buffers, t), cost)
    found = Hierarchy((last,), (), costs[last])
    for (i, t), below in best.items():
        latency = (below.latency + costs[last]) / gain(alpha[i][last], t)
        if latency < found.latency:
            found = Hierarchy((*below.models, last), below.buffers, latency)
    return found


def shortlist(
    costs: Sequence[Cost], alpha: Sequence[Sequence[float]], t_max: int, laws: Mapping[tuple[int, int], Chance] | None = None
) -> list[Hierarchy]:
    """The best buffers under (c) of every chain of models, best chain first: those under (b), moved by single steps while (c) falls. A cost that
    depends on the width is taken at the width that is verified, one token more than the buffer below. `laws`: for pairs of models whose acceptance
    is not one chance per place; `alpha` is then only where the search begins."""
    fixed = [_at(cost, 1 + min(4, t_max)) for cost in costs]
    _check(fixed, alpha, t_max)
    last = len(costs) - 1
    chains = [chain for n in range(1, last + 1) for chain in itertools.combinations(range(last), n)]
    found = [Hierarchy((last,), (), _at(costs[last], 1))]
    for chain in chains:
        models = (*chain, last)
        start = select_hierarchy([fixed[m] for m in models], [[alpha[i][j] for j in models] for i in models], t_max)
        buffers = start.buffers if len(start.models) == len(models) else (min(4, t_max),) * len(chain)
        told = [(laws or {}).get((i, j), alpha[i][j]) for i, j in itertools.pairwise(models)]
        found.append(_descend(models, [costs[m] for m in models], told, buffers, t_max))
    return sorted(found, key=lambda h: h.latency)


def _descend(models: tuple[int, ...], costs: Sequence[Cost], alphas: Sequence[Chance], buffers: tuple[int, ...], t_max: int) -> Hierarchy:
    def latency(some: tuple[int, ...]) -> float:
        return kept([_at(cost, width) for cost, width in zip(costs, (1, *(t + 1 for t in some)), strict=True)], alphas, some)

    best = Hierarchy(models, buffers, latency(buffers))
    while True:
        steps = [(i, b + d) for i, b in enumerate(best.buffers) for d in (-1, 1) if 1 <= b + d <= t_max]
        near = [(*best.buffers[:i], b, *best.buffers[i + 1 :]) for i, b in steps]
        least, moved = min(((latency(some), some) for some in near), default=(math.inf, ()))
        if least >= best.latency:
            return best
        best = Hierarchy(models, moved, least)


def _at(cost: Cost, width: int) -> float:
    return cost(width) if callable(cost) else cost


def _increments(a: float, n: int) -> Law:
    """The law of the tokens of one verification of `n` drafted ones."""
    law = np.zeros(n + 2)
    law[1 : n + 1] = a ** np.arange(n) * (1 - a)
    law[n + 1] = a**n
    return law


def _mixed(a: Chance, drafted: Law) -> Law:
    """The same where the number of drafted tokens has a law itself."""
    law = np.zeros(len(drafted) + 1)
    for n in np.flatnonzero(drafted):
        law[: n + 2] += drafted[n] * (a(int(n)) if callable(a) else _increments(a, int(n)))
    return law


def _renewals(step: Law, t: int) -> Law:
    """Entry m < `t`: the chance that the sum of steps ever is m. Their sum is the expected number of steps until `t` is reached."""
    found = np.zeros(t)
    found[0] = 1
    for m in range(1, t):
        reach = min(m, len(step) - 1)
        found[m] = step[1 : reach + 1] @ found[m - reach : m][::-1]
    return found


def _certain(n: int) -> Law:
    law = np.zeros(n + 1)
    law[n] = 1
    return law


def _check(costs: Sequence[float], alpha: Sequence[Sequence[float]], t_max: int) -> None:
    if not len(costs):
        raise ValueError("a hierarchy needs at least the target")
    if any(not (math.isfinite(c) and c > 0) for c in costs):
        raise ValueError(f"costs must be finite and above 0, got {list(costs)}")
    if t_max < 1:
        raise ValueError(f"t_max must be at least 1 token, got {t_max}")
    for i, j in itertools.combinations(range(len(costs)), 2):
        if not 0 <= alpha[i][j] <= 1:
            raise ValueError(f"alpha of models {i} and {j} must be in [0, 1], got {alpha[i][j]}")
