"""A trace as policies see it: where drafting from a place in the text leads, and the `Evidence` of a recorded chain.

What a draft model proposes after a text depends on that text alone, wherever the round began. So every token that was drafted after the true
text is known to any policy that comes by: accepted tokens, the first refused one, and what was drafted after it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from draftwise.bench.trace import Trace
from draftwise.types import Chance, DraftStep, Figures


class Unseen(Exception):
    """Something hangs on a token that the trace does not know."""


class Missing(ValueError):
    """Something was asked for that this trace holds of no token: the sentence says what."""


class Spot(NamedTuple):
    """A token of a chain: the `row` of the trace's token columns; `guessed`: that row stands in for one the trace does not know."""

    row: int
    guessed: bool = False


class Path:
    """The text of a trace and what is known along it. `strict`: the policy is replayed as a draw of its own law (see `given`); else what was
    proposed after the answer above temperature 0 is a guess."""

    def __init__(self, trace: Trace, strict: bool = True) -> None:
        self.trace, self.columns = trace, trace.lists
        self.text: list[int] = self.columns["emitted_tokens"]
        self.end = trace.prompt + len(self.text)
        self.round_of = [r for r, n in enumerate(zip(self.columns["drafted"], self.columns["beyond"], strict=True)) for _ in range(sum(n))]
        self.begins = {context: r for r, context in enumerate(trace.contexts[:-1]) if self.columns["emitted"][r]}
        self.at: dict[int, int] = {}  # position -> row of a token drafted there, after the true text
        self.own: dict[int, int] = {}  # position -> what the target draws there itself, after the true text
        self.continues = [False] * len(self.round_of)  # whether a row's token is the text's, after the true text
        self._beyond_is_known = trace.greedy or bool(trace.header["coupled"]) or (strict and bool(trace.header["lossless"]))
        for context, r in self.begins.items():
            self._read(context, r)
        self._known = sorted(self.at)
        self._starts = sorted(context for context, r in self.begins.items() if self.columns["drafted"][r])

    def is_text(self, position: int, token: int) -> bool:
        """Whether the text has this token at this position (prompt included in the count)."""
        return position < self.end and self.text[position - self.trace.prompt] == token

    def beyond(self, row: int) -> bool:
        """Whether the row was not drafted while decoding, but asked for afterwards."""
        r = self.round_of[row]
        return bool(row >= self.trace.first[r] + self.columns["drafted"][r])

    def chain(self, context: int) -> Iterator[Spot]:
        """The tokens that the drafter proposes after the true text of `context` tokens, one after the other; ends where it has no more."""
        if not self.round_of:
            raise Missing("it drafts, and nothing was drafted in this trace")
        return self._drawn(context) if self.trace.header["any_prefix"] else self._copied(context)

    def choice_after(self, spots: Sequence[Spot], context: int) -> int | None:
        """What the target draws itself after a chain of known tokens, or None where the trace does not know."""
        position = context + len(spots)
        if all(self.is_text(context + i, self.columns["token"][spot.row]) for i, spot in enumerate(spots)):
            return self.own.get(position)
        row = spots[-1].row
        r, last = self.round_of[row], self.trace.first[self.round_of[row] + 1] - 1
        if row < last:
            return int(self.columns["choice"][row + 1])
        return None if self.beyond(row) else int(self.columns["bonus"][r])

    def _read(self, context: int, r: int) -> None:
        rows = range(self.trace.first[r], self.trace.first[r + 1])
        for position, row in enumerate(rows, context):
            if self.trace.header["any_prefix"] or position == context:
                self.at[position] = row  # later rounds begin nearer, and their rows go before
            self.own[position] = self.columns["choice"][row]
            if not self.is_text(position, self.columns["token"][row]):
                return
            self.continues[row] = True
        if not self.columns["beyond"][r]:
            self.own[context + len(rows)] = self.columns["bonus"][r]

    def _drawn(self, context: int) -> Iterator[Spot]:
        position, row, true, guessed = context, self.at.get(context), True, False
        spot = Spot(0, True)
        while True:
            guessed = guessed or row is None or (self.beyond(row) and not self._beyond_is_known)
            spot = Spot(row if row is not None else self._nearest(position) if true else spot.row, guessed)
            yield spot
            known = row is not None
            true = true and (self.is_text(position, self.columns["token"][spot.row]) if known else self.continues[spot.row])
            position += 1
            inside = known and spot.row + 1 < len(self.round_of) and self.round_of[spot.row + 1] == self.round_of[spot.row]
            row = spot.row + 1 if inside else self.at.get(position) if true else None

    def _copied(self, context: int) -> Iterator[Spot]:
        """Of a drafter whose proposals are known only where a round began; elsewhere the nearest round that drafted stands in."""
        known = context in self.begins
        if not known and not self._starts:
            return
        r = self.begins[context] if known else self.begins[_near(self._starts, context)]
        rows = range(self.trace.first[r], self.trace.first[r] + self.columns["drafted"][r])
        yield from (Spot(row, not known) for row in rows)
        while rows and self.columns["drafted"][r] == self.columns["asked"][r]:  # it was stopped, it had not come to its end
            yield Spot(rows[-1], True)

    def _nearest(self, position: int) -> int:
        return self.at[_near(self._known, position)] if self._known else 0


