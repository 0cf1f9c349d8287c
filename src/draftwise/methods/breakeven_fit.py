"""What `breakeven` estimates: a logistic regression that learns a token at a time, and a table of seconds by rows."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple


class Fit(NamedTuple):
    """A logistic regression: `weights`, and how sure each of them is (`precision`, the diagonal of the curvature seen so far)."""

    weights: tuple[float, ...]
    precision: tuple[float, ...]


def chance(fit: Fit, x: Sequence[float]) -> float:
    """The probability of a yes at features `x`."""
    return _sigmoid(sum(w * v for w, v in zip(fit.weights, x, strict=True)))


def seen(fit: Fit, x: Sequence[float], yes: bool) -> Fit:
    """One observation: the most probable weights given a Gaussian of `fit` and its diagonal, exactly. (A single Newton step flies off where a sure
    prediction fails: there the curvature is nearly 0 and the error is not.)"""
    z = sum(w * v for w, v in zip(fit.weights, x, strict=True))
    spread = sum(v * v / h for h, v in zip(fit.precision, x, strict=True))
    low, high = (0.0, 1.0) if yes else (-1.0, 0.0)
    for _ in range(24):  # the error that is left after the step: error = yes - p(z + spread * error)
        error = (low + high) / 2
        if error < yes - _sigmoid(z + spread * error):
            low = error
        else:
            high = error
    p = _sigmoid(z + spread * error)
    weights = tuple(w + error * v / h for w, h, v in zip(fit.weights, fit.precision, x, strict=True))
    return Fit(weights, tuple(h + p * (1 - p) * v * v for h, v in zip(fit.precision, x, strict=True)))


def faded(fit: Fit, prior: Fit, share: float) -> Fit:
    """The same weights, as sure of them as if only a `share` of what was seen beside the prior had been seen."""
    return fit._replace(precision=tuple(p + share * (h - p) for h, p in zip(fit.precision, prior.precision, strict=True)))


def logit(p: float) -> float:
    """``ln(p / (1 - p))``, within 6: how much surer a draft is than that says nothing."""
    return max(-6.0, min(6.0, math.log(max(p, 1e-9) / max(1 - p, 1e-9))))


class Passes:
    """Seconds of a pass by its rows, from what was `measured` at some widths, in rising order: on the lines between them, never falling with the
    width, and beyond the widest one on with the mean slope. NaN where nothing was measured."""

    def __init__(self, measured: Sequence[tuple[int, float]]) -> None:
        self.widths, self.levels = [width for width, _ in measured], rising([s for _, s in measured])

    def __call__(self, rows: float) -> float:
        widths, levels = self.widths, self.levels
        if not widths:
            return math.nan
        if rows >= widths[-1]:
            slope = (levels[-1] - levels[0]) / (widths[-1] - widths[0]) if len(widths) > 1 else 0.0
            return levels[-1] + slope * (rows - widths[-1])
        if rows <= widths[0]:
            return levels[0]
        i = bisect.bisect_right(widths, rows)
        share = (rows - widths[i - 1]) / (widths[i] - widths[i - 1])
        return levels[i - 1] + share * (levels[i] - levels[i - 1])


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, z))))


def seconds(measured: Sequence[tuple[int, float]], rows: float) -> float:
    """One value of `Passes`."""
    return Passes(measured)(rows)


def rising(values: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls (isotonic regression): neighbours that fall are put on their mean."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, n = value, 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (before * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    return [mean for mean, n in pools for _ in range(n)]
