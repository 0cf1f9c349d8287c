"""Replay: what another length policy or acceptance rule would have done with a recorded answer, without a model.

The policies are the very objects that decode. Each round is played on what the trace knows, and graded:

    EXACT     the round that decoding itself would have made, up to the rounding of kernels
    DRAWN     above temperature 0: a valid draw of the same law, though not the numbers of that seed
    ESTIMATE  the policy has left the recorded path, or something hung on a token that the trace does not know

What makes a round exact, and how estimates are made, is told in docs/replay.md. One unknown does no harm where nothing hangs on it: if all
drafts that are possible lead to the same verdict and the same states, the path goes on, and only how much was drafted is an estimate.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple

from draftwise.bench.recorded import Missing, Path, Recorded, Spot, Unseen
from draftwise.bench.replay_costs import Clock, Costs, watched_now, watched_round
from draftwise.bench.trace import Trace
from draftwise.protocols import Accept, Decides, Length
from draftwise.types import Decision, Now, Round


class Grade(IntEnum):
    """How far a replayed round can be trusted; see the module."""

    EXACT = 0
    DRAWN = 1
    ESTIMATE = 2


class Played(NamedTuple):
    """`grades`: one for each of `rounds`. `left`: new tokens before the first round whose verdict is an estimate; None = there is none."""

    rounds: tuple[Round, ...]
    grades: tuple[Grade, ...]
    left: int | None


class _Last(NamedTuple):
    """The token after the accepted ones; None = the trace does not know it. `drawn`: the text's own, another draw of the same law."""

    token: int | None
    drawn: bool = False


class _Outcome(NamedTuple):
    """What a round comes to."""

    decision: Decision
    accepted: int
    relaxed: int
    emitted: int
    last: _Last
    finished: bool
    length_state: Any


def play(trace: Trace, length: Length, accept: Accept, costs: Costs | None = None) -> Played:
    """One answer under other policies. Raises Missing (a ValueError) where the trace lacks what they look at."""
    if not isinstance(accept, Decides):
        raise ValueError(f"the acceptance rule {type(accept).__name__} has no `decide`, so that it needs the models")
    return _Game(trace, length, accept, accept, costs or Costs([trace])).play()


