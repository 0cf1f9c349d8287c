"""Suffix decoding: copy what followed the same run of tokens before, in this text or in the answers of finished ones, as far as it is likely.

    for each match of the last m tokens, in this text and in past answers:    budget = floor(alpha m + offset)
        from the place after it go to the most frequent next token:           prob *= count(next) / count(all next);  stop below min_prob
    score = the sum of the probs of the drafted tokens; the best score drafts, a longer match before a shorter one, this text before the others

So a long match drafts many tokens and an ambiguous one few. No model and no law (``probs=None``). Who asks for `more` is told of each token how sure
it is, which is ours: a run of n tokens that agreed goes on in (n + 1) of n + 2 cases (the rule of succession), and so with its share of those.

Reference: Oliaro et al. 2024, "SuffixDecoding" (arXiv 2411.04975). Differs from it: no suffix trees but hash chains (`methods.history`), an
eighth of the memory and microseconds a token in Python; so counts are over the `recent` latest occurrences of a run, not over all. They are
equal while no run is more frequent, which a test holds against brute force. An occurrence that nothing follows does not count. Past answers
are bounded by tokens (48 bytes each, allotted at once), not by requests; only what was generated is kept, as there. The paper's headline
(5.3x, 2.8x EAGLE) is agents that repeat themselves for thousands of tokens; text without repetition gains little.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from draftwise.methods.history import LEVELS, NONE, History
from draftwise.protocols import Ask
from draftwise.types import Draft, DraftStep, Outcome, Text


class Found(NamedTuple):
    """A proposal: its `tokens`, the `score` by which proposals are compared, of each token its share of what followed, and how long the match is."""

    tokens: list[int]
    score: float
    shares: Sequence[float] = ()
    matched: int = 0


@dataclass
class _Own:
    """What is known of one text: its history, and how long it was when it was first seen."""

    history: History
    begin: int


class Suffix:
    """`memory`: tokens of finished answers it keeps (rounded up to a power of two; 0 = none). `depth`: longest match. `recent`: occurrences of a
    run it looks at. Raises ValueError for options out of range."""

    taps: tuple[int, ...] = ()
    has_logits: bool = False
    learns_rows: bool = False

    def __init__(
        self, memory: int = 1_000_000, depth: int = 64, alpha: float = 1.0, offset: float = 0.0, min_prob: float = 0.1, recent: int = 32
    ) -> None:
        if memory < 0 or depth < 1 or recent < 1:
            raise ValueError(f"memory must be at least 0 and depth and recent at least 1, got {memory}, {depth} and {recent}")
        if not (math.isfinite(alpha) and alpha >= 0 and math.isfinite(offset)):
            raise ValueError(f"alpha must be a number of at least 0 and offset a number, got {alpha} and {offset}")
        if not 0 <= min_prob <= 1:
            raise ValueError(f"min_prob must be in [0, 1], got {min_prob}")
        self.depth, self.alpha, self.offset, self.min_prob, self.recent = depth, alpha, offset, min_prob, recent
        self.past = History(max(64, 1 << (memory - 1).bit_length())) if memory else None
        self._own: dict[int, _Own] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all histories."""
        return sum(own.history.nbytes for own in self._own.values()) + (self.past.nbytes if self.past else 0)

    def lag(self, text: Text) -> int:
        own = self._own.get(text.id)
        return len(text.tokens) - (own.history.total if own else 0)

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [self._draft(ask) for ask in asks]

    def observe(self, text: Text, draft: Draft, outcome: Outcome) -> None:
        """The next `propose` reads what was added. Below a cascade a text can also have lost what the level above refused."""
        if text.id in self._own:
            self._own[text.id].history.cut(len(text.tokens) - 1)
        else:
            self._see(text, len(text.tokens) - (0 if outcome.last is None else len(outcome.path) + 1))

    def free(self, text: Text) -> None:
        """The answer joins the past ones."""
        own = self._own.pop(text.id, None)
        if own and self.past and len(text.tokens) > own.begin:
            self.past.extend(text.tokens[own.begin :])
            self.past.end()

    def _see(self, text: Text, begin: int) -> _Own:
        """The entry of a text; a new one if it was not seen before. Where its answer begins decides what joins the past ones."""
        if text.id not in self._own:
            self._own[text.id] = _Own(History(1 << max(10, len(text.tokens).bit_length() + 1), grows=True), max(begin, 0))
        return self._own[text.id]

    def _draft(self, ask: Ask) -> Draft:
        text = ask.text
        own = self._see(text, len(text.tokens))
        own.history.extend(text.tokens, own.history.total)
        found = self._best(own.history, text.tokens, ask.n)
        ends = [i + 1 for i, token in enumerate(found.tokens) if token in text.sampling.stop_ids]
        tokens = found.tokens[: ends[0] if ends else None]
        steps: list[DraftStep] = []
        if ask.more:
            for i, token in enumerate(tokens):
                steps.append(step(found, i, token))
                if not ask.more(steps):
                    break
            tokens = tokens[: len(steps)]
        return Draft(torch.tensor(tokens, dtype=torch.int64), steps=tuple(steps), origin="suffix")

    def _best(self, own: History, tokens: Sequence[int], n: int) -> Found:
        tail, best = tokens[-self.depth :], Found([], 0.0)
        for history in (own, self.past):
            if history is not None and n > 0:
                best = self._better(history, tail, n, best)
        return best

    def _better(self, history: History, tail: Sequence[int], n: int, best: Found) -> Found:
        """`best`, or what the history proposes with a higher score. No proposal scores more than its budget: so it starts with the longest
        matches, and shorter ones need no look once their budget is no more than the score."""
        for level in reversed(range(len(LEVELS))):
            longest = LEVELS[level + 1] - 1 if level + 1 < len(LEVELS) else self.depth
            longest = min(longest, self.depth, len(tail))
            if longest < LEVELS[level] or self._budget(longest, n) <= best.score:
                continue
            places = history.find(tail, level, self.recent, longest, self._budget(longest, n))
            for length in sorted(set(places.lengths), reverse=True):
                if (budget := self._budget(length, n)) > best.score:
                    after = [row for row, matched in zip(places.after, places.lengths, strict=True) if matched >= length]
                    found = likeliest(after, budget, self.min_prob)
                    best = found._replace(matched=length) if found.score > best.score else best
        return best

    def _budget(self, length: int, n: int) -> int:
        return min(n, max(0, math.floor(self.alpha * length + self.offset)))


