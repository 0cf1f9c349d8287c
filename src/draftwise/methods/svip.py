"""SVIP: stop after a token whose draft row is too uncertain.

    after a token: stop if sqrt(scale * H(q)) > threshold        H in nats

The root is a lower bound's shape for the acceptance rate: 1 - sqrt(scale * H). With the constants of the paper the test is H > 0.6.

Reference: Zhang et al. 2024, "Draft model knows when to stop: a self-verification length policy for speculative decoding"
(arXiv 2411.18462). The entropy is that of the raw softmax at every temperature; at temperature 0 a warped row would always have H = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from draftwise.types import DraftStep, Now, Round


@dataclass(frozen=True)
class SVIP:
    """Drafts at most `cap` tokens. The state is a constant 0."""

    threshold: float = 0.3
    scale: float = 0.15
    cap: int = 40

    per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be at least 0, got {self.threshold}")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a finite number >= 0, got {self.scale}")
        if self.cap < 1:
            raise ValueError(f"cap must be at least 1 draft token, got {self.cap}")

    def init(self, last: int | None) -> int:
        return 0

    def budget(self, state: int, now: Now) -> int:
        return self.cap

    def more(self, state: int, now: Now, steps: Sequence[DraftStep]) -> bool:
        return math.sqrt(self.scale * max(steps[-1].entropy, 0.0)) <= self.threshold

    def update(self, state: int, round: Round) -> int:
        return state
