"""GammaTune: the next draft length follows a smoothed count of accepted tokens, and jumps up after a fully accepted round.

    all N accepted:  n <- min(N + delta, high)                                     g unchanged
    A < N accepted:  g <- clip((1 - eta) * g + eta * A, low, high);  n <- ceil(g)

N is the length really used, so a round cut by the end of the budget does not read as a rejection. GammaTune+ also stops drafting after
the first token whose row has no probability of at least `tau`; that token is kept (a rule that drops it would not be lossless).

Reference: Gautam, Shrestha, Reddy 2025, "Token-driven GammaTune: adaptive calibration for enhanced speculative decoding"
(arXiv 2504.00030). A reconstruction in its constants, which the paper leaves open as far as known, in the clip of the expanded length,
and in the exact form of GammaTune+'s stop. Its `tau` is that of the comparable rule of huggingface/transformers; top 1 is read from the
raw softmax, since a one-hot row never falls below any threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from draftwise.types import DraftStep, Now, Round

_SLACK = 1e-9  # 0.8 * 3 + 0.2 * 3 is a little over 3 in floating point, and must not become 4


class Smoothed(NamedTuple):
    """The next length n and the smoothed count g."""

    n: int
    g: float


@dataclass(frozen=True)
class GammaTune:
    """Starts with n = g = `start` and stays within `low` and `high` tokens."""

    eta: float = 0.2
    delta: int = 2
    low: int = 1
    high: int = 20
    start: int = 4

    per_token: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.eta, self.delta, self.low, self.high, self.start)

    def init(self, last: Smoothed | None) -> Smoothed:
        return Smoothed(self.start, float(self.start))

    def budget(self, state: Smoothed, now: Now) -> int:
        return state.n

    def more(self, state: Smoothed, now: Now, steps: Sequence[DraftStep]) -> bool:
        return True

    def update(self, state: Smoothed, round: Round) -> Smoothed:
        return _next(state, round, self.eta, self.delta, self.low, self.high)


@dataclass(frozen=True)
class GammaTunePlus:
    """GammaTune with a stop after the first token whose row has top 1 below `tau`."""

    eta: float = 0.2
    delta: int = 2
    low: int = 1
    high: int = 20
    start: int = 4
    tau: float = 0.4

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self.eta, self.delta, self.low, self.high, self.start)
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau must be a probability in [0, 1], got {self.tau}")

    def init(self, last: Smoothed | None) -> Smoothed:
        return Smoothed(self.start, float(self.start))

    def budget(self, state: Smoothed, now: Now) -> int:
        return state.n

    def more(self, state: Smoothed, now: Now, steps: Sequence[DraftStep]) -> bool:
        return steps[-1].top1 >= self.tau

    def update(self, state: Smoothed, round: Round) -> Smoothed:
        return _next(state, round, self.eta, self.delta, self.low, self.high)


def _next(state: Smoothed, round: Round, eta: float, delta: int, low: int, high: int) -> Smoothed:
    if round.accepted == round.depth:
        return Smoothed(max(min(round.accepted + delta, high), low), state.g)
    g = min(max((1 - eta) * state.g + eta * round.accepted, low), high)
    return Smoothed(math.ceil(g - _SLACK), float(g))


def _check(eta: float, delta: int, low: int, high: int, start: int) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    if delta < 0:
        raise ValueError(f"delta must be at least 0 draft tokens, got {delta}")
    if not 1 <= low <= start <= high:
        raise ValueError(f"low, start and high must be draft lengths with 1 <= low <= start <= high, got low={low}, start={start}, high={high}")