@dataclass
class _Game:
    """One replay on its way. `rule` is `accept` once more, as what decides."""

    trace: Trace
    length: Length
    accept: Accept
    rule: Decides
    costs: Costs
    rounds: list[Round] = field(default_factory=list)
    grades: list[Grade] = field(default_factory=list)
    grade: Grade = Grade.EXACT  # of the next round, at best
    left: int | None = None
    clock: Clock = field(default_factory=Clock)
    in_step: bool = True  # all rounds so far were cut as the recorded ones

    def play(self) -> Played:
        header = self.trace.header
        self.path = Path(self.trace, self.accept.lossless)
        self.stops, self.room = header["sampling"]["stop_ids"], header["limit"]
        self.length_state, self.accept_state = self.length.init(None), self.accept.init(None)
        self.context = self.lag = self.trace.prompt
        self.by_position = self.trace.greedy or (self.accept.coupled and header["coupled"])  # all randomness is counted by position
        self.foreign = not self.trace.greedy and self.accept.coupled != header["coupled"]
        self.grade = Grade.DRAWN if self.foreign else Grade.EXACT
        if not header["fresh"] or (header["budgeted"] and not self.accept.lossless):
            self._leave(self.context)
        while self.context < self.path.end:
            self._round()
        return Played(tuple(self.rounds), tuple(self.grades), self.left)

    def _round(self) -> None:
        now = self._now()
        n = max(0, min(self.length.budget(self.length_state, now), now.room))
        known = self._known(now, n) if self.left is None else None
        if known is None:
            self._leave(self.context)
            spots = next(self._drafts(now, n, guess=True))
            known = spots, self._outcome(spots, now, guess=True), Grade.ESTIMATE
        else:
            self._follow(*known)
        self._commit(*known)

    def _known(self, now: Now, n: int) -> tuple[list[Spot], _Outcome, Grade] | None:
        """A round on the recorded path, as far as the trace knows it; None where something hangs on what it does not know."""
        try:
            drafts = list(self._drafts(now, n, guess=False))
            found = [self._outcome(spots, now, guess=False) for spots in drafts]
        except Unseen:
            return None
        own = self.in_step and repr(self.length) == self.trace.header["length"]
        beyond = self.context + found[0].emitted > self.path.end
        if any(other != found[0] for other in found) or (self.clock.read and not own) or beyond:
            return None
        if len(drafts) > 1:
            return next(self._drafts(now, n, guess=True)), found[0], Grade.ESTIMATE
        return drafts[0], found[0], self._grade(drafts[0], found[0])

    def _drafts(self, now: Now, n: int, guess: bool) -> Iterator[list[Spot]]:
        """The drafts of at most `n` tokens that the policy may have asked for: one, unless it looked at a token that the trace does not know.
        `guess`: unknown tokens are what stands in for them, and there is one."""
        spots: list[Spot] = []
        chain = self.path.chain(self.context) if n else iter(())
        for spot in chain:
            spots.append(spot)
            if len(spots) == n:
                break
            if not self.length.per_token:
                continue
            if spot.guessed and not guess:
                rest = [spot for _, spot in zip(range(n - len(spots)), chain, strict=False)]
                yield from ([*spots, *rest[:k]] for k in range(len(rest) + 1))
                return
            steps = self._evidence(spots, guess).steps()
            if not steps and getattr(self.length, "rowless", False):
                continue
            if not steps:
                raise Missing(f"it stops on the draft's confidence, and the drafter {self.trace.header['origin']!r} had none")
            if steps[-1].token in self.stops or not self.length.more(self.length_state, now, steps):
                break
        yield spots

    def _outcome(self, spots: Sequence[Spot], now: Now, guess: bool) -> _Outcome:
        """Raises Unseen, without `guess`, where the verdict or a state hangs on an unknown token."""
        evidence = self._evidence(spots, guess)
        decision = self.rule.decide(evidence, self.accept_state)
        last = self._last(spots, decision.accepted)
        emitted, finished = self._cut([*(evidence.token(i) for i in range(decision.accepted)), -1 if last.token is None else last.token])
        accepted = min(decision.accepted, emitted)
        relaxed = sum(i < accepted for i in decision.relaxed)
        state = self.length_state
        if (spots or getattr(self.length, "rests", False)) and emitted and not finished:
            state = self.length.update(state, self._past(len(spots), accepted, relaxed, emitted, now, evidence.steps()))
        return _Outcome(decision, accepted, relaxed, emitted, last, finished, state)

    def _cut(self, tokens: Sequence[int]) -> tuple[int, bool]:
        """How many of a round's tokens stay, and whether they end the text: as `Sequence.commit` does it."""
        room = self.room - self.context
        stop = next((i for i, token in enumerate(tokens[:room]) if token in self.stops), None)
        return (stop + 1, True) if stop is not None else (min(len(tokens), room), len(tokens) >= room)

    def _last(self, spots: Sequence[Spot], accepted: int) -> _Last:
        if any(spot.guessed for spot in spots[: accepted + 1]):
            return _Last(None)
        at = self.context + accepted
        token = None if self.foreign else self._written(spots, accepted, at)
        if token is not None and self.path.is_text(at, token):
            return _Last(token)
        lossless = not self.trace.greedy and self.accept.lossless and self.trace.header["lossless"]
        if lossless and at < self.path.end and self._is_text(spots[:accepted]):
            return _Last(self.path.text[at - self.trace.prompt], drawn=True)
        return _Last(token)

    def _written(self, spots: Sequence[Spot], accepted: int, at: int) -> int | None:
        """What decoding writes after the accepted tokens, at position `at`. After a refused one, above temperature 0, that is up to the rule, and
        known where the recorded one, if it is the same, refused the same token."""
        if accepted == len(spots):
            return self.path.choice_after(spots, self.context)
        row = spots[accepted].row
        if self.by_position:
            return int(self.path.columns["choice"][row])
        r = self.path.round_of[row]
        refused = row - self.trace.first[r] == self.path.columns["accepted"][r] and self.path.at.get(at) == row and at < self.path.end
        return self.path.text[at - self.trace.prompt] if refused and repr(self.accept) == self.trace.header["accept"] else None

    def _grade(self, spots: Sequence[Spot], outcome: _Outcome) -> Grade:
        """That of a round whose outcome is known. Above temperature 0 the numbers of a seed are counted by use, so that only the very tokens that
        were drafted for this round are its own."""
        if outcome.last.token is None and outcome.emitted > outcome.accepted and self.stops:
            return Grade.ESTIMATE  # the unknown token may have ended the text
        if self.by_position or self.grade is not Grade.EXACT:
            return self.grade
        first = self.trace.first[self.path.begins[self.context]]
        own = [spot.row for spot in spots] == list(range(first, first + len(spots))) and not any(self.path.beyond(spot.row) for spot in spots)
        return Grade.EXACT if own and not outcome.last.drawn else Grade.DRAWN

    def _follow(self, spots: Sequence[Spot], outcome: _Outcome, grade: Grade) -> None:
        """Whether the text goes on as recorded after this round, and how the next ones are graded."""
        r = self.path.begins.get(self.context)
        self.in_step = self.in_step and r is not None and grade is not Grade.ESTIMATE and self.path.columns["drafted"][r] == len(spots)
        if not self.by_position and (not self.in_step or grade is Grade.DRAWN):
            self.grade = Grade.DRAWN
        at, last = self.context + outcome.accepted, outcome.last.token
        whole = outcome.emitted == outcome.accepted or (last is not None and self.path.is_text(at, last))
        if not (whole and self._is_text(spots[: outcome.accepted])):
            self._leave(self.context + outcome.emitted)

    def _commit(self, spots: Sequence[Spot], outcome: _Outcome, grade: Grade) -> None:
        emitted = min(outcome.emitted, self.path.end - self.context)
        known = grade is not Grade.ESTIMATE
        ends = (known and outcome.finished) or self.context + emitted == self.path.end
        first = not self.rounds
        times = self.costs.draft(len(spots)), self.costs.verify(1 + len(spots)) + (self.costs.prompt_s(self.trace) if first else 0.0)
        accepted, n = min(outcome.accepted, emitted), len(spots)
        self.rounds.append(Round(n, n, accepted, min(outcome.relaxed, accepted), emitted, 1, 1 + n, *times, outcome.finished if known else ends))
        self.grades.append(grade)
        read = self.context + n - 1 if n else self.context - self.lag  # what the drafter has read by then
        self.context = self.path.end if ends else self.context + emitted
        self.lag = self.context - min(read, self.context - 1)
        self.length_state, self.accept_state = outcome.length_state, outcome.decision.state

    def _leave(self, context: int) -> None:
        self.in_step = False
        if self.left is None:
            self.left = context - self.trace.prompt

    def _now(self) -> Now:
        """The moment as the engine would describe it; measured times are those of the recorded round that was on its way."""
        columns = self.path.columns
        r = max(bisect.bisect_right(self.trace.contexts[:-1], self.context) - 1, 0)
        verify_s = self._table(r)
        lag = columns["lag"][r] if self.in_step else self.lag
        now = Now(columns["batch"][r], self.context, self.room - self.context - 1, lag, columns["now_draft_s"][r], verify_s)
        if not self.in_step:  # what a run of its own would have measured by then
            now = now._replace(draft_s=self.costs.step, verify_s=tuple((k, self.costs.verify(k)) for k in sorted({1, *self.costs.widths})))
        return watched_now(now, self.clock)

    def _past(self, drafted: int, accepted: int, relaxed: int, emitted: int, now: Now, steps: tuple[Any, ...]) -> Round:
        """What the length policy is told of a round: the measured times where it is the recorded one, else those of the cost table."""
        columns, r = self.path.columns, self.path.begins.get(self.context, -1)
        rows, times, usual_s = 1 + drafted, (self.costs.draft(drafted), self.costs.verify(1 + drafted)), math.nan
        if r >= 0 and self.in_step and columns["drafted"][r] == drafted:
            rows, times = columns["rows"][r], (columns["draft_s"][r], columns["verify_s"][r] + columns["record_s"][r])
            if r + 1 < len(columns["rows"]):  # the tables after this round are those that the next one began with
                usual_s = (columns["now_draft_s"][r + 1] * drafted if drafted else 0.0) + dict(self._table(r + 1)).get(rows, math.nan)
        round = Round(drafted, drafted, accepted, relaxed, emitted, now.batch, rows, *times, False, steps, lag=now.lag, usual_s=usual_s)
        return watched_round(round, self.clock)

    def _table(self, r: int) -> tuple[tuple[int, float], ...]:
        """What the engine knew of passes when round `r` began: (rows, seconds)."""
        columns = self.path.columns
        start = sum(columns["now_costs"][:r])
        return tuple((columns["cost_rows"][i], columns["cost_seconds"][i]) for i in range(start, start + columns["now_costs"][r]))

    def _is_text(self, spots: Sequence[Spot]) -> bool:
        """Whether these tokens are the text's."""
        return all(self.path.is_text(self.context + i, self.path.columns["token"][spot.row]) for i, spot in enumerate(spots))

    def _evidence(self, spots: Sequence[Spot], guess: bool) -> Recorded:
        return Recorded(self.path, spots, guess, self.accept.coupled)
