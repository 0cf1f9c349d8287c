"""One row of logits in the memory of a CPU: its likeliest tokens, its nucleus and its figures, found in few steps.

Right after a forward the caches of a core hold nothing but weights, and every library call that comes first costs many times what it costs in a
loop (``benchmarks/overhead.py`` measures that). So a row is read a few times only, and a handful of candidates is judged by plain floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from draftwise import wide
from draftwise.types import Sampling

_PREFIX = 16  # candidates that are looked at: most laws are cut within them
_SLACK = 1e-5  # of a sum of float32 numbers, relatively
_COLDEST = 1e-30  # a temperature under it divides by 0 in float32, or overflows; the law is one-hot long before


def heat(sampling: Sampling) -> float:
    """What logits are divided by: 1 at temperature 0, where only the order and the truncation count."""
    return max(sampling.temperature, _COLDEST) if sampling.temperature else 1.0


class HostRow:
    """A float32 row [V] on the host: raw logits, or adjusted ones. A row that is no law (NaN, +inf) gives figures that are NaN."""

    def __init__(self, row: Tensor) -> None:
        self.row = row
        self._peaks = wide.peaks(row)
        self._leading: tuple[list[float], list[int]] | None = None
        self._weights: Tensor | None = None
        self._total = self._entropy = math.nan
        self._top = (math.nan, math.nan)

    def read(self, sampling: Sampling) -> HostRow:
        """Computes what `figures` needs, sooner than it does: `support` then knows more."""
        if sampling.temperature:
            self.leading()
        self._softmax()
        return self

    def argmax(self) -> int:
        """The first of the largest entries."""
        return wide.first(self.row, self._peaks)

    def second(self) -> int:
        """The largest entry beside that."""
        return wide.second(self.row, self._peaks)

    def figures(self, token: int) -> tuple[float, float, float, float]:
        """What a `DraftStep` records, of the softmax of the row: the probability of `token`, top 1, top 2, and the entropy in nats."""
        weights = self._softmax()
        top, second = self._top
        return float(weights[token]) / self._total, 1 / self._total, math.exp(second - top) / self._total, self._entropy

    def leading(self) -> tuple[list[float], list[int]]:
        """The candidates: the largest entries in falling order, and their ids."""
        if self._leading is None:
            self._leading = wide.leading(self.row, self._peaks, min(len(self.row), _PREFIX))
        return self._leading

    def support(self, sampling: Sampling) -> tuple[list[int], list[float]] | None:
        """Ids and probabilities, likeliest first, that temperature, top-k, top-p and min-p leave; None where the candidates do not decide it."""
        values, ids = self.leading()
        warmth, top, whole = heat(sampling), values[0], len(values) == len(self.row)
        if not math.isfinite(top) or len(values) <= sampling.top_k and not whole:
            return None
        edge = values[min(sampling.top_k, len(values)) - 1] if sampling.top_k else -math.inf  # ties stay, as in transformers
        weights = [math.exp((value - top) / warmth) if value >= edge else 0.0 for value in values]
        if weights[-1] and sampling.top_k and not whole:
            return None
        kept = sum(weight > 0 for weight in weights)
        if sampling.top_p < 1:
            known = None if sampling.top_k or whole else warmth
            kept = min(kept, self._nucleus(values, weights, known, sampling.top_p))
        if sampling.min_p:
            kept = min(kept, sum(value >= top + warmth * math.log(sampling.min_p) for value in values))
        if kept == len(values) and not whole:
            return None
        mass = math.fsum(weights[:kept])
        return ids[:kept], [weight / mass for weight in weights[:kept]]

    def _nucleus(self, values: Sequence[float], weights: Sequence[float], warmth: float | None, top_p: float) -> int:
        """How many candidates top-p keeps; `warmth` None: nothing but the candidates has weight."""
        least = math.fsum(weights)
        kept = _within(weights, top_p * least)
        if warmth is None or kept < len(weights) and kept == _within(weights, top_p * (least + self._tail(values, weights, warmth))):
            return kept
        mass = math.exp(min(float(self.row.div(warmth).logsumexp(0)) - values[0] / warmth, 700.0))
        return _within(weights, top_p * mass)

    def _tail(self, values: Sequence[float], weights: Sequence[float], warmth: float) -> float:
        """A bound of the sum of all weights beside the candidates: none is above the last candidate, nor above the largest of its block. And below
        temperature 1 an entry x has ``exp(x / T) = exp(x) exp(x)^(1/T - 1)``, whose last factor is largest for the last candidate: the sum at
        temperature 1, where it is known, bounds the one below."""
        flat = (len(self.row) - len(values)) * weights[-1]
        if self._peaks is not None and self._weights is None:
            tops = np.minimum(self._peaks, values[-1]) - values[0]
            flat = min(flat, len(self.row) / len(tops) * float(np.exp(tops / warmth).sum()) * (1 + _SLACK))
        if self._weights is None or warmth > 1:
            return flat
        rest = self._total * (1 + _SLACK) - math.fsum(math.exp(value - values[0]) for value in values)
        return min(flat, max(rest, 0.0) * math.exp((values[-1] - values[0]) * (1 / warmth - 1)))

    def _softmax(self) -> Tensor:
        """``exp(row - top)``, computed once; its sum and the entropy with it."""
        if self._weights is None:
            top = [*self._leading[0], -math.inf] if self._leading else wide.two(self.row, self._peaks)
            self._top = top[0], top[1]
            shifted = self.row - self._top[0]
            self._weights = shifted.exp()
            self._total = float(self._weights.sum())
            spread = float(self._weights @ shifted)
            if math.isnan(spread):  # 0 * -inf of forbidden tokens
                spread = float(self._weights @ shifted.clamp_(min=-1e4))
            self._entropy = math.log(self._total) - spread / self._total if self._total > 0 else math.nan
        return self._weights


def _within(weights: Sequence[float], mass: float) -> int:
    """How many of `weights`, in falling order, come before their sum reaches `mass`: at least 1."""
    before = 0.0
    for i, weight in enumerate(weights):
        if i and before >= mass:
            return i
        before += weight
    return len(weights)
