"""EARS: the rejection test, loosened where the target itself is unsure.

    accept x iff (u - beta * U) * q(x) < p(x),   U = 1 - max p;   the first one refused is replaced by a sample of max(p - q, 0);   lossy

p and q are the warped laws. The chance of a token grows by beta * U at most, and the law of the emitted token moves by no more than that in
total variation, since the residual is that of the plain test. At temperature 0, and with beta = 0, the test is `speculative` bit for bit.

The extra chance does not depend on x, so the published rule accepts what truncation or a processor forbids, p(x) = 0, with probability beta * U.
`guard` refuses that; it is on here, and ``guard=false`` is the published rule.

Reference: Sun et al. 2025 (arXiv 2512.13194). A reconstruction: that the tolerance is proportional to 1 - max p stands in the abstract; the
form of the test is that of code which carries the author's own switch. beta = 0.3 is the author's test value, the paper's is not known. The
guard is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from draftwise.evidence import Live
from draftwise.methods.speculative import following
from draftwise.protocols import Evidence, Relax, always
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class EARS:
    """Chains only. The state is a constant 0."""

    beta: float = 0.3
    guard: bool = True

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must be in [0, 1] (0 is the lossless test), got {self.beta}")

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        relaxed: list[int] = []
        for i in range(len(evidence)):
            if evidence.chance(i).passed:
                continue
            if not self._tolerates(evidence, i) or not relax(i):
                return Decision(i, tuple(relaxed), state)
            relaxed.append(i)
        return Decision(len(evidence), tuple(relaxed), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        n, relaxed, state = self.decide(Live(target, draft, u), state, relax)
        return Verdict(list(range(n)), following(target, draft, n), relaxed), state

    def _tolerates(self, evidence: Evidence, i: int) -> bool:
        u, p, q = evidence.chance(i)
        return (u - self.beta * (1 - evidence.law(i).top1)) * q < p and (p > 0 or not self.guard)
