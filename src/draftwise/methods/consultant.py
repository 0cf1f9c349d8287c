"""Consultant Decoding: draft tokens stay while a moving average of what they cost the target, in nats, stays below a level.

    r_i = beta * r_{i-1} + (1 - beta) * (-ln p(x_i));   accept x_i iff r_i <= eps;   the first one refused is replaced by a sample of p;   lossy

p in the average is the target's **raw** softmax, or eps would lose its meaning; the sample is of the warped law. The draft's law is never looked
at. r belongs to the request and covers emitted text only: it begins with the first cost; after a refusal it goes on from r_{i-1} with the cost
of the token emitted instead; bonus tokens are not judged and do not enter. ``reset=true`` begins anew in each round. beta = 0 is the plain
threshold p(x) >= exp(-eps); eps = -inf refuses everything, eps = inf nothing. A token that the request's truncation or processors forbid
is refused.

Reference: Ding et al. 2025, "Consultant decoding: yet another synergistic mechanism" (arXiv 2506.02391, Findings of ACL). A reconstruction: the
rule, eps = 2 and beta = 0.2 are second hand; how r begins, that it lives on, and what enters after a refusal are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from draftwise.evidence import Live
from draftwise.protocols import Evidence, Relax, always
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


class Average(NamedTuple):
    """r, in nats; it means nothing before `known`."""

    known: bool = False
    r: float = 0.0


@dataclass(frozen=True)
class Consultant:
    """Chains only."""

    eps: float = 2.0
    beta: float = 0.2
    reset: bool = False

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if math.isnan(self.eps):
            raise ValueError("eps must be a number of nats, got nan")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1) (0: no smoothing), got {self.beta}")

    def init(self, last: Average | None) -> Average:
        return Average()

    def decide(self, evidence: Evidence, state: Average, relax: Relax = always) -> Decision:
        average = Average() if self.reset else state
        relaxed: list[int] = []
        for i in range(len(evidence)):
            tried = self._with(average, evidence.raw(i).prob)
            lossless = evidence.chance(i).passed
            if not tried.r <= self.eps or not evidence.allowed(i) or not (lossless or relax(i)):
                return Decision(i, tuple(relaxed), self._with(average, evidence.likelihood(i, evidence.choice(i))))
            relaxed += [] if lossless else [i]
            average = tried
        return Decision(len(evidence), tuple(relaxed), average)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: Average, relax: Relax = always) -> tuple[Verdict, Average]:
        n, relaxed, after = self.decide(Live(target, draft, u), state, relax)
        return Verdict(list(range(n)), target.p[n], relaxed), after  # drawn with the uniform of `choice`, so it is the token that entered

    def _with(self, average: Average, p: float) -> Average:
        cost = -math.log(max(p, 1e-38))  # finite: a state that is infinite would stay so
        return Average(True, self.beta * average.r + (1 - self.beta) * cost if average.known else cost)
