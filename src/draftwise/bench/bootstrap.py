"""Intervals: a paired bootstrap over problems for ratios and shares, Wilson's for counts of right answers. All of them are 95 %.

A statistic is a function of weights. The weights of one resample say how often it drew each problem, so a statistic that reads two variants
reads both on the same problems: what made a problem slow for all cancels. B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13 (percentiles); T. Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015 (expanded
percentiles for few observations); E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Statistic: TypeAlias = Callable[[Array], Array]
"""From weights [R, n] to R values. Must be a ratio of weighted sums or made of such, so that weights need not add up to 1."""

RESAMPLES = 4000
_LEVEL = 0.95


class Estimate(NamedTuple):
    """A figure with its 95 % interval; `low` <= `point` <= `high`."""

    point: float
    low: float
    high: float


class Bootstrap:
    """Resamples of `n` >= 1 problems, drawn once from a fixed seed: every statistic sees the same ones, and equal rows give equal intervals.
    `clusters`: for each row, which problem it is a sample of, where there are several; a problem is drawn with all of them."""

    def __init__(self, n: int, resamples: int = RESAMPLES, clusters: Sequence[int] | None = None) -> None:
        self.n, self.rows = n, n if clusters is None else len(clusters)
        draws: Array = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        self._draws = draws if clusters is None else draws[:, list(clusters)]

    def estimate(self, statistic: Statistic) -> Estimate | None:
        """The statistic of the problems themselves and its percentiles over the resamples, widened where they miss that figure. None where the
        figure is not defined; resamples on which it is not defined do not count."""
        with np.errstate(divide="ignore", invalid="ignore"):
            point = float(statistic(np.ones((1, self.rows)))[0])
            values = statistic(self._draws) if math.isfinite(point) else np.zeros(0)
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        tail = _tail(self.n)
        low, high = np.quantile(values, [tail, 1 - tail])
        return Estimate(point, min(point, float(low)), max(point, float(high)))


def _tail(n: int) -> float:
    """The share of resamples to cut off at each end. Those of n problems scatter less than n fresh problems would, and the interval of few ought to
    be as wide as Student's: the normal tail beyond sqrt(n / (n - 1)) times the quantile of t with n - 1 degrees of freedom."""
    if n < 2:
        return 0.0
    z, v = NormalDist().inv_cdf((1 + _LEVEL) / 2), n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-math.sqrt(n / v) * t)


def over(tops: Sequence[float], bottoms: Sequence[float]) -> Statistic:
    """The ratio of two sums over problems, such as tokens over seconds."""
    top, bottom = np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)
    return lambda weights: np.asarray((weights @ top) / (weights @ bottom))


def quotient(a: Statistic, b: Statistic) -> Statistic:
    """One statistic over another of the same problems: a speed-up."""
    return lambda weights: a(weights) / b(weights)


def difference(a: Statistic, b: Statistic) -> Statistic:
    """One statistic less another of the same problems."""
    return lambda weights: a(weights) - b(weights)


def wilson(right: int, of: int) -> Estimate | None:
    """The share `right` of `of` with Wilson's score interval. None of nothing."""
    if not of:
        return None
    z = NormalDist().inv_cdf((1 + _LEVEL) / 2)
    share, shrink = right / of, 1 + z * z / of
    middle = (share + z * z / (2 * of)) / shrink
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / shrink
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def plain_json(value: Any) -> Any:
    """Named tuples as objects, other sequences as lists, numbers that JSON lacks as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
