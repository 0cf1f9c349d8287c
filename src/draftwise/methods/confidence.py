"""Confidence: stop after a token that the draft model itself thought unlikely, with a threshold learnt from the verdicts.

    stop after a token with q(x) < thr
    thr <- argmin over t of fpr(t) + miss_cost * fnr(t)     once more than 5 tokens are judged and both kinds have been seen

where a judged token counts as positive if it was accepted, and as predicted positive if q(x) >= t. Tokens after the first rejection are
not judged.

Reference: the confidence threshold of assisted generation in huggingface/transformers (thr = 0.4 at first, miss_cost = 3, at most 20
tokens), after Mamou et al. 2024, "Dynamic speculation lookahead" (arXiv 2405.04304). Differs from it:
- the judged tokens are counted in two histograms of q(x) with `bins` equal bins, so that a round costs O(bins) however long the text is
  (there: a sort of all draft tokens so far). A threshold is therefore the lower edge of a bin: at most 1/bins under the one found there
  for the same split of the tokens;
- q(x) is that of the raw softmax at every temperature (there: of the processed scores);
- each request starts afresh unless `persist` is set (there: it persists).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from draftwise.types import DraftStep, Now, Round

_ENOUGH = 5  # no threshold is learnt from this many judged tokens or fewer


class Judged(NamedTuple):
    """`threshold` in use; accepted and rejected tokens by bin of q(x), int [bins] each."""

    threshold: float
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Confidence:
    """Starts with `threshold` and drafts at most `cap` tokens."""

    threshold: float = 0.4
    cap: int = 20
    miss_cost: float = 3.0
    bins: int = 100
    persist: bool = False

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a probability in [0, 1], got {self.threshold}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1 draft token, got {self.cap}")
        if not 0 <= self.miss_cost < float("inf"):
            raise ValueError(f"miss_cost must be a finite number >= 0, got {self.miss_cost}")
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2, got {self.bins}")

    def init(self, last: Judged | None) -> Judged:
        empty = (0,) * self.bins
        return Judged(self.threshold, empty, empty) if last is None or not self.persist else last

    def budget(self, state: Judged, now: Now) -> int:
        return self.cap

    def more(self, state: Judged, now: Now, steps: Sequence[DraftStep]) -> bool:
        return steps[-1].prob >= state.threshold

    def update(self, state: Judged, round: Round) -> Judged:
        accepted, rejected = list(state.accepted), list(state.rejected)
        for i, step in enumerate(round.steps[: round.accepted + 1]):
            counts = accepted if i < round.accepted else rejected
            counts[min(int(step.prob * self.bins), self.bins - 1)] += 1
        return Judged(self._best(state.threshold, accepted, rejected), tuple(accepted), tuple(rejected))

    def _best(self, threshold: float, accepted: Sequence[int], rejected: Sequence[int]) -> float:
        positives, negatives = sum(accepted), sum(rejected)
        if positives + negatives <= _ENOUGH or not positives or not negatives:
            return threshold
        above, false, least = 0, 0, float("inf")
        for edge in range(self.bins - 1, -1, -1):  # from the top: of equal costs the highest threshold wins
            if not accepted[edge] and not rejected[edge]:
                continue
            above, false = above + accepted[edge], false + rejected[edge]
            cost = false * positives + self.miss_cost * (positives - above) * negatives  # both rates times both totals: exact
            if cost < least:
                threshold, least = edge / self.bins, cost
        return threshold
