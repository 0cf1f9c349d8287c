"""Typical acceptance: a draft token stays if the target finds it likely enough for how uncertain it is.

    accept x iff p(x) > min(eps, delta * exp(-H(p)));  the first one refused is replaced by a sample of p;  lossy

H in nats. Where p is one-hot (temperature 0, or a truncation that leaves one token) the test is made on the raw softmax of the target,
and x must be allowed by the request's own truncation and processors; the target's choice always passes.

Reference: Cai et al. 2024, "Medusa: simple LLM inference acceleration framework with multiple decoding heads" (arXiv 2401.10774), after
Hewitt, Manning, Liang 2022 (truncation as desmoothing). Medusa also takes the first token of a round from the base model always. There it
is a token without a draft, from the base model's own head; here that is the token after the last verdict, which the target has sampled
already, so that all drafted tokens face the test. With Medusa's constants eps never binds: delta * exp(-H) <= delta < eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from draftwise import probs
from draftwise.methods.speculative import passes
from draftwise.protocols import Relax, always
from draftwise.types import Draft, Target, Uniforms, Verdict


@dataclass(frozen=True)
class Typical:
    """Chains only. The state is a constant 0."""

    eps: float = 0.3
    delta: float = 0.09

    lossless: ClassVar[bool] = False
    trees: ClassVar[bool] = False
    wants_logits: ClassVar[bool] = False
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("eps", "delta"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def init(self, last: int | None) -> int:
        return 0

    def judge(self, target: Target, draft: Draft, u: Uniforms, state: int, relax: Relax = always) -> tuple[Verdict, int]:
        path: list[int] = []
        relaxed: list[int] = []
        verdicts = zip(self._likely(target, draft.tokens), passes(target, draft, u), strict=True)
        for i, (likely, lossless) in enumerate(verdicts):
            if not likely or not (lossless or relax(i)):
                break
            path.append(i)
            relaxed += [] if lossless else [i]
        return Verdict(path, target.p[len(path)], tuple(relaxed)), state

    def _likely(self, target: Target, tokens: Tensor) -> list[bool]:
        """Which tokens of a chain pass the test on their row: [N]."""
        n = len(tokens)
        if not n:
            return []
        sure = target.p[:n].amax(-1) == 1
        if bool(sure.all()):
            return self._sure(target, tokens)
        passed = probs.picked(target.p, tokens) > self.least(target.p[:n])
        if not bool(sure.any()):
            return _flags(passed)
        return [a if b else c for a, b, c in zip(self._sure(target, tokens), _flags(sure), _flags(passed), strict=True)]

    def _sure(self, target: Target, tokens: Tensor) -> list[bool]:
        """The test of rows whose law is one-hot."""
        raw = target.logits[: len(tokens)].float().softmax(-1)
        likely = (probs.picked(raw, tokens) > self.least(raw)) & target.allowed.to(raw.device)
        return _flags(likely | (probs.picked(target.p, tokens) == 1))

    def least(self, laws: Tensor) -> Tensor:
        """The probability that a token must exceed: [n] of `laws` [n, V]."""
        return (self.delta * torch.exp(-torch.special.entr(laws).sum(-1))).clamp(max=self.eps)


def _flags(row: Tensor) -> list[bool]:
    return [bool(flag) for flag in row.tolist()]
