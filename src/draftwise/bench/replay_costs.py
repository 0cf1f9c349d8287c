"""What rounds cost on the machine of a trace: medians of what was measured, by the number of rows. And who looks at it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from draftwise.bench.trace import Trace
from draftwise.types import Now, Round

_CATCH_UP = 8  # a drafter that had to read more than this read a text, and its time is no measure of a draft step


class Costs:
    """A table of seconds, pooled over `traces` of one machine and pair. Passes of a width that was never measured are put on the line between
    (or, further out, at) the nearest measured ones; `measured` tells them apart."""

    def __init__(self, traces: Sequence[Trace]) -> None:
        steps: list[float] = []
        passes: dict[int, list[float]] = {}
        for trace in traces:
            lists = trace.lists
            for r in _steady(trace):
                drafted = lists["drafted"][r]
                if drafted and lists["lag"][r] <= _CATCH_UP:
                    steps.append(lists["draft_s"][r] / drafted)
                passes.setdefault(1 + drafted, []).append(lists["verify_s"][r])
        self.step = statistics.median(steps) if steps else 0.0
        self.widths = sorted(passes)
        self.seconds = [statistics.median(passes[width]) for width in self.widths]

    def draft(self, tokens: int) -> float:
        """Seconds of drafting so many tokens."""
        return self.step * tokens

    def verify(self, rows: int) -> float:
        """Seconds of a pass of the target over so many tokens."""
        return float(np.interp(rows, self.widths, self.seconds)) if self.widths else 0.0

    def measured(self, rows: int) -> bool:
        """Whether passes of that width were measured."""
        return rows in self.widths

    def prompt_s(self, trace: Trace) -> float:
        """Seconds of reading the prompt, the drafter's share included: what the rounds up to the first answer took above their usual costs."""
        lists = trace.lists
        first = next((r for r, emitted in enumerate(lists["emitted"]) if emitted), None)
        if first is None:
            return 0.0
        taken = sum(lists["draft_s"][: first + 1]) + sum(lists["verify_s"][: first + 1])
        drafted = lists["drafted"][first]
        return max(0.0, float(taken - self.draft(drafted) - self.verify(1 + drafted)))


def _steady(trace: Trace) -> list[int]:
    """The rounds after the first one, which read the prompt; those of the first if there are no others."""
    judged = [r for r, emitted in enumerate(trace.lists["emitted"]) if emitted]
    return judged[1:] or judged


@dataclass
class Clock:
    """`read`: whether a policy has looked at measured times, which no other run has again."""

    read: bool = False


def watched_now(now: Now, clock: Clock) -> Now:
    """`now`, telling the clock when its times are read."""
    watched = _Now(*now)
    watched.clock = clock
    return watched


def watched_round(round: Round, clock: Clock) -> Round:
    """`round`, telling the clock when its times are read."""
    watched = _Round(*round)
    watched.clock = clock
    return watched


class _Now(Now):
    clock: Clock

    @property
    def draft_s(self) -> float:
        self.clock.read = True
        return self[4]

    @property
    def verify_s(self) -> tuple[tuple[int, float], ...]:
        self.clock.read = True
        return self[5]


class _Round(Round):
    clock: Clock

    @property
    def draft_s(self) -> float:
        self.clock.read = True
        return self[7]

    @property
    def verify_s(self) -> float:
        self.clock.read = True
        return self[8]

    @property
    def usual_s(self) -> float:
        self.clock.read = True
        return self[13]
