"""Speculative: the rejection test that keeps the target's distribution exactly.

    draft token x accepted iff u * q(x) < p(x);  the first one refused is replaced by a sample of max(p - q, 0);
    all N accepted: one more sample, from row N of p

A draft without a law (`draft.probs` None: a copy, or greedy drafting) has the one-point law q(x) = 1: accepted with probability p(x), and
replaced by a sample of p without x. At temperature 0 p is one-hot, so the test is "the target's own choice" without a branch for it.

References: Leviathan, Kalman, Matias 2023 (arXiv 2211.17192); Chen et al. 2023, "Accelerating large language model decoding with
speculative sampling" (arXiv 2302.01318).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from draftwise import probs
from draftwise.evidence import Live
from draftwise.protocols import Evidence, Relax, always
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class Speculative:
    """Chains only. The state is a constant 0."""

    lossless: ClassVar[bool] = True
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        n = len(evidence)
        return Decision(next((i for i in range(n) if not evidence.chance(i).passed), n), (), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        n, _, state = self.decide(Live(target, draft, u), state)
        return Verdict(list(range(n)), following(target, draft, n)), state


def following(target: Target, draft: Draft, n: int) -> Tensor:
    """The unnormalised law of the token after the first n draft tokens, of which the next, if there is one, failed the test: float32 [V]."""
    return target.p[n] if n == len(draft.tokens) else remainder(target, draft, n)


def remainder(target: Target, draft: Draft, i: int) -> Tensor:
    """The unnormalised law of the token in place of draft token i, which failed the test: float32 [V]."""
    p = target.p[i]
    q = one_hot(int(draft.tokens[i]), p) if draft.probs is None else probs.row(draft.probs, i, len(p)).to(p.device)
    return probs.residual(p, q)


def one_hot(token: int, like: Tensor) -> Tensor:
    """The law of a token that is certain: the shape, dtype and device of `like` [V]."""
    law = torch.zeros_like(like)
    law[token] = 1
    return law
