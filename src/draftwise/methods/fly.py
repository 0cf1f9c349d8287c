"""FLy: a token that the target did not choose stays if the target is unsure there and the draft is right again afterwards.

    match_j = x_j is what the target draws itself (at temperature 0 the argmax)
    accept x_j iff match_j, or
        gate 'top3':        match_{j+1} .. match_{j+W-1} all hold, j + W < N, and h_j >= theta      h = entropy of the 3 likeliest tokens, in nats
        gate 'normalized':  match_{j+1} .. match_{j+W} all hold, j + W < N, and h_j >= theta        h = entropy of the row / ln V
    the first one refused, and all after it, fall away; it is replaced by the target's own draw;  lossy, without state

j counts from 0. The window is read off the matches alone: two mismatches within it undo the earlier one. A draft of at most W tokens, or theta above
the largest entropy (ln 3, or 1), gives exact match. h is of the raw softmax; a token must be allowed by the request's truncation and processors.

Reference: Li et al. 2025, "FLy: training-free loosely speculative decoding" (arXiv 2511.22972, ICLR 2026). 'top3' is the rule of the released code,
where W = 6 counts the mismatch itself, and the default; 'normalized' is the paper's, second hand. Differs from the code above temperature
0: there the target draws twice and either draw is a match; here once, so that without its window the rule keeps the target's law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from draftwise.evidence import Live
from draftwise.protocols import Evidence, Relax, always
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict

_LIKELIEST = 3


@dataclass(frozen=True)
class FLy:
    """Chains only. The state is a constant 0."""

    window: int = 6
    theta: float = 0.3
    gate: str = "top3"

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1 token, got {self.window}")
        if not self.theta >= 0:
            raise ValueError(f"theta must be at least 0, got {self.theta}")
        if self.gate not in ("top3", "normalized"):
            raise ValueError(f"gate must be 'top3' or 'normalized', got {self.gate!r}")

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        n = len(evidence)
        relaxed: list[int] = []
        for i in range(n):
            if evidence.match(i):
                continue
            if not (self._recovers(evidence, i) and evidence.allowed(i) and self.entropy(evidence, i) >= self.theta and relax(i)):
                return Decision(i, tuple(relaxed), state)
            relaxed.append(i)
        return Decision(n, tuple(relaxed), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        n, relaxed, state = self.decide(Live(target, draft, u), state, relax)
        return Verdict(list(range(n)), target.p[n], relaxed), state  # drawn with the uniform of the match, so never the refused token

    def entropy(self, evidence: Evidence, i: int) -> float:
        """What theta is held against."""
        if self.gate == "normalized":
            return evidence.raw(i).entropy / math.log(max(2, evidence.vocab))
        return sum(-p * math.log(p) for _, p in evidence.top(i)[:_LIKELIEST] if p > 0)

    def _recovers(self, evidence: Evidence, i: int) -> bool:
        last = i + self.window - (self.gate == "top3")  # of the followers that are looked at
        return i + self.window < len(evidence) and all(evidence.match(j) for j in range(i + 1, last + 1))
