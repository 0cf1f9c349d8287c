"""Break-even: draft exactly while one more token is expected to earn more tokens a second than decoding earns as it goes.

Our own policy. It has no constants to tune for a model, a machine or a text: what it needs it measures while it runs.

*What survives.* Two logistic regressions, learnt a token at a time (`draftwise.methods.breakeven_fit`). ``h(x)``: the chance that a drafted token is
accepted once all before it were, from the probability the draft gave it, the entropy of the draft's row, and its position; it starts as "the draft
is calibrated". ``a(x)``: the same chance for the token that comes *next* and is not drafted yet, from its position and from what is known of the one
before it. The text of a request teaches both; the next request starts with them, half as sure.

*What it costs.* Seconds of a draft step and of a target pass over k rows, as the engine measures them on this machine (`Now`).

*The rule.* With S = prod h over the tokens drafted so far, i of them, another one is worth drafting iff

    S * a / (step + pass(i+2) - pass(i+1))  >  R

where R is the rate of decoding in tokens per second: the larger of the plain rate ``1 / pass(1)`` and the rate of the policy's own recent rounds,
priced by the same table. (The marginal value theorem: leave where the marginal gain falls to the mean rate. As S falls and the costs do not, looking
one step ahead is enough.) A drafter that says nothing of its tokens, such as prompt lookup, gives the a(x) of positions only, and the rule is used
before drafting. One that says something and costs nothing is asked in any case: `more` says where to stop, and `expected` whether to use it at all.

*Second choices.* At temperature 0 a draft model knows a second token at each level, for the price of a row and no step. It is the right one with
the chance ``S * (1 - h) * share``, where S is that of the levels above and `share` its part of what the first choice leaves of the draft's row. The
best of them are verified beside the chain as long as that earns more than R.

*The floor.* An account in seconds: what rounds gained over plain passes, less what they lost. Drafting has to be paid from it. It starts with
`stake` plain passes, holds at most twenty times that (what was gained may be risked on another text), and half a percent of the time of plain passes
is paid in: so a draft that never pays costs the stake once, over all requests, and from then on half a percent. A round is charged what such rounds
usually take (the median), reading too, for a burst of something else is not the draft's fault. Where nothing is expected to pay, single tokens are
still drafted as long as half of the stake would be left.

*Reading.* A draft that has not read the prompt, or rested, must read first, which is taken to cost what the target takes for as many tokens, less by
the ratio of their steps. It may, if the tokens still to come would earn that back: by the time that a token takes with this draft, as far as is known
(0.7 of plain time of a draft nobody has tried), against the time one takes without it, copies of other drafters included. How many will come nobody
knows: as many as three of four past answers had, or again as many as there are, if that is more, and no more than may be. So a long prompt waits
until its answer has lasted. What reading took is a debt that gains pay back, those of a text beyond its losses; what is left of it at the end of the
text is taken from the account.

Lossless: `more` is asked after a token is kept, and what a length depends on (times, and verdicts of the past) says nothing of the token to come.
Under `speculative` the text's law is that of plain decoding, at temperature 0 and under `coupled` its tokens are. Simulated against every fixed
length by ``benchmarks/breakeven_sim.py``. `best-of` tells its
parts' policies what it measured; a cascade and `first-hit` know no times, and inside those this policy never drafts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from operator import mul
from typing import ClassVar, NamedTuple

from draftwise.methods.breakeven_fit import Fit, Passes, chance, faded, logit, seen
from draftwise.types import DraftStep, Now, Round

# 1, logit of the draft's probability, its entropy, ln(1 + position), how the last round went
_DRAFTED = Fit((0.0, 1.0, 0.0, 0.0, 0.0), (2.0, 8.0, 2.0, 2.0, 2.0))
# 1, logit of the probability of the token before (0: not known), the last two as above
_NEXT = Fit((0.8, 0.2, 0.0, 0.5), (1.0, 8.0, 2.0, 2.0))
_MEMORY = 0.95  # of the rate of past rounds, from one to the next
_PROBING = 0.005  # of the time of plain passes
_SAVED = 20  # stakes that the account holds at most
_PLAINS = 3  # plain passes before anything else: the first ones of a process take longer
_LITTLE = 8  # tokens that a draft reads along with its first step
_STEP = 0.25  # of a plain pass: what a draft step is taken to cost before one was measured
_GAIN = 0.3  # of plain time, expected of a draft that nothing is known of
_SUMS = ("emitted", "depth", "leaves", "rounds", "spent")
_OTHERS = ("others", "others_s")
_TRUST = 16  # tokens by which that is believed, and plain time without a draft


class Account(NamedTuple):
    """`drafted` and `ahead`: the two regressions. `emitted`, `depth`, `leaves`, `rounds`, `spent`: fading sums of tokens, levels, second choices,
    rounds and seconds over the rounds that drafted. `debt`: seconds of reading that no gain has paid back yet; `lost`: seconds that rounds of
    this text lost and no gain made good yet. `plain_s`: seconds of a plain pass; `plains`: how many were seen, up to three. `balance`: seconds
    that may be lost. `recent`: how the last round went, from -1 (nothing accepted) to 1 (all). `told`: whether the drafter has rows, as far as
    the last round says. `started`: the round that read the prompt is over. `tokens`: of this text; `usual`: what three of four past ones had at
    least. `read_s`: seconds that the draft takes to read a token, which fall faster than they rise; 0: not known. `others`, `others_s`: tokens and
    seconds of the rounds without this draft, those of earlier texts at half their weight."""

    drafted: Fit = _DRAFTED
    ahead: Fit = _NEXT
    emitted: float = 0.0
    depth: float = 0.0
    leaves: float = 0.0
    rounds: float = 0.0
    spent: float = 0.0
    debt: float = 0.0
    lost: float = 0.0
    plain_s: float = 0.0
    plains: int = 0
    balance: float = 0.0
    recent: float = 0.0
    told: bool = False
    started: bool = False
    tokens: int = 0
    usual: float = 64.0
    read_s: float = 0.0
    others: float = 0.0
    others_s: float = 0.0


@dataclass(frozen=True)
class Breakeven:
    """`stake`: plain passes' worth of time that a draft may lose before it has earned anything. `cap`: most tokens of a round."""

    stake: float = 4.0
    cap: int = 32

    per_token: ClassVar[bool] = True
    rowless: ClassVar[bool] = True  # does without `more` where the drafter has no rows
    rests: ClassVar[bool] = True  # is told of rounds without a draft too

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stake) and self.stake > 0):
            raise ValueError(f"stake must be a finite number of plain passes above 0, got {self.stake}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1 draft token, got {self.cap}")

    def init(self, last: Account | None) -> Account:
        if last is None:
            return Account()
        drafted, ahead = faded(last.drafted, _DRAFTED, 0.5), faded(last.ahead, _NEXT, 0.5)
        last = last._replace(drafted=drafted, ahead=ahead, started=False, **{name: getattr(last, name) / 2 for name in (*_SUMS, *_OTHERS)})
        return last._replace(debt=0.0, lost=0.0, balance=last.balance - last.debt, tokens=0, usual=_fewest(last))

    def budget(self, state: Account, now: Now) -> int:
        plain = next((s for rows, s in now.verify_s if rows == now.batch), math.nan)
        if math.isnan(plain) or state.plains < _PLAINS:
            return 0  # plain passes are needed to measure by
        passes, step = Passes(now.verify_s), _STEP * plain if math.isnan(now.draft_s) else now.draft_s
        reading = step / plain * (passes(now.batch + now.lag) - plain) if now.lag > _LITTLE else 0.0
        left = min(state.balance, 2 * self.stake * plain) - (step + passes(now.batch + 1) - plain + reading)
        coming = min(max(state.usual - state.tokens, state.tokens), now.room)
        if left < 0 and not (state.balance > 0 and reading <= _saving(state) * coming):
            return 0
        if math.isnan(now.draft_s):
            return min(4, self.cap)  # what a draft costs is to be found out
        if state.told and now.draft_s == 0:
            return self.cap  # costs nothing to propose: `more` and `expected` tell what it is worth
        n = self._before(state, now, passes)
        if not n:
            return int(left >= self.stake * plain / 2)  # a probe: what is known may be wrong by now
        return self.cap if state.told else n

    def expected(self, state: Account, steps: Sequence[DraftStep]) -> float:
        """The tokens of a round that drafts these: one, and those that are expected to survive."""
        return 1 + sum(_survival(state, steps))

    def foreseen(self, state: Account, n: float) -> float:
        """The tokens of a round that drafts so many, before any is drafted."""
        each: list[float] = list(accumulate((chance(state.ahead, (1.0, 0.0, math.log1p(i), state.recent)) for i in range(math.ceil(n))), mul))
        return 1 + sum(min(1.0, n - i) * survival for i, survival in enumerate(each))

    def more(self, state: Account, now: Now, steps: Sequence[DraftStep]) -> bool:
        n, passes = len(steps), Passes(now.verify_s)
        ahead = chance(state.ahead, (1.0, logit(steps[-1].prob), math.log1p(n), state.recent))
        return n < self.cap and _survival(state, steps)[-1] * ahead > _rate(state, now, passes) * _marginal(now, passes, n)

    def beside(self, state: Account, now: Now, steps: Sequence[DraftStep]) -> list[int]:
        """The levels whose second choice is worth its row, the best first."""
        passes, rows = Passes(now.verify_s), now.batch + len(steps)
        rate, survival = _rate(state, now, passes), [1.0, *_survival(state, steps)]
        chances = sorted(((_second(survival[i] - survival[i + 1], step), i) for i, step in enumerate(steps)), reverse=True)
        pays = takewhile(lambda k: chances[k][0] > rate * (passes(rows + k + 1) - passes(rows + k)), range(len(chances)))
        return [chances[k][1] for k in pays]

    def update(self, state: Account, round: Round) -> Account:
        state = state._replace(tokens=state.tokens + round.emitted)
        if not state.started:
            state = state._replace(started=True)
            return state if not round.drafted else self._judged(state, round)
        return self._speculated(self._judged(state, round), round) if round.drafted else self._rested(state, round)

    def _rested(self, state: Account, round: Round) -> Account:
        """The account after a round without a draft."""
        state = state._replace(others=state.others + round.emitted, others_s=state.others_s + round.verify_s)
        alone = round.rows == round.batch
        if alone and state.plains < _PLAINS:
            plain = min(state.plain_s, round.verify_s) if state.plains else round.verify_s
            return state._replace(plain_s=plain, balance=self.stake * plain, plains=state.plains + 1)
        plain = 0.8 * state.plain_s + 0.2 * round.verify_s if alone else state.plain_s
        balance = min(state.balance + _PROBING * plain, _SAVED * self.stake * plain)
        return state._replace(plain_s=plain, balance=balance, recent=_MEMORY * state.recent)

    def _speculated(self, state: Account, round: Round) -> Account:
        """The account after a round with one. One that had to read a text is a debt, which gains pay back once they have made good the losses."""
        state = state._replace(plain_s=min(state.plain_s, round.verify_s))  # a plain pass takes no longer than a wider one
        if round.lag > _LITTLE:
            read_s, taken = _reading(state, round)
            return state._replace(read_s=read_s, debt=state.debt + max(0.0, taken - round.emitted * state.plain_s))
        taken = round.draft_s + round.verify_s if math.isnan(round.usual_s) else round.usual_s
        gain = round.emitted * state.plain_s - taken
        added = (round.emitted, round.depth, round.drafted - round.depth, 1, taken)
        sums = {name: _MEMORY * getattr(state, name) + new for name, new in zip(_SUMS, added, strict=True)}
        left = gain - state.lost  # what is left of it for the debt
        paid = min(max(left, 0.0), state.debt)
        balance = min(state.balance + gain - paid, _SAVED * self.stake * state.plain_s)
        return state._replace(**sums, balance=balance, debt=state.debt - paid, lost=max(-left, 0.0))

    @staticmethod
    def _judged(state: Account, round: Round) -> Account:
        """Both regressions after what was judged: the accepted levels, and the first that was not. What came after it was judged by nobody. Where a
        second choice was accepted, the first was not."""
        tree = round.drafted > round.depth
        drafted, ahead, told = state.drafted, state.ahead, bool(round.steps) if tree else len(round.steps) == round.depth
        steps, accepted = list(round.steps), round.accepted
        if tree and told and accepted and steps[accepted - 1].prob < steps[accepted - 1].top1:
            accepted -= 1
            steps[accepted] = steps[accepted]._replace(prob=steps[accepted].top1)
        for i in range(min(accepted + 1, round.depth)):
            yes = i < accepted
            ahead = seen(ahead, (1.0, logit(steps[i - 1].prob) if i and told else 0.0, math.log1p(i), state.recent), yes)
            drafted = seen(drafted, _of(steps[i], i, state.recent), yes) if told else drafted
        return state._replace(drafted=drafted, ahead=ahead, told=told, recent=2 * round.accepted / round.depth - 1)

    def _before(self, state: Account, now: Now, passes: Passes) -> int:
        """How many tokens are worth drafting by what is known before they are drafted: all that may be where `more` will be asked."""
        survival, rate, n = 1.0, _rate(state, now, passes), 0
        while n < min(self.cap, now.room):
            survival *= chance(state.ahead, (1.0, 0.0, math.log1p(n), state.recent))
            if survival <= rate * _marginal(now, passes, n):
                break
            n += 1
        return n


