"""Typical acceptance: a draft token stays if the target finds it likely enough for how uncertain it is.

    accept x iff p(x) > min(eps, delta * exp(-H(p)));  the first one refused is replaced by a sample of p;  lossy

H in nats. Where p is one-hot (temperature 0, or a truncation that leaves one token) the test is made on the raw softmax of the target,
and x must be allowed by the request's own truncation and processors; the target's choice always passes.

In a tree the longest path of tokens that pass is taken; of several, the one that the target finds likeliest.

Reference: Cai et al. 2024, "Medusa: simple LLM inference acceleration framework with multiple decoding heads" (arXiv 2401.10774), after
Hewitt, Manning, Liang 2022 (truncation as desmoothing). Medusa also takes the first token of a round from the base model always. There it
is a token without a draft, from the base model's own head; here that is the token after the last verdict, which the target has sampled
already, so that all drafted tokens face the test. With Medusa's constants eps never binds: delta * exp(-H) <= delta < eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from draftwise.evidence import Live, unfolded
from draftwise.methods.speculative import Siblings
from draftwise.protocols import Evidence, Relax, always
from draftwise.trees import children, deepest
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class Typical:
    """The state is a constant 0."""

    eps: float = 0.3
    delta: float = 0.09

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = True
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("eps", "delta"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        relaxed: list[int] = []
        for i in range(len(evidence)):
            likely, lossless = self._likely(evidence, i), evidence.chance(i).passed
            if not likely or not (lossless or relax(i)):
                return Decision(i, tuple(relaxed), state)
            relaxed += [] if lossless else [i]
        return Decision(len(evidence), tuple(relaxed), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        if draft.parents is not None:
            path, relaxed = self._longest(target, draft, u, relax)
            return Verdict(path, target.p[path[-1] + 1 if path else 0], relaxed), state
        n, relaxed, state = self.decide(Live(target, draft, u), state, relax)
        return Verdict(list(range(n)), target.p[n], relaxed), state

    def _longest(self, target: Target, draft: Draft, u: Uniforms, relax: Relax) -> tuple[list[int], tuple[int, ...]]:
        """The path, and the positions in it where the rejection test would have gone another way."""
        evidence, siblings = unfolded(target, draft, u), Siblings(target, draft, u)
        below = children(draft.parents, len(evidence))
        best = deepest(below, lambda i: self._likely(evidence, i), lambda i: math.log(evidence.raw(i).prob or 1e-38))
        relaxed: list[int] = []
        for depth, i in enumerate(best):
            lossless = next((j for j in below[best[depth - 1] if depth else -1] if siblings.passes(j)), None)
            if i != lossless and not relax(i):
                return best[:depth], tuple(relaxed)
            relaxed += [] if i == lossless else [depth]
        return best, tuple(relaxed)

    def _likely(self, evidence: Evidence, i: int) -> bool:
        law = evidence.law(i)
        if law.top1 < 1:
            return law.prob > self.least(law.entropy)
        raw = evidence.raw(i)
        return law.prob == 1 or (evidence.allowed(i) and raw.prob > self.least(raw.entropy))

    def least(self, entropy: float) -> float:
        """The probability that a token must exceed where its law has this entropy, in nats."""
        return min(self.eps, self.delta * math.exp(-entropy))
