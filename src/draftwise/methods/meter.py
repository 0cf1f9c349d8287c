"""What drafting, reading up and verifying cost: measured while decoding, or counted in target passes where results must not hang on a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

_CATCH_UP = 8  # a drafter that has to read more than this reads a text, and its time is no measure of a draft step
_WIDEST = 64  # rows of a pass that are told apart


@dataclass
class _Timed:
    """A proposal that is being timed: `steps` are filled in when it is known how many there were."""

    steps: int = 0


@dataclass
class Meter:
    """Running means of seconds (weight 0.2 on the newest) for parts of which `free` ones cost nothing. Until a part has been measured, a draft step
    counts `guess` of a target pass and a token read up an eighth of a step. `spent`: seconds of each part's newest proposal. Bounded: a figure or two
    for each part and width."""

    free: Sequence[bool]
    guess: float = 0.2
    clock: Callable[[], float] = time.perf_counter
    steps: dict[int, float] = field(default_factory=dict)
    reads: dict[int, float] = field(default_factory=dict)
    passes: dict[int, float] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    _since: float | None = None

    def __post_init__(self) -> None:
        if not self.guess >= 0:
            raise ValueError(f"step must be a share of a target pass >= 0, got {self.guess}")

    def verify(self, rows: float) -> float:
        """Seconds of a pass over so many rows: between measured widths on a line, beyond them as the nearest. 1 before any was measured."""
        widths = sorted(self.passes)
        return float(np.interp(rows, widths, [self.passes[width] for width in widths])) if widths else 1.0

    def costs(self, i: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """What is known of part `i`, as `Now.draft_s` and `Now.verify_s` have it."""
        return 0.0 if self.free[i] else self.steps.get(i, math.nan), tuple(sorted(self.passes.items()))

    def step(self, i: int) -> float:
        """Seconds of a draft step of part `i`."""
        return 0.0 if self.free[i] else self.steps.get(i, self.guess * self.verify(1))

    def read(self, i: int) -> float:
        """Seconds that part `i` takes for a token it missed."""
        return 0.0 if self.free[i] else self.reads.get(i, self.step(i) / 8)

    def round(self, i: int, drafted: float) -> float:
        """Seconds of a round in which part `i` drafts so many tokens, without reading up."""
        return self.step(i) * drafted + self.verify(drafted + 1)

    @contextmanager
    def drafting(self, i: int, lag: int) -> Iterator[_Timed]:
        """Times a proposal of part `i`, which has `lag` tokens to read first."""
        timed, start = _Timed(), self.clock()
        yield timed
        seconds = self.spent[i] = self.clock() - start
        if timed.steps and lag <= _CATCH_UP:
            self.steps[i] = _mean(self.steps.get(i), seconds / timed.steps)
        elif timed.steps:
            rest = seconds - self.steps.get(i, 0.0) * timed.steps
            self.reads[i] = _mean(self.reads.get(i), max(0.0, rest) / lag)

    def drafted(self) -> None:
        """All proposals are made; what comes now is the pass."""
        self._since = self.clock()

    def verified(self, rows: int, most: int) -> float:
        """A pass over `rows` rows is over; one over much more than `most` read a prompt and does not count. Its seconds, or those expected then."""
        if self._since is None or rows > min(most + _CATCH_UP, _WIDEST):
            return self.verify(most)
        seconds = self.clock() - self._since
        self.passes[rows] = _mean(self.passes.get(rows), seconds)
        return seconds


@dataclass
class Counted:
    """The same without a clock: a pass is 1 at any width, a draft step `guess`, a token read up an eighth of a step."""

    free: Sequence[bool]
    guess: float = 0.2
    spent: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.guess >= 0:
            raise ValueError(f"step must be a share of a target pass >= 0, got {self.guess}")

    def costs(self, i: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """As `Meter.costs`."""
        return 0.0 if self.free[i] else self.guess, ((1, 1.0),)

    def verify(self, rows: float) -> float:
        """As `Meter.verify`."""
        return 1.0

    def read(self, i: int) -> float:
        """As `Meter.read`."""
        return 0.0 if self.free[i] else self.guess / 8

    def round(self, i: int, drafted: float) -> float:
        """As `Meter.round`."""
        return 1.0 + (0.0 if self.free[i] else self.guess * drafted)

    @contextmanager
    def drafting(self, i: int, lag: int) -> Iterator[_Timed]:
        """As `Meter.drafting`."""
        timed = _Timed()
        yield timed
        self.spent[i] = timed.steps * self.guess + lag * self.read(i)

    def drafted(self) -> None:
        """As `Meter.drafted`."""

    def verified(self, rows: int, most: int) -> float:
        """As `Meter.verified`."""
        return 1.0


def _mean(old: float | None, new: float) -> float:
    return new if old is None else 0.8 * old + 0.2 * new
