"""AdaEDL: stop when an entropy-based lower bound of the acceptance rate falls below a threshold that follows the acceptance history.

    after a token: stop if 1 - sqrt(scale * H(q)) < lam                         H in nats
    after a round: rate <- keep_rate * rate + (1 - keep_rate) * A / N
                   aim   = lam + step if rate < target else lam - step
                   lam  <- keep * lam + (1 - keep) * aim, within [0, 1]

Reference: Agrawal, Jeon, Lee 2024, "AdaEDL: early draft stopping for speculative decoding of large language models via an entropy-based
lower bound on token acceptance probability" (arXiv 2410.18351).

A reconstruction where the paper could not be checked. The bound and the two moving averages are reported of it; the form of the update is
that of Draft & Verify (Zhang et al. 2023, arXiv 2309.08168), and `scale`, `target`, `step`, `keep_rate`, `keep` and the start are
unconfirmed. The sign is ours too, and follows from the sense of the test: acceptance below `target` means that too much is drafted in
vain, so lam rises and drafting stops earlier. The entropy is that of the raw softmax at every temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from draftwise.types import DraftStep, Now, Round


class History(NamedTuple):
    """Moving average of the acceptance rate, and the threshold lam."""

    rate: float
    threshold: float


@dataclass(frozen=True)
class AdaEDL:
    """Starts with lam = `threshold` and a history at `target`, and drafts at most `cap` tokens."""

    threshold: float = 0.6
    scale: float = 0.2
    target: float = 0.9
    step: float = 0.01
    keep_rate: float = 0.5
    keep: float = 0.9
    cap: int = 20

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("threshold", "target", "step", "keep_rate", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a finite number >= 0, got {self.scale}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1 draft token, got {self.cap}")

    def init(self, last: History | None) -> History:
        return History(self.target, self.threshold)

    def budget(self, state: History, now: Now) -> int:
        return self.cap

    def more(self, state: History, now: Now, steps: Sequence[DraftStep]) -> bool:
        return 1 - math.sqrt(self.scale * max(steps[-1].entropy, 0.0)) >= state.threshold

    def update(self, state: History, round: Round) -> History:
        rate = self.keep_rate * state.rate + (1 - self.keep_rate) * round.accepted / round.depth
        aim = state.threshold + (self.step if rate < self.target else -self.step)
        threshold = self.keep * state.threshold + (1 - self.keep) * aim
        return History(rate, min(max(threshold, 0.0), 1.0))