def likeliest(after: list[list[int]], budget: int, min_prob: float) -> Found:
    """The most frequent path through the continuations `after`, of at most `budget` tokens, none less likely than `min_prob`. Of equally
    frequent tokens the one that comes first in `after`."""
    tokens: list[int] = []
    shares: list[float] = []
    prob, score = 1.0, 0.0
    for d, counts in enumerate(_counts(after, tokens, budget)):
        if len(counts) == 1 and d == 0 and len(after) == 1:  # one occurrence: all of it is certain
            return _certain(after[0], budget, min_prob)
        if not counts:
            break
        (token, count), total = counts.most_common(1)[0], counts.total()
        prob *= count / total
        if prob < min_prob:
            break
        tokens.append(token)
        shares.append(count / total)
        score += prob
    return Found(tokens, score, shares)


def _counts(after: list[list[int]], tokens: list[int], budget: int) -> Iterator[Counter[int]]:
    """The next tokens of those continuations that went along with `tokens` so far."""
    for d in range(budget):
        if d:
            after = [row for row in after if row[d - 1] == tokens[-1]]
        yield Counter(row[d] for row in after if row[d] != NONE)


def _certain(row: list[int], budget: int, min_prob: float) -> Found:
    taken = row[:budget]
    ends = taken.index(NONE) if NONE in taken else len(taken)
    return Found(taken[:ends], float(ends), [1.0] * ends)


def step(found: Found, i: int, token: int) -> DraftStep:
    """How sure token i is; the rest of the probability is taken to be one other token's."""
    n = found.matched + i
    prob = found.shares[i] * (n + 1) / (n + 2)
    entropy = -prob * math.log(prob) - (1 - prob) * math.log(1 - prob)
    return DraftStep(i, token, prob, max(prob, 1 - prob), min(prob, 1 - prob), entropy)
