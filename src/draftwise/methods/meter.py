"""What drafting, reading up and verifying cost: measured while decoding, or counted in target passes where results must not hang on a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from draftwise.methods.breakeven_fit import Passes
from draftwise.timings import Steps, Timings

_CATCH_UP = 8  # a drafter that has to read more than this reads a text, and its time is no measure of a draft step


@dataclass
class _Timed:
    """A proposal that is being timed: `steps` are filled in when it is known how many there were."""

    steps: int = 0


@dataclass
class Meter:
    """Medians of the newest times of parts of which `free` ones cost nothing, and of passes. Until a part has been measured, a draft step
    counts `guess` of a target pass and a token read up an eighth of a step. `spent`: seconds of each part's newest proposal. Bounded: a figure or two
    for each part and width."""

    free: Sequence[bool]
    guess: float = 0.2
    clock: Callable[[], float] = time.perf_counter
    steps: dict[int, Steps] = field(default_factory=dict)
    reads: dict[int, Steps] = field(default_factory=dict)
    passes: Timings = field(default_factory=Timings)
    spent: dict[int, float] = field(default_factory=dict)
    _since: float | None = None

    def __post_init__(self) -> None:
        if not self.guess >= 0:
            raise ValueError(f"step must be a share of a target pass >= 0, got {self.guess}")

    def verify(self, rows: float) -> float:
        """Seconds of a pass over so many rows, as `draftwise.methods.breakeven_fit.Passes` reads what was measured; 1 before that."""
        known = self.passes.curve
        return Passes(known)(rows) if known else 1.0

    def costs(self, i: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """What is known of part `i`, as `Now.draft_s` and `Now.verify_s` have it."""
        return 0.0 if self.free[i] else self._usual(self.steps, i, math.nan), self.passes.curve

    def step(self, i: int) -> float:
        """Seconds of a draft step of part `i`."""
        return 0.0 if self.free[i] else self._usual(self.steps, i, self.guess * self.verify(1))

    def read(self, i: int) -> float:
        """Seconds that part `i` takes for a token it missed."""
        return 0.0 if self.free[i] else self._usual(self.reads, i, self.step(i) / 8)

    def round(self, i: int, drafted: float, leaves: float = 0) -> float:
        """Seconds of a round in which part `i` drafts so many levels, and `leaves` tokens beside them, without reading up."""
        return self.step(i) * drafted + self.verify(drafted + leaves + 1)

    @contextmanager
    def drafting(self, i: int, lag: int) -> Iterator[_Timed]:
        """Times a proposal of part `i`, which has `lag` tokens to read first."""
        timed, start = _Timed(), self.clock()
        yield timed
        seconds = self.spent[i] = self.clock() - start
        if timed.steps and lag <= _CATCH_UP:
            self.steps.setdefault(i, Steps()).add(timed.steps, seconds)
        elif timed.steps:
            rest = seconds - self._usual(self.steps, i, 0.0) * timed.steps
            self.reads.setdefault(i, Steps()).add(lag, max(0.0, rest))

    def drafted(self) -> None:
        """All proposals are made; what comes now is the pass."""
        self._since = self.clock()

    def verified(self, rows: int, most: int) -> float:
        """A pass over `rows` rows is over. Its seconds; of one over much more than `most`, which read a prompt, those of a pass over `most`."""
        if self._since is None:
            return self.verify(most)
        seconds = self.clock() - self._since
        self.passes.add(rows, seconds)
        return self.verify(most) if rows > most + _CATCH_UP else seconds

    @staticmethod
    def _usual(known: dict[int, Steps], i: int, unknown: float) -> float:
        return known[i].usual if i in known else unknown


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

    def step(self, i: int) -> float:
        """As `Meter.step`."""
        return 0.0 if self.free[i] else self.guess

    def read(self, i: int) -> float:
        """As `Meter.read`."""
        return self.step(i) / 8

    def round(self, i: int, drafted: float, leaves: float = 0) -> float:
        """As `Meter.round`."""
        return 1.0 + self.step(i) * drafted

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
