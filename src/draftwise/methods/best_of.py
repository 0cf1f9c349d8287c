"""Best of: each round is drafted by the part that is expected to bring most tokens per second, learnt while it runs.

    worth(part) = E[tokens of a round] / (draft_s + verify_s(1 + N) + read_s * (lag - 1) / horizon)            tokens per second
    parts without a model (copies, stores) propose in every round, at no cost; one that found nothing is worth plain decoding, 1 / verify_s(1)
    draft with the part of the largest worth; with another model now and then (below);  the parts' own policies say how many tokens

    E[tokens]: mean of 1 + accepted over the rounds in which the part proposed something, newest first with weights `decay`^k, begun with one round
    in which all was accepted: who has not been tried is hoped for; and what the part's policy knows of earlier texts (`Length.foreseen`) counts for
    two rounds more, or a bad start would end it for the whole text.  draft_s, read_s, verify_s: medians of what was measured.
    Where a part without a model says how sure it is of each token and its policy knows what that means (`Length.expected`), E[tokens] is that of this
    very offer, and one that would not beat plain decoding is not made: a copy after one matching word and one after twenty are not worth the same.

*Full information*: what a part without a model proposed and nobody asked for is read against the text that came instead. The tokens in common
are those that would have been accepted (of greedy text exactly; above temperature 0 on the average for copies, and too few for parts that draw).
That part's own length policy moves on by them, so it stands where it would have stood.
*Trying*: a model that rests costs time to try. Each round puts `explore` of its time on an account, and once that pays for what the trial is expected
to lose, reading up included, the model that has rested longest is tried, if all its tokens accepted would beat the best.
*Lag*: a model that rested has to read what it missed; that counts in full for a trial, else spread over `horizon` rounds.

The choice looks at past text, past verdicts, the number of tokens that parts without chance propose, and clocks; never at a draw of this round, so
what comes out is as exact as the acceptance rule. Clocks make the choice, so the tokens of a seed are fixed only under rules where the draft
does not matter; ``measure=false`` counts instead: a pass is 1, a draft step `step`, a token read up an eighth of that.

No paper: a bandit with full information on some arms, as in learning from expert advice; see docs/log.md for what it measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from draftwise.methods.composed import FREE, Cost, Parts, is_free, usual
from draftwise.methods.meter import Counted, Meter
from draftwise.protocols import Ask, Drafter, Length
from draftwise.rounds import NOTHING
from draftwise.trees import levels
from draftwise.types import Draft, Outcome, Text

_TRUST = 2  # rounds that a policy's forecast counts for


@dataclass
class _Tally:
    """Discounted sums over rounds in which a part proposed something: `rounds`, `tokens` they gave or would have given, levels `drafted`, and tokens
    beside those, `leaves`."""

    rounds: float = 0.0
    tokens: float = 0.0
    drafted: float = 0.0
    leaves: float = 0.0

    def add(self, tokens: float, drafted: float, decay: float, leaves: float = 0.0) -> None:
        self.rounds, self.tokens = 1 + decay * self.rounds, tokens + decay * self.tokens
        self.drafted, self.leaves = drafted + decay * self.drafted, leaves + decay * self.leaves


@dataclass
class _Playing:
    """One text: a tally for each part, rounds since each drafted, seconds on the account for trials, the proposal under judgement (`made`: whose,
    what, and how far behind it was), and by part those that wait for the text (`open`: where they start, and what they are)."""

    tallies: list[_Tally]
    rested: list[int]
    account: float = 0.0
    last: int = 0
    made: tuple[int, Draft, int] | None = None
    open: dict[int, tuple[int, Draft]] = field(default_factory=dict)


class BestOf:
    """`parts` to choose from; `length`: see `draftwise.methods.composed.Parts`. `explore`: share of time that trials may lose. `decay`: weight of a
    round against the next. `horizon`: rounds that reading up is spread over. `meter`: who measures. The origin of a draft is the part's.

    Raises ValueError for no parts and for options out of range."""

    def __init__(
        self, parts: Sequence[Drafter], length: Length | None = None, explore: float = 0.02, decay: float = 0.9, horizon: int = 16, meter: Any = None
    ) -> None:
        if not 0 <= explore < 1:
            raise ValueError(f"explore must be a share of the time in [0, 1), got {explore}")
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 round, got {horizon}")
        self._own = Parts("best-of", parts, length)
        self.parts = self._own.drafters
        self.taps, self.has_logits, self.learns_rows = self._own.taps, self._own.has_logits, self._own.learns_rows
        self.trees, self.level = self._own.trees, self._own.level
        self.explore, self.decay, self.horizon = explore, decay, horizon
        self.meter = meter or Meter([is_free(part) for part in parts])
        self._texts: dict[int, _Playing] = {}

    @classmethod
    def from_context(
        cls,
        context: Any,
        *parts: Any,
        length: Any = None,
        explore: float = 0.02,
        decay: float = 0.9,
        horizon: int = 16,
        measure: bool = True,
        step: float = 0.2,
    ) -> BestOf:
        """Built by the catalog: prompt lookup and the draft model, where no parts are named. `measure`, `step`: see above."""
        chosen = parts or usual(context)
        meter = (Meter if measure else Counted)([is_free(part) for part in chosen], step)
        return cls(chosen, length, explore, decay, horizon, meter)

    def lag(self, text: Text) -> int:
        """Of the part that drafted last."""
        return self.parts[self._texts[text.id].last if text.id in self._texts else 0].lag(text)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        live = [j for j, ask in enumerate(asks) if ask.n > 0]
        own = {(i, j): self._own.ask(i, asks[j], 1, self.meter.costs(i)) for i in range(len(self.parts)) for j in live}
        copies = {i: self._proposed(i, [own[i, j] for j in live]) for i, part in enumerate(self.parts) if is_free(part)}
        found = [NOTHING] * len(asks)
        wanted: dict[int, list[int]] = {}
        for k, j in enumerate(live):
            expected = {i: self._own.expected(i, asks[j].text, drafts[k].steps) for i, drafts in copies.items()}
            offers = {i: self._worthwhile(asks[j].text, i, drafts[k], expected[i]) for i, drafts in copies.items()}
            chosen = self._choose(asks[j].text, offers, expected, {i: own[i, j].n for i in range(len(self.parts))})
            if chosen in offers:
                found[j] = self._hand_up(asks[j].text, chosen, offers[chosen])
            else:
                wanted.setdefault(chosen, []).append(j)
        for i, js in wanted.items():
            lags = [self.parts[i].lag(asks[j].text) for j in js]
            lag = max(lags)
            with self.meter.drafting(i, lag) as timed:
                drafts = self._proposed(i, [own[i, j] for j in js])
                timed.steps = max((levels(draft.parents, len(draft.tokens)) for draft in drafts), default=0)
            for j, draft, behind in zip(js, drafts, lags, strict=True):
                found[j] = self._hand_up(asks[j].text, i, draft, behind)
        self.meter.drafted()
        return found

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        self._own.observe(text, draft, outcome)
        playing = self._texts.get(text.id)
        if playing is None or outcome.last is None:
            return
        busy = set(playing.open)
        if playing.made is not None and playing.made[1] is draft:
            i, _, lag = playing.made
            verify_s = self.meter.verified(outcome.fed, len(draft.tokens) + 1)
            usual_s = self.meter.step(i) * levels(draft.parents, len(draft.tokens)) + self.meter.verify(len(draft.tokens) + 1)
            cost = Cost(self.meter.spent.get(i, 0.0), verify_s, lag, usual_s)
            self._credit(playing, i, text, draft, outcome.path, len(outcome.relaxed), cost)
            playing.made = None
            for other in set(range(len(self.parts))) - busy - ({i} if len(draft.tokens) else set()):
                self._own.rest(other, text, outcome.fed, verify_s, len(outcome.path) + 1)
        for i, (start, offer) in [*playing.open.items()]:
            path, told = agreed(offer, text.tokens[start:])
            if told or start > len(text.tokens):
                del playing.open[i]
            if told:
                self._credit(playing, i, text, offer, path, cost=Cost(verify_s=self.meter.verify(len(offer.tokens) + 1)))

    def free(self, text: Text) -> None:
        self._own.free(text)
        self._texts.pop(text.id, None)

    def worth(self, text: Text, i: int, drafted: float, spread: float | None = None) -> tuple[float, float]:
        """Tokens and seconds expected of a round of part `i` that drafts so many levels. `spread`: the rounds that share the reading up."""
        tally = self._playing(text).tallies[i]
        lag = 0 if is_free(self.parts[i]) else max(0, self.parts[i].lag(text) - 1)
        rounds, tokens = (tally.rounds, tally.tokens) if tally.rounds else (1.0, drafted + 1)
        if tally.rounds and (foreseen := self._own.foreseen(i, text, drafted)) is not None:
            rounds, tokens = rounds + _TRUST, tokens + _TRUST * foreseen
        leaves = tally.leaves / tally.rounds if tally.rounds else 0.0
        return tokens / rounds, self.meter.round(i, drafted, leaves) + self.meter.read(i) * lag / (self.horizon if spread is None else spread)

    def _choose(self, text: Text, offers: dict[int, Draft], expected: dict[int, float | None], budgets: dict[int, int]) -> int:
        """Who drafts this round."""
        playing = self._playing(text)
        values = {i: self._value(text, i, offers.get(i), expected.get(i), budgets[i]) for i in range(len(self.parts))}
        best = max(values, key=lambda i: values[i][0] / values[i][1])  # the first of equals
        tokens, seconds = values[best]
        playing.account += self.explore * seconds
        resting = [i for i in values if i != best and i not in offers and budgets[i] > 0]
        chosen = best
        if resting:
            tried = max(resting, key=lambda i: playing.rested[i])
            gain, cost = self.worth(text, tried, self._usual(playing.tallies[tried], budgets[tried]), 1)
            loss = max(0.0, cost - gain * seconds / tokens)
            if playing.account >= loss and (budgets[tried] + 1) / cost > tokens / seconds:
                chosen, playing.account = tried, playing.account - loss
        for i in values:
            playing.rested[i] = 0 if i == chosen else playing.rested[i] + 1
        for i, offer in offers.items():
            if i != chosen and i not in playing.open and len(offer.tokens):
                playing.open[i] = len(text.tokens), offer
        return chosen

    def _worthwhile(self, text: Text, i: int, offer: Draft, expected: float | None) -> Draft:
        """An offer, if its own tokens are expected to pay or nobody can tell; else none, and it waits for the text."""
        n = len(offer.tokens)
        if expected is None or not n or expected / self.meter.round(i, n) > 1 / self.meter.round(i, 0):
            return offer
        self._playing(text).open.setdefault(i, (len(text.tokens), offer))
        return NOTHING

    def _value(self, text: Text, i: int, offer: Draft | None, expected: float | None, budget: int) -> tuple[float, float]:
        if (offer is not None and not len(offer.tokens)) or budget <= 0:
            return 1.0, self.meter.round(i, 0)
        if offer is not None and expected is not None:
            return expected, self.meter.round(i, len(offer.tokens))
        counted = offer is not None and offer.probs is None  # how many tokens a part draws may hang on the draws
        usual = self._usual(self._playing(text).tallies[i], budget)
        return self.worth(text, i, levels(offer.parents, len(offer.tokens)) if offer is not None and counted else usual)

    @staticmethod
    def _usual(tally: _Tally, budget: int) -> float:
        return min(budget, tally.drafted / tally.rounds) if tally.rounds else budget

    def _proposed(self, i: int, asks: list[Ask]) -> list[Draft]:
        """One draft for each ask, empty where the part's policy wants none."""
        some = [ask for ask in asks if ask.n > 0]
        drafts = iter(self.parts[i].propose(some) if some else ())
        return [next(drafts) if ask.n > 0 else NOTHING for ask in asks]

    def _hand_up(self, text: Text, i: int, draft: Draft, lag: int = 0) -> Draft:
        playing = self._playing(text)
        playing.last, playing.made = i, (i, draft, lag)
        if len(draft.tokens):
            playing.open.pop(i, None)
        return draft

    def _credit(
        self, playing: _Playing, i: int, text: Text, draft: Draft, path: list[int], relaxed: int = 0, cost: Cost = FREE
    ) -> None:
        if n := len(draft.tokens):
            tally, depth = playing.tallies[i], levels(draft.parents, n)
            if not tally.rounds:
                tally.add(depth + 1, depth, 1.0, n - depth)
            tally.add(len(path) + 1, depth, self.decay, n - depth)
        self._own.update(i, text, draft, path, relaxed, len(draft.tokens) + 1, cost)

    def _playing(self, text: Text) -> _Playing:
        if text.id not in self._texts:
            n = len(self.parts)
            self._texts[text.id] = _Playing([_Tally() for _ in range(n)], [0] * n)
        return self._texts[text.id]


def agreed(draft: Draft, came: Sequence[int]) -> tuple[list[int], bool]:
    """The path of a draft that is the text which `came` in its place, and whether that is all there is to know: the rest was refused or used up."""
    parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents.tolist()
    tokens, path = draft.tokens.tolist(), [-1]
    for token in came:
        found = [i for i, (parent, x) in enumerate(zip(parents, tokens, strict=True)) if parent == path[-1] and x == token]
        if not found:
            return path[1:], True
        path.append(found[0])
    return path[1:], path[-1] not in parents
