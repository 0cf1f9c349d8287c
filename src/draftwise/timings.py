"""What passes and draft steps take on this machine, from times that are now and then far too long because something else ran.

The newest times of each width are kept, and their (lower) median is believed. A width that was seen fewer than four times leans on the line through
the others, near ones first, if there is a near one: the first pass of a width takes longer than the next ones, and one disturbed pass would otherwise
keep a policy from ever drafting so far again. For the same reason a width that no pass had for long is forgotten, but for the smallest: where the
machine was busy as a process began, all first passes were slow, and what seems dear is not tried again. And so many rows never take longer than as
many passes over the smallest width do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low

_NEWEST = 9  # times that are kept
_ENOUGH = 4  # times after which a width is believed alone
_WIDTHS = 64  # widths that are told apart; of more, those seen first are forgotten
_LONG = 128  # passes after which a width that none of them had is forgotten


@dataclass(slots=True)
class Timings:
    """Seconds of passes by their rows."""

    seen: dict[int, deque[float]] = field(default_factory=dict)
    _last: dict[int, int] = field(default_factory=dict)  # the pass that had this width last
    _passes: int = 0
    _curve: tuple[tuple[int, float], ...] | None = None

    def add(self, rows: int, seconds: float) -> None:
        """A pass over so many rows took `seconds`."""
        if rows not in self.seen and len(self.seen) == _WIDTHS:
            del self.seen[next(iter(self.seen))]
        self.seen.setdefault(rows, deque(maxlen=_NEWEST)).append(seconds)
        self._passes += 1
        self._last[rows] = self._passes
        for old in [old for old in self.seen if self._passes - self._last[old] >= _LONG and old > min(self.seen)]:
            del self.seen[old]
        self._curve = None

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """(rows, seconds) in rising order of rows."""
        if self._curve is None:
            known = sorted((rows, median_low(times), min(len(times), _ENOUGH)) for rows, times in self.seen.items())
            believed = [(rows, self._believed(known, i)) for i, (rows, _, _) in enumerate(known)]
            self._curve = tuple((rows, min(seconds, believed[0][1] * rows / believed[0][0])) for rows, seconds in believed)
        return self._curve

    @staticmethod
    def _believed(known: Sequence[tuple[int, float, int]], i: int) -> float:
        rows, seconds, times = known[i]
        others = [*known[:i], *known[i + 1 :]]
        if times == _ENOUGH or len(others) < 2 or min(abs(other[0] - rows) for other in others) > rows / 2:
            return seconds
        share = times / _ENOUGH
        return share * seconds + (1 - share) * _line(others, rows)


@dataclass(slots=True)
class Steps:
    """Seconds of one step, from rounds of several."""

    seen: deque[float] = field(default_factory=lambda: deque(maxlen=_NEWEST))

    def add(self, steps: int, seconds: float) -> None:
        """So many steps took `seconds` together."""
        if steps:
            self.seen.append(seconds / steps)

    @property
    def usual(self) -> float:
        """Of a step; NaN before the first."""
        return median_low(self.seen) if self.seen else math.nan


def _line(known: Sequence[tuple[int, float, int]], at: int) -> float:
    """The value at width `at` of the line through (width, seconds, times), near ones first, which does not fall."""
    weights = [times / (1 + abs(width - at)) ** 2 for width, _, times in known]
    whole = sum(weights)
    width = sum(w * k[0] for w, k in zip(weights, known, strict=True)) / whole
    level = sum(w * k[1] for w, k in zip(weights, known, strict=True)) / whole
    spread = sum(w * (k[0] - width) ** 2 for w, k in zip(weights, known, strict=True))
    slope = sum(w * (k[0] - width) * (k[1] - level) for w, k in zip(weights, known, strict=True)) / spread
    return max(level + max(slope, 0.0) * (at - width), 0.0)
