"""Speculative: the rejection test that keeps the target's distribution exactly.

    draft token x accepted iff u * q(x) < p(x);  the first one refused is replaced by a sample of max(p - q, 0);
    all N accepted: one more sample, from row N of p

A draft without a law (`draft.probs` None: a copy, or greedy drafting) has the one-point law q(x) = 1: accepted with probability p(x), and
replaced by a sample of p without x. At temperature 0 p is one-hot, so the test is "the target's own choice" without a branch for it.

In a tree the same test goes from sibling to sibling and down from the first that passes, with what a refusal leaves:

    after x was refused:  p <- norm(max(p - q, 0)), and q is the next sibling's own law;  none is left: a sample of p

This is exact for siblings drawn with replacement, without (q then lacks the earlier ones), and chosen without chance.

References: Leviathan, Kalman, Matias 2023 (arXiv 2211.17192); Chen et al. 2023, "Accelerating large language model decoding with
speculative sampling" (arXiv 2302.01318). Trees: Miao et al. 2023, SpecInfer (arXiv 2305.09781); Chen et al. 2024, Sequoia (arXiv
2402.12374). Differs from them in asking each token for the law it was drawn from, where they fix one way of drawing siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from draftwise import probs
from draftwise.evidence import Live
from draftwise.protocols import Evidence, Relax, always
from draftwise.trees import children, judges, walk
from draftwise.types import Decision, Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class Speculative:
    """The state is a constant 0."""

    lossless: ClassVar[bool] = True
    trees: ClassVar[bool] = True
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def init(self, last: int | None) -> int:
        return 0

    def decide(self, evidence: Evidence, state: int, relax: Relax = always) -> Decision:
        n = len(evidence)
        return Decision(next((i for i in range(n) if not evidence.chance(i).passed), n), (), state)

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        if draft.parents is not None:
            siblings = Siblings(target, draft, u)
            path = walk(children(draft.parents, len(draft.tokens)), siblings.passes)
            return Verdict(path, siblings.after(path)), state
        n, _, state = self.decide(Live(target, draft, u), state)
        return Verdict(list(range(n)), following(target, draft, n)), state


class Siblings:
    """The rejection test in a tree: what the refused children of a token leave of its row. Ask each token once, siblings in draft order."""

    def __init__(self, target: Target, draft: Draft, u: Uniforms) -> None:
        self.target, self.draft = target, draft
        rows = judges(draft.parents, len(draft.tokens))
        self._p, self._q = picks(target, draft, rows)
        self._rows, self._u, self._tokens = rows.tolist(), u.accept.tolist(), draft.tokens.tolist()
        self._left: dict[int, tuple[Tensor, float]] = {}  # by row: unnormalised weights [V] and their sum

    def passes(self, i: int) -> bool:
        """Whether token i is accepted now that its earlier siblings were refused."""
        row, token, left = self._rows[i], self._tokens[i], self._left.get(self._rows[i])
        p, mass = (self._p[i], 1.0) if left is None else (float(left[0][token]), left[1])
        if self._u[i] * self._q[i] * mass < p:  # strictly, and in float64: a token with p = 0 is never taken
            return True
        if p or self.draft.probs is not None:  # else there is nothing to take away: most tokens at temperature 0
            weights = self.target.p[row] if left is None else left[0]
            rest = probs.residual(weights, law_of(self.draft, i, weights) * mass)
            self._left[row] = rest, float(rest.sum(dtype=torch.float64))
        return False

    def after(self, path: Sequence[int]) -> Tensor:
        """The unnormalised law of the token after `path`, whose children were refused: float32 [V]."""
        row = path[-1] + 1 if path else 0
        return self._left[row][0] if row in self._left else self.target.p[row]


def picks(target: Target, draft: Draft, rows: Tensor) -> tuple[list[float], list[float]]:
    """p(x) and q(x) of every draft token x, in one transfer: N floats each. `rows` int64 [N]: the rows of the target that judge them."""
    p = target.p[rows.to(target.p.device), draft.tokens.to(target.p.device)]
    q = torch.ones_like(p) if draft.probs is None else probs.picked(draft.probs, draft.tokens).to(p)
    both: list[list[float]] = torch.stack([p, q]).tolist()
    return both[0], both[1]


def following(target: Target, draft: Draft, n: int) -> Tensor:
    """The unnormalised law of the token after the first n draft tokens, of which the next, if there is one, failed the test: float32 [V]."""
    return target.p[n] if n == len(draft.tokens) else remainder(target, draft, n)


def remainder(target: Target, draft: Draft, i: int) -> Tensor:
    """The unnormalised law of the token in place of draft token i, which failed the test: float32 [V]."""
    return probs.residual(target.p[i], law_of(draft, i, target.p[i]))


def law_of(draft: Draft, i: int, like: Tensor) -> Tensor:
    """What draft token i was drawn from, the one-point law where chance had no part: the shape, dtype and device of `like` [V]."""
    return one_hot(int(draft.tokens[i]), like) if draft.probs is None else probs.row(draft.probs, i, len(like)).to(like)


def one_hot(token: int, like: Tensor) -> Tensor:
    """The law of a token that is certain: the shape, dtype and device of `like` [V]."""
    law = torch.zeros_like(like)
    law[token] = 1
    return law