def _fewest(last: Account) -> float:
    """The tokens that an answer has at least, three times of four: it falls three times as fast as it rises."""
    return _towards(last.usual, last.tokens, 0.3)


def _reading(state: Account, round: Round) -> tuple[float, float]:
    """Seconds that reading a token takes, after a round that read; and what the round is charged: what it took, or once that is known what it usually
    takes, for weights that had to come from the disk are not the draft's fault either."""
    taken = round.draft_s + round.verify_s
    if math.isnan(round.usual_s):
        return state.read_s, taken
    read = max(0.0, taken - round.usual_s) / round.lag
    if not state.read_s:
        return read, taken
    return _towards(state.read_s, read, 0.5), round.usual_s + round.lag * state.read_s


def _towards(old: float, new: float, falls: float) -> float:
    """A mean that falls by the share `falls` of the way to a new value, and rises by a tenth of it."""
    return old + (falls if new < old else 0.1) * (new - old)


def _survival(state: Account, steps: Sequence[DraftStep]) -> list[float]:
    """The chance of each drafted token to stay."""
    return list(accumulate((chance(state.drafted, _of(step, i, state.recent)) for i, step in enumerate(steps)), mul))


def _second(failing: float, step: DraftStep) -> float:
    """The chance that the second choice is right, where all before is and the first choice fails with the chance `failing`."""
    return failing * min(1.0, step.top2 / max(1 - step.top1, 1e-9))


def _saving(state: Account) -> float:
    """Seconds that a token is expected to take less with this draft than without it, by the rounds of both kinds and `_TRUST` tokens each."""
    own = (state.spent + (1 - _GAIN) * state.plain_s * _TRUST) / (state.emitted + _TRUST)
    other = (state.others_s + state.plain_s * _TRUST) / (state.others + _TRUST)
    return min(other, state.plain_s) - own


def _rate(state: Account, now: Now, passes: Passes) -> float:
    """R: tokens per second of a sequence."""
    plain = 1 / passes(now.batch)
    if not state.rounds or math.isnan(now.draft_s):
        return plain
    depth, leaves = state.depth / state.rounds, state.leaves / state.rounds
    return max(plain, state.emitted / state.rounds / (now.draft_s * depth + passes(now.batch + depth + leaves)))


def _marginal(now: Now, passes: Passes, n: int) -> float:
    """Seconds that a draft token after n others costs."""
    rows = now.batch + n
    return now.draft_s + passes(rows + 1) - passes(rows)


def _of(step: DraftStep, i: int, recent: float) -> tuple[float, ...]:
    return 1.0, logit(step.prob), step.entropy, math.log1p(i), recent