class Recorded:
    """The `Evidence` of a recorded chain. Raises Unseen for a token that stands in for an unknown one, unless `guess` is set, and Missing for what
    the trace does not hold. `coupled`: of the rule that asks."""

    def __init__(self, path: Path, spots: Sequence[Spot], guess: bool, coupled: bool) -> None:
        self.path, self.spots, self.guess = path, spots, guess
        self.foreign = not path.trace.greedy and coupled != path.trace.header["coupled"]

    def __len__(self) -> int:
        return len(self.spots)

    @property
    def vocab(self) -> int:
        if "vocab" not in self.path.trace.header:
            raise Missing("it needs the size of the vocabulary, which this trace does not hold")
        return int(self.path.trace.header["vocab"])

    def token(self, i: int) -> int:
        return int(self._get("token", i))

    def chance(self, i: int) -> Chance:
        self._same_noise()
        return Chance(self._get("u", i), self._get("law_prob", i), self._get("q", i))

    def match(self, i: int) -> bool:
        self._same_noise()
        return bool(self._get("match", i))

    def choice(self, i: int) -> int:
        self._same_noise()
        return int(self._get("choice", i))

    def allowed(self, i: int) -> bool:
        return bool(self._get("allowed", i))

    def law(self, i: int) -> Figures:
        return self._figures("law", i)

    def raw(self, i: int) -> Figures:
        return self._figures("raw", i)

    def likelihood(self, i: int, token: int) -> float:
        if token == self.token(i):
            return self.raw(i).prob
        known = dict(self.top(i)).get(token)
        if known is None:
            raise Unseen
        return known

    def top(self, i: int) -> Sequence[tuple[int, float]]:
        pairs = zip(self._get("target_ids", i), self._get("target_probs", i), strict=True)
        return [(token, p) for token, p in pairs if token >= 0]

    def distance(self, i: int) -> float:
        found = float(self._get("distance", i))
        if math.isnan(found):
            raise Missing(f"it compares the draft's rows with the target's, and the drafter {self.path.trace.header['origin']!r} had none")
        return found

    def step(self, i: int) -> DraftStep:
        figures = self._figures("draft", i)
        if math.isnan(figures.prob):
            raise Missing(f"it looks at the draft's confidence, and the drafter {self.path.trace.header['origin']!r} had none")
        return DraftStep(i, self.token(i), *figures)

    def steps(self) -> tuple[Any, ...]:
        """Those of all tokens, or none where the drafter had no rows. One that is unknown raises Unseen once it is looked at."""
        rows = self.path.columns["draft_prob"]
        if not self.spots or math.isnan(rows[self.spots[0].row]):
            return ()
        return tuple(_Veiled() if spot.guessed and not self.guess else self.step(i) for i, spot in enumerate(self.spots))

    def _same_noise(self) -> None:
        if self.foreign:
            raise Missing("above temperature 0 a coupled rule and any other draw different drafts")

    def _figures(self, law: str, i: int) -> Figures:
        return Figures(*(self._get(f"{law}_{name}", i) for name in Figures._fields))

    def _get(self, name: str, i: int) -> Any:
        spot = self.spots[i]
        if spot.guessed and not self.guess:
            raise Unseen
        return self.path.columns[name][spot.row]


class _Veiled:
    """In place of the `DraftStep` of an unknown token."""

    def __getattr__(self, name: str) -> Any:
        raise Unseen


def _near(places: Sequence[int], place: int) -> int:
    """The nearest of sorted places; of two, the earlier."""
    i = bisect.bisect_left(places, place)
    return min(places[max(i - 1, 0) : i + 1], key=lambda other: abs(other - place))
